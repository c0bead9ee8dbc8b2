"""The store: what is committed stays, what is deleted is gone, and whose is whose."""

import sqlite3
import threading

import numpy as np
import pytest

from retrieval.blobs import Blobs
from retrieval.contents import Contents
from retrieval.database import Database
from retrieval.errors import StoreInvalid, UnknownDocument
from retrieval.migrations import MIGRATIONS
from retrieval.passage import Chunk, DocumentError, Fact, FactKind, Span
from retrieval.record import Stage
from retrieval.store import TEXT_BLOCK_CHARACTERS, Store
from retrieval.vector_rows import VectorRow


@pytest.fixture
def store(data_dir):
    store = Store(data_dir)
    yield store
    store.close()


@pytest.fixture
def contents(store):
    return Contents(store.database)


@pytest.fixture
def upload(tmp_path):
    def write(content: bytes):
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def record(store, upload):
    return store.add("acme", "notes.txt", "text/plain", upload(b"hello"))[0]


def chunk(start: int, end: int) -> Chunk:
    return Chunk(Span(start, end), "x" * (end - start), None, "")


def fact(start: int, *keys: str) -> Fact:
    return Fact(FactKind.IDENTIFIER, Span(start, start + 2), "xx", keys, Span(start, start + 4), "code", 1.0)


def test_what_was_added_is_there_after_reopening(data_dir, upload):
    store = Store(data_dir)
    added, accepted = store.add("acme", "notes.txt", "text/plain", upload(b"hello"))
    store.close()
    again = Store(data_dir)
    record = again.record(added.document.id)
    assert accepted
    assert record == added
    assert (record.stage, record.document.num_bytes, record.document.name) == (Stage.QUEUED, 5, "notes.txt")
    assert again.blob_path(record).read_bytes() == b"hello"
    again.close()


def test_the_source_file_is_left_alone(store, upload):
    path = upload(b"mine")
    store.add("acme", "a", "text/plain", path)
    assert path.read_bytes() == b"mine"


def test_same_content_same_kind_same_tenant_is_the_same_document(store, upload):
    first, _ = store.add("acme", "a.txt", "text/plain", upload(b"same"))
    revision = store.database.revision()
    assert store.add("acme", "b.txt", "text/plain", upload(b"same")) == (first, False)
    assert store.database.revision() == revision
    assert store.add("acme", "a.md", "text/markdown", upload(b"same"))[1]
    assert store.add("other", "a.txt", "text/plain", upload(b"same"))[1]
    assert len(store.ids()) == 3


def test_a_new_document_gets_the_id_that_is_given_and_a_known_one_keeps_its_own(store, upload):
    first, accepted = store.add("acme", "a.txt", "text/plain", upload(b"same"), document_id="doc_chosen")
    assert accepted and store.record("doc_chosen", "acme") == first
    again, accepted = store.add("acme", "a.txt", "text/plain", upload(b"same"), document_id="doc_other")
    assert (again, accepted) == (first, False)


def test_a_failed_document_is_queued_again_by_the_same_content(store, record, upload):
    store.write_text(record.number, "half", ())
    store.fail(record.number, DocumentError("damaged", "no end of file"))
    assert store.record(record.document.id).document.error == DocumentError("damaged", "no end of file")
    assert store.unfinished() == []
    again, accepted = store.add("acme", "notes.txt", "text/plain", upload(b"hello"))
    assert accepted
    assert (again.document.id, again.stage, again.document.error) == (record.document.id, Stage.QUEUED, None)
    assert store.text(again.number) == ""


def test_every_change_bumps_the_revision_once(store, contents, record):
    changes = [
        lambda: store.begin_parsing(record.number),
        lambda: store.write_text(record.number, "text", ()),
        lambda: contents.write_index(record.number, [chunk(0, 4)], [VectorRow(0, Span(0, 4))], [fact(0, "k")]),
        lambda: contents.open_for_questions(record.number, "f"),
        lambda: store.count_tokens(record.number, 3),
        lambda: contents.add_embeddings(record.number, "f", 0, np.ones((1, 1), np.float32)),
        lambda: contents.finish_embeddings(record.number),
        lambda: store.fail(record.number, DocumentError("c", "m")),
        lambda: store.mark_deleting(record.number),
        lambda: store.erase(record),
    ]
    revisions = [store.database.revision()]
    for change in changes:
        change()
        revisions.append(store.database.revision())
    assert revisions == list(range(revisions[0], revisions[0] + len(changes) + 1))


def test_an_undone_change_leaves_the_revision(store):
    before = store.database.revision()
    with pytest.raises(ZeroDivisionError), store.database.write() as (connection, revision):
        assert revision == before + 1
        connection.execute("DELETE FROM documents")
        raise ZeroDivisionError
    assert store.database.revision() == before


def test_changes_inside_one_are_that_change(store, contents, record):
    before = store.database.revision()
    with store.database.write() as (_, revision):
        store.write_text(record.number, "text", ())
        with store.database.write() as inner:
            assert inner.revision == revision == before + 1
        assert store.text(record.number) == ""  # Readers see it once it is whole.
    assert (store.text(record.number), store.database.revision()) == ("text", before + 1)
    with pytest.raises(UnknownDocument), store.database.write():
        store.write_text(record.number, "other", ())
        store.count_tokens(record.number + 1, 3)
    assert (store.text(record.number), store.database.revision()) == ("text", before + 1)
    store.write_text(record.number, "other", ())
    assert (store.text(record.number), store.database.revision()) == ("other", before + 2)


def test_another_tenants_document_is_unknown(store, record):
    with pytest.raises(UnknownDocument, match=record.document.id):
        store.record(record.document.id, "other")
    assert store.record(record.document.id, "acme") == record
    assert store.page("other", None, 10) == []


def test_pages_of_a_list_follow_each_other(store, upload):
    ids = [store.add("acme", str(n), "text/plain", upload(b"%d" % n))[0].document.id for n in range(5)]
    store.add("other", "x", "text/plain", upload(b"x"))
    assert [r.document.id for r in store.page("acme", None, 2)] == ids[:2]
    assert [r.document.id for r in store.page("acme", ids[1], 2)] == ids[2:4]
    assert [r.document.id for r in store.page("acme", ids[3], 2)] == ids[4:]


def test_text_comes_back_by_code_points_across_blocks(store, record):
    text = "aé\r\n漢\x00😀" * TEXT_BLOCK_CHARACTERS
    store.write_text(record.number, text, (Span(0, 10), Span(10, len(text))))
    assert store.text(record.number) == text
    for start, end in ((0, 7), (TEXT_BLOCK_CHARACTERS - 3, TEXT_BLOCK_CHARACTERS + 4), (5, 5), (9, 3)):
        assert store.text(record.number, start, end) == text[start:end]
    assert store.text(record.number, len(text) - 2, len(text) + 50) == text[-2:]
    assert store.text(record.number, len(text) + 50) == ""
    assert store.pages(record.number) == (Span(0, 10), Span(10, len(text)))
    assert store.record(record.document.id).document.num_characters == len(text)


def test_facts_come_by_key_with_form_and_chunk(store, contents, record, upload):
    contents.write_index(
        record.number,
        [chunk(0, 10), chunk(11, 20), chunk(21, 30)],
        [],
        [fact(2, "A-1", "a1"), fact(11, "a1"), fact(29, "b")],
    )
    other = store.add("acme", "o", "text/plain", upload(b"other"))[0]
    contents.write_index(other.number, [chunk(0, 10)], [], [fact(0, "A-1")])
    found = contents.facts_by_key([record.number], ["a1", "A-1"])
    assert [(hit.chunk, hit.key, hit.form, hit.span.start) for hit in found] == [
        (0, "A-1", 0, 2),
        (0, "a1", 1, 2),
        (1, "a1", 0, 11),
    ]
    assert [hit.chunk for hit in contents.facts_by_key([record.number], ["b"])] == [2]
    assert len(contents.facts_by_key([other.number, record.number], ["A-1"])) == 2
    assert contents.facts_by_key([], ["a1"]) == contents.facts_by_key([record.number], []) == []


def test_embeddings_come_back_as_unit_rows_in_order(store, contents, record, unit_rows):
    rows = unit_rows(5, 8, 0)
    contents.write_index(record.number, [chunk(n * 2, n * 2 + 1) for n in range(5)], [], [])
    contents.add_embeddings(record.number, "f", 0, rows[:3])
    assert contents.num_embeddings(record.number, "f") == 3
    contents.add_embeddings(record.number, "f", 3, rows[3:])
    back = contents.embeddings(record.number, "f", 8)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, rows, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1.0, atol=1e-6)
    assert contents.embeddings(record.number, "g", 8).shape == (0, 8)


def test_vectors_of_another_embedder_send_a_ready_document_back(store, contents, record):
    contents.write_index(record.number, [chunk(0, 2)], [VectorRow(0, Span(0, 2))], [])
    contents.open_for_questions(record.number, "old")
    contents.add_embeddings(record.number, "old", 0, np.ones((1, 1), np.float32))
    contents.finish_embeddings(record.number)
    store.recover("old")
    assert store.record(record.document.id).stage is Stage.READY
    store.recover("new")
    changed = store.record(record.document.id)
    assert (changed.stage, changed.document.answerable, changed.vectors_revision) == (Stage.DENSE, True, None)
    assert contents.num_embeddings(record.number, "old") == 0


@pytest.mark.parametrize("change", ["text", "index", "embeddings", "fail"])
def test_nothing_is_written_to_a_document_that_is_going(store, contents, record, change):
    store.mark_deleting(record.number)
    with pytest.raises(UnknownDocument):
        {
            "text": lambda: store.write_text(record.number, "t", ()),
            "index": lambda: contents.write_index(record.number, [chunk(0, 1)], [], []),
            "embeddings": lambda: contents.add_embeddings(record.number, "f", 0, np.ones((1, 1), np.float32)),
            "fail": lambda: store.fail(record.number, DocumentError("c", "m")),
        }[change]()
    with pytest.raises(UnknownDocument):
        store.record(record.document.id)
    assert [found.number for found in store.recover("f")] == [record.number]


def test_erasing_takes_rows_and_the_bytes_with_the_last_reference(store, contents, record, data_dir, upload):
    other = store.add("other", "o", "text/plain", upload(b"hello"))[0]
    contents.write_index(record.number, [chunk(0, 2)], [VectorRow(0, Span(0, 2))], [fact(0, "k")])
    contents.add_embeddings(record.number, "f", 0, np.ones((1, 1), np.float32))
    store.write_text(record.number, "hello", (Span(0, 5),))
    store.erase(record)
    assert store.blob_path(other).read_bytes() == b"hello"
    with sqlite3.connect(data_dir / "store.sqlite3") as connection:
        for table in ("texts", "pages", "chunks", "vector_rows", "embeddings", "facts", "fact_keys"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (1,)
    connection.close()
    store.erase(other)
    assert not store.blob_path(other).exists()
    assert store.disk_bytes() == store.database.disk_bytes()


def test_a_number_is_never_given_twice(store, record, upload):
    store.erase(record)
    assert store.add("acme", "n", "text/plain", upload(b"new"))[0].number > record.number


def test_a_store_of_a_newer_program_is_refused(data_dir):
    Store(data_dir).close()
    with sqlite3.connect(data_dir / "store.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreInvalid, match=f"version {len(MIGRATIONS) + 1}, this program knows versions up to"):
        Store(data_dir)


def test_a_file_that_is_no_store_is_refused(data_dir):
    data_dir.mkdir()
    (data_dir / "store.sqlite3").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(StoreInvalid, match="restore it from a backup"):
        Store(data_dir)


def test_the_store_is_as_durable_as_it_promises(store):
    with store.database.write() as (connection, _):
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


def test_readers_and_the_writer_do_not_wait_for_each_other(store, record):
    with store.database.write() as (connection, _):
        connection.execute("UPDATE documents SET name = 'new'")
        names: list[str] = []
        reader = threading.Thread(target=lambda: names.append(store.record(record.document.id).document.name))
        reader.start()
        reader.join()
    assert names == ["notes.txt"]
    assert store.record(record.document.id).document.name == "new"


def test_checkpoint_empties_the_journal(data_dir, tmp_path):
    data_dir.mkdir()
    database = Database(data_dir / "store.sqlite3")
    with database.write():
        pass
    assert (data_dir / "store.sqlite3-wal").stat().st_size > 0
    assert database.checkpoint()
    assert (data_dir / "store.sqlite3-wal").stat().st_size == 0
    database.close()


def test_blobs_sweep_takes_what_nobody_refers_to(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    source = tmp_path / "source"
    kept = []
    for content in (b"one", b"two"):
        source.write_bytes(content)
        kept.append(blobs.stage(source))
        blobs.keep(kept[-1])
    abandoned = blobs.stage(source)
    assert blobs.sweep([kept[0].sha256]) == 2
    assert blobs.path(kept[0].sha256).read_bytes() == b"one"
    assert not blobs.path(kept[1].sha256).exists()
    assert not abandoned.path.exists()


def test_a_file_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    with pytest.raises(IsADirectoryError):
        blobs.stage(tmp_path)
    assert blobs.sweep([]) == 0
