"""Responses that were answered, in ``responses.sqlite3``: what went in, what came out, and which goes on from which.

A response that others go on from stays for them when it is deleted, seen by nobody; with the last of them it is gone.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.durability import is_full, make_directory, sync_directory
from retrieval.errors import StoreInvalid
from server.files.nouns import StoreDocument
from server.responses.errors import ResponseNotStored, UnknownResponse

BUSY_SECONDS = 10.0

# Steps are only ever added at the end; user_version counts those that were taken. ``number`` is the order of coming.
_STEPS = (
    """
    CREATE TABLE responses (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL,
        id TEXT NOT NULL,
        previous TEXT,
        session TEXT,
        created_at INTEGER NOT NULL,
        is_deleted INTEGER NOT NULL DEFAULT 0,
        object TEXT NOT NULL,
        input TEXT NOT NULL,
        documents TEXT NOT NULL
    );
    CREATE UNIQUE INDEX responses_by_id ON responses (tenant, id);
    CREATE INDEX responses_by_previous ON responses (tenant, previous) WHERE previous IS NOT NULL;
    CREATE INDEX responses_by_session ON responses (tenant, session, number) WHERE session IS NOT NULL;
    CREATE INDEX responses_by_time ON responses (created_at) WHERE NOT is_deleted;
    """,
)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it was sent, with all that could be included; its own input items; the documents that they brought.

    ``session`` is the session that had its turn, None where there was none.
    """

    id: str
    previous_id: str | None
    session: str | None
    created_at: int
    object: dict[str, Any]
    input: list[dict[str, Any]]
    documents: tuple[StoreDocument, ...] = ()

    @property
    def status(self) -> str:
        """``completed``, ``incomplete`` or ``failed``."""
        return str(self.object["status"])


class ResponseStore:
    """One connection, for one thread at a time; what was put is on the disk on return (WAL, FULL)."""

    def __init__(self, path: Path) -> None:
        """Raises ``StoreInvalid``."""
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        make_directory(path.parent)
        is_new = not path.exists()
        # Connections change threads, but under the lock.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            _migrate(connection, path)
        except sqlite3.OperationalError:  # No permission, no room: the file itself may be sound.
            connection.close()
            raise
        except sqlite3.DatabaseError as error:
            connection.close()
            raise StoreInvalid(
                f"{path} cannot be read as a store of responses ({error}); restore it from a backup, or move it away "
                "to start empty"
            ) from error
        if is_new:
            sync_directory(path.parent)
        self._connection = connection

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def disk_bytes(self) -> int:
        """Bytes of the file and its journal. From any thread."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += self._path.with_name(self._path.name + suffix).stat().st_size
        return total

    def put(self, tenant: str, response: StoredResponse) -> None:
        """Keep a response. Raises ``ResponseNotStored`` where the disk is full."""
        documents = [[each.document_id, each.file_id, each.filename] for each in response.documents]
        row = (tenant, response.id, response.previous_id, response.session, response.created_at)
        with self._written() as connection:
            connection.execute(
                "INSERT INTO responses (tenant, id, previous, session, created_at, object, input, documents) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, json.dumps(response.object), json.dumps(response.input), json.dumps(documents)),
            )

    def get(self, tenant: str, response_id: str) -> StoredResponse:
        """Raises ``UnknownResponse``."""
        with self._lock:
            row = self._open.execute(
                f"SELECT {_COLUMNS} FROM responses WHERE tenant = ? AND id = ? AND NOT is_deleted",
                (tenant, response_id),
            ).fetchone()
        if row is None:
            raise UnknownResponse(response_id)
        return _stored(row)

    def chain(self, tenant: str, response_id: str) -> list[StoredResponse]:
        """The response after all those before it, the first of the conversation first. Raises ``UnknownResponse``."""
        last = self.get(tenant, response_id)
        with self._lock:
            rows = self._open.execute(
                f"""
                WITH RECURSIVE line (at, next) AS (
                    SELECT number, previous FROM responses WHERE tenant = ?1 AND id = ?2
                    UNION ALL
                    SELECT number, previous FROM responses JOIN line ON tenant = ?1 AND id = line.next
                )
                SELECT {_COLUMNS} FROM responses WHERE number IN (SELECT at FROM line) ORDER BY number
                """,
                (tenant, last.id),
            ).fetchall()
        return [_stored(row) for row in rows]

    def head(self, tenant: str, session: str) -> str | None:
        """The response whose turn is the last of the session."""
        with self._lock:
            row = self._open.execute(
                "SELECT id FROM responses WHERE tenant = ? AND session = ? ORDER BY number DESC LIMIT 1",
                (tenant, session),
            ).fetchone()
        return None if row is None else str(row[0])

    def delete(self, tenant: str, response_id: str) -> set[str]:
        """Delete a response, and those that only stayed for it. Sessions that hold text of them and that no response
        needs. Raises ``UnknownResponse``."""
        with self._written() as connection:
            found = connection.execute(
                "UPDATE responses SET is_deleted = 1 WHERE tenant = ? AND id = ? AND NOT is_deleted RETURNING id",
                (tenant, response_id),
            ).fetchall()
            if not found:
                raise UnknownResponse(response_id)
            sessions = _swept(connection, tenant, response_id)
        with self._lock, suppress(sqlite3.OperationalError):
            # What was deleted is still in the journal.
            self._open.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return sessions

    def expired(self, before: int, limit: int = 100) -> list[tuple[str, str]]:
        """(tenant, id) of some of the responses that were made before a time, the oldest first."""
        with self._lock:
            return self._open.execute(
                "SELECT tenant, id FROM responses WHERE created_at < ? AND NOT is_deleted ORDER BY created_at LIMIT ?",
                (before, limit),
            ).fetchall()

    @property
    def _open(self) -> sqlite3.Connection:
        assert self._connection is not None, "closed"
        return self._connection

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._open
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                # Of some errors, a full disk among them, SQLite has undone the transaction itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and is_full(error):
                    raise ResponseNotStored from error
                raise


_COLUMNS = "id, previous, session, created_at, object, input, documents"


def _stored(row: Sequence[Any]) -> StoredResponse:
    response_id, previous, session, created_at, response, items, documents = row
    return StoredResponse(
        response_id,
        previous,
        session,
        created_at,
        json.loads(response),
        json.loads(items),
        tuple(StoreDocument(*each) for each in json.loads(documents)),
    )


def _swept(connection: sqlite3.Connection, tenant: str, response_id: str) -> set[str]:
    """Remove a deleted response that nobody goes on from, and then the one before it if that is such a one, too."""
    sessions: set[str] = set()
    at: str | None = response_id
    while at is not None:
        row = connection.execute(
            "SELECT previous, session FROM responses WHERE tenant = ?1 AND id = ?2 AND is_deleted AND NOT EXISTS "
            "(SELECT 1 FROM responses AS next WHERE next.tenant = ?1 AND next.previous = ?2)",
            (tenant, at),
        ).fetchone()
        if row is None:
            break
        connection.execute("DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, at))
        # Its turn was the last of its session: of those that went on from it none is left.
        sessions |= {row[1]} - {None}
        at = row[0]
    return sessions


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(_STEPS):
        raise StoreInvalid(
            f"{path} has schema {version}, and this version knows up to {len(_STEPS)}; start the version that wrote it"
        )
    for number, step in enumerate(_STEPS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {step}; PRAGMA user_version = {number}; COMMIT;")
