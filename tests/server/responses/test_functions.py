"""Functions that a response may call: what the model is told, what it may write, its events, and their outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from fakes_responses import checked, post, streamed
from fakes_server import MODEL, World, make_world, serving
from fakes_tools import random_app, teach

from model.engine.request import FinishReason
from model.tokenizer import Tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": CITY, "strict": True}
NOW: Any = {"type": "function", "name": "now", "parameters": None, "strict": None}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: Any = [WEATHER, NOW]
ASK = "What is the weather in Bonn?"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "B\\"}n", "days": 2}}\n</tool_call>'
NOW_CALL = '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
TOLD = {"city": 'B"}n', "days": 2}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def world(tmp_path: Path, taught: Tokenizer) -> World:
    return make_world(tmp_path / "data", taught)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def read(world: World, taught: Tokenizer) -> str:
    """What the model was given last."""
    return taught.decode(world.engine.requests[-1].prompt_ids)


def test_a_program_that_calls_functions_runs_as_it_is(client: openai.OpenAI, world: World, taught: Tokenizer) -> None:
    """The loop of OpenAI's guide: the calls are answered, and everything is sent back."""
    said: list[Any] = [{"role": "user", "content": ASK}]
    world.engine.enqueue(
        "", pieces=["Let me see.\n", CALL, '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>']
    )
    response = client.responses.create(model=MODEL, input=said, tools=TOOLS)
    message, weather, now = response.output
    assert message.type == "message" and response.output_text == "Let me see." and response.status == "completed"
    assert weather.type == now.type == "function_call"
    assert (weather.name, json.loads(weather.arguments), weather.status) == ("weather", TOLD, "completed")
    assert (now.name, now.arguments) == ("now", "{}") and weather.call_id != now.call_id
    assert '"description": "Of a city."' in read(world, taught)
    said += response.output
    for call in (weather, now):
        said.append({"type": "function_call_output", "call_id": call.call_id, "output": f"It is {call.name}."})
    world.engine.enqueue("Rain.")
    response = client.responses.create(model=MODEL, input=said, tools=TOOLS)
    assert response.output_text == "Rain."
    told = read(world, taught)
    assert told.index("Let me see.<tool_call>") < told.index("It is weather.") < told.index("It is now.")
    assert told.count("<tool_call>\n{") == 2
    items = list(client.responses.input_items.list(response.id, order="asc"))
    kinds = ["message", "message", "function_call", "function_call", "function_call_output", "function_call_output"]
    assert [item.type for item in items] == kinds
    assert items[2].call_id == items[4].call_id == weather.call_id  # type: ignore[union-attr]


def test_outputs_go_on_from_the_response_that_called(client: openai.OpenAI, world: World, taught: Tokenizer) -> None:
    world.engine.enqueue(CALL)
    first = client.responses.create(model=MODEL, input=ASK, tools=TOOLS)
    (call,) = first.output
    assert call.type == "function_call"
    assert client.responses.retrieve(first.id).output == first.output
    output: Any = {"type": "function_call_output", "call_id": call.call_id}
    output["output"] = [{"type": "input_text", "text": "Rain, "}, {"type": "input_text", "text": "then sun."}]
    more: Any = {"previous_response_id": first.id, "input": [output], "tools": TOOLS}
    world.engine.enqueue("Rain.")
    assert client.responses.create(model=MODEL, **more).output_text == "Rain."
    assert "Rain, then sun." in read(world, taught) and ASK in read(world, taught)
    counted = client.responses.input_tokens.count(model=MODEL, **more).input_tokens
    assert counted == len(world.engine.requests[-1].prompt_ids)


def test_the_events_of_calls(url: str, world: World) -> None:
    world.engine.enqueue("", pieces=["Let me ", "see.\n", "<tool", "_call>\n{", *CALL.removeprefix("<tool_call>\n{")])
    events = streamed(url, {"model": MODEL, "input": ASK, "tools": TOOLS})
    kinds = [each["type"] for each in events]
    item = ["response.output_item.added", "response.content_part.added"]
    begin = ["response.created", "response.in_progress", *item, "response.output_text.delta"]
    assert kinds[: len(begin)] == begin
    at = kinds.index("response.output_text.done")
    assert kinds[at : at + 5] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
    ]
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    added, done = events[at + 3]["item"], events[-2]["item"]
    assert (added["arguments"], added["status"], done["status"]) == ("", "in_progress", "completed")
    deltas = [each for each in events if each["type"] == "response.function_call_arguments.delta"]
    assert "".join(each["delta"] for each in deltas) == events[-3]["arguments"] == done["arguments"]
    assert {each["item_id"] for each in deltas} == {done["id"]} and {each["output_index"] for each in deltas} == {1}
    assert events[-1]["response"]["output"] == [events[at + 2]["item"], done]
    assert added == done | {"arguments": "", "status": "in_progress"}


def test_the_stream_helper_has_the_calls(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("", pieces=list(CALL))
    with client.responses.stream(model=MODEL, input=ASK, tools=TOOLS) as stream:
        *_, last = stream
        (call,) = stream.get_final_response().output
    assert last.type == "response.completed" and call.type == "function_call"
    assert call.parsed_arguments == TOLD  # type: ignore[union-attr]


def test_a_call_that_was_cut_is_incomplete(url: str, world: World) -> None:
    world.engine.enqueue("", pieces=[CALL[:50]], finish_reason=FinishReason.LENGTH)
    told = post(url, {"model": MODEL, "input": ASK, "tools": TOOLS}).json()
    checked(told)
    (call,) = told["output"]
    assert (told["status"], call["status"], call["arguments"]) == ("incomplete", "incomplete", CALL[45:50])
    for text in ("a < b <tool_cat>", ""):
        world.engine.enqueue("", pieces=[text] if text else [])
        told = post(url, {"model": MODEL, "input": ASK, "tools": TOOLS}).json()
        (message,) = told["output"]
        assert message["content"][0]["text"] == text


def test_log_probabilities_are_those_of_the_text(url: str, world: World, taught: Tokenizer) -> None:
    body = {"model": MODEL, "input": ASK, "tools": TOOLS, "include": ["message.output_text.logprobs"]}
    for text in ("One two", f"One two{CALL}", f"One two \n{CALL}"):
        ids = taught.encode_ids(text)
        pieces = [taught.token_bytes(each).decode() for each in ids]
        pieces[0] = pieces[0].removeprefix(" ") if taught.adds_leading_space else pieces[0]
        world.engine.enqueue("", pieces=pieces, token_ids=ids)
        message = post(url, body).json()["output"][0]
        assert message["content"][0]["text"] == "One two"
        told = message["content"][0]["logprobs"]
        assert "".join(each["token"] for each in told).strip() == "One two"


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now"}),
        ({"type": "function", "name": "weather"}, {"weather"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}, {"now"}),
    ],
)
def test_a_call_that_must_be_is_one_whatever_the_model(random_url: str, choice: Any, names: set[str]) -> None:
    with openai.OpenAI(base_url=random_url, api_key="any", max_retries=0) as client:
        for _ in range(2):
            response = client.responses.create(
                model=MODEL,
                input="Bonn?",
                tools=[WEATHER, NOW | {"parameters": NOTHING}],
                tool_choice=choice,
                parallel_tool_calls=False,
                max_output_tokens=340,
            )
            (call,) = response.output
            assert response.status == "completed" and call.type == "function_call" and call.name in names
            arguments = json.loads(call.arguments)
            if call.name == "weather":
                jsonschema.validate(arguments, CITY)


@pytest.fixture(scope="module")
def random_url(tmp_path_factory: pytest.TempPathFactory, taught: Tokenizer) -> Iterator[str]:
    with serving(random_app(tmp_path_factory.mktemp("random"), taught)) as url:
        yield f"{url}/v1"


def test_a_function_that_may_not_be_called_is_not_told_of(url: str, world: World, taught: Tokenizer) -> None:
    assert post(url, {"model": MODEL, "input": ASK, "tools": TOOLS, "tool_choice": "none"}).status_code == 200
    assert "Of a city." not in read(world, taught) and world.engine.requests[-1].constraint is None


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "invalid_value"),
        ({"tools": ["weather"]}, "tools.0", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "missing_field"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools.0.defer_loading", "unsupported_field"),
        ({"tools": [WEATHER | {"parameters": {"type": "array"}}]}, "tools.0.parameters", "invalid_value"),
        ({"tools": [WEATHER | {"name": "a b"}]}, "tools.0.name", "invalid_value"),
        ({"tools": [WEATHER, {"type": "custom", "name": "x"}]}, "tools.1.type", "unsupported_field"),
        ({"tools": [WEATHER, {"type": "file_search", "vector_store_ids": ["vs_x"]}]}, "tools", "invalid_value"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "invalid_value"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "invalid_value"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
            "tool_choice.tools.0",
            "invalid_value",
        ),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "invalid_value"),
        ({"fano": {"documents": ["doc_x"]}}, "tools", "invalid_value"),
        (
            {"input": [{"type": "function_call_output", "call_id": "call_x", "output": "y"}]},
            "input.0.call_id",
            "invalid_value",
        ),
        ({"input": [{"type": "function_call", "call_id": "call_x", "name": "now"}]}, "input.0", "invalid_value"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
            "input.0.output.0.type",
            "unsupported_field",
        ),
    ],
)
def test_what_is_refused(url: str, change: dict[str, Any], param: str, code: str) -> None:
    reply = post(url, {"model": MODEL, "input": ASK, "tools": TOOLS, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


def test_a_model_that_was_not_taught_refuses_by_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with serving(make_world(tmp_path / "other", tokenizer).app) as url:
        error = post(f"{url}/v1", {"model": MODEL, "input": ASK, "tools": TOOLS}).json()["error"]
        assert (error["param"], error["code"]) == ("tools.0.type", "unsupported_field")
        assert "chat template has no tools" in error["message"]
        call = {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"}
        items = [call, {"type": "function_call_output", "call_id": "c", "output": "y"}]
        error = post(f"{url}/v1", {"model": MODEL, "input": items}).json()["error"]
        assert (error["param"], error["code"]) == ("input.0.type", "unsupported_field")
