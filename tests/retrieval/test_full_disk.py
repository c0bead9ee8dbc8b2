"""A disk without room: errors are those of the disk, what was there stays, and a deletion can be taken up again."""

import errno
import resource
import sqlite3
from contextlib import contextmanager

import pytest

from retrieval.errors import UnknownDocument
from retrieval.store import Store

TENANT = "acme"


def no_room(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_room_in_rust(*_):
    raise ValueError("An IO error occurred: 'No space left on device (os error 28) at path \"lexical/.tmp\"'")


@contextmanager
def files_no_longer_than(num_bytes):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(data_dir):
    store = Store(data_dir)
    yield store
    store.close()


def test_a_full_database_is_told_as_such_and_can_be_written_to_again(store):
    writer = store.database._writer
    (num_pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {num_pages + 2}")
    with pytest.raises(sqlite3.OperationalError) as error, store.database.write() as (connection, _):
        connection.execute("INSERT INTO blobs VALUES ('first', 1)")
        connection.executemany("INSERT INTO blobs VALUES (?, 1)", [(f"{number:0900}",) for number in range(99)])
    assert error.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    writer.execute("PRAGMA max_page_count = 1000000")
    with store.database.write() as (connection, _):
        connection.execute("INSERT INTO blobs VALUES ('second', 1)")
    with store.database.read() as connection:
        assert connection.execute("SELECT sha256 FROM blobs").fetchall() == [("second",)]


def test_what_cannot_be_committed_is_undone(store, data_dir):
    store.database.checkpoint()
    with files_no_longer_than(1000), pytest.raises(sqlite3.OperationalError), store.database.write() as (connection, _):
        connection.execute("INSERT INTO blobs VALUES ('first', 1)")
    with store.database.write() as (connection, _):
        connection.execute("INSERT INTO blobs VALUES ('second', 1)")
    with store.database.read() as connection:
        assert connection.execute("SELECT sha256 FROM blobs").fetchall() == [("second",)]


def test_a_deletion_that_cannot_begin_changes_nothing(library, add_text, monkeypatch):
    document = add_text(library, "The porter hides the spare key in a globe.")
    with monkeypatch.context() as full:
        full.setattr(library._store, "mark_deleting", no_room)
        with pytest.raises(OSError, match="No space left"):
            library.delete(TENANT, document.id)
    assert not library.is_half_deleted(TENANT, document.id)
    assert library.search(TENANT, "porter", [document.id]).passages


@pytest.mark.parametrize("step", ["_shelves.discard", "_store._blobs.discard", "_store.database.purge"])
def test_a_deletion_that_ran_out_of_room_is_finished_when_asked_for_again(
    library, add_text, data_dir, monkeypatch, step
):
    kept = add_text(library, "The porter hides the spare key in a globe.")
    document = add_text(library, "Zanzibar sails at nine, and nobody else sails.")
    holder, _, name = step.rpartition(".")
    owner = library
    for part in holder.split("."):
        owner = getattr(owner, part)
    with monkeypatch.context() as full:
        full.setattr(owner, name, no_room)
        with pytest.raises(OSError, match="No space left"):
            library.delete(TENANT, document.id)
    with pytest.raises(UnknownDocument):
        library.get(TENANT, document.id)
    assert library.is_half_deleted(TENANT, document.id) and not library.is_half_deleted("other", document.id)
    with pytest.raises(UnknownDocument):
        library.delete("other", document.id)
    library.delete(TENANT, document.id)
    assert not library.is_half_deleted(TENANT, document.id)
    assert b"Zanzibar" not in everything_below(data_dir)
    with pytest.raises(UnknownDocument):
        library.delete(TENANT, document.id)
    assert library.search(TENANT, "porter", [kept.id]).passages


def full_database(*_):
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    try:
        connection.execute("CREATE TABLE texts (text TEXT)")
    finally:
        connection.close()


def failing(times, method):
    """``method``, before which the database is full so many times."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        return full_database() if len(calls) <= times else method(*arguments)

    return call


def test_the_index_goes_first_where_there_is_no_room_to_begin(library, add_text, data_dir, monkeypatch):
    document = add_text(library, "The porter hides the spare key in a globe.")
    mark, there = library._store.mark_deleting, []

    def looking(number):
        there.append((data_dir / "indexes" / document.id).exists())
        return mark(number)

    monkeypatch.setattr(library._store, "mark_deleting", failing(2, looking))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        library.delete(TENANT, document.id)
    assert library.search(TENANT, "porter", [document.id]).passages  # with an index made anew
    monkeypatch.setattr(library._store, "mark_deleting", failing(1, looking))
    library.delete(TENANT, document.id)
    assert there == [False] and b"porter" not in everything_below(data_dir)


def test_rows_are_deleted_in_pieces_where_the_journal_has_no_room_for_all(library, add_text, data_dir, monkeypatch):
    kept = add_text(library, "The porter hides the spare key in a globe.")
    text = "\n\n".join(f"Voucher ZB-{number} of the brig Zanzibar was paid at nine." for number in range(7000))
    document = add_text(library, text)
    tables = ("texts", "chunks", "vector_rows", "embeddings", "facts", "fact_keys")
    with library._store.database.read() as connection:
        before = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    assert min(before) > 8 and before[3] > 800
    store, lengths = library._store, []
    delete_rows = store._delete_rows

    def after_pieces(*arguments):
        with store.database.read() as connection:
            lengths.extend(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
        return delete_rows(*arguments)

    monkeypatch.setattr(store, "_delete_rows", failing(1, after_pieces))
    library.delete(TENANT, document.id)
    number = store.record(kept.id).number
    with store.database.read() as connection:
        own = [
            connection.execute(f"SELECT count(*) FROM {table} WHERE document = ?", (number,)).fetchone()[0]
            for table in tables
        ]
    assert lengths == own
    assert b"Zanzibar" not in everything_below(data_dir)
    assert library.search(TENANT, "porter", [kept.id]).passages


def test_a_document_that_filled_the_disk_says_so_and_can_be_sent_again(library, add_text, monkeypatch):
    text = "The porter hides the spare key in a globe."
    for told in (no_room, no_room_in_rust):
        with monkeypatch.context() as patch:
            patch.setattr(library._store, "write_text", told)
            failed = add_text(library, text)
        assert (failed.status.value, failed.error.code) == ("failed", "storage_full")
    assert "send it again" in failed.error.message
    again = add_text(library, text)
    assert (again.id, again.status.value) == (failed.id, "ready")
    assert library.search(TENANT, "porter", [again.id]).passages
