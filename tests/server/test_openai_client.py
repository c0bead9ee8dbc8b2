"""The official client against a server on a real socket, sync and async."""

from collections.abc import Iterator
from typing import Any, get_args

import openai
import pytest
from fakes_server import EMBEDDER, MODEL, World

from model.engine.request import FinishReason
from model.errors import GenerationFailed, PromptTooLong, QueueFull
from model.tokenizer import Tokenizer
from server.chat.schema import PolicyOptions

TEXT = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
HELLO: Any = [{"role": "user", "content": "Hello"}]
WHO: Any = [{"role": "user", "content": "Who paid invoice QX-7741-B?"}]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    model, embedder = client.models.list().data
    assert (model.id, model.object, model.owned_by, model.created) == (MODEL, "model", "fano", 1_700_000_000)
    retrieved = client.models.retrieve(MODEL).model_dump()
    assert retrieved["fano"] == {
        "policy": {"name": "window", "sinks": 64, "window": 2048},
        "policies": list(get_args(PolicyOptions.model_fields["name"].annotation)),
        "recalls": ["verbatim", "grounded", "free"],
        "dtype": "float32",
        "max_context_tokens": 100_000,
    }
    assert embedder == client.models.retrieve(EMBEDDER)
    assert (embedder.id, embedder.object, embedder.owned_by) == (EMBEDDER, "model", "fano")
    assert embedder.model_dump()["fano"] == {"dimension": 16, "max_input_tokens": None}
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
        client.chat.completions.create(model=MODEL, messages=HELLO, store=True)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("unsupported_field", "store", "invalid_request_error")
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
        assert [model.id async for model in client.models.list()] == [MODEL, EMBEDDER]
        reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
        assert reply.choices[0].message.content == "One two"
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "One two"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="gpt-6", messages=HELLO)


def token_texts(logprobs: Any) -> list[str]:
    return [entry.token for entry in logprobs.content]


def test_choices_logprobs_and_biases(client: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    ids = list(tokenizer.encode("the rent is due").ids)
    world.engine.enqueue("", pieces=[str(token_id) for token_id in ids], token_ids=ids)
    reply = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        n=3,
        logprobs=True,
        top_logprobs=2,
        logit_bias={"17": -100, "300": 2},
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=11,
        temperature=0,
        extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "prompt_logprobs": 1},
    )
    (request,) = world.engine.requests
    sampling = request.sampling
    assert request.num_choices == 3
    assert (sampling.seed, sampling.temperature, sampling.logprobs, sampling.prompt_logprobs) == (11, 0, 2, 1)
    assert sampling.logit_bias == ((17, -100), (300, 2))
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.5, 1.1)
    assert (sampling.top_k, sampling.min_p) == (40, 0.05)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert reply.usage is not None and reply.usage.completion_tokens == 3 * len(ids)
    for choice in reply.choices:
        assert choice.message.content == "".join(map(str, ids)) and choice.finish_reason == "stop"
        assert choice.logprobs is not None and choice.logprobs.refusal is None
        content = choice.logprobs.content or []
        assert "".join(token_texts(choice.logprobs)) == " the rent is due"
        assert [bytes(entry.bytes or ()) for entry in content] == [tokenizer.token_bytes(each) for each in ids]
        assert [entry.logprob for entry in content] == [-each / 1024 for each in ids]
        assert [[top.logprob for top in entry.top_logprobs] for entry in content] == [
            [-each / 1024, -(each + 1) / 1024] for each in ids
        ]
    assert reply.model_extra is not None
    first, *others = reply.model_extra["prompt_logprobs"]
    assert first is None and [next(iter(each)) for each in others] == [str(each) for each in request.prompt_ids[1:]]


def test_a_stream_of_choices_has_each_ones_text_and_logprobs(client: openai.OpenAI, world: World) -> None:
    texts = ["one two three", "four", "five six"]
    world.engine.enqueue(*texts, finish_reason=FinishReason.LENGTH)
    got, tokens, ends, roles = ["", "", ""], [0, 0, 0], [0, 0, 0], [0, 0, 0]
    for chunk in client.chat.completions.create(
        model=MODEL, messages=HELLO, n=3, logprobs=True, top_logprobs=1, stream=True
    ):
        (choice,) = chunk.choices
        got[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role == "assistant"
        ends[choice.index] += choice.finish_reason == "length"
        if choice.logprobs is not None:
            tokens[choice.index] += len(choice.logprobs.content or [])
    assert (got, tokens) == (texts, [3, 1, 2])
    assert ends == roles == [1, 1, 1]


def test_the_stream_helper_accumulates_choices_and_logprobs(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("one two three", "four")
    with client.chat.completions.stream(model=MODEL, messages=HELLO, n=2, logprobs=True) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["one two three", "four"]
    assert [len(choice.logprobs.content or []) for choice in final.choices if choice.logprobs] == [3, 1]
    assert final.choices[0].logprobs.content[0].top_logprobs == []  # type: ignore[union-attr,index]


async def test_the_async_client_has_choices_too(url: str, world: World) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        world.engine.enqueue("one", "two words")
        reply = await client.chat.completions.create(
            model=MODEL, messages=HELLO, n=2, logprobs=True, seed=1, logit_bias={"5": 1}
        )
        assert [choice.message.content for choice in reply.choices] == ["one", "two words"]
        assert [len(choice.logprobs.content or []) for choice in reply.choices if choice.logprobs] == [1, 2]
        world.engine.enqueue("one", "two words")
        texts = ["", ""]
        async for chunk in await client.chat.completions.create(model=MODEL, messages=HELLO, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == ["one", "two words"]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=HELLO, n=9)
        assert (refused.value.code, refused.value.param) == ("never_fits", "n")
