"""One SQLite file with what is known of files, uploads and vector stores; the schema, and the steps that lead to it."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.durability import is_full
from server.database import Database, Schema
from server.errors import RequestInvalid, StorageFull
from server.pages import Order

# 1. `number` orders rows by their coming. A row in `blobs` stands as long as a file or a part refers to it.
#    `documents` says which document of the library is made of a content, read as a media type; `is_owned` is whether
#    it is there for the files alone. The row is written before the document is, with the id that it is to have, so
#    that after a crash it is known whose it is. `gone` keeps the places of what was deleted: a client that goes
#    through a list and deletes what it meets asks for what comes after it.
_FIRST = """
CREATE TABLE blobs (sha256 TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    media_type TEXT,
    refusal TEXT,
    sha256 TEXT NOT NULL REFERENCES blobs (sha256),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    CHECK ((media_type IS NULL) != (refusal IS NULL))
);
CREATE INDEX files_by_tenant ON files (tenant, number);
CREATE INDEX files_by_content ON files (sha256, tenant, media_type);
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE documents (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    media_type TEXT NOT NULL,
    document TEXT NOT NULL,
    is_owned INTEGER NOT NULL,
    PRIMARY KEY (tenant, sha256, media_type)
) WITHOUT ROWID;
CREATE INDEX documents_by_id ON documents (document);

CREATE TABLE uploads (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    declared_type TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    file_expires_after_seconds INTEGER,
    status TEXT NOT NULL CHECK (status IN ('pending', 'completed', 'cancelled', 'expired')),
    file_id TEXT,
    part_ids TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX uploads_by_expiry ON uploads (status, expires_at);

CREATE TABLE parts (
    id TEXT PRIMARY KEY,
    upload_id TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL REFERENCES blobs (sha256),
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX parts_by_upload ON parts (upload_id);
CREATE INDEX parts_by_blob ON parts (sha256);

CREATE TABLE stores (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    metadata TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_active_at INTEGER NOT NULL,
    expires_days INTEGER
);
CREATE INDEX stores_by_tenant ON stores (tenant, number);

CREATE TABLE store_files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    store_id TEXT NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
    file_id TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('in_progress', 'completed', 'failed', 'cancelled')),
    error_code TEXT,
    error_message TEXT,
    attributes TEXT NOT NULL,
    UNIQUE (store_id, file_id)
);
CREATE INDEX store_files_by_store ON store_files (store_id, number);
CREATE INDEX store_files_by_status ON store_files (store_id, status);
CREATE INDEX store_files_by_file ON store_files (file_id);
CREATE INDEX store_files_under_way ON store_files (number) WHERE status = 'in_progress';

CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    store_id TEXT NOT NULL REFERENCES stores (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    is_cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX batches_by_store ON batches (store_id);

CREATE TABLE batch_files (
    batch_id TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    file_id TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    PRIMARY KEY (batch_id, file_id)
) WITHOUT ROWID;
CREATE INDEX batch_files_by_file ON batch_files (file_id);

CREATE TABLE gone (
    scope TEXT NOT NULL,
    id TEXT NOT NULL,
    number INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL,
    PRIMARY KEY (scope, id)
) WITHOUT ROWID;
CREATE INDEX gone_by_time ON gone (deleted_at);
CREATE TRIGGER file_gone AFTER DELETE ON files BEGIN
    INSERT OR REPLACE INTO gone VALUES ('files ' || OLD.tenant, OLD.id, OLD.number, strftime('%s', 'now'));
END;
CREATE TRIGGER store_gone AFTER DELETE ON stores BEGIN
    INSERT OR REPLACE INTO gone VALUES ('stores ' || OLD.tenant, OLD.id, OLD.number, strftime('%s', 'now'));
END;
CREATE TRIGGER store_file_gone AFTER DELETE ON store_files BEGIN
    INSERT OR REPLACE INTO gone VALUES ('in ' || OLD.store_id, OLD.file_id, OLD.number, strftime('%s', 'now'));
END;
"""
# 2. How the text of a file is cut in a store; null between sentences, as each question wants it.
_CUTTING = """
ALTER TABLE store_files ADD COLUMN max_tokens INTEGER;
ALTER TABLE store_files ADD COLUMN overlap_tokens INTEGER;
"""
SCHEMA = Schema("files", (_FIRST, _CUTTING))


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Around what writes to the disk: raises ``StorageFull`` where that has no room."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StorageFull from error
        raise


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list: ids as a client names them, and how many items."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    order: Order = "desc"


@dataclass(frozen=True, slots=True)
class Listed:
    """A list: a query, the condition and values that make it the list of one owner, the columns with the ids that
    clients know its items by and with the numbers that order them, and what the list is called in ``gone``."""

    query: str
    condition: str
    values: tuple[object, ...]
    id_column: str
    number_column: str
    scope: str

    def place(self, connection: sqlite3.Connection, field: str, item_id: str) -> int:
        """Where the item stands, or stood. Raises ``RequestInvalid`` about ``field``."""
        row = connection.execute(
            f"{self.query} WHERE {self.condition} AND {self.id_column} = ?", (*self.values, item_id)
        ).fetchone()
        if row is None:
            row = connection.execute(
                "SELECT number FROM gone WHERE scope = ? AND id = ?", (self.scope, item_id)
            ).fetchone()
        if row is None:
            raise RequestInvalid(f"{field} is {item_id!r}, which is not in this list; take an id from one of its pages",
                                 field)  # fmt: skip
        return int(row["number"])


class FilesDatabase(Database):
    """What has expired by ``now`` (seconds since 1970) is gone for every transaction that begins."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Raises ``StoreInvalid``."""
        super().__init__(path, SCHEMA)
        self.now = now
        with super().read() as connection:
            connection.row_factory = sqlite3.Row

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """As of any database. Raises ``StorageFull`` where the disk has no room."""
        try:
            with super().transaction() as connection:
                yield connection
        except (OSError, sqlite3.OperationalError) as error:
            if is_full(error):
                raise StorageFull from error
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection, to look at one state of the database."""
        with super().read() as connection:
            if not self.is_changing and self._something_expired(connection):
                with self.transaction():
                    pass
            yield connection

    def began(self, connection: sqlite3.Connection) -> None:
        """Let go of what has expired."""
        moment = int(self.now())
        connection.execute("DELETE FROM files WHERE expires_at <= ?", (moment,))
        expired = "UPDATE uploads SET status = 'expired' WHERE status = 'pending' AND expires_at <= ? RETURNING id"
        for row in connection.execute(expired, (moment,)).fetchall():
            connection.execute("DELETE FROM parts WHERE upload_id = ?", (row["id"],))

    def page(
        self, listed: "Listed", window: Window, filters: Sequence[tuple[str, object]] = ()
    ) -> tuple[list[sqlite3.Row], bool]:
        """The rows of a list in the window, of those only that have each of the values of ``filters`` in its column;
        and whether more follow in the direction in which the list was cut.

        Raises ``RequestInvalid`` for ids that were never in the list.
        """
        with self.read() as connection:
            ends = {}
            for field in ("after", "before"):
                item_id = getattr(window, field)
                if item_id is not None:
                    ends[field] = listed.place(connection, field, item_id)
            is_ascending = window.order == "asc"
            bounds = [
                f"{listed.number_column} {'>' if is_ascending == (field == 'after') else '<'} ?" for field in ends
            ]
            bounds += [f"{column} = ?" for column, _ in filters]
            # The items right before one are found backwards.
            is_backwards = "before" in ends and "after" not in ends
            direction = "ASC" if is_ascending != is_backwards else "DESC"
            where = " AND ".join([listed.condition, *bounds])
            found = connection.execute(
                f"{listed.query} WHERE {where} ORDER BY {listed.number_column} {direction} LIMIT ?",
                (*listed.values, *ends.values(), *(value for _, value in filters), window.limit + 1),
            ).fetchall()
        rows = found[: window.limit]
        return (rows[::-1] if is_backwards else rows), len(found) > window.limit

    def _something_expired(self, connection: sqlite3.Connection) -> bool:
        moment = int(self.now())
        return any(connection.execute(f"{query} LIMIT 1", (moment,)).fetchone() for query in _EXPIRED)


_EXPIRED = (
    "SELECT 1 FROM files WHERE expires_at <= ?",
    "SELECT 1 FROM uploads WHERE status = 'pending' AND expires_at <= ?",
)
