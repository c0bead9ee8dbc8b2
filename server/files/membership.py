"""Which file is in which vector store, since when, how far, with what attributes; and which were added together."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval.passage import Cutting
from server.errors import RequestInvalid
from server.files.database import FilesDatabase, Listed, Window
from server.files.errors import UnknownBatch, UnknownStoreFile
from server.files.file_table import DOCUMENT_DELETED, FILES_OF_DOCUMENT, FileTable, new_id
from server.files.filters import Filter, passes
from server.files.nouns import Attributes, Batch, FileCounts, FileStatus, StoredFile, StoreDocument, StoreFile
from server.files.store_table import StoreTable

# As OpenAI's; the library's index was measured with as many documents.
MOST_STORE_FILES = 10_000

_QUERY = (
    "SELECT sf.*, CASE sf.status WHEN 'completed' THEN b.num_bytes ELSE 0 END AS usage_bytes FROM store_files sf "
    "JOIN files f ON f.id = sf.file_id JOIN blobs b USING (sha256)"
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file that is to be in a store, cut so. ``param`` is where the request names it."""

    file_id: str
    attributes: Attributes
    param: str | None = None
    cutting: Cutting | None = None


class Membership:
    """Files in stores and batches, of all tenants. What a method changed is on the disk when it returns."""

    def __init__(self, database: FilesDatabase, files: FileTable, stores: StoreTable) -> None:
        self._database = database
        self._files = files
        self._stores = stores

    def add(self, tenant: str, store_id: str, members: Sequence[Member]) -> None:
        """Put files into a store, all or none. One that is there already keeps its place and status unless it failed,
        was cancelled or is to be cut otherwise, and has the new attributes.

        Raises ``UnknownVectorStore``, ``VectorStoreExpired``, ``UnknownFile``, and ``RequestInvalid`` for too many.
        """
        moment = int(self._database.now())
        with self._database.transaction() as connection:
            self._stores.use(tenant, [store_id])
            for member in members:
                self._files.get(tenant, member.file_id, member.param)
                key = (store_id, member.file_id)
                attributes = json.dumps(dict(member.attributes))
                # A new row, for those who work on what is under way look at what came last.
                connection.execute(
                    "DELETE FROM store_files WHERE store_id = ? AND file_id = ? AND (status IN ('failed', 'cancelled') "
                    f"OR NOT ({CUT_SO}))",
                    (*key, *columns_of(member.cutting)),
                )
                connection.execute(
                    "INSERT INTO store_files (store_id, file_id, created_at, status, attributes, max_tokens, "
                    "overlap_tokens) VALUES (?, ?, ?, 'in_progress', ?, ?, ?) "
                    "ON CONFLICT (store_id, file_id) DO UPDATE SET attributes = excluded.attributes",
                    (*key, moment, attributes, *columns_of(member.cutting)),
                )
            (num_files,) = connection.execute(
                "SELECT count(*) FROM store_files WHERE store_id = ?", (store_id,)
            ).fetchone()
            if num_files > MOST_STORE_FILES:
                raise RequestInvalid(
                    f"the vector store would have {num_files} files, the most are {MOST_STORE_FILES}; use another store"
                )

    def found_store(
        self,
        tenant: str,
        name: str,
        description: str | None,
        metadata: Mapping[str, str],
        expires_days: int | None,
        members: Sequence[Member],
    ) -> str:
        """A new store with these files, or no store; its id. Raises ``UnknownFile``."""
        with self._database.transaction():
            store_id = self._stores.add(tenant, name, description, metadata, expires_days)
            self.add(tenant, store_id, members)
        return store_id

    def add_batch(self, tenant: str, store_id: str, members: Sequence[Member]) -> Batch:
        """Put files into a store together. Raises as ``add``."""
        batch_id = new_id("vsfb_")
        with self._database.transaction() as connection:
            self.add(tenant, store_id, members)
            connection.execute(
                "INSERT INTO batches (id, store_id, created_at) VALUES (?, ?, ?)",
                (batch_id, store_id, int(self._database.now())),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO batch_files VALUES (?, ?)", [(batch_id, member.file_id) for member in members]
            )
            return self.batch(tenant, store_id, batch_id)

    def get(self, tenant: str, store_id: str, file_id: str) -> StoreFile:
        """One file of a store. Raises ``UnknownVectorStore`` and ``UnknownStoreFile``."""
        with self._database.read() as connection:
            self._stores.get(tenant, store_id)
            row = connection.execute(
                f"{_QUERY} WHERE sf.store_id = ? AND sf.file_id = ?", (store_id, file_id)
            ).fetchone()
        if row is None:
            raise UnknownStoreFile(store_id, file_id)
        return _store_file(row)

    def page(
        self,
        tenant: str,
        store_id: str,
        window: Window,
        status: FileStatus | None = None,
        batch_id: str | None = None,
    ) -> tuple[list[StoreFile], bool]:
        """The files of a store, or of one of its batches, with this status; and whether there are more."""
        condition = "sf.store_id = ?"
        values: tuple[object, ...] = (store_id,)
        if batch_id is not None:
            condition += " AND EXISTS (SELECT 1 FROM batch_files bf WHERE bf.batch_id = ? AND bf.file_id = sf.file_id)"
            values += (batch_id,)
        listed = Listed(_QUERY, condition, values, "sf.file_id", "sf.number", f"in {store_id}")
        with self._database.read():
            self._stores.get(tenant, store_id)
            if batch_id is not None:
                self.batch(tenant, store_id, batch_id)
            rows, has_more = self._database.page(
                listed, window, [("sf.status", status.value)] if status is not None else []
            )
        return [_store_file(row) for row in rows], has_more

    def update(self, tenant: str, store_id: str, file_id: str, attributes: Attributes) -> StoreFile:
        """Replace the attributes of a file in a store."""
        with self._database.transaction() as connection:
            self.get(tenant, store_id, file_id)
            connection.execute(
                "UPDATE store_files SET attributes = ? WHERE store_id = ? AND file_id = ?",
                (json.dumps(dict(attributes)), store_id, file_id),
            )
            return self.get(tenant, store_id, file_id)

    def remove(self, tenant: str, store_id: str, file_id: str) -> None:
        """Take a file out of a store; the file itself stays."""
        with self._database.transaction() as connection:
            self.get(tenant, store_id, file_id)
            connection.execute("DELETE FROM store_files WHERE store_id = ? AND file_id = ?", (store_id, file_id))

    def batch(self, tenant: str, store_id: str, batch_id: str) -> Batch:
        """One batch. Raises ``UnknownVectorStore`` and ``UnknownBatch``."""
        with self._database.read() as connection:
            self._stores.get(tenant, store_id)
            row = connection.execute(
                "SELECT * FROM batches WHERE id = ? AND store_id = ?", (batch_id, store_id)
            ).fetchone()
            if row is None:
                raise UnknownBatch(store_id, batch_id)
            counts = connection.execute(
                "SELECT sf.status, count(*) FROM batch_files bf JOIN store_files sf USING (file_id) "
                "WHERE bf.batch_id = ? AND sf.store_id = ? GROUP BY sf.status",
                (batch_id, store_id),
            ).fetchall()
        return Batch(
            number=row["number"],
            id=row["id"],
            store_id=row["store_id"],
            created_at=row["created_at"],
            is_cancelled=bool(row["is_cancelled"]),
            counts=FileCounts(**dict(map(tuple, counts))),
        )

    def cancel_batch(self, tenant: str, store_id: str, batch_id: str) -> Batch:
        """Do not wait any longer for those files of the batch that are under way. Nothing if there are none."""
        with self._database.transaction() as connection:
            batch = self.batch(tenant, store_id, batch_id)
            if batch.counts.in_progress:
                connection.execute(
                    "UPDATE store_files SET status = 'cancelled' WHERE store_id = ? AND status = 'in_progress' AND "
                    "file_id IN (SELECT file_id FROM batch_files WHERE batch_id = ?)",
                    (store_id, batch_id),
                )
                connection.execute("UPDATE batches SET is_cancelled = 1 WHERE id = ?", (batch_id,))
            return self.batch(tenant, store_id, batch_id)

    def under_way(self, after: int, most: int) -> list[tuple[int, StoredFile]]:
        """Files on their way into stores, each with the number of its row, from the row after ``after`` on."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT sf.number AS row_number, f.tenant, f.id FROM store_files sf JOIN files f ON f.id = sf.file_id "
                "WHERE sf.status = 'in_progress' AND sf.number > ? ORDER BY sf.number LIMIT ?",
                (after, most),
            ).fetchall()
            return [(row["row_number"], self._files.get(row["tenant"], row["id"])) for row in rows]

    def fail(self, file_id: str, code: str, message: str) -> None:
        """The file cannot be in any store, for this reason."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE store_files SET status = 'failed', error_code = ?, error_message = ? "
                "WHERE file_id = ? AND status = 'in_progress'",
                (code, message, file_id),
            )

    def cuttings(self, tenant: str, document_id: str) -> list[Cutting | None]:
        """In which ways the files are to be cut that wait for the document."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT DISTINCT max_tokens, overlap_tokens FROM store_files "
                f"WHERE status = 'in_progress' AND file_id IN ({FILES_OF_DOCUMENT})",
                (document_id, tenant),
            ).fetchall()
        return [cutting_of(row) for row in rows]

    def settle(self, tenant: str, document_id: str, cutting: Cutting | None, error: tuple[str, str] | None) -> None:
        """The document can be asked from now on, cut so, or failed: so are the files that wait for it."""
        code, message = error or (None, None)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE store_files SET status = ?, error_code = ?, error_message = ? "
                f"WHERE status = 'in_progress' AND {CUT_SO} AND file_id IN ({FILES_OF_DOCUMENT})",
                ("failed" if error else "completed", code, message, *columns_of(cutting), document_id, tenant),
            )

    def lose(self, tenant: str, document_id: str) -> None:
        """The document of files that were completed is not there."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE store_files SET status = 'failed', error_code = 'server_error', error_message = ? "
                f"WHERE status = 'completed' AND file_id IN ({FILES_OF_DOCUMENT})",
                (DOCUMENT_DELETED, document_id, tenant),
            )

    def documents(self, tenant: str, store_id: str, filter_: Filter | None) -> list[StoreDocument]:
        """The documents of the completed files of a store that pass the filter, oldest file first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT d.document, f.id, f.filename, sf.attributes, sf.max_tokens, sf.overlap_tokens "
                "FROM store_files sf "
                "JOIN files f ON f.id = sf.file_id "
                "JOIN documents d ON d.tenant = f.tenant AND d.sha256 = f.sha256 AND d.media_type = f.media_type "
                "WHERE sf.store_id = ? AND f.tenant = ? AND sf.status = 'completed' ORDER BY sf.number",
                (store_id, tenant),
            ).fetchall()
        documents = (
            StoreDocument(row["document"], row["id"], row["filename"], _attributes(row), store_id, cutting_of(row))
            for row in rows
        )
        return [each for each in documents if passes(filter_, each.attributes)]


CUT_SO = "max_tokens IS ? AND overlap_tokens IS ?"


def columns_of(cutting: Cutting | None) -> tuple[int | None, int | None]:
    """What a row says of how a file is cut."""
    return (None, None) if cutting is None else (cutting.max_tokens, cutting.overlap_tokens)


def cutting_of(row: sqlite3.Row) -> Cutting | None:
    """How the file of a row is cut."""
    return None if row["max_tokens"] is None else Cutting(row["max_tokens"], row["overlap_tokens"])


def _attributes(row: sqlite3.Row) -> Attributes:
    attributes: Mapping[str, str | float | bool] = json.loads(row["attributes"])
    return attributes


def _store_file(row: sqlite3.Row) -> StoreFile:
    return StoreFile(
        number=row["number"],
        store_id=row["store_id"],
        file_id=row["file_id"],
        created_at=row["created_at"],
        status=FileStatus(row["status"]),
        error=(row["error_code"], row["error_message"]) if row["error_code"] is not None else None,
        attributes=_attributes(row),
        usage_bytes=row["usage_bytes"],
        cutting=cutting_of(row),
    )
