"""The files that were sent: their bytes by content, what is said of each, and the documents made of them."""

import secrets
import sqlite3
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from retrieval.blobs import Blobs, StagedBlob
from retrieval.durability import temporary_name
from server.files.database import FilesDatabase, Listed, Window, full_disk_told
from server.files.errors import UnknownFile
from server.files.nouns import NewFile, StoredFile

_QUERY = "SELECT f.*, b.num_bytes FROM files f JOIN blobs b USING (sha256)"
# Places in lists are remembered for a client that deletes what it lists; nobody takes longer than that.
GONE_SECONDS = 86_400
UPLOAD_KEPT_SECONDS = 30 * 86_400
DOCUMENT_DELETED = "the document of this file was deleted; add the file again"


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return prefix + secrets.token_urlsafe(18)


class FileTable:
    """Files of all tenants. What a method changed is on the disk when it returns."""

    def __init__(self, database: FilesDatabase, directory: Path, library_blobs: Path | None = None) -> None:
        """``library_blobs`` is where the library keeps the bytes of its documents, on the same disk."""
        self._database = database
        self._library_blobs = library_blobs
        self.blobs = Blobs(directory)
        self._own_bytes: tuple[int, int] | None = None

    def recover(self) -> None:
        """Remove what a crash left: bytes that nobody refers to."""
        with self._database.transaction() as connection:
            connection.execute(f"DELETE FROM blobs WHERE {_UNWANTED}")
            wanted = [row["sha256"] for row in connection.execute("SELECT sha256 FROM blobs")]
        self.blobs.sweep(wanted)

    def add(self, tenant: str, new: NewFile, source: Path) -> StoredFile:
        """Keep the bytes of ``source``, which stays where it is, as a file. Raises ``StorageFull``."""
        staged = self.stage(source)
        try:
            with self._database.transaction() as connection:
                return self.insert(connection, tenant, new, staged)
        finally:
            self.blobs.drop(staged)

    def stage(self, source: Path) -> StagedBlob:
        """The bytes of ``source``, on the disk but not kept yet. Raises ``StorageFull``."""
        with full_disk_told():
            return self.blobs.stage(source)

    def insert(self, connection: sqlite3.Connection, tenant: str, new: NewFile, staged: StagedBlob) -> StoredFile:
        """Add a file with bytes that are staged, inside a transaction."""
        self.keep(connection, staged)
        created_at = int(self._database.now())
        expires_at = None if new.expires_after_seconds is None else created_at + new.expires_after_seconds
        file_id = new_id("file-")
        connection.execute(
            "INSERT INTO files (id, tenant, filename, purpose, media_type, refusal, sha256, created_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (file_id, tenant, new.filename, new.purpose, new.media_type, new.refusal, staged.sha256, created_at,
             expires_at),
        )  # fmt: skip
        return self.get(tenant, file_id)

    def keep(self, connection: sqlite3.Connection, staged: StagedBlob) -> None:
        """Keep staged bytes, inside the transaction that refers to them."""
        # Before the row: a row without its bytes would be a lie, bytes without a row are swept away.
        self.blobs.keep(staged)
        connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (staged.sha256, staged.num_bytes))

    def get(self, tenant: str, file_id: str, param: str | None = None) -> StoredFile:
        """One file. Raises ``UnknownFile``."""
        with self._database.read() as connection:
            row = connection.execute(f"{_QUERY} WHERE f.id = ? AND tenant = ?", (file_id, tenant)).fetchone()
        if row is None:
            raise UnknownFile(file_id, param)
        return _file(row)

    def page(self, tenant: str, window: Window, purpose: str | None = None) -> tuple[list[StoredFile], bool]:
        """The tenant's files, and whether there are more."""
        listed = Listed(_QUERY, "tenant = ?", (tenant,), "f.id", "f.number", f"files {tenant}")
        rows, has_more = self._database.page(listed, window, [("purpose", purpose)] if purpose is not None else [])
        return [_file(row) for row in rows], has_more

    def delete(self, tenant: str, file_id: str) -> None:
        """Forget a file, in all stores as well; its bytes go with the last reference to them."""
        with self._database.transaction() as connection:
            file = self.get(tenant, file_id)
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.discard_unwanted([file.sha256])
        self._database.checkpoint()

    def path(self, file: StoredFile) -> Path:
        """Where the bytes of the file lie."""
        return self.blobs.path(file.sha256)

    def share(self, file: StoredFile) -> None:
        """Have the bytes of a file once on the disk where a document has them too: neither ever changes."""
        if self._library_blobs is None:
            return
        own, other = self.path(file), self._library_blobs / file.sha256[:2] / file.sha256
        temporary = temporary_name(own)
        # No file may go meanwhile. A crash leaves either name, and the bytes are the same.
        with self._database.read(), suppress(OSError):
            try:
                if own.samefile(other):
                    return
                temporary.hardlink_to(other)
                temporary.replace(own)
            finally:
                temporary.unlink(missing_ok=True)

    def own_bytes(self) -> int:
        """Bytes of what was sent but for what a document of the library has, too."""
        with self._database.read() as connection:
            # The connection is the only one, and somebody looks every few seconds: nothing is counted twice.
            if self._own_bytes is None or self._own_bytes[0] != connection.total_changes:
                (num_bytes,) = connection.execute(
                    "SELECT coalesce(sum(num_bytes), 0) FROM blobs WHERE sha256 NOT IN (SELECT sha256 FROM documents)"
                ).fetchone()
                self._own_bytes = connection.total_changes, int(num_bytes)
            return self._own_bytes[1]

    def discard_unwanted(self, hashes: Iterable[str] | None = None) -> None:
        """Take bytes that nobody refers to off the disk: those with these hashes, or all."""
        with self._database.transaction() as connection:
            if hashes is None:
                hashes = [row["sha256"] for row in connection.execute(f"SELECT sha256 FROM blobs WHERE {_UNWANTED}")]
            for sha256 in hashes:
                gone = connection.execute(f"DELETE FROM blobs WHERE sha256 = ? AND {_UNWANTED}", (sha256,)).rowcount
                if gone:
                    self.blobs.discard(sha256)

    def forget_places(self) -> None:
        """Forget where what was deleted long ago stood in the lists, and uploads that ended long ago."""
        moment = int(self._database.now())
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM gone WHERE deleted_at < ?", (moment - GONE_SECONDS,))
            connection.execute(
                "DELETE FROM uploads WHERE status != 'pending' AND expires_at < ?", (moment - UPLOAD_KEPT_SECONDS,)
            )

    def intend(self, file: StoredFile) -> str:
        """The id of the document that is made of the file's content, or is to be; durable before there is one."""
        key = (file.tenant, file.sha256, file.media_type)
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT document FROM documents WHERE tenant = ? AND sha256 = ? AND media_type = ?", key
            ).fetchone()
            if row is not None:
                return str(row["document"])
            document_id = f"doc_{uuid.uuid4().hex}"
            connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?, 1)", (*key, document_id))
            return document_id

    def found(self, file: StoredFile, document_id: str) -> None:
        """The content was a document already, which somebody sent as one."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE documents SET document = ?, is_owned = 0 WHERE tenant = ? AND sha256 = ? AND media_type = ?",
                (document_id, file.tenant, file.sha256, file.media_type),
            )

    def release(self, tenant: str, document_id: str) -> None:
        """The document was sent as one, and stays when the last of its files goes."""
        with self._database.read() as connection:
            owned = "SELECT 1 FROM documents WHERE document = ? AND tenant = ? AND is_owned"
            if connection.execute(owned, (document_id, tenant)).fetchone() is None:
                return
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE documents SET is_owned = 0 WHERE document = ? AND tenant = ?", (document_id, tenant)
            )

    def document(self, file: StoredFile) -> str | None:
        """The id of the document made of the file's content, or to be made, if there is one."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT document FROM documents WHERE tenant = ? AND sha256 = ? AND media_type = ?",
                (file.tenant, file.sha256, file.media_type),
            ).fetchone()
        return str(row["document"]) if row is not None else None

    def documents(self) -> list[tuple[str, str]]:
        """Tenant and id of every document that files were made."""
        with self._database.read() as connection:
            return [(row["tenant"], row["document"]) for row in connection.execute("SELECT * FROM documents")]

    def without_file(self) -> list[tuple[str, str, bool]]:
        """Documents of which the last file is gone: tenant, id, and whether they are there for the files alone."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT tenant, document, is_owned FROM documents d WHERE NOT EXISTS (SELECT 1 FROM files f "
                "WHERE f.tenant = d.tenant AND f.sha256 = d.sha256 AND f.media_type = d.media_type)"
            ).fetchall()
        return [(row["tenant"], row["document"], bool(row["is_owned"])) for row in rows]

    def forget_document(self, tenant: str, document_id: str) -> None:
        """The document is gone: its files have none, and are not in their stores any more but as failed."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE store_files SET status = 'failed', error_code = 'server_error', error_message = ? "
                f"WHERE status IN ('completed', 'in_progress') AND file_id IN ({FILES_OF_DOCUMENT})",
                (DOCUMENT_DELETED, document_id, tenant),
            )
            connection.execute("DELETE FROM documents WHERE document = ? AND tenant = ?", (document_id, tenant))


FILES_OF_DOCUMENT = (
    "SELECT f.id FROM documents d JOIN files f ON f.sha256 = d.sha256 AND f.tenant = d.tenant "
    "AND f.media_type = d.media_type WHERE d.document = ? AND d.tenant = ?"
)
_UNWANTED = "sha256 NOT IN (SELECT sha256 FROM files) AND sha256 NOT IN (SELECT sha256 FROM parts)"


def _file(row: sqlite3.Row) -> StoredFile:
    return StoredFile(**{key: row[key] for key in row.keys()})
