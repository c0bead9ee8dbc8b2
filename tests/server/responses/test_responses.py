"""Responses with the official client against a server on a real socket, and as they stand on the wire."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import openai
import pytest
from fakes_responses import checked, post, streamed
from fakes_server import MODEL, World, WorldMaker, serving

from model.engine.request import FinishReason
from model.errors import GenerationFailed, PromptTooLong, QueueFull
from model.tokenizer import Tokenizer

OUTLINE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


def read(world: World, tokenizer: Tokenizer, number: int = -1) -> str:
    """What the model was given, control tokens left out."""
    return tokenizer.decode(world.engine.requests[number].prompt_ids)


def test_a_response_to_a_text(url: str, world: World) -> None:
    world.engine.enqueue("One two")
    reply = post(url, {"model": MODEL, "input": "Hello", "instructions": "Be brief.", "metadata": {"a": "b"}})
    response = checked(reply.json())
    assert reply.status_code == 200 and response.output_text == "One two"
    assert response.id.startswith("resp_") and response.status == "completed" and response.error is None
    assert response.metadata == {"a": "b"} and response.instructions == "Be brief."
    assert response.usage is not None and response.usage.output_tokens == 2
    assert response.usage.input_tokens == len(world.engine.requests[0].prompt_ids)
    assert response.usage.total_tokens == response.usage.input_tokens + 2
    usage = reply.json()["usage"]
    assert usage["fano"]["resident_bytes"] == {"kv": 100, "ssm_state": 100, "conv_state": 10}
    (message,) = response.output
    assert message.type == "message" and message.id.startswith("msg_") and message.status == "completed"


def test_the_events_of_a_stream(url: str, world: World) -> None:
    world.engine.enqueue("One two")
    events = streamed(url, {"model": MODEL, "input": "Hello"})
    # The text comes in as many pieces as steps were made meanwhile.
    assert [kind for kind, _ in groupby(each["type"] for each in events)] == OUTLINE
    assert "".join(each.get("delta", "") for each in events) == "One two"
    items = {each["item"]["id"] for each in events if "item" in each} | {e["item_id"] for e in events if "item_id" in e}
    assert len(items) == 1
    final = events[-1]["response"]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    assert {each["response"]["id"] for each in events if "response" in each} == {final["id"]}
    assert final["output"] == [events[-2]["item"]] and events[-2]["item"]["content"] == [events[-3]["part"]]
    assert events[-4]["text"] == final["output"][0]["content"][0]["text"] == "One two"


def test_the_bytes_of_a_stream(url: str, world: World) -> None:
    world.engine.enqueue("", pieces=["line\n", "\u2028 é"])
    reply = post(url, {"model": MODEL, "input": "Hello", "stream": True})
    blocks = reply.content.split(b"\n\n")
    assert blocks[-1] == b"" and reply.content.isascii() and b"[DONE]" not in reply.content
    for block in blocks[:-1]:
        lines = block.split(b"\n")
        assert len(lines) == 2 and lines[0].startswith(b"event: response.") and lines[1].startswith(b'data: {"type":"')
        assert lines[0][len(b"event: ") :] == lines[1][len(b'data: {"type":"') :].split(b'"')[0]


def test_a_long_prefill_is_commented(new_world: WorldMaker) -> None:
    world = new_world(keepalive_seconds=0.05)
    world.engine.stall()
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with client.responses.with_streaming_response.create(model=MODEL, input="Hello", stream=True) as reply:
            seen = b""
            for piece in reply.iter_bytes():
                seen += piece
                if seen.endswith(b": keep-alive\n\n"):
                    world.engine.go_on()
    assert b": keep-alive\n\n" in seen and b"event: response.completed\n" in seen


def test_the_stream_helper(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("One two three")
    with client.responses.stream(model=MODEL, input="Hello") as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert (
        texts[-1] == "One two three"
        and all(texts[-1].startswith(text) for text in texts)
        and final.output_text == "One two three"
    )
    assert final.usage is not None and final.usage.output_tokens == 3


def test_what_ends_at_its_limit_is_incomplete(client: openai.OpenAI, url: str, world: World) -> None:
    world.engine.enqueue("One two", finish_reason=FinishReason.LENGTH)
    response = client.responses.create(model=MODEL, input="Hello", max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens" and response.completed_at is None
    assert world.engine.requests[0].sampling.max_tokens == 2 and response.output[0].status == "incomplete"  # type: ignore[union-attr]
    world.engine.enqueue("One two", finish_reason=FinishReason.LENGTH)
    events = streamed(url, {"model": MODEL, "input": "Hello", "max_output_tokens": 2})
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_sampling_and_logprobs(url: str, world: World, tokenizer: Tokenizer) -> None:
    ids = list(tokenizer.encode("the rent").ids)
    body = {
        "model": MODEL,
        "input": "Hello",
        "temperature": 0.25,
        "top_p": 0.5,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    world.engine.enqueue("", pieces=["the", " rent"][: len(ids)] or [""], token_ids=ids)
    events = streamed(url, body)
    sampling = world.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.logprobs) == (0.25, 0.5, 2)
    final = checked(events[-1]["response"])
    assert (final.temperature, final.top_p, final.top_logprobs) == (0.25, 0.5, 2)
    part = events[-1]["response"]["output"][0]["content"][0]
    deltas = [each for event in events if event["type"] == "response.output_text.delta" for each in event["logprobs"]]
    assert deltas == part["logprobs"] and len(deltas) >= 1
    assert [bytes(each["bytes"]) for each in deltas] == [tokenizer.token_bytes(each) for each in ids][: len(deltas)]
    assert [len(each["top_logprobs"]) for each in deltas] == [2] * len(deltas)
    stored = post(url, body | {"include": None, "top_logprobs": None}).json()
    assert stored["output"][0]["content"][0]["logprobs"] == []


def test_a_conversation_in_items_and_a_reply_that_comes_back(
    client: openai.OpenAI, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("The rent is due.")
    first = client.responses.create(
        model=MODEL, input=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "When?"}]
    )
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "When"}, {"type": "input_text", "text": "?"}]},
        *(item.model_dump() for item in first.output),
        {"type": "message", "role": "user", "content": "Why?"},
    ]
    client.responses.create(model=MODEL, input=items, instructions="Be kind.")
    said = read(world, tokenizer)
    places = [said.index(text) for text in ("Be kind.", "When?", "The rent is due.", "Why?")]
    assert places == sorted(places) and "Be brief." not in said


def test_errors_before_the_first_byte(client: openai.OpenAI, world: World) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="gpt-6", input="Hello")
    assert unknown.value.code == "model_not_found"
    world.engine.refuse(QueueFull(64, 64, 7))
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model=MODEL, input="Hello", stream=True)
    world.engine.refuse(PromptTooLong(5000, 1, 4096))
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model=MODEL, input="Hello", stream=True)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")


def test_a_failure_after_the_first_byte(url: str, client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("half an", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    events = streamed(url, {"model": MODEL, "input": "Hello"})
    failed = events[-1]
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["error"]["type"] == "generation_failed"
    assert failed["response"]["output"][0]["status"] == "incomplete"
    assert client.responses.retrieve(failed["response"]["id"]).status == "failed"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=MODEL, input="Go on", previous_response_id=failed["response"]["id"])
    assert (refused.value.code, refused.value.param) == ("response_failed", "previous_response_id")
    world.engine.enqueue("half an", finish_reason=FinishReason.ERROR, error=GenerationFailed(MemoryError()))
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model=MODEL, input="Hello")


def test_truncation(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world(max_context_tokens=400)
    items: Any = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"turn {n} " * 8} for n in range(41)]
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as long:
            client.responses.create(model=MODEL, input=items, max_output_tokens=16)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
        reply = client.responses.create(
            model=MODEL, input=items, max_output_tokens=16, truncation="auto", instructions="Be brief."
        )
        assert reply.truncation == "auto"
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model=MODEL, input="long " * 4000, max_output_tokens=16, truncation="auto")
    (request,) = world.engine.requests
    said = read(world, tokenizer)
    assert "Be brief." in said and "turn 40" in said and "turn 0 " not in said
    assert len(request.prompt_ids) + 16 <= 400
    # Not a turn more than had to go.
    num_left = said.count("turn") // 8
    assert len(request.prompt_ids) + 16 + len(request.prompt_ids) // num_left > 400


def test_retrieve_cancel_delete(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("One")
    made = client.responses.create(model=MODEL, input="Hello")
    assert client.responses.retrieve(made.id).model_dump() == made.model_dump()
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.cancel(made.id)
    assert (refused.value.param, refused.value.code) == ("response_id", "not_cancellable")
    with pytest.raises(openai.BadRequestError) as streaming:
        client.responses.retrieve(made.id, stream=True)
    assert (streaming.value.param, streaming.value.code) == ("stream", "unsupported_field")
    client.responses.delete(made.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as missing:
            gone(made.id)
        assert missing.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(made.id)
    with pytest.raises(openai.NotFoundError) as previous:
        client.responses.create(model=MODEL, input="Hello", previous_response_id=made.id)
    assert previous.value.param == "previous_response_id"


def test_what_is_not_stored_cannot_be_had(client: openai.OpenAI, world: World) -> None:
    made = client.responses.create(model=MODEL, input="Hello", store=False)
    assert made.model_dump()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_input_items(client: openai.OpenAI, world: World) -> None:
    world.engine.enqueue("One")
    first = client.responses.create(model=MODEL, input="Hello")
    second = client.responses.create(
        model=MODEL,
        input=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And?"}],
        previous_response_id=first.id,
    )
    texts = [item.content[0].text for item in client.responses.input_items.list(second.id, limit=1)]  # type: ignore[union-attr]
    assert texts == ["And?", "Be brief.", "One", "Hello"]
    page = client.responses.input_items.list(second.id, limit=2, order="asc")
    assert [item.role for item in page.data] == ["user", "assistant"] and page.has_more  # type: ignore[union-attr]
    assert page.data[1].id == first.output[0].id
    rest = client.responses.input_items.list(second.id, order="asc", after=str(page.data[-1].id))
    assert [item.role for item in rest.data] == ["system", "user"] and not rest.has_more  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.input_items.list(second.id, after="msg_none")
    assert refused.value.param == "after"


def test_input_tokens(client: openai.OpenAI, world: World) -> None:
    first = client.responses.create(model=MODEL, input="Hello")
    counted = client.responses.input_tokens.count(model=MODEL, input="And then?", previous_response_id=first.id)
    made = client.responses.create(model=MODEL, input="And then?", previous_response_id=first.id)
    assert made.usage is not None and counted.input_tokens == made.usage.input_tokens > 0
    assert counted.object == "response.input_tokens"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.input_tokens.count(model=MODEL, input="Hello", personality="friendly")
    assert refused.value.param == "personality"


def test_compacting_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.compact(model=MODEL, input="Hello")
    assert refused.value.code == "unsupported_route"


async def test_the_async_client(url: str, world: World) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        world.engine.enqueue("One two")
        made = await client.responses.create(model=MODEL, input="Hello")
        assert made.output_text == "One two"
        world.engine.enqueue("Three")
        async with client.responses.stream(model=MODEL, input="And?", previous_response_id=made.id) as stream:
            assert [event.type async for event in stream][-1] == "response.completed"
            assert (await stream.get_final_response()).output_text == "Three"
        kinds = [each.type async for each in await client.responses.create(model=MODEL, input="Hi", stream=True)]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        parsed = await client.responses.parse(model=MODEL, input="Hello")
        assert parsed.output_text == "ok"
        assert (await client.responses.retrieve(made.id)).id == made.id
        assert [item.type async for item in client.responses.input_items.list(made.id)] == ["message"]
        assert (await client.responses.input_tokens.count(model=MODEL, input="Hello")).input_tokens > 0
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(made.id)
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
