"""Policy ``archive`` with the embedded model: the bill, sessions that outlive the process, documents that are asked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_server import serving

from server.app import create_app
from server.metrics import Metrics
from server.services import load_services
from server.settings import Settings

ARCHIVE: dict[str, Any] = {"policy": "archive", "sinks": 64, "window": 256, "select": 3}
WORDS = "harbour winter lantern ledger orchard captain river market signal copper meadow teacher engine".split()
STORY = " ".join(f"On day {day} the {WORDS[day % 13]} stood beside the {WORDS[day * 5 % 13]}." for day in range(60))
FIRST = {"role": "user", "content": f"{STORY} What stood beside the lantern?"}
SECOND = {"role": "user", "content": "And on which day was that?"}
THIRD = {"role": "user", "content": "Name another one."}


@contextmanager
def server(data_dir: Path, **changes: Any) -> Iterator[str]:
    """A server of this process, with a model of its own; its URL."""
    settings = Settings(data_dir=data_dir, dtype="float32", max_sequences=2, threads=1, **changes)
    metrics = Metrics()
    with serving(create_app(settings, load_services(settings, metrics), metrics)) as url:
        yield url


def say(url: str, messages: list[dict[str, str]], session: str) -> dict[str, Any]:
    fano = {"session": session}
    body = {"model": "fano-reader", "messages": messages, "temperature": 0, "max_tokens": 12, "fano": fano}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def text_of(reply: dict[str, Any]) -> str:
    text: str = reply["choices"][0]["message"]["content"]
    return text


def cached(reply: dict[str, Any]) -> int:
    number: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return number


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was said and saved, and where."""
    data_dir = tmp_path_factory.mktemp("archive") / "data"
    with server(data_dir, **ARCHIVE) as url:
        first = say(url, [FIRST], "talk")
        turns = [FIRST, {"role": "assistant", "content": text_of(first)}, SECOND]
        second = say(url, turns, "talk")
        turns += [{"role": "assistant", "content": text_of(second)}, THIRD]
        saved = httpx.post(f"{url}/v1/sessions/talk/save", timeout=60).json()
        httpx.post(f"{url}/v1/sessions/talk/fork", json={"to": "copy"}).raise_for_status()
        whole = say(url, turns, "copy")
        memory = httpx.get(f"{url}/v1/memory").json()
    return {"data_dir": data_dir, "turns": turns, "saved": saved, "second": second, "whole": whole, "memory": memory}


def test_the_bill_says_what_left_the_window(told: dict[str, Any]) -> None:
    usage = told["second"]["usage"]["fano"]
    assert usage["policy"] == {"name": "archive", "sinks": 64, "window": 256, "select": 3}
    archive = usage["archive_bytes"]
    # Keys and values of 64 tokens in float32, two layers and two heads of 64 numbers; 16 means of the keys.
    num_blocks, rest = divmod(archive["kv_archive"], 64 * 2 * 2 * 2 * 64 * 4)
    assert num_blocks >= 3 and not rest and archive["kv_summaries"] == num_blocks * 16 * 2 * 2 * 64 * 4
    assert told["memory"]["host"]["pools"]["kv_archive"] >= archive["kv_archive"]
    assert told["saved"]["bytes"]["kv_archive"] > 0 < told["saved"]["bytes"]["kv"]
    assert told["saved"]["fingerprint"]["policy"] == "archive, sinks 64, window 256, select 3"


def test_an_archive_that_was_saved_says_the_same_in_another_process(told: dict[str, Any]) -> None:
    with server(told["data_dir"], **ARCHIVE) as url:
        restored = httpx.post(f"{url}/v1/sessions/talk/restore", timeout=60).json()
        assert restored == told["saved"] | {"status": "host"}
        again = say(url, told["turns"], "talk")
        assert text_of(again) == text_of(told["whole"])
        assert cached(again) == cached(told["whole"]) > 256
        assert httpx.get(f"{url}/v1/memory").json()["host"]["pools"]["kv_archive"] > 0
    # A session goes on as it began, whatever the server's own policy is now.
    with server(told["data_dir"], **ARCHIVE | {"select": 4}) as url:
        again = say(url, told["turns"], "talk")
        assert again["usage"]["fano"]["policy"]["select"] == 3 and text_of(again) == text_of(told["whole"])


def test_a_document_is_read_once_and_its_questions_select(tmp_path: Path) -> None:
    with server(tmp_path / "data", **ARCHIVE) as url:
        document = httpx.post(f"{url}/v1/documents", json={"name": "story.txt", "text": STORY}).json()["id"]
        for _ in range(600):
            if httpx.get(f"{url}/v1/documents/{document}").json()["status"] == "ready":
                break
            time.sleep(0.05)
        question = {"role": "user", "content": "What stood beside the lantern?"}
        fano = {"documents": [document], "recall": "grounded", "start": "document"}
        body = {"model": "fano-reader", "messages": [question], "max_tokens": 4, "fano": fano}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        usage = reply["usage"]["fano"]
        assert usage["start"] == "document" and usage["prefix"]["result"] == "hit"
        assert usage["archive_bytes"]["kv_archive"] > 0
        assert cached(reply) > 256
