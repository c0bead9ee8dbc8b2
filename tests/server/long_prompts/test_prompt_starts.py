"""Answers about long prompts that start with no memory: over their passages alone, while the prompt is read beside."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fakes_engine import FakeEngine
from fakes_prompts import ASKED, CODE, PASTED, WINDOW, chat, progress_of, prompt_text, prose
from fakes_server import MODEL, World, WorldMaker, chunks, open_client

from model.engine.request import GenerationRequest
from model.tokenizer import Tokenizer
from server.answers.prompt import Prompt
from server.engine_thread.bridge import EngineThread
from server.long_prompts.reading_beside import MOST_WAITING, PromptReadings

LONG = f"{PASTED}\n\n{ASKED}"
# So that a test which fails ends.
PATIENCE_SECONDS = 60


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world(policy=WINDOW)


async def answered(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    return (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.001)


async def beside(world: World, number: int = 1) -> GenerationRequest:
    """The newest request in the background, once there were so many and all are done."""
    await until(
        lambda: not world.engine.has_work() and sum(each.is_background for each in world.engine.requests) >= number
    )
    return [each for each in world.engine.requests if each.is_background][-1]


def asked_of(world: World) -> GenerationRequest:
    """The newest request for an answer."""
    return [each for each in world.engine.requests if not each.is_background][-1]


def text_of(tokenizer: Tokenizer, request: GenerationRequest) -> str:
    ids = request.prompt_ids
    return b"".join((tokenizer.control_token(i) or "").encode() or tokenizer.token_bytes(i) for i in ids).decode()


async def test_the_answer_has_the_passages_before_it_and_nothing_that_was_pasted(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("QX-7741-B.")
    reply = await answered(client, chat(LONG, max_tokens=16))
    said = text_of(tokenizer, asked_of(world))
    assert said.startswith("<|startoftext|><|user|> [1] ") and said.endswith(f"Question: {ASKED}<|end|><|assistant|>")
    assert CODE in said and prose(60, 3) not in said and asked_of(world).sampling.temperature == 0.0
    (annotation,) = reply["choices"][0]["message"]["annotations"]
    assert LONG[annotation["start_char"] : annotation["end_char"]] == annotation["quote"] == "QX-7741-B"
    assert reply["usage"]["fano"]["start"] == "fresh" and reply["usage"]["fano"]["context_information_bits"] is None


async def test_what_stands_before_the_question_is_read_beside_and_counted(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    usage = (await answered(client, chat(LONG, max_tokens=16)))["usage"]
    read = await beside(world)
    text = text_of(tokenizer, read)
    assert LONG.startswith(text.removeprefix("<|startoftext|><|user|> ")) and prose(59, 3) in text
    assert read.sampling.max_tokens == 0 and ASKED not in text
    assert usage["prompt_tokens"] == len(read.prompt_ids) + len(asked_of(world).prompt_ids)
    assert usage["fano"]["reading"]["total"] == len(read.prompt_ids) and usage["fano"]["reading"]["cached"] == 0
    again = (await answered(client, chat(f"{PASTED}\n\nWhich code does the Halvorsen turbine have?")))["usage"]
    assert again["fano"]["reading"] == dict.fromkeys(("total", "cached", "processed"), len(read.prompt_ids))
    assert again["prompt_tokens_details"]["cached_tokens"] == len(read.prompt_ids)
    assert sum(each.is_background for each in world.engine.requests) == 1
    from_it = await answered(client, chat(LONG, fano={"start": "prompt"}))
    assert from_it["usage"]["fano"]["start"] == "prompt" and from_it["usage"]["fano"]["reading"] is None
    assert asked_of(world).prompt_ids[: len(read.prompt_ids)] == read.prompt_ids


async def test_it_is_not_read_where_the_operator_wants_that(new_world: WorldMaker) -> None:
    world = new_world(policy=WINDOW, read_prompts=False)
    async with open_client(world) as client:
        usage = (await answered(client, chat(LONG)))["usage"]
        assert usage["fano"]["reading"] is None and usage["prompt_tokens"] == len(asked_of(world).prompt_ids)
        assert len(world.engine.requests) == 1


async def test_the_setting_and_the_field_choose_the_start(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world(policy=WINDOW, prompt_start="prompt")
    async with open_client(world) as client:
        assert (await answered(client, chat(LONG)))["usage"]["fano"]["start"] == "prompt"
        assert PASTED in prompt_text(world, tokenizer)
        assert (await answered(client, chat(LONG, fano={"start": "fresh"})))["usage"]["fano"]["start"] == "fresh"


async def test_who_chooses_the_archive_of_attention_gets_an_answer_from_it(client: httpx.AsyncClient) -> None:
    archive = {"policy": {"name": "archive"}}
    assert (await answered(client, chat(LONG, fano=archive)))["usage"]["fano"]["start"] == "prompt"
    fresh = {**archive, "start": "fresh"}
    assert (await answered(client, chat(LONG, fano=fresh)))["usage"]["fano"]["start"] == "fresh"


async def test_where_nothing_is_found_the_answer_starts_from_all_of_it(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    for said in (chat(f"{PASTED}\n\nÜberfahrt nach Kiautschou?"), chat(LONG, "QX-7741-B", "Thanks, great!")):
        usage = (await answered(client, said))["usage"]
        assert usage["fano"]["start"] == "prompt" and usage["fano"]["reading"] is None
        assert prose(60, 3) in prompt_text(world, tokenizer)
    wanted = await answered(client, chat(LONG, prompt_logprobs=0))
    assert wanted["usage"]["fano"]["start"] == "prompt" and prose(60, 3) in prompt_text(world, tokenizer)


async def test_instructions_and_what_was_said_stand_before_the_passages(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": f"{PASTED}\n\nDo you know the Halvorsen turbine?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": ASKED},
    ]
    body = {"model": MODEL, "messages": messages, "max_tokens": 16}
    await answered(client, body)
    said = text_of(tokenizer, asked_of(world))
    first = "<|startoftext|><|system|> Answer in one word.<|end|><|user|> Do you know the Halvorsen turbine?<|end|>"
    assert said.startswith(f"{first}<|assistant|> Yes.<|end|><|user|> [1] ")
    long = "Never answer in more than one word. " * 120
    usage = (await answered(client, {**body, "messages": [{"role": "system", "content": long}, *messages[1:]]}))[
        "usage"
    ]
    assert usage["fano"]["start"] == "prompt"  # what they say must not be cut
    assert text_of(tokenizer, asked_of(world)).startswith(f"<|startoftext|><|system|> {long}<|end|>")


async def test_of_a_long_conversation_the_newest_turns_are_seen(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    talk = [each for number in range(30) for each in (f"Tell me of day {number}.", f"Day {number}: {prose(1, number)}")]
    fano = {"max_passages": 1}
    await answered(client, chat(LONG, "It is QX-7741-B.", *talk, ASKED, max_tokens=16, fano=fano))
    said = text_of(tokenizer, asked_of(world))
    assert "Tell me of day 29.<|end|><|assistant|> Day 29: " in said and "Tell me of day 2." not in said
    assert said.removeprefix("<|startoftext|>").startswith("<|user|> Tell me of day ")
    assert len(asked_of(world).prompt_ids) + 16 <= WINDOW.window


async def test_a_stream_tells_how_far_the_text_is_read_by_then(client: httpx.AsyncClient, world: World) -> None:
    body = chat(LONG, stream=True, stream_options={"include_usage": True})
    first = chunks((await client.post("/v1/chat/completions", json=body)).text)
    read = await beside(world)
    again = chunks((await client.post("/v1/chat/completions", json=body)).text)
    for received, num_cached in ((first, 0), (again, len(read.prompt_ids))):
        told, usage = progress_of(received)[-1], received[-1]["usage"]
        assert told["total"] == usage["prompt_tokens"] == len(read.prompt_ids) + len(asked_of(world).prompt_ids)
        assert told["cached"] == num_cached <= told["processed"] <= told["total"]


async def test_a_plan_tells_of_both(client: httpx.AsyncClient, world: World) -> None:
    body = {"messages": chat(LONG)["messages"], "max_tokens": 9}
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    usage = (await answered(client, {"model": MODEL, **body}))["usage"]
    assert (plan["prompt_tokens"], plan["cached_tokens"]) == (usage["prompt_tokens"], 0)
    await beside(world)
    plan = (await client.post("/v1/plan", json=body)).raise_for_status().json()
    usage = (await answered(client, {"model": MODEL, **body}))["usage"]
    assert plan["prompt_tokens"] == usage["prompt_tokens"]
    assert plan["cached_tokens"] >= usage["prompt_tokens_details"]["cached_tokens"] > 1000
    count = {"model": MODEL, "input": LONG}
    counted = (await client.post("/v1/responses/input_tokens", json=count)).raise_for_status().json()["input_tokens"]
    usage = (await client.post("/v1/responses", json={**count, "store": False})).json()["usage"]
    assert counted == usage["input_tokens"] > len((await beside(world)).prompt_ids)


@pytest.mark.parametrize("start", ["prompt", "fresh", "document"])
async def test_a_start_that_means_nothing_is_refused(client: httpx.AsyncClient, world: World, start: str) -> None:
    made = await client.post("/v1/documents", json={"text": CODE, "name": "codes.txt"})
    while not (await client.get(f"/v1/documents/{made.json()['id']}")).json()["answerable"]:
        await asyncio.sleep(0.001)
    for path, body in (
        ("/v1/chat/completions", chat(ASKED)),
        ("/v1/responses", {"model": MODEL, "input": ASKED}),
        ("/v1/chat/completions", chat(ASKED, fano={"documents": [made.json()["id"]]})),
    ):
        has_document = "fano" in body
        reply = await client.post(path, json={**body, "fano": {**body.get("fano", {}), "start": start}})
        if has_document and start != "prompt":
            assert reply.status_code == 200
            continue
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "fano.start"), error
        if start != "document":
            assert "longer than the window" in error["message"] and "1024 tokens" in error["message"]
    ask = {"documents": ["x"], "question": "?", "start": "prompt"}
    assert (await client.post("/v1/ask", json=ask)).status_code == 400


@pytest.fixture
def readings(bridge: EngineThread) -> PromptReadings:
    return PromptReadings(bridge, WINDOW, measure_information=False)


@pytest.fixture
async def stalled(engine: FakeEngine, readings: PromptReadings) -> AsyncIterator[FakeEngine]:
    engine.stall()
    yield engine
    engine.go_on()
    await readings.stop()


def prompt(*ids: int) -> Prompt:
    return Prompt(array("i", ids), 0, (), len(ids))


async def submitted(engine: FakeEngine, number: int) -> list[list[int]]:
    """What the engine was given, once that is so much."""
    await until(lambda: len(engine.requests) >= number)
    return [list(each.prompt_ids) for each in engine.requests]


async def test_one_is_read_after_the_other_the_newest_first(stalled: FakeEngine, readings: PromptReadings) -> None:
    for number in range(MOST_WAITING + 3):
        readings.begin("default", None, prompt(number, 1, 2), 0)
        await submitted(stalled, 1)
    stalled.go_on()
    newest = list(range(MOST_WAITING + 2, 2, -1))
    assert [ids[0] for ids in await submitted(stalled, MOST_WAITING + 1)] == [0, *newest]


async def test_what_is_read_or_was_is_not_read_twice(stalled: FakeEngine, readings: PromptReadings) -> None:
    first = readings.begin("default", None, prompt(1, 2, 3), 0)
    await submitted(stalled, 1)
    assert readings.begin("default", None, prompt(1, 2, 3), 0) is first
    assert readings.begin("other", None, prompt(1, 2, 3), 0) is not first
    assert readings.begin("default", None, prompt(5, 6), 2).is_done
    stalled.go_on()
    assert len(await submitted(stalled, 2)) == 2
    await until(lambda: first.is_done)
    assert (await readings.told(first, 0.0)).num_processed == 3


async def test_a_request_that_reads_the_text_itself_ends_the_reading_of_it(
    stalled: FakeEngine, readings: PromptReadings
) -> None:
    readings.begin("default", None, prompt(*range(2000)), 0)
    await submitted(stalled, 1)
    readings.begin("default", None, prompt(*range(1100)), 0)
    readings.make_way("other", None, prompt(*range(3000)))
    assert stalled.aborted == []
    readings.make_way("default", None, prompt(*range(1500)))
    await until(lambda: bool(stalled.aborted))
    stalled.go_on()
    readings.begin("default", None, prompt(7), 0)
    assert [len(ids) for ids in await submitted(stalled, 2)] == [2000, 1]
