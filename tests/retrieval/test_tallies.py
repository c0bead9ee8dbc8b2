"""What the store keeps count of is what would be counted, whatever happens to documents, and is found at once."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval.embedder import HashEmbedder
from retrieval.library import Library
from retrieval.migrations import MIGRATIONS, migrate

COUNTED = (
    "SELECT stage, coalesce(reading, ''), count(*), sum(CASE stage WHEN 'ready' THEN coalesce(num_rows, 0) "
    "WHEN 'dense' THEN done ELSE 0 END), sum(num_facts) FROM documents GROUP BY 1, 2 ORDER BY 1, 2"
)
TALLIED = "SELECT * FROM tallies WHERE num_documents != 0 OR num_vectors != 0 OR num_facts != 0 ORDER BY 1, 2"


def agree(library: Library) -> None:
    with library._store.database.read() as connection:
        assert connection.execute(TALLIED).fetchall() == connection.execute(COUNTED).fetchall()
        counted = connection.execute("SELECT coalesce(sum(num_bytes), 0) FROM blobs").fetchall()
        assert connection.execute("SELECT num_bytes FROM blob_tally").fetchall() == counted


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "data", HashEmbedder(dimension=16), has_reader=True)


@pytest.fixture
def send(library: Library, tmp_path: Path) -> Callable[..., str]:
    def send(text: str, tenant: str = "t", is_to_be_read: bool = False, media_type: str = "text/plain") -> str:
        path = tmp_path / "sent"
        path.write_text(text)
        return library.add(tenant, "a.txt", media_type, path, is_to_be_read)[0].id

    return send


def test_tallies_follow_documents_through_everything(library: Library, send: Callable[..., str]) -> None:
    dice = random.Random(7)
    there: list[tuple[str, str]] = []
    for _ in range(60):
        what = dice.choice(["send", "send", "send", "process", "process", "read", "delete"])
        if what == "send":
            tenant = dice.choice("ab")
            text = f"Invoice QX-{dice.randrange(12)} was paid on 2024-01-0{dice.randrange(1, 9)}. " * dice.randrange(
                1, 30
            )
            kind = dice.choice(["text/plain", "text/plain", "application/pdf"])  # the last one fails
            there.append((tenant, send(text, tenant, dice.random() < 0.5, kind)))
        elif what == "process" and (pending := library.pending(1)):
            stops = iter([False] * dice.randrange(8) + [True] * 100)
            library.process(pending[0], lambda stops=stops: next(stops))  # type: ignore[misc]
        elif what == "read" and (unread := library.unread(1)):
            library.end_reading(unread[0].id, dice.choice([None, "too long"]))
        elif what == "delete" and there:
            tenant, document = there.pop(dice.randrange(len(there)))
            there = [each for each in there if each[1] != document]
            library.delete(tenant, document)
        agree(library)
    assert library.stats().num_facts > 0 and library.stats().num_vectors > 0
    assert library.stats().num_documents["failed"] > 0
    for tenant, document in set(there):
        library.delete(tenant, document)
    agree(library)
    stats = library.stats()
    assert sum(stats.num_documents.values()) == stats.num_vectors == stats.num_facts == 0
    library.close()


def test_the_backlog_is_what_is_left_to_do(library: Library, send: Callable[..., str]) -> None:
    assert (library.stats().num_pending, library.stats().waiting_seconds) == (0, 0.0)
    document = send("The vault opens at noon.")
    send("The vault closes at six.")
    with library._store.database.write() as (connection, _):
        connection.execute("UPDATE documents SET created_at = created_at - 100 WHERE id = ?", (document,))
    stats = library.stats()
    assert stats.num_pending == 2 and 100 <= stats.waiting_seconds < 110
    library.process(document)
    assert library.stats().num_pending == 1 and library.stats().waiting_seconds < 10
    # Whoever can be asked already does not wait, however old it is.
    with library._store.database.write() as (connection, _):
        connection.execute("UPDATE documents SET stage = 'dense' WHERE id = ?", (document,))
    library.process(library.pending()[0])
    assert library.stats().num_pending == 1 and library.stats().waiting_seconds == 0.0
    library.close()


def test_an_older_store_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    before = next(number for number, step in enumerate(MIGRATIONS) if "CREATE TABLE tallies" in step)
    for step in MIGRATIONS[:before]:
        connection.executescript(step)
    connection.execute(f"PRAGMA user_version = {before}")
    connection.execute("INSERT INTO blobs VALUES ('aa', 70), ('bb', 7)")
    connection.execute(
        "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, stage, reading, done, num_rows, "
        "num_facts) VALUES ('1', 't', 'n', 'm', 'aa', 1, 'ready', 'done', 1, 5, 3), "
        "('2', 't', 'n', 'm', 'bb', 1, 'dense', NULL, 2, 9, 4), ('3', 'u', 'n', 'm', 'bb', 1, 'ready', 'done', 1, 6, 0)"
    )
    migrate(connection, path)
    assert connection.execute(TALLIED).fetchall() == connection.execute(COUNTED).fetchall()
    assert connection.execute(TALLIED).fetchall() == [("dense", "", 1, 2, 4), ("ready", "done", 2, 11, 3)]
    assert connection.execute("SELECT num_bytes FROM blob_tally").fetchone() == (77,)
    connection.close()


def test_looking_costs_the_same_for_any_number_of_documents(library: Library) -> None:
    def num_steps() -> int:
        """Of SQLite's machine, in tens."""
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        database = library._store.database
        with database.read() as connection:
            connection.set_progress_handler(step, 10)
        library.stats()
        with database.read() as connection:
            connection.set_progress_handler(None, 10)
        return count

    few = num_steps()
    with library._store.database.write() as (connection, _):
        for number in range(3000):
            connection.execute("INSERT INTO blobs VALUES (?, 10)", (str(number),))
            connection.execute(
                "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, stage, num_rows) "
                "VALUES (?1, 't', 'n', 'm', ?1, 1, ?2, 5)",
                (str(number), "queued" if number % 3 else "ready"),
            )
    assert few < 100 and num_steps() < 2 * few
    assert library.stats().num_documents["ready"] == 1000 and library.stats().num_vectors == 5000
    agree(library)
    library.close()
