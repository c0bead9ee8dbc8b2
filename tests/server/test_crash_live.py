"""kill -9 of the whole server, with the embedded model, at the moments that have most to lose."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes_process import Server, served, wait

from server.sessions.vault import Vault

SETTINGS = {"FANO_DTYPE": "float32", "FANO_THREADS": "1", "FANO_MAX_SEQUENCES": "2"}
KINDS = ("ingest", "answer", "delete", "read", "save")


def code_of(number: int) -> str:
    return f"zq{7919 * (number + 11):06d}"


def text_of(number: int) -> str:
    """Long enough to be read for a while."""
    dice, code = random.Random(number), code_of(number)
    return "".join(
        f"On day {row} keeper {code}k{row} tends the lamp of tower TW-{code}-{row} "
        f"for {dice.randint(2, 99)} nights.\n\n"
        for row in range(40 if number < 2 else 500)
    )


@contextmanager
def fano(data_dir: Path) -> Iterator[tuple[Server, httpx.Client]]:
    with served(data_dir, SETTINGS) as server:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            yield server, client


def send(client: httpx.Client, number: int) -> str:
    reply = client.post("/v1/documents", json={"name": f"{code_of(number)}.txt", "text": text_of(number)})
    assert reply.status_code == 202, reply.text
    document_id: str = reply.json()["id"]
    return document_id


def status(client: httpx.Client, document_id: str) -> str:
    found: str = client.get(f"/v1/documents/{document_id}").json()["status"]
    return found


def answers(client: httpx.Client, documents: dict[int, str]) -> list[Any]:
    """What is said, verbatim and greedily, with its sources and citations."""
    told = []
    for number, document_id in sorted(documents.items()):
        for question in (f"Who tends the lamp of tower tw{code_of(number)}7?", "How many nights is the lamp tended?"):
            for recall in ("verbatim", "grounded"):
                body = {"question": question, "recall": recall, "max_tokens": 40}
                reply = client.post(f"/v1/documents/{document_id}/ask", json=body)
                assert reply.status_code == 200, reply.text
                told.append([reply.json()[key] for key in ("answer", "found", "sources", "citations")])
    return told


def kill_while(kind: str, server: Server, client: httpx.Client, kept: str) -> str:
    """Kill the server while it does what ``kind`` says; the id of the document that was sent for it."""
    document = send(client, 2)

    def until(use: Callable[[], object], seconds: float) -> None:
        def patiently() -> None:
            with suppress(httpx.TransportError):
                use()

        thread = threading.Thread(target=patiently)
        thread.start()
        time.sleep(seconds)
        server.kill()
        thread.join()

    if kind == "ingest":
        wait(lambda: status(client, document) != "queued")
        until(lambda: None, 0.0)
    elif kind == "answer":
        body = {"question": "How many nights is the lamp tended?", "max_tokens": 400}
        until(lambda: client.post(f"/v1/documents/{kept}/ask", json=body), 0.15)
    elif kind == "delete":
        wait(lambda: status(client, document) == "ready")
        until(lambda: client.delete(f"/v1/documents/{document}"), 0.03)
    elif kind == "read":
        wait(lambda: status(client, document) == "reading")
        until(lambda: None, 0.3)
    else:
        wait(lambda: status(client, kept) == "ready")
        body = {"model": "fano-reader", "messages": [{"role": "user", "content": text_of(0)}], "max_tokens": 8}
        assert client.post("/v1/chat/completions", json=body | {"fano": {"session": "talk"}}).status_code == 200
        until(lambda: client.post("/v1/sessions/talk/save"), 0.01)
    return document


def assert_no_orphans(data_dir: Path) -> None:
    """On a data directory that nobody has open: files, rows and sessions are those of the documents there are."""
    with closing(sqlite3.connect(data_dir / "store.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute("SELECT id, sha256 FROM documents").fetchall()
    ids, hashes = {row[0] for row in rows}, {row[1] for row in rows}
    assert {path.name for path in (data_dir / "blobs").rglob("*") if path.is_file()} == hashes
    assert {path.name for path in (data_dir / "indexes").iterdir()} <= ids
    assert list((data_dir / "uploads").glob("*")) == []
    assert [path for path in data_dir.rglob("*") if path.name.endswith(".part")] == []
    vault = Vault(data_dir / "sessions", 1 << 33)
    vault.check()
    named = {each.name.removeprefix("document:") for each in vault.manifests() if each.name.startswith("document:")}
    assert vault.damaged == () and named <= ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_comes_back_with_what_it_acknowledged(tmp_path: Path, kind: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with fano(data_dir) as (server, client):
        kept = {number: send(client, number) for number in range(2)}
        wait(lambda: all(status(client, each) == "ready" for each in kept.values()))
        before = answers(client, kept)
        gone = send(client, 3)
        wait(lambda: client.get(f"/v1/documents/{gone}").json()["answerable"])
        assert client.delete(f"/v1/documents/{gone}").status_code == 200
        sent = kill_while(kind, server, client, kept[0])
    with fano(data_dir) as (server, client):
        listed = {each["id"] for each in client.get("/v1/documents").json()["data"]}
        assert set(kept.values()) <= listed and gone not in listed
        assert sent in listed or kind == "delete"
        wait(lambda: all(status(client, each) == "ready" for each in listed))
        assert answers(client, kept) == before
        if sent in listed:
            reply = client.post(
                f"/v1/documents/{sent}/ask", json={"question": f"tower TW-{code_of(2)}-77", "recall": "verbatim"}
            ).json()
            assert f"TW-{code_of(2)}-77 " in reply["sources"][0]["text"]
        assert server.stop() == 0
    assert_no_orphans(data_dir)
    content = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file()).lower()
    assert code_of(3).encode() not in content
    assert (code_of(2).encode() in content) == (sent in listed)
