"""A document may wait for a reader that the library knows nothing of: the wish is durable, and told as a stage."""

import sqlite3
from pathlib import Path

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.errors import UnknownDocument
from retrieval.library import Library
from retrieval.migrations import MIGRATIONS, migrate
from retrieval.passage import DocumentStatus, Progress

TENANT = "acme"
TEXT = "The keeper of the lighthouse was paid 300 crowns. He left in winter."


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.write_text(TEXT)
    return path


def open_at(data_dir: Path, has_reader: bool = True) -> Library:
    return Library.open(data_dir, HashEmbedder(dimension=64), count_tokens=lambda text: 17, has_reader=has_reader)


def processed(library: Library, upload: Path, is_to_be_read: bool = True) -> str:
    document, _ = library.add(TENANT, "story.txt", "text/plain", upload, is_to_be_read)
    library.process(document.id)
    return document.id


def test_a_document_that_is_to_be_read_is_ready_only_then(data_dir, upload):
    library = open_at(data_dir)
    document_id = processed(library, upload)
    waiting = library.get(TENANT, document_id)
    assert (waiting.status, waiting.answerable) == (DocumentStatus.READING, True)
    assert waiting.progress == Progress("reading", 0, 17, None)
    assert library.search(TENANT, "Who was paid 300 crowns?", [document_id]).found
    assert [each.id for each in library.unread()] == [document_id] and library.pending() == []
    library.tell_reading(document_id, 5, 19, 2.5)
    assert library.get(TENANT, document_id).progress == Progress("reading", 5, 19, 2.5)
    assert library.list(TENANT)[0].progress.done == 5
    counts = library.stats().num_documents
    assert counts["reading"] == 1 and counts["ready"] == 0
    library.end_reading(document_id)
    ended = library.get(TENANT, document_id)
    assert (ended.status, ended.progress.stage, ended.progress.note) == (DocumentStatus.READY, "ready", None)
    assert library.unread() == [] and library.stats().num_documents["ready"] == 1
    library.close()


def test_the_wish_outlives_a_restart_and_a_server_that_does_not_read(data_dir, upload):
    library = open_at(data_dir)
    document_id = processed(library, upload)
    library.close()
    library = open_at(data_dir, has_reader=False)
    assert library.get(TENANT, document_id).status is DocumentStatus.READY
    assert library.stats().num_documents["reading"] == 0
    library.close()
    library = open_at(data_dir)
    assert library.get(TENANT, document_id).status is DocumentStatus.READING
    library.end_reading(document_id, "too long")
    library.close()
    library = open_at(data_dir)
    left_out = library.get(TENANT, document_id)
    assert (left_out.status, left_out.progress.note, left_out.error) == (DocumentStatus.READY, "too long", None)
    assert library.unread() == []
    library.close()


def test_a_reading_can_be_asked_for_later_but_once(data_dir, upload):
    library = open_at(data_dir)
    document_id = processed(library, upload, is_to_be_read=False)
    assert library.get(TENANT, document_id).status is DocumentStatus.READY and library.unread() == []
    again, is_new = library.add(TENANT, "story.txt", "text/plain", upload, True)
    assert (again.id, is_new, again.status) == (document_id, False, DocumentStatus.READING)
    library.end_reading(document_id)
    again, _ = library.add(TENANT, "story.txt", "text/plain", upload, True)
    assert again.status is DocumentStatus.READY
    library.close()


def test_a_deleted_document_is_not_read(data_dir, upload):
    library = open_at(data_dir)
    document_id = processed(library, upload)
    library.tell_reading(document_id, 5, 19, 2.5)
    library.delete(TENANT, document_id)
    assert library.unread() == []
    with pytest.raises(UnknownDocument):
        library.end_reading(document_id)
    library.close()


def test_what_waits_for_its_index_does_not_wait_to_be_read(data_dir, upload):
    library = open_at(data_dir)
    document, _ = library.add(TENANT, "story.txt", "text/plain", upload, True)
    assert document.status is DocumentStatus.QUEUED and library.unread() == []
    library.close()


def test_documents_of_an_older_store_are_not_read_unasked(data_dir, upload):
    data_dir.mkdir()
    with sqlite3.connect(data_dir / "store.sqlite3") as connection:
        for number, step in enumerate(MIGRATIONS[:1], start=1):
            connection.executescript(f"{step} PRAGMA user_version = {number};")
        connection.execute("INSERT INTO blobs VALUES ('0a', 3)")
        connection.execute(
            "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, stage) "
            "VALUES ('doc_old', 'acme', 'old.txt', 'text/plain', '0a', 1, 'ready')"
        )
        connection.commit()
        migrate(connection, data_dir)
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        assert connection.execute("SELECT id, reading FROM documents").fetchall() == [("doc_old", None)]
    connection.close()
