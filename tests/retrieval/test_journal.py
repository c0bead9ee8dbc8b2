"""What was written to since a purge is known to the page, so that a purge looks at that alone and misses nothing."""

import os
import random
from unittest.mock import patch

import pytest

import retrieval.database
from retrieval.database import Database
from retrieval.scrubbing import scrub


@pytest.fixture
def database(data_dir):
    data_dir.mkdir()
    database = Database(data_dir / "store.sqlite3")
    with database.write() as (connection, _):
        connection.execute("CREATE TABLE rows (document INTEGER, row INTEGER, text TEXT, PRIMARY KEY (document, row))")
    yield database
    database.close()


def put(database, document, num_rows, dice):
    with database.write() as (connection, _):
        rows = [(document, row, f"secret{document:03} " * dice.randint(1, 90)) for row in range(num_rows)]
        dice.shuffle(rows)
        connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", rows)


def drop(database, document):
    with database.write() as (connection, _):
        connection.execute("DELETE FROM rows WHERE document = ?", (document,))


@pytest.mark.parametrize("seed", range(4))
def test_after_each_purge_nothing_is_left_in_any_page(database, seed):
    dice, there = random.Random(seed), set()
    looked_at = []

    def watched(descriptor, pages=None):
        looked_at.append(pages)
        return scrub(descriptor, pages)

    with patch.object(retrieval.database, "scrub", watched), patch.object(retrieval.database, "MOST_FRAMES", 20):
        for step in range(60):
            document = dice.randrange(12)
            if document in there and dice.random() < 0.5:
                drop(database, document)
                there.discard(document)
            else:
                put(database, document, dice.choice([1, 3, 40]), dice)
                there.add(document)
            if dice.random() < 0.2:
                with pytest.raises(KeyError), database.write() as (connection, _):
                    connection.execute("UPDATE rows SET text = text || text")
                    raise KeyError
            if step % 7 == 6:
                assert database.purge()
                # What looking at every page would still have found.
                descriptor = os.open(database._path.with_name("copy"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                os.write(descriptor, database._path.read_bytes())
                assert scrub(descriptor) == 0
                os.close(descriptor)
                stale = {document for document in range(12) if f"secret{document:03}".encode() in everything(database)}
                assert stale == there
    assert looked_at[0] is None and all(pages for pages in looked_at[1:])


def everything(database):
    return b"".join(path.read_bytes() for path in database._path.parent.iterdir() if path.name != "copy")


def test_a_purge_looks_at_what_was_written_since_the_last_one(database):
    dice = random.Random(0)
    for document in range(40):
        put(database, document, 100, dice)
    database.purge()
    num_pages = database._path.stat().st_size // 4096
    assert num_pages > 300 and database._journal.pages == frozenset()
    with database.write() as (connection, _):
        connection.execute("UPDATE rows SET text = 'secret999' WHERE document = 7 AND row = 1")
    # A purge that a reader was in the way of loses nothing either.
    with database.read() as reader, patch.object(retrieval.database, "BUSY_SECONDS", 0.1):
        reader.execute("SELECT count(*) FROM rows").fetchone()
        database._writer.execute("PRAGMA busy_timeout = 50")
        drop(database, 39)
        assert not database.purge()
    pages = database._journal.pages
    assert pages is not None and 0 < len(pages) < num_pages / 5
    assert database.purge() and database._journal.pages == frozenset()


def test_a_long_journal_is_moved_into_the_file(database):
    dice = random.Random(0)
    with patch.object(retrieval.database, "MOST_FRAMES", 50):
        for document in range(60):
            put(database, document, 20, dice)
        assert database._path.with_name("store.sqlite3-wal").stat().st_size < 2 * 50 * 4120
    assert database._writer.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
