"""Functions that a chat may call, with a chat template that teaches calls: what the model is told, what it may write,
and how calls reach the official client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from fakes_server import MODEL, World, chunks, make_world, open_client, serving
from fakes_tools import random_app, teach

from model.engine.request import FinishReason
from model.tokenizer import Tokenizer
from server.chat.grammar import Grammars
from server.chat.tool_calls import CallArguments, CallBegins, CallReader
from server.chat.tool_grammar import CallsOrText, call_grammar
from server.chat.tool_schema import FunctionSpec

ROUTE = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 5}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
ASK: Any = [{"role": "user", "content": "What is the weather in Bonn?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "B\\"}n", "days": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return teach(tmp_path_factory.mktemp("taught"))


@pytest.fixture
def tooled(tmp_path: Path, taught: Tokenizer) -> World:
    return make_world(tmp_path / "data", taught)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, taught: Tokenizer) -> Iterator[str]:
    with serving(random_app(tmp_path_factory.mktemp("random"), taught)) as url:
        yield f"{url}/v1"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_is_one_whatever_the_model(url: str, choice: Any) -> None:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        for seed in range(2):
            more: Any = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "seed": seed}
            reply = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=390, **more)
            (whole,) = reply.choices
            assert whole.finish_reason == "tool_calls" and whole.message.content is None
            (call,) = whole.message.tool_calls or []
            assert call.type == "function" and call.id.startswith("call_")
            arguments = json.loads(call.function.arguments)
            if call.function.name == "weather":
                jsonschema.validate(arguments, CITY)
            else:
                assert call.function.name == "now" and choice == "required" and isinstance(arguments, dict)
            with client.chat.completions.stream(model=MODEL, messages=ASK, max_tokens=390, **more) as stream:
                for _ in stream:
                    pass
                final = stream.get_final_completion().choices[0]
            assert final.finish_reason == "tool_calls"
            (same,) = final.message.tool_calls or []
            assert same.function.name == call.function.name
            assert same.function.arguments == call.function.arguments


async def test_the_model_is_told_of_functions_calls_and_results(tooled: World, taught: Tokenizer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain <|end|>"},
    ]
    async with open_client(tooled) as client:
        reply = await client.post(ROUTE, json={"model": MODEL, "messages": messages, "tools": TOOLS})
        assert reply.status_code == 200, reply.text
        shown = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}, "id": "call_1"}
        expected = taught.encode_chat([*ASK, {"role": "assistant", "content": "", "tool_calls": [shown]}])
        prompt = list(tooled.engine.requests[0].prompt_ids)
        text = taught.decode(prompt)
        assert '{"name": "weather", "arguments": {"city": "Bonn"}}' in text and "Rain <|end|>" in text
        assert '"description": "Of a city."' in text and len(prompt) > len(expected)
        # What a tool says forges no control token.
        (end,) = [each for each in taught.eos_ids if taught.control_token(each) == "<|end|>"]
        assert prompt.count(end) == 4
        await client.post(ROUTE, json={"model": MODEL, "messages": ASK, "tools": TOOLS, "tool_choice": "none"})
        assert tuple(tooled.engine.requests[1].prompt_ids) == taught.encode_chat(ASK)
        assert tooled.engine.requests[1].constraint is None


async def test_text_and_calls_reach_the_client_apart(tooled: World) -> None:
    pieces = ["Let me ", "see.\n", "<tool", "_call>\n{", *CALL.removeprefix("<tool_call>\n{")]
    pieces += ["\n", '<tool_call>{"name": "now", "arguments": {}}</tool_call>']
    async with open_client(tooled) as client:
        body = {"model": MODEL, "messages": ASK, "tools": TOOLS}
        for stream in (False, True):
            tooled.engine.enqueue("", pieces=pieces)
            reply = await client.post(ROUTE, json={**body, "stream": stream})
            if stream:
                told = chunks(reply.text)
                content, calls, reason = joined(told)
            else:
                (choice,) = reply.json()["choices"]
                content, calls, reason = choice["message"]["content"], choice["message"]["tool_calls"], ""
                reason = choice["finish_reason"]
            assert (content, reason) == ("Let me see.", "tool_calls")
            assert [call["function"]["name"] for call in calls] == ["weather", "now"]
            assert json.loads(calls[0]["function"]["arguments"]) == {"city": 'B"}n', "days": 2}
            assert calls[1]["function"]["arguments"] == "{}" and calls[0]["id"] != calls[1]["id"]


def joined(told: list[Any]) -> tuple[str, list[Any], str]:
    """What a client makes of the deltas."""
    content, calls, reason = "", [], ""
    for chunk in told:
        (choice,) = chunk["choices"]
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for delta in choice["delta"].get("tool_calls", ()):
            if "id" in delta:
                assert delta["index"] == len(calls) and delta["type"] == "function"
                calls.append({"id": delta["id"], "function": dict(delta["function"])})
            else:
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return content, calls, reason


async def test_a_call_that_was_cut_says_so_and_text_alone_stays_text(tooled: World) -> None:
    async with open_client(tooled) as client:
        body = {"model": MODEL, "messages": ASK, "tools": TOOLS}
        tooled.engine.enqueue("", pieces=[CALL[:50]], finish_reason=FinishReason.LENGTH)
        (choice,) = (await client.post(ROUTE, json=body)).json()["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == CALL[45:50]
        for stream in (False, True):
            tooled.engine.enqueue("", pieces=["a < b ", "<tool_", "cat> ", " "])
            reply = await client.post(ROUTE, json={**body, "stream": stream})
            if stream:
                assert joined(chunks(reply.text)) == ("a < b <tool_cat>  ", [], "stop")
            else:
                (choice,) = reply.json()["choices"]
                assert choice["message"] == {"role": "assistant", "content": "a < b <tool_cat>  ", "refusal": None}


def test_a_call_that_has_begun_is_kept_to_its_form(taught: Tokenizer) -> None:
    grammars = Grammars(taught)
    functions = [("tools.0.function", FunctionSpec(name="weather", parameters=CITY))]
    constraint = CallsOrText(call_grammar(grammars, functions, several=False), grammars)
    rest, reader, heard = b"Sure. " + CALL.encode(), CallReader(), []
    while rest:
        allowed = constraint.allowed()
        ids = range(taught.vocab_size) if allowed is None else [int(each) for each in allowed]
        fitting = [each for each in ids if taught.token_bytes(each) and rest.startswith(taught.token_bytes(each))]
        token_id = max(fitting, key=lambda each: len(taught.token_bytes(each)))
        constraint.advance(token_id)
        heard += reader.push(taught.token_bytes(token_id).decode())
        rest = rest[len(taught.token_bytes(token_id)) :]
        assert constraint.is_complete == (not rest)
    assert isinstance(heard[-1], CallArguments) and any(isinstance(each, CallBegins) for each in heard)
    # After the mark nothing but a call may come.
    constraint = CallsOrText(call_grammar(grammars, functions, several=False), grammars)
    for token_id in taught.encode_ids("x<tool_call>"):
        assert constraint.allowed() is None
        constraint.advance(token_id)
    allowed = constraint.allowed()
    assert allowed is not None
    assert {taught.token_bytes(int(each)).strip()[:1] for each in allowed} <= {b"", b"{"}


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "invalid_value"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
            "invalid_value",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": "must"}, "tool_choice.type", "invalid_value"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
        ({"fano": {"documents": ["doc_x"]}}, "tools", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]},
            "tools.0.function.parameters",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters",
            "invalid_value",
        ),
    ],
)
async def test_what_is_refused(tooled: World, change: dict[str, Any], param: str, code: str) -> None:
    async with open_client(tooled) as client:
        reply = await client.post(ROUTE, json={"model": MODEL, "messages": ASK, "tools": TOOLS, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code), error


async def test_a_model_that_was_not_taught_refuses_by_name(client: httpx.AsyncClient) -> None:
    reply = await client.post(ROUTE, json={"model": MODEL, "messages": ASK, "tools": TOOLS})
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_field")
    assert "chat template has no tools" in error["message"]
    for idle in ({"tools": []}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"parallel_tool_calls": True}):
        assert (await client.post(ROUTE, json={"model": MODEL, "messages": ASK, **idle})).status_code == 200
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    reply = await client.post(ROUTE, json={"model": MODEL, "messages": [*ASK, result]})
    assert reply.json()["error"]["param"] == "messages.1.role"
