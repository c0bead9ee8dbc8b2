"""Models, chat, completions, embeddings and errors, by the official client."""

from typing import Any

import openai
import pytest
from conformance.driver import covers, done, listed, opened, refuses
from fakes_engine import FakeEngine
from fakes_server import EMBEDDING_WIDTH, MODEL
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "Hello"}]


class Person(BaseModel):
    name: str
    age: int


@covers("models.list", "models.retrieve")
async def test_models(client: Any) -> None:
    models = await listed(client.models.list())
    assert models[0].id == MODEL and [await done(client.models.retrieve(each.id)) for each in models] == models


@covers("chat.completions.create")
async def test_chat(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two three")
    reply = await done(client.chat.completions.create(model=MODEL, messages=HELLO))
    assert reply.choices[0].message.content == "One two three" and reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 3
    assert reply._request_id.startswith("req_")


@covers("chat.completions.create")
async def test_chat_in_a_stream(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two three")
    chunks = await listed(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "One two three"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 3


@covers("chat.completions.stream")
async def test_the_chat_stream_helper(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("One two three")
    async with opened(client.chat.completions.stream(model=MODEL, messages=HELLO)) as stream:
        kinds = [event.type for event in await listed(stream)]
        final = await done(stream.get_final_completion())
    assert kinds[-1] == "content.done" and "content.delta" in kinds
    assert final.choices[0].message.content == "One two three"


@covers("chat.completions.parse")
async def test_chat_of_a_form(client: Any, engine: FakeEngine) -> None:
    engine.enqueue('{"name": "Ada", "age": 36}')
    reply = await done(client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Person))
    assert reply.choices[0].message.parsed == Person(name="Ada", age=36)


@covers("completions.create")
async def test_completions(client: Any, engine: FakeEngine) -> None:
    engine.enqueue("two three")
    reply = await done(client.completions.create(model=MODEL, prompt="One", max_tokens=8))
    assert (reply.object, reply.choices[0].text, reply.choices[0].finish_reason) == (
        "text_completion",
        "two three",
        "stop",
    )
    engine.enqueue("two three")
    chunks = await listed(client.completions.create(model=MODEL, prompt="One", max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "two three"


@covers("embeddings.create")
async def test_embeddings(client: Any) -> None:
    assert len((await done(embed(client, "One"))).data[0].embedding) == EMBEDDING_WIDTH
    packed = await done(embed(client, ["One", "Two"]))
    plain = await done(embed(client, ["One", "Two"], encoding_format="float"))
    assert [each.index for each in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0


def embed(client: Any, texts: Any, **options: Any) -> Any:
    return client.embeddings.create(model=f"hash-{EMBEDDING_WIDTH}", input=texts, **options)


@refuses(
    "chat.completions.list",
    "chat.completions.retrieve",
    "chat.completions.update",
    "chat.completions.delete",
    "chat.completions.messages.list",
    "models.delete",
)
async def test_what_is_not_kept_is_refused(client: Any) -> None:
    """Chats are not stored, and models not deleted: no such route, or no such method."""
    chats = client.chat.completions
    for call in (
        lambda: listed(chats.list()),
        lambda: done(chats.retrieve("chatcmpl-1")),
        lambda: done(chats.update("chatcmpl-1", metadata={})),
        lambda: done(chats.delete("chatcmpl-1")),
        lambda: listed(chats.messages.list("chatcmpl-1")),
        lambda: done(client.models.delete(MODEL)),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            await call()
        assert refused.value.status_code in (404, 405) and refused.value.code in ("unknown_route", "method_not_allowed")


async def test_errors_have_class_code_and_param(client: Any, stranger: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await done(client.chat.completions.create(model=MODEL, messages=HELLO, store=True))
    assert (bad.value.code, bad.value.param) == ("unsupported_field", "store") and bad.value.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        await done(client.chat.completions.create(model="gpt-6", messages=HELLO))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as strange:
        await listed(stranger.models.list())
    assert strange.value.code == "invalid_api_key"
