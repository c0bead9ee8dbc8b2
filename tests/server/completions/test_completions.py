"""Completions of texts: by the official client, their older shape of log probabilities, and every refusal by name."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fakes_bridge import until
from fakes_server import MODEL, World, WorldMaker, chunks, open_client, sse
from openai.types import completion_create_params

from model.engine.request import FinishReason, TokenLogprob
from model.errors import GenerationFailed, PromptTooLong, QueueFull
from model.tokenizer import Tokenizer
from server.chat.fields import Treatment
from server.completions.schema import COMPLETION_FIELDS, MAX_PROMPTS, CompletionRequest
from server.completions.shape import summed
from server.long_prompts.asking import QUERY_TOKENS
from server.schemas import ArchiveBytes, Usage
from server.token_view import TokenLines

ROUTE = "/v1/completions"
PLAIN = {"model": MODEL, "prompt": "The vault"}


@pytest.fixture
def official(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def test_a_text_is_gone_on_with_as_it_stands(official: openai.OpenAI, world: World, tokenizer: Tokenizer) -> None:
    world.engine.enqueue(" opens at noon", finish_reason=FinishReason.LENGTH)
    reply = official.completions.create(model=MODEL, prompt="The vault")
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-") and reply.model == MODEL
    (choice,) = reply.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (" opens at noon", 0, "length", None)
    (request,) = world.engine.requests
    # No chat template, no beginning that this tokenizer does not want, and OpenAI's default limit.
    assert list(request.prompt_ids) == list(tokenizer.encode("The vault").ids)
    assert request.continues and (request.sampling.max_tokens, request.sampling.temperature) == (16, 1.0)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(request.prompt_ids), 3)
    assert reply.usage.model_dump()["fano"]["retrieval"]["used"] is False


def test_the_bills_of_several_prompts_are_added_up_pool_by_pool(official: openai.OpenAI, world: World) -> None:
    told = official.completions.create(model=MODEL, prompt="The vault").usage
    assert told is not None
    one = Usage.model_validate(told.model_dump())

    def of(**archive: int) -> Usage:
        held = one.fano.archive_bytes.model_copy(update=archive)
        return one.model_copy(update={"fano": one.fano.model_copy(update={"archive_bytes": held})})

    several = summed([of(kv_archive=5, kv_summaries=3, text=1), of(kv_archive=7, index=2), of(kv_summaries=4, text=6)])
    assert several.fano.archive_bytes == ArchiveBytes(kv_archive=12, kv_summaries=7, text=7, index=2)
    assert several.fano.resident_bytes.kv == 3 * one.fano.resident_bytes.kv > 0


@pytest.mark.parametrize(("length", "select_from"), [(10, 0), (QUERY_TOKENS, 0), (900, 900 - QUERY_TOKENS)])
def test_of_a_long_text_the_end_selects_as_that_of_a_long_chat_does(
    official: openai.OpenAI, world: World, length: int, select_from: int
) -> None:
    official.completions.create(model=MODEL, prompt=[5] * length, max_tokens=2)
    (request,) = world.engine.requests
    assert request.select_from == select_from


def test_all_that_is_asked_reaches_the_engine(official: openai.OpenAI, world: World) -> None:
    official.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=5,
        n=2,
        best_of=2,
        stop=["\n"],
        seed=-3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"17": -100},
        logprobs=3,
        user="ann",
        suffix="",
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2},
    )
    (request,) = world.engine.requests
    sampling = request.sampling
    assert request.num_choices == 2 and sampling.stop == ("\n",) and sampling.max_tokens == 5
    assert (sampling.seed, sampling.temperature, sampling.top_p, sampling.logprobs) == (-3, 0.5, 0.9, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (4, 0.1, 1.2)
    assert sampling.logit_bias == ((17, -100),) and sampling.prompt_logprobs is None


def test_several_prompts_have_their_choices_in_order(
    official: openai.OpenAI, world: World, tokenizer: Tokenizer
) -> None:
    ids = list(tokenizer.encode("two").ids)
    for texts in (["a1", "a2"], ["b1", "b2 b2"]):
        world.engine.enqueue(*texts)
    prompts: Any = ["one", ids]
    reply = official.completions.create(model=MODEL, prompt=prompts, n=2, echo=True)
    assert [(choice.index, choice.text) for choice in reply.choices] == [
        (0, "onea1"),
        (1, "onea2"),
        (2, "twob1"),
        (3, "twob2 b2"),
    ]
    first, second = world.engine.requests
    assert list(second.prompt_ids) == ids
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(first.prompt_ids) + len(ids)
    assert (reply.usage.completion_tokens, reply.usage.total_tokens - reply.usage.prompt_tokens) == (5, 5)
    # Both ran side by side, and held twice what one holds.
    assert reply.usage.model_dump()["fano"]["resident_bytes"] == {"kv": 200, "ssm_state": 200, "conv_state": 20}


def test_a_stream_of_several_prompts(official: openai.OpenAI, world: World) -> None:
    for text in ("a b c", "d"):
        world.engine.enqueue(text)
    prompts: Any = ["one ", "two "]
    texts, ends, usages = ["", ""], [0, 0], []
    for chunk in official.completions.create(
        model=MODEL, prompt=prompts, echo=True, stream=True, stream_options={"include_usage": True}
    ):
        assert chunk.object == "text_completion"
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason == "stop"
    assert (texts, ends) == (["one a b c", "two d"], [1, 1])
    assert usages[-1] is not None and usages[-1].completion_tokens == 4
    assert not any(usages[:-1])


async def test_the_async_client(url: str, world: World) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        world.engine.enqueue("one two")
        assert (await client.completions.create(model=MODEL, prompt="x")).choices[0].text == "one two"
        world.engine.enqueue("one two")
        stream = await client.completions.create(model=MODEL, prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "one two"


async def test_the_frames_of_a_stream_byte_by_byte(client: httpx.AsyncClient, world: World) -> None:
    world.engine.enqueue("", pieces=["a", "b"])
    body = {**PLAIN, "stream": True, "stream_options": {"include_usage": True}}
    raw = (await client.post(ROUTE, json=body)).content
    frames = raw.split(b"\n\n")
    assert frames.pop() == b"" and frames.pop() == b"data: [DONE]"
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames)
    told = [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
    head = {key: told[0][key] for key in ("id", "object", "created", "model")}
    # Pieces that are there when one is sent go together.
    texts = [chunk["choices"][0]["text"] for chunk in told[:-1]]
    assert "".join(texts) == "ab" and texts[-1] == ""
    ends = [None] * (len(texts) - 1) + ["stop"]
    assert told[:-1] == [
        {
            **head,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
            "usage": None,
        }
        for text, reason in zip(texts, ends, strict=True)
    ]
    assert told[-1]["choices"] == [] and told[-1]["usage"]["completion_tokens"] == 2
    world.engine.enqueue("", pieces=["a", "b"])
    assert b'"usage"' not in (await client.post(ROUTE, json={**PLAIN, "stream": True})).content


async def test_log_probabilities_in_four_lists(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    ids = list(tokenizer.encode("the rent is due").ids)
    pieces = [tokenizer.token_bytes(each).decode() for each in ids]
    for stream in (False, True):
        world.engine.enqueue("", pieces=pieces, token_ids=ids)
        reply = await client.post(ROUTE, json={**PLAIN, "logprobs": 2, "stream": stream})
        choices = [each["choices"][0] for each in chunks(reply.text)] if stream else reply.json()["choices"]
        told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for choice in choices:
            for name, values in (choice["logprobs"] or {}).items():
                told[name] += values
        assert told["tokens"] == pieces and "".join(choice["text"] for choice in choices) == "".join(pieces)
        assert told["token_logprobs"] == [-each / 1024 for each in ids]
        assert told["text_offset"] == [sum(map(len, pieces[:place])) for place in range(len(pieces))]
        assert [len(each) for each in told["top_logprobs"]] == [2] * len(ids)
        assert told["top_logprobs"][0][pieces[0]] == -ids[0] / 1024


async def test_an_echo_has_the_prompts_log_probabilities(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    prompt = list(tokenizer.encode("the rent").ids)
    world.engine.enqueue("", pieces=[" due"], token_ids=[9])
    body = {**PLAIN, "prompt": "the rent", "echo": True, "logprobs": 0, "max_tokens": 1}
    (choice,) = (await client.post(ROUTE, json=body)).json()["choices"]
    told = choice["logprobs"]
    assert choice["text"] == "the rent due" and told["top_logprobs"] is None
    assert told["token_logprobs"] == [None, *(-each / 1024 for each in [*prompt[1:], 9])]
    # The space that the tokenizer writes before a text is not in the text.
    assert told["text_offset"][:2] == [0, len(tokenizer.token_bytes(prompt[0])) - 1]
    assert told["text_offset"][-1] == len("the rent")


async def test_no_token_can_be_asked_for(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    prompt = list(tokenizer.encode("the rent").ids)
    for stream in (False, True):
        body = {**PLAIN, "prompt": "the rent", "echo": True, "max_tokens": 0, "stream": stream}
        body |= {} if stream else {"logprobs": 1}
        reply = await client.post(ROUTE, json=body)
        choices = [each["choices"][0] for each in chunks(reply.text)] if stream else reply.json()["choices"]
        assert "".join(choice["text"] for choice in choices) == "the rent"
        if not stream:
            assert choices[0]["finish_reason"] == "length"
            assert len(choices[0]["logprobs"]["tokens"]) == len(prompt)
            usage = reply.json()["usage"]
            assert (usage["completion_tokens"], usage["total_tokens"]) == (0, len(prompt))


async def test_the_best_are_those_whose_tokens_are_the_most_probable(client: httpx.AsyncClient, world: World) -> None:
    # Token k has the log probability -k/1024: the fewer there are, the better on average.
    world.engine.enqueue("a b c", "d", "e f")
    body = {**PLAIN, "n": 2, "best_of": 3}
    reply = (await client.post(ROUTE, json=body)).json()
    assert [(each["index"], each["text"], each["logprobs"]) for each in reply["choices"]] == [
        (0, "d", None),
        (1, "e f", None),
    ]
    assert reply["usage"]["completion_tokens"] == 6
    assert world.engine.requests[0].num_choices == 3


def test_half_a_character_has_a_name_of_its_own(tokenizer: Tokenizer) -> None:
    byte_of = {tokenizer.token_bytes(each): each for each in range(tokenizer.vocab_size)}
    ids = [byte_of[b"\xc3"], byte_of[b"\xbc"], byte_of[b"a"]]
    lines = TokenLines(tokenizer).add([(each, TokenLogprob(each, float("-inf"))) for each in ids], 1)
    assert lines["tokens"] == ["bytes:\\xc3", "bytes:\\xbc", "a"]
    assert lines["text_offset"] == [0, 0, 1]
    assert lines["token_logprobs"] == [-9999.0] * 3


async def test_an_empty_text_begins_with_the_models_first_token(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    assert (await client.post(ROUTE, json={**PLAIN, "prompt": ""})).status_code == 200
    assert list(world.engine.requests[0].prompt_ids) == [tokenizer.bos_id]


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt-6"}, 404, "model", "model_not_found"),
        ({"prompt": []}, 400, "prompt", "invalid_value"),
        ({"prompt": 5}, 400, "prompt", "invalid_value"),
        ({"prompt": [[]]}, 400, "prompt", "invalid_value"),
        ({"prompt": [-1]}, 400, "prompt.0", "invalid_value"),
        ({"prompt": [True]}, 400, "prompt.0", "invalid_value"),
        ({"prompt": [1, "a"]}, 400, "prompt.0", "invalid_value"),
        ({"prompt": ["a", None]}, 400, "prompt.1", "invalid_value"),
        ({"prompt": ["a", "x\ud800"]}, 400, "prompt.1", "invalid_value"),
        ({"prompt": ["a"] * (MAX_PROMPTS + 1)}, 400, "prompt", "invalid_value"),
        ({"suffix": "end"}, 400, "suffix", "unsupported_field"),
        ({"best_of": 1, "n": 2}, 400, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, 400, "best_of", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, 400, "max_tokens", "invalid_value"),
        ({"logprobs": 6}, 400, "logprobs", "invalid_value"),
        ({"logprobs": True}, 400, "logprobs", "invalid_value"),
        ({"logprobs": 1, "echo": True, "stream": True}, 400, "logprobs", "invalid_value"),
        ({"n": 9}, 400, "n", "never_fits"),
        ({"messages": []}, 400, "messages", "unknown_field"),
        ({"stream_options": {"include_usage": True}}, 400, None, "invalid_value"),
    ],
)
async def test_what_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    body = json.dumps({**PLAIN, **change}).encode()
    reply = await client.post(ROUTE, content=body, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code), error


async def test_what_the_engine_refuses_is_refused_before_the_first_byte(
    client: httpx.AsyncClient, world: World
) -> None:
    for stream in (False, True):
        world.engine.refuse(PromptTooLong(5000, 16, 4096))
        reply = await client.post(ROUTE, json={**PLAIN, "stream": stream})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "prompt")
        world.engine.refuse(QueueFull(64, 64, 7))
        assert (await client.post(ROUTE, json={**PLAIN, "stream": stream})).status_code == 429


async def test_one_of_several_that_fails_ends_them_all(client: httpx.AsyncClient, world: World) -> None:
    for stream in (False, True):
        world.engine.enqueue("one " * 1000)
        world.engine.enqueue("half", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
        reply = await client.post(ROUTE, json={**PLAIN, "prompt": ["a", "b"], "stream": stream})
        error = json.loads(sse(reply.text)[-1][1])["error"] if stream else reply.json()["error"]
        assert error["code"] == "generation_failed"
    await until(lambda: len(world.engine.aborted) == 2)


async def test_a_key_is_needed_where_there_is_one(new_world: WorldMaker) -> None:
    async with open_client(new_world(api_key="secret")) as client:
        assert (await client.post(ROUTE, json=PLAIN)).status_code == 401


def test_every_field_of_the_installed_client_is_in_the_table_and_no_other() -> None:
    known = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert set(COMPLETION_FIELDS) == known | {"min_p", "repetition_penalty", "return_progress", "top_k"}
    honoured = {name for name, row in COMPLETION_FIELDS.items() if row.treatment is Treatment.HONOURED}
    assert honoured == set(CompletionRequest.model_fields)
