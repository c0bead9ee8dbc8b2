"""Responses that were answered, in ``responses.sqlite3``: what went in, what came out, and which goes on from which.

A response that others go on from stays for them when it is deleted, seen by nobody; with the last of them it is gone.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.durability import is_full
from server.database import Database, Schema
from server.files.nouns import StoreDocument
from server.responses.errors import ResponseNotStored, UnknownResponse

# ``number`` is the order of coming.
_FIRST = """
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
"""
# 2. A response that is made in the background is there from its beginning on.
_UNDER_WAY = """
    ALTER TABLE responses ADD COLUMN is_under_way INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX responses_under_way ON responses (number) WHERE is_under_way;
"""
_SCHEMA = Schema("responses", (_FIRST, _UNDER_WAY))


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
        """``in_progress``, ``completed``, ``incomplete``, ``cancelled`` or ``failed``."""
        return str(self.object["status"])

    @property
    def is_under_way(self) -> bool:
        """Whether it is still made."""
        return self.status == "in_progress"


class ResponseStore:
    """What was put is on the disk on return. For any thread."""

    def __init__(self, path: Path) -> None:
        """Raises ``StoreInvalid``."""
        self._database = Database(path, _SCHEMA)

    def close(self) -> None:
        """Idempotent."""
        self._database.close()

    def disk_bytes(self) -> int:
        """Bytes of the file and its journal. From any thread."""
        return self._database.disk_bytes()

    def put(self, tenant: str, response: StoredResponse) -> None:
        """Keep a response, in place of what was kept of it while it was made. Raises ``ResponseNotStored`` where the
        disk is full."""
        documents = [[each.document_id, each.file_id, each.filename] for each in response.documents]
        row = (tenant, response.id, response.previous_id, response.session, response.created_at, response.is_under_way)
        with self._written() as connection:
            connection.execute(
                "INSERT INTO responses (tenant, id, previous, session, created_at, is_under_way, object, input, "
                "documents) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO UPDATE SET "
                "session = excluded.session, is_under_way = excluded.is_under_way, object = excluded.object",
                (*row, json.dumps(response.object), json.dumps(response.input), json.dumps(documents)),
            )

    def end_broken_off(self, error: dict[str, Any]) -> int:
        """Say of the responses that were under way when the last process ended that they failed, and why; how many."""
        with self._written() as connection:
            rows = connection.execute("SELECT number, object FROM responses WHERE is_under_way").fetchall()
            for number, told in rows:
                failed = json.dumps({**json.loads(told), "status": "failed", "error": error})
                connection.execute(
                    "UPDATE responses SET is_under_way = 0, session = NULL, object = ? WHERE number = ?",
                    (failed, number),
                )
        return len(rows)

    def get(self, tenant: str, response_id: str) -> StoredResponse:
        """Raises ``UnknownResponse``."""
        with self._database.read() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM responses WHERE tenant = ? AND id = ? AND NOT is_deleted",
                (tenant, response_id),
            ).fetchone()
        if row is None:
            raise UnknownResponse(response_id)
        return _stored(row)

    def chain(self, tenant: str, response_id: str) -> list[StoredResponse]:
        """The response after all those before it, the first of the conversation first. Raises ``UnknownResponse``."""
        last = self.get(tenant, response_id)
        with self._database.read() as connection:
            rows = connection.execute(
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
        with self._database.read() as connection:
            row = connection.execute(
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
        self._database.checkpoint()
        return sessions

    def expired(self, before: int, limit: int = 100) -> list[tuple[str, str]]:
        """(tenant, id) of some of the responses that were made before a time, the oldest first."""
        with self._database.read() as connection:
            return connection.execute(
                "SELECT tenant, id FROM responses WHERE created_at < ? AND NOT is_deleted ORDER BY created_at LIMIT ?",
                (before, limit),
            ).fetchall()

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.transaction() as connection:
                yield connection
        except sqlite3.OperationalError as error:
            if is_full(error):
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
