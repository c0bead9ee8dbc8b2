"""Long prompts of every kind, and what ends them early: an answer, or a refusal by name before the first byte."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fakes_prompts import ASKED, CODE, PASTED, WINDOW, chat, prose
from fakes_server import MODEL, World, WorldMaker, chunks, open_client, serving, sse

from model.engine.request import GenerationRequest
from model.tokenizer import Tokenizer
from retrieval.prompt_archive import PromptArchive

LONG = f"{PASTED}\n\n{ASKED}"
CHINESE = "港口在冬天关闭了。没有人来到市场。船长在花园里等待。" * 60
SOURCE = "\n".join(f"def step_{number}(state):\n    return state.advance({number})\n" for number in range(200))


@pytest.fixture
def world(new_world: WorldMaker) -> World:
    return new_world(policy=WINDOW, read_prompts=False)


def text_of(tokenizer: Tokenizer, request: GenerationRequest) -> str:
    ids = request.prompt_ids
    return b"".join((tokenizer.control_token(i) or "").encode() or tokenizer.token_bytes(i) for i in ids).decode()


@pytest.mark.parametrize(
    ("pasted", "asked", "found"),
    [
        (
            json.dumps([{"turbine": f"T-{n}", "code": f"QX-{n}-B"} for n in range(400)]),
            "Which code has T-377?",
            "QX-377-B",
        ),
        (SOURCE, "What does step_137 return?", "state.advance(137)"),
        (f"{CHINESE}涡轮机的维护代码是 QX-7741-B。{CHINESE}", "涡轮机的维护代码是什么 QX-7741-B？", "QX-7741-B"),
        (f"{prose(60).replace(' ', '')}{prose(60)} {CODE}", ASKED, CODE),
        (f"{prose(60)}\r\n{CODE}\r\n{prose(60, 2)}\r\n", ASKED, CODE),
    ],
    ids=["json", "source code", "chinese", "a giant line", "foreign line ends"],
)
async def test_what_is_asked_is_found_in_any_text(
    client: httpx.AsyncClient, world: World, tokenizer: Tokenizer, pasted: str, asked: str, found: str
) -> None:
    reply = await client.post("/v1/chat/completions", json=chat(f"{pasted}\n\n{asked}", max_tokens=16))
    usage = reply.raise_for_status().json()["usage"]
    assert usage["fano"]["retrieval"]["passages"] >= 1 and usage["fano"]["start"] == "fresh"
    assert found in text_of(tokenizer, world.engine.requests[-1]).rpartition("Question: ")[0]


@pytest.mark.parametrize(
    "said",
    [
        [("user", " \n" * 4000)],
        [("user", "x" * 30_000)],
        [("user", f"{PASTED}\n\n   \n\n")],
        [("user", f"{PASTED}\n\n{prose(60, 4).replace('. ', ' ')}")],
        [("user", f"{PASTED}\n\n{'a' * 5000}")],
        [("user", CHINESE)],
        [("user", json.dumps({"rows": list(range(6000))}))],
        [("system", PASTED), ("assistant", "Yes.")],
        [("system", LONG), ("user", " ")],
        [("user", LONG), ("assistant", "QX-7741-B, for it is")],
    ],
    ids=[
        "blanks",
        "one word",
        "an empty last paragraph",
        "a last paragraph that is long",
        "a last paragraph of one word",
        "one paragraph",
        "json alone",
        "no user",
        "a user who says nothing",
        "an answer that is begun",
    ],
)
async def test_what_asks_little_or_nothing_is_answered_all_the_same(
    client: httpx.AsyncClient, world: World, said: list[tuple[str, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in said]
    body = {"model": MODEL, "messages": messages, "max_tokens": 16}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "ok"
    retrieval = reply.json()["usage"]["fano"]["retrieval"]
    # Passages share the window with what is asked, which is cut to its end where it is long.
    assert len(world.engine.requests[-1].prompt_ids) + 16 <= WINDOW.window or not retrieval["passages"]
    streamed = chunks((await client.post("/v1/chat/completions", json={**body, "stream": True})).text)
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "more",
    [
        {"n": 3},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True, "top_logprobs": 2},
        {"prompt_logprobs": 1},
        {"stop": ["."]},
        {"fano": {"session": "turbine"}},
        {"fano": {"policy": {"name": "archive"}}},
        {"fano": {"question_place": "both"}},
    ],
    ids=str,
)
async def test_it_goes_together_with_the_other_fields(client: httpx.AsyncClient, more: dict[str, Any]) -> None:
    for start in ("fresh", "prompt"):
        fano = {**more.get("fano", {}), "start": start}
        reply = await client.post("/v1/chat/completions", json={**chat(LONG, max_tokens=16), **more, "fano": fano})
        assert reply.status_code == 200, reply.text
        assert len(reply.json()["choices"]) == more.get("n", 1)
        wanted = "prompt" if "prompt_logprobs" in more else start
        assert reply.json()["usage"]["fano"]["start"] == wanted


@contextmanager
def stalled(world: World) -> Iterator[None]:
    world.engine.stall()
    try:
        yield
    finally:
        world.engine.go_on()


@pytest.mark.parametrize("start", ["fresh", "prompt"])
async def test_a_deadline_ends_it(new_world: WorldMaker, start: str) -> None:
    world = new_world(policy=WINDOW, prompt_start=start, max_request_seconds=0.2)
    async with open_client(world) as client:
        with stalled(world):
            late = await client.post("/v1/chat/completions", json=chat(LONG))
            assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        with stalled(world):
            reply = await client.post("/v1/chat/completions", json=chat(LONG, stream=True))
            told = [json.loads(data) for _, data in sse(reply.text)]
            assert told[-1]["error"]["code"] == "deadline_exceeded"


async def test_a_full_archive_refuses_before_the_first_byte(
    client: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = world.app.state.fano.services
    monkeypatch.setattr(services.prompts, "_max_bytes", 1000)
    # Somebody else asks just now.
    monkeypatch.setitem(services.prompts._wanted, b"other", 1)
    monkeypatch.setitem(services.prompts._promised, b"other", 900)
    for streamed in (False, True):
        reply = await client.post("/v1/chat/completions", json=chat(LONG, stream=streamed))
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (507, "prompt_memory_full") and "1000" in error["message"]
    assert world.engine.requests == []


async def test_a_server_that_drains_refuses(client: httpx.AsyncClient, world: World) -> None:
    await world.app.state.fano.services.bridge.drain(0.0)
    reply = await client.post("/v1/chat/completions", json=chat(LONG, stream=True))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "draining")


def test_a_client_that_leaves_while_the_prompt_is_searched(
    new_world: WorldMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(policy=WINDOW)
    searched, may_go_on = threading.Event(), threading.Event()
    search = PromptArchive.search

    def slow(*arguments: Any) -> Any:
        searched.set()
        assert may_go_on.wait(20)
        return search(*arguments)

    monkeypatch.setattr(PromptArchive, "search", slow)
    with serving(world.app) as url, httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/chat/completions", json=chat(LONG), timeout=0.5)
        assert searched.wait(20)
        may_go_on.set()
        monkeypatch.undo()
        assert client.post("/chat/completions", json=chat(LONG)).status_code == 200
        assert client.get("/memory").json()["host"]["pools"]["prompts"] > 0
