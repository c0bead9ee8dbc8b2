"""Prompts longer than the window: searched themselves, cited by message, told on the way, streamed where they must."""

import json
import threading
from typing import Any

import httpx
import openai
import pytest
from fakes_prompts import ASKED, CODE, PASTED, WINDOW, chat, progress_of, prompt_text, prose
from fakes_server import MODEL, World, WorldMaker, chunks, open_client, scrape, serving

from model.engine.request import GenerationRequest, SamplingParams
from model.policy import AttentionPolicy, PolicyName
from model.tokenizer import Tokenizer
from retrieval.open_prompt import OpenPrompt
from retrieval.passage import SearchResult
from server.long_prompts.pace import ReadingPace
from server.long_prompts.progress import ReadingProgress


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world(policy=WINDOW, prompt_start="prompt")


async def test_passages_stand_before_the_last_paragraph_and_citations_point_into_the_prompt(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("QX-7741-B.")
    body = chat("Hello", "Good day", f"{PASTED}\n\n{ASKED}\n", max_tokens=16)
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    said = prompt_text(world, tokenizer)
    before, passages = said.split("\n\n[1] ", 1)
    assert before.endswith(prose(60, 3)) and CODE in passages
    assert passages.endswith(f"\n\nQuestion: {ASKED}\n<|end|><|assistant|>") and said.count(ASKED) == 1
    (annotation,) = reply["choices"][0]["message"]["annotations"]
    assert annotation.pop("quote") == "QX-7741-B"
    place = body["messages"][2]["content"].index("QX-7741-B")
    assert annotation == {
        "type": "file_citation",
        "file_id": "messages.2",
        "filename": "messages.2",
        "message": 2,
        "index": 9,
        "start_char": place,
        "end_char": place + 9,
        "page": None,
    }
    request = world.engine.requests[-1]
    assert request.sampling.temperature == 0.0 and request.keep.borders
    fano = reply["usage"]["fano"]
    assert (fano["retrieval"]["used"], fano["retrieval"]["reason"]) == (True, "long_prompt")
    assert fano["retrieval"]["passages"] >= 1 and "meaning" in fano["retrieval"]["note"]
    num_bytes = len(f"Hello{'x' * 1601}Good day{'x' * 1601}{PASTED}\n\n")
    assert fano["archive_bytes"]["text"] == num_bytes and fano["archive_bytes"]["index"] > 0


async def test_a_prompt_within_the_window_is_plain_chat(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    body = chat(f"{prose(5)}\n\n{ASKED}")
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "no_documents"
    assert prompt_text(world, tokenizer).endswith(f"{prose(5)}\n\n{ASKED}<|end|><|assistant|>")
    full = chat(f"{PASTED}\n\n{ASKED}", fano={"policy": {"name": "full"}})
    reply = (await client.post("/v1/chat/completions", json=full)).raise_for_status().json()
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "no_documents"


async def test_where_nothing_is_found_the_prompt_is_read_as_it_is(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    body = chat(f"{PASTED}\n\nÜberfahrt nach Kiautschou?")
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    assert prompt_text(world, tokenizer).endswith("\n\nÜberfahrt nach Kiautschou?<|end|><|assistant|>")
    retrieval = reply["usage"]["fano"]["retrieval"]
    assert (retrieval["used"], retrieval["passages"]) == (True, 0)
    assert reply["choices"][0]["message"]["content"] == "ok"
    assert world.engine.requests[-1].sampling.temperature == 1.0


async def test_a_turn_that_asks_nothing_is_not_searched_for(client: httpx.AsyncClient, world: World) -> None:
    body = chat(f"{PASTED}\n\n{ASKED}", "QX-7741-B", "Thanks, great!")
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    assert reply["usage"]["fano"]["retrieval"]["reason"] == "small_talk"
    assert (await scrape(client))['fano_retrieval_total{decision="skipped",reason="small_talk"}'] == 1


async def test_a_question_that_rests_on_another_is_searched_with_it(client: httpx.AsyncClient, world: World) -> None:
    body = chat(f"{PASTED}\n\nDo you know the Halvorsen turbine?", "Yes.", "And what is its maintenance code?")
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    assert "Halvorsen" in reply["usage"]["fano"]["retrieval"]["query"]


async def test_quotations_from_the_prompt(client: httpx.AsyncClient, world: World) -> None:
    pasted = f"{prose(60)}\n\nHalvorsen turbine: QX-7741-B\n\n{prose(60, 3)}"
    body = chat(f"{pasted}\n\nWhat is the Halvorsen turbine?", fano={"recall": "verbatim"})
    reply = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    message = reply["choices"][0]["message"]
    assert message["content"] == "QX-7741-B" and world.engine.requests == []
    (annotation,) = message["annotations"]
    assert pasted[annotation["start_char"] : annotation["end_char"]] == "QX-7741-B"
    nothing = chat(f"{pasted}\n\nÜberfahrt nach Kiautschou?", fano={"recall": "verbatim"})
    reply = (await client.post("/v1/chat/completions", json=nothing)).raise_for_status().json()
    assert reply["choices"][0]["message"]["content"].startswith("Nothing about this was found. Searched ")
    for field, value in (("n", 2), ("stop", "x"), ("logprobs", True), ("response_format", {"type": "json_object"})):
        refused = await client.post("/v1/chat/completions", json={**body, field: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(("key", "value"), [("recall", "verbatim"), ("recall", "grounded"), ("max_passages", 2)])
async def test_what_needs_a_search_needs_a_long_prompt(client: httpx.AsyncClient, key: str, value: Any) -> None:
    short = await client.post("/v1/chat/completions", json=chat("Who?", fano={key: value}))
    assert short.status_code == 400 and short.json()["error"]["param"] == f"fano.{key}"
    assert "longer than the window of 1024 tokens" in short.json()["error"]["message"]
    long = await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}", fano={key: value}))
    assert long.status_code == 200, long.text


async def test_several_choices_read_the_passages_and_cite_nothing(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("QX-7741-B", "Who knows?")
    reply = await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}", n=2))
    said = [choice["message"] for choice in reply.raise_for_status().json()["choices"]]
    assert [each["content"] for each in said] == ["QX-7741-B", "Who knows?"]
    assert not any("annotations" in each for each in said) and "[1] " in prompt_text(world, tokenizer)


async def test_evidence_and_question_fit_the_window_whatever_is_asked_for(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    for max_tokens in (8, 500, 50_000):
        body = chat(f"{PASTED}\n\n{ASKED}", max_tokens=max_tokens)
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        last = prompt_text(world, tokenizer).rpartition("\n\n[1] ")[2]
        assert CODE in last and len(tokenizer.encode_ids(last)) + min(max_tokens, WINDOW.window // 2) <= WINDOW.window


async def test_over_the_hard_limit_both_numbers_are_told(client: httpx.AsyncClient, world: World) -> None:
    refused = await client.post("/v1/chat/completions", json=chat("winter " * 110_000, stream=True))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "100000" in error["message"] and world.engine.requests == []


async def test_what_takes_long_is_streamed_alone(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world(policy=WINDOW, prompt_start="prompt", max_whole_prompt_tokens=1000)
    services = world.app.state.fano
    async with open_client(world) as client:
        body = chat(f"{PASTED}\n\n{ASKED}")
        services.services.pace._seconds_per_token = 1 / 100
        refused = await client.post("/v1/chat/completions", json=body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (400, "stream_required", "stream")
        num_tokens = len(tokenizer.encode_chat(body["messages"]))
        assert f"{num_tokens} tokens" in error["message"] and "1000" in error["message"]
        assert (
            f"{-(-num_tokens // 100)} seconds" in error["message"]
            and "FANO_MAX_WHOLE_PROMPT_TOKENS" in error["message"]
        )
        assert world.engine.requests == []
        plan = (await client.post("/v1/plan", json={"messages": body["messages"]})).raise_for_status().json()
        assert plan["stream_required"] and plan["reading_seconds"] == pytest.approx(
            plan["prompt_tokens"] / 100, abs=1e-3
        )
        reply = await client.post("/v1/chat/completions", json={**body, "stream": True})
        assert chunks(reply.text)[-1]["choices"][0]["finish_reason"] == "stop"
        assert len(world.engine.requests[-1].prompt_ids) == plan["prompt_tokens"]
        text = {"model": MODEL, "prompt": PASTED[:6000], "max_tokens": 4}
        refused = await client.post("/v1/completions", json=text)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "stream_required")
        assert (await client.post("/v1/completions", json={**text, "stream": True})).status_code == 200


async def test_the_pace_is_measured_where_nothing_was_read(new_world: WorldMaker) -> None:
    world = new_world(policy=WINDOW, max_whole_prompt_tokens=1000)
    async with open_client(world) as client:
        refused = await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}"))
        assert refused.status_code == 400
        (trial,) = world.engine.requests
        assert trial.is_background and trial.keep.nothing and trial.sampling.max_tokens == 0


async def test_a_stream_tells_how_far_the_prompt_is_read(client: httpx.AsyncClient, world: World) -> None:
    body = chat(f"{PASTED}\n\n{ASKED}", stream=True, stream_options={"include_usage": True})
    received = chunks((await client.post("/v1/chat/completions", json=body)).text)
    total = len(world.engine.requests[-1].prompt_ids)
    (last,) = progress_of(received)
    assert last["processed"] == last["total"] == total and last["seconds"] >= 0
    told = next(chunk for chunk in received if "prompt_progress" in chunk)
    assert told["object"] == "chat.completion.chunk" and told["usage"] is None
    assert told["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
    silent = chunks((await client.post("/v1/chat/completions", json={**body, "return_progress": False})).text)
    assert progress_of(silent) == []
    short = chunks((await client.post("/v1/chat/completions", json=chat("Hello", stream=True))).text)
    assert progress_of(short) == []
    asked = chat("Hello", stream=True, return_progress=True)
    assert len(progress_of(chunks((await client.post("/v1/chat/completions", json=asked)).text))) == 1
    refused = await client.post("/v1/chat/completions", json=chat("Hello", return_progress=True))
    assert refused.status_code == 400 and "only allowed when stream is true" in refused.json()["error"]["message"]


def test_the_official_client_takes_progress_while_the_engine_reads(world: World) -> None:
    world.engine.num_read, world.engine.num_cached = 640, 512
    world.engine.stall()
    body = chat(f"{PASTED}\n\n{ASKED}")
    with serving(world.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        told: list[Any] = []
        text = ""
        for chunk in client.chat.completions.create(**body, stream=True):
            if (progress := (chunk.model_extra or {}).get("prompt_progress")) is not None:
                told.append(progress)
                world.engine.go_on()
            text += chunk.choices[0].delta.content or ""
        assert [(each["processed"], each["cached"]) for each in told[:1]] == [(640, 512)]
        assert told[-1]["processed"] == told[-1]["total"] and len(told) == 2 and text == "ok"
        text = {"model": MODEL, "prompt": PASTED, "max_tokens": 4, "stream": True}
        pieces = list(client.completions.create(**text))
        assert (pieces[0].model_extra or {})["prompt_progress"]["processed"] > WINDOW.window
        assert "".join(piece.choices[0].text for piece in pieces) == "ok"


async def test_a_session_remembers_the_conversation_without_passages(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer
) -> None:
    world.engine.enqueue("QX-7741-B.")
    asked = f"{PASTED}\n\n{ASKED}"
    body = chat(asked, fano={"session": "turbine"})
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    session = (await client.get("/v1/sessions")).json()["data"][0]
    plain = [{"role": "user", "content": asked}, {"role": "assistant", "content": "QX-7741-B."}]
    num_tokens = sum(
        1 if isinstance(part, int) else len(tokenizer.encode_ids(part))
        for part in tokenizer.chat_parts(plain, add_generation_prompt=False)
    )
    assert session["documents"] == [] and num_tokens - 2 <= session["num_tokens"] <= num_tokens
    then = chat(asked, "QX-7741-B.", "And where does it stand?", fano={"session": "turbine"})
    reply = (await client.post("/v1/chat/completions", json=then)).raise_for_status().json()
    assert reply["usage"]["fano"]["retrieval"]["used"]


async def test_responses_cite_the_prompt_too(client: httpx.AsyncClient, world: World, tokenizer: Tokenizer) -> None:
    world.engine.enqueue("QX-7741-B.")
    asked = f"{PASTED}\n\n{ASKED}"
    reply = (await client.post("/v1/responses", json={"model": MODEL, "input": asked})).raise_for_status().json()
    (part,) = reply["output"][0]["content"]
    (annotation,) = part["annotations"]
    assert (annotation["file_id"], annotation["quote"]) == ("messages.0", "QX-7741-B")
    assert asked[annotation["start_char"] : annotation["end_char"]] == "QX-7741-B"
    count = (await client.post("/v1/responses/input_tokens", json={"model": MODEL, "input": asked})).json()
    assert count["input_tokens"] == reply["usage"]["input_tokens"] == len(world.engine.requests[-1].prompt_ids)


async def test_a_plan_is_that_of_the_prompt_with_its_passages(client: httpx.AsyncClient, world: World) -> None:
    messages = chat(f"{PASTED}\n\n{ASKED}")["messages"]
    plan = (await client.post("/v1/plan", json={"messages": messages, "max_tokens": 9})).raise_for_status().json()
    reply = (await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}", max_tokens=9))).json()
    assert plan["prompt_tokens"] == reply["usage"]["prompt_tokens"] and plan["cached_tokens"] == 0
    assert not plan["stream_required"]


async def test_the_archive_of_prompts_is_in_the_bill(client: httpx.AsyncClient, world: World) -> None:
    before = (await client.get("/v1/memory")).json()["host"]["pools"]["prompts"]
    reply = (await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}"))).json()
    after = (await client.get("/v1/memory")).json()["host"]
    held = sum(reply["usage"]["fano"]["archive_bytes"].values())
    assert held > len(PASTED) and abs(after["pools"]["prompts"] - before - held) < 1 << 16  # whole pages
    assert (await scrape(client))['fano_host_memory_bytes{pool="prompts"}'] == after["pools"]["prompts"]


def test_the_pace_is_that_of_steps_that_only_read() -> None:
    pace = ReadingPace()
    assert pace.seconds(1000) is None
    assert json.dumps(pace.tokens_per_second) == "null"


async def test_where_no_passage_fits_a_sentence_may(new_world: WorldMaker, tokenizer: Tokenizer) -> None:
    world = new_world(policy=AttentionPolicy(PolicyName.WINDOW, 64, 448), prompt_start="prompt")
    async with open_client(world) as client:
        reply = await client.post("/v1/chat/completions", json=chat(f"{PASTED}\n\n{ASKED}"))
        assert reply.json()["usage"]["fano"]["retrieval"]["passages"] == 1
        assert "\n\n[1] " in prompt_text(world, tokenizer)
        asked = f"{prose(60)}\n\n{'Halvorsen turbine ' * 20}?"
        reply = await client.post("/v1/chat/completions", json=chat(asked, max_tokens=400))
        assert reply.status_code == 200 and "left out to fit" in reply.json()["usage"]["fano"]["retrieval"]["note"]
        assert "\n\n[1] " not in prompt_text(world, tokenizer)


def test_while_a_long_prompt_is_searched_its_stream_is_kept_alive(
    new_world: WorldMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(policy=WINDOW, keepalive_seconds=0.1)
    monkeypatch.setattr("server.streams.patience.SOON_CHARACTERS", 1000)
    may_search = threading.Event()
    search = OpenPrompt.search

    def slow(prompt: OpenPrompt, question: str, max_passages: int) -> SearchResult:
        assert may_search.wait(20)
        return search(prompt, question, max_passages)

    monkeypatch.setattr(OpenPrompt, "search", slow)
    with serving(world.app) as url, httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        too_long = client.post("/chat/completions", json=chat("winter " * 110_000, stream=True))
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
        body = chat(f"{PASTED}\n\n{ASKED}", stream=True)
        with client.stream("POST", "/chat/completions", json=body) as reply:
            assert reply.status_code == 200
            lines = reply.iter_lines()
            assert [line for line in (next(lines) for _ in range(4)) if line] == [": keep-alive"] * 2
            may_search.set()
            received = chunks("\n".join(lines))
        assert progress_of(received) and received[-1]["choices"][0]["finish_reason"] == "stop"


async def test_what_was_told_is_not_told_again() -> None:
    places = [(0, 0), (0, 0), (64, 32), (64, 32)]

    class Bridge:
        async def call(self, function: Any) -> tuple[int, int]:
            return places.pop(0)

    request = GenerationRequest("r", range(100), SamplingParams(max_tokens=1))
    progress = ReadingProgress(Bridge(), request, started=0.0)  # type: ignore[arg-type]
    told = [await progress.look() for _ in range(4)]
    assert [each and (each.num_processed, each.num_cached) for each in told] == [(0, 0), None, (64, 32), None]
