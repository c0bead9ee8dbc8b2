"""The official client against a server on a real socket, sync and async."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fakes_server import MODEL, World, serving

from model.engine.request import FinishReason
from model.errors import GenerationFailed, PromptTooLong, QueueFull

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
HELLO: Any = [{"role": "user", "content": "Hello"}]
WHO: Any = [{"role": "user", "content": "Who paid invoice QX-7741-B?"}]


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with serving(world.app) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by, model.created) == (MODEL, "model", "fano", 1_700_000_000)
    retrieved = client.models.retrieve(MODEL).model_dump()
    assert retrieved["fano"] == {
        "policy": {"name": "window", "sinks": 64, "window": 2048},
        "dtype": "float32",
        "max_context_tokens": 100_000,
    }
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-6")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


def test_a_chat_with_documents(client: openai.OpenAI, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    reply = client.chat.completions.create(
        model=MODEL, messages=WHO, max_tokens=16, extra_body={"fano": {"documents": [document]}}
    )
    message = reply.choices[0].message
    assert message.content == "It was Margarethe Oldenkamp."
    annotation = message.model_dump()["annotations"][0]
    assert annotation["quote"] == TEXT[annotation["start_char"] : annotation["end_char"]] == "Margarethe Oldenkamp"
    assert reply.usage is not None and reply.usage.completion_tokens == 4
    fano = reply.usage.model_dump()["fano"]
    assert fano["resident_bytes"] == {"kv": 100, "ssm_state": 100, "conv_state": 10}
    assert reply.usage.prompt_tokens_details is not None and reply.usage.prompt_tokens_details.cached_tokens == 0
    assert reply._request_id is not None and reply._request_id.startswith("req_")
    history = [*WHO, message.model_dump(), *HELLO]
    client.chat.completions.create(model=MODEL, messages=history)


def test_a_stream_with_usage_and_annotations(client: openai.OpenAI, world: World) -> None:
    document = world.library.put(TEXT)
    world.engine.enqueue("It was Margarethe Oldenkamp.")
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=WHO,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"fano": {"documents": [document]}},
        )
    )
    assert chunks[-1].usage is not None and chunks[-1].usage.model_dump()["fano"]["retrieval"]["used"] is True
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas) == "It was Margarethe Oldenkamp."
    cited = [each for delta in deltas for each in delta.model_dump().get("annotations") or []]
    assert [each["quote"] for each in cited] == ["Margarethe Oldenkamp"]


def test_the_stream_helper_accumulates(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("One two three")
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(model=MODEL, messages=HELLO, stream_options=options) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "One two three"
    assert final.usage is not None and final.usage.completion_tokens == 3


def test_errors_have_class_code_param_and_request_id(client: openai.OpenAI, world: World) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("unsupported_field", "n", "invalid_request_error")
    assert bad.value.request_id is not None and bad.value.request_id.startswith("req_")
    world.engine.refuse(QueueFull(64, 64, 7))
    with pytest.raises(openai.RateLimitError) as full:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert full.value.code == "queue_full" and full.value.response.headers["retry-after"] == "7"
    world.engine.refuse(PromptTooLong(5000, 1, 4096))
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    assert long.value.code == "context_length_exceeded"


def test_a_failure_in_a_stream_is_raised(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("half an answer", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    with pytest.raises(openai.APIError, match="generation stopped"):
        for _ in client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
            pass


async def test_the_async_client(url: str, world: World) -> None:
    world.engine.enqueue("One two")
    world.engine.enqueue("One two")
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert reply.choices[0].message.content == "One two"
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "One two"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-6", messages=HELLO)
