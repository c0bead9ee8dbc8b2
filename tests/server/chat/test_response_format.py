"""Replies of a form over HTTP: a real engine of random weights, the official client and its pydantic models."""

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from fakes_library import FakeLibrary
from fakes_server import MODEL, World, chunks, serving
from fakes_world import make_world

from model.config import EngineConfig, ModelConfig
from model.errors import ConstraintFailed
from model.kernels import REFERENCE
from server.answers.inquiry import ServedModel
from server.app import create_app
from server.bills.forecast import Forecaster
from server.metrics import Metrics
from server.services import Services, embedded_checkpoint
from server.settings import Settings

HELLO: Any = [{"role": "user", "content": "Hello"}]


class Animal(pydantic.BaseModel):
    """What the client makes a strict schema of."""

    name: str = pydantic.Field(max_length=5)
    legs: Literal[0, 2, 4]
    friends: list["Animal"] = pydantic.Field(max_length=1)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tiny = make_world(tmp_path_factory.mktemp("world"), {1: REFERENCE})
    engine, _ = tiny.engine(EngineConfig(num_slots=4, num_blocks=60, max_context_tokens=400), time.monotonic)
    checkpoint = ModelConfig.from_pretrained(embedded_checkpoint())
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), read_documents=False)
    model = ServedModel(MODEL, 0, engine.policy, "float32", 400)
    forecaster, metrics = Forecaster(checkpoint, EngineConfig()), Metrics()
    library: Any = FakeLibrary()
    services = Services(settings, metrics, library, engine, tiny.tokenizer, model, forecaster)
    with serving(create_app(settings, services, metrics)) as url:
        yield f"{url}/v1"


@pytest.fixture
def official(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def json_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}


FORM = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "word": {"type": "string", "maxLength": 4}},
    "required": ["ok", "word"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_the_client_parses_a_reply_into_its_own_model(official: openai.OpenAI, seed: int) -> None:
    reply = official.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Animal, max_tokens=200, seed=seed, temperature=1.0
    )
    assert reply.choices[0].finish_reason == "stop"
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Animal)
    assert Animal.model_validate_json(reply.choices[0].message.content or "") == parsed


def test_the_stream_helper_parses_too(official: openai.OpenAI) -> None:
    with official.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=Animal, max_tokens=200, seed=5
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Animal)


async def test_the_async_client_has_several_choices_with_logprobs(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        reply = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            response_format=json_schema(FORM),
            n=3,
            logprobs=True,
            top_logprobs=1,
            seed=1,
            max_tokens=120,
        )
        again = await client.chat.completions.create(
            model=MODEL, messages=HELLO, response_format=json_schema(FORM), n=3, seed=1, max_tokens=120
        )
    texts = [choice.message.content or "" for choice in reply.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(set(texts)) == 3
    for choice, text in zip(reply.choices, texts, strict=True):
        jsonschema.validate(json.loads(text), FORM)
        assert choice.logprobs is not None
        told = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content or ())
        assert told.decode().removeprefix(" ") == text


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_any_object_and_its_stream_are_the_same(url: str, temperature: float) -> None:
    body = {
        "model": MODEL,
        "messages": HELLO,
        "response_format": {"type": "json_object"},
        "seed": 3,
        "temperature": temperature,
        "max_tokens": 30,
    }
    whole = httpx.post(f"{url}/chat/completions", json=body).json()["choices"][0]
    streamed = chunks(httpx.post(f"{url}/chat/completions", json={**body, "stream": True}).text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
    assert text == whole["message"]["content"] and text.startswith("{")
    assert streamed[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    if whole["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_any_text_is_no_form(official: openai.OpenAI) -> None:
    for form in ({"type": "text"}, None):
        more: Any = {"response_format": form}
        reply = official.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, seed=1, **more)
        free = official.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, seed=1)
        assert reply.choices[0].message.content == free.choices[0].message.content


@pytest.mark.parametrize(
    ("form", "param", "words"),
    [
        (
            json_schema({"type": "array", "uniqueItems": True}),
            "response_format.json_schema.schema",
            'cannot be kept: Unimplemented keys: ["uniqueItems"]',
        ),
        (json_schema({"type": "foo"}), "response_format.json_schema.schema", "Invalid type: foo"),
        ({"type": "json_schema"}, "response_format.json_schema", "needs json_schema"),
        ({**json_schema({}), "type": "json_object"}, "response_format.json_schema", "has no json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name", "is missing"),
        (
            {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
            "response_format.json_schema.name",
            "letters, digits, _ and -",
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": []}},
            "response_format.json_schema.schema",
            "",
        ),
        ({"type": "xml"}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        ({"type": "json_object", "mode": 1}, "response_format.mode", "not a field"),
        ("json", "response_format", ""),
    ],
)
def test_what_is_refused(url: str, form: Any, param: str, words: str) -> None:
    for stream in (False, True):
        body = {"model": MODEL, "messages": HELLO, "response_format": form, "stream": stream}
        reply = httpx.post(f"{url}/chat/completions", json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


async def test_a_form_does_not_go_together_with_documents(client: httpx.AsyncClient, world: World) -> None:
    document = world.library.put("The vault opens at noon.")
    body = {"model": MODEL, "messages": HELLO, "fano": {"documents": [document]}}
    reply = await client.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
    fine = await client.post("/v1/chat/completions", json={**body, "response_format": {"type": "text"}})
    assert fine.status_code == 200


async def test_a_form_that_cannot_be_followed_to_the_end_is_the_clients_error(
    client: httpx.AsyncClient, world: World
) -> None:
    for stream in (False, True):
        world.engine.enqueue("{", error=ConstraintFailed("too much", "response_format.json_schema.schema"))
        body = {"model": MODEL, "messages": HELLO, "response_format": {"type": "json_object"}, "stream": stream}
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.status_code == (200 if stream else 400)
        told = json.loads(reply.text.strip().rpartition("data: ")[2]) if stream else reply.json()
        assert told["error"]["param"] == "response_format.json_schema.schema"
    assert all(request.constraint is not None for request in world.engine.requests)
