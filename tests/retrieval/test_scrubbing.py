"""What was deleted is not left in the middle of the pages that its rows shared with others."""

import os
import sqlite3
from contextlib import closing

from retrieval.scrubbing import scrub

STALE = b"secret that a rebuilt page still holds"
TABLES = """
PRAGMA page_size = 4096;
CREATE TABLE texts (start INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE words (word TEXT PRIMARY KEY) WITHOUT ROWID;
"""


def test_unused_bytes_are_overwritten_and_nothing_else_changes(tmp_path):
    path = tmp_path / "rows.sqlite3"
    rows = [(number, "\n\r\x05\x02 long text " * (1 + 2000 * (number % 2))) for number in range(1, 30)]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(TABLES)
        connection.executemany("INSERT INTO texts VALUES (?, ?)", rows)
        connection.execute("INSERT INTO words VALUES ('kept')")
        (words_page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'words'").fetchone()
    before = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    # Between the headers at the begin of the first page and of a leaf, and their only cells at the end.
    os.pwrite(descriptor, STALE, 1000)
    os.pwrite(descriptor, STALE, (words_page - 1) * 4096 + 2000)
    assert scrub(descriptor) == 2
    assert path.read_bytes() == before
    assert scrub(descriptor) == 0
    os.close(descriptor)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT * FROM texts").fetchall() == rows
