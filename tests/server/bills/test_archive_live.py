"""Policy ``archive`` with the embedded model: the bill, sessions that outlive the process, documents that are asked."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_talk import SECOND, THIRD, cached, first, say, server, story, text_of

from server.settings import Settings

ARCHIVE: dict[str, Any] = {"policy": "archive", "sinks": 64, "window": 256, "select": 3}
STORY = story(60)
FIRST = first(60)


def settings_of(data_dir: Path, **changes: Any) -> Settings:
    return Settings(data_dir=data_dir, dtype="float32", max_sequences=2, threads=1, **changes)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was said and saved, and where."""
    data_dir = tmp_path_factory.mktemp("archive") / "data"
    with server(settings_of(data_dir, **ARCHIVE)) as url:
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
    with server(settings_of(told["data_dir"], **ARCHIVE)) as url:
        restored = httpx.post(f"{url}/v1/sessions/talk/restore", timeout=60).json()
        assert restored == told["saved"] | {"status": "host"}
        again = say(url, told["turns"], "talk")
        assert text_of(again) == text_of(told["whole"])
        assert cached(again) == cached(told["whole"]) > 256
        assert httpx.get(f"{url}/v1/memory").json()["host"]["pools"]["kv_archive"] > 0
    # A session goes on as it began, whatever the server's own policy is now.
    with server(settings_of(told["data_dir"], **ARCHIVE | {"select": 4})) as url:
        again = say(url, told["turns"], "talk")
        assert again["usage"]["fano"]["policy"]["select"] == 3 and text_of(again) == text_of(told["whole"])


def test_a_document_is_read_once_and_its_questions_select(tmp_path: Path) -> None:
    with server(settings_of(tmp_path / "data", **ARCHIVE)) as url:
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
