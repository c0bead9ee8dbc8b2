"""kill -9 of the whole server while files come in, are put into stores, and go; then a new one on the same data."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes_process import Server, served

SETTINGS = {"FANO_DTYPE": "float32", "FANO_THREADS": "1", "FANO_MAX_SEQUENCES": "2", "FANO_READ_DOCUMENTS": "false"}
NUM_FILES = 40


def text_of(number: int) -> bytes:
    rows = (f"Keeper zq{number:04d}k{row} tends the lamp of tower TW-{number:04d}-{row}.\n\n" for row in range(6))
    return "".join(rows).encode()


@contextmanager
def fano(data_dir: Path) -> Iterator[tuple[Server, openai.OpenAI]]:
    with served(data_dir, SETTINGS) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            yield server, client


class Sender:
    """Sends files, puts them into a store, deletes every fifth; notes what was acknowledged, until the server dies."""

    def __init__(self, client: openai.OpenAI, store: str) -> None:
        self.client = client
        self.store = store
        self.kept: dict[str, int] = {}
        self.added: set[str] = set()
        self.deleted: set[str] = set()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with suppress(openai.APIConnectionError):
            for number in range(NUM_FILES):
                data = text_of(number)
                if number % 4 == 3:
                    name = f"{number}.txt"
                    upload = self.client.uploads.upload_file_chunked(
                        file=data, filename=name, bytes=len(data), mime_type="text/plain", purpose="assistants",
                        part_size=100,
                    )  # fmt: skip
                    assert upload.file is not None
                    file_id = upload.file.id
                else:
                    file_id = self.client.files.create(file=(f"{number}.txt", data), purpose="assistants").id
                self.kept[file_id] = number
                if number % 2:
                    self.client.vector_stores.files.create(self.store, file_id=file_id, attributes={"n": number})
                    self.added.add(file_id)
                else:
                    self.client.vector_stores.file_batches.create(
                        self.store, files=[{"file_id": file_id, "attributes": {"n": number}}]
                    )
                    self.added.add(file_id)
                if number % 5 == 4:
                    gone = next(iter(self.kept))
                    del self.kept[gone]  # From here on nobody can tell.
                    self.added.discard(gone)
                    self.client.files.delete(gone)
                    self.deleted.add(gone)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.9, 1.7])
def test_a_killed_server_has_what_it_acknowledged(tmp_path: Path, seconds: float) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with fano(data_dir) as (server, client):
        store = client.vector_stores.create(name="towers").id
        sender = Sender(client, store)
        time.sleep(seconds)
        server.kill()
        sender.thread.join()
    assert sender.kept
    with fano(data_dir) as (server, client):
        listed = {file.id for file in client.files.list()}
        assert set(sender.kept) <= listed and not listed & sender.deleted
        for file_id, number in sender.kept.items():
            assert client.files.content(file_id).read() == text_of(number)
        for file_id in sender.added:
            file = client.vector_stores.files.poll(file_id, vector_store_id=store, max_wait_seconds=60)
            assert (file.status, file.attributes) == ("completed", {"n": sender.kept[file_id]})
            (content,) = client.vector_stores.files.content(file_id, vector_store_id=store)
            assert content.text == text_of(sender.kept[file_id]).decode()
        number = sender.kept[next(iter(sender.added))]
        (hit, *_) = client.vector_stores.search(store, query=f"Who tends the lamp of tower TW-{number:04d}-3?").data
        assert hit.attributes == {"n": number} and f"zq{number:04d}k3" in hit.content[0].text
        assert server.stop() == 0
    check_disk(data_dir, listed)


def check_disk(data_dir: Path, listed: set[str]) -> None:
    """On a data directory that nobody has open: no bytes and no document without a file, none that is missing."""
    with closing(sqlite3.connect(data_dir / "files.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        files = connection.execute("SELECT id, sha256 FROM files").fetchall()
        parts = connection.execute("SELECT sha256 FROM parts").fetchall()
        documents = {row[0] for row in connection.execute("SELECT document FROM documents")}
    assert {row[0] for row in files} == listed
    on_disk: Any = {path.name for path in (data_dir / "files").rglob("*") if path.is_file()}
    assert on_disk == {row[1] for row in files} | {row[0] for row in parts}
    with closing(sqlite3.connect(data_dir / "store.sqlite3")) as connection:
        assert {row[0] for row in connection.execute("SELECT id FROM documents")} == documents
    assert list((data_dir / "uploads").glob("*")) == []
