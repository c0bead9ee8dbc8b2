"""The server's SQLite files: what is changed is whole, also what brings the schema forward."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from retrieval.errors import StoreInvalid
from server.database import Database, Schema, statements

FIRST = "CREATE TABLE things (name TEXT);\nCREATE TRIGGER gone AFTER DELETE ON things BEGIN\nSELECT 1;\nEND;\n"
SCHEMA = Schema("things", (FIRST,))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return [name for (name,) in connection.execute("SELECT name FROM things ORDER BY rowid")]


def test_an_exception_undoes_all_of_a_transaction_and_what_is_in_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "things.sqlite3", SCHEMA)
    with database.transaction() as connection:
        connection.execute("INSERT INTO things VALUES ('one')")
        with database.transaction():
            assert database.is_changing
            connection.execute("INSERT INTO things VALUES ('two')")
    for _ in range(2):
        with pytest.raises(KeyError), database.transaction() as connection:
            connection.execute("INSERT INTO things VALUES ('three')")
            with database.transaction():
                connection.execute("INSERT INTO things VALUES ('four')")
            raise KeyError
    assert names(database) == ["one", "two"] and not database.is_changing
    # SQLite itself undoes a transaction that finds no room.
    with database.read() as connection:
        connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError, match="full"), database.transaction() as connection:
        connection.execute("INSERT INTO things VALUES (zeroblob(1000000))")
    assert names(database) == ["one", "two"]
    database.close()
    database.close()
    assert names(Database(tmp_path / "things.sqlite3", SCHEMA)) == ["one", "two"]


def test_steps_are_taken_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "things.sqlite3"
    Database(path, SCHEMA).close()
    more = "ALTER TABLE things ADD COLUMN size INTEGER;\n"
    with pytest.raises(sqlite3.OperationalError):
        Database(path, Schema("things", (FIRST, more, "CREATE NONSENSE;\n")))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert len(connection.execute("PRAGMA table_info(things)").fetchall()) == 1
    Database(path, Schema("things", (FIRST, more))).close()
    with pytest.raises(StoreInvalid, match=r"newer version of this program \(schema 2, known are 1\).*without things"):
        Database(path, SCHEMA)
    assert list(statements(FIRST)) == [FIRST.split("\n", 1)[0] + "\n", FIRST.split("\n", 1)[1]]


def test_a_file_that_is_none_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "things.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreInvalid, match=r"cannot be read .*restore it from a backup"):
        Database(path, SCHEMA)
