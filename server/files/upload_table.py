"""Uploads: files that come in parts, and become files when they are complete."""

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval.blobs import COPY_BYTES
from server.documents.uploads import HEAD_BYTES, SPOOL_PREFIX
from server.errors import RequestInvalid
from server.files.database import FilesDatabase, full_disk_told
from server.files.errors import UnknownPart, UnknownUpload, UploadMismatch, UploadNotPending
from server.files.file_table import FileTable, new_id
from server.files.nouns import NewFile, Part, StoredFile, Upload, UploadStatus

# As OpenAI's.
UPLOAD_SECONDS = 3600
PART_BYTES = 64 << 20
# Parts that were sent twice may lie about until the upload is complete; a second whole file may not.
SPARE_BYTES = PART_BYTES


class UploadTable:
    """Uploads of all tenants. What a method changed is on the disk when it returns."""

    def __init__(self, database: FilesDatabase, files: FileTable, spool_dir: Path) -> None:
        self._database = database
        self._files = files
        self._spool_dir = spool_dir

    def add(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        declared_type: str,
        num_bytes: int,
        file_expires_after_seconds: int | None,
    ) -> Upload:
        """A new upload without parts."""
        upload_id, moment = new_id("upload_"), int(self._database.now())
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO uploads (id, tenant, filename, purpose, declared_type, num_bytes, created_at, expires_at, "
                "file_expires_after_seconds, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending')",
                (upload_id, tenant, filename, purpose, declared_type, num_bytes, moment, moment + UPLOAD_SECONDS,
                 file_expires_after_seconds),
            )  # fmt: skip
            return self.get(tenant, upload_id)

    def get(self, tenant: str, upload_id: str) -> Upload:
        """One upload. Raises ``UnknownUpload``."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT * FROM uploads WHERE id = ? AND tenant = ?", (upload_id, tenant)
            ).fetchone()
        if row is None:
            raise UnknownUpload(upload_id)
        return _upload(row)

    def pending(self, tenant: str, upload_id: str) -> Upload:
        """One upload that takes parts. Raises ``UnknownUpload`` and ``UploadNotPending``."""
        upload = self.get(tenant, upload_id)
        if upload.status is not UploadStatus.PENDING:
            raise UploadNotPending(upload_id, upload.status.value)
        return upload

    def add_part(self, tenant: str, upload_id: str, source: Path) -> Part:
        """Keep the bytes of ``source`` as a part. Raises as ``pending``, and ``RequestInvalid`` for more bytes than the
        upload announced."""
        staged = self._files.stage(source)
        try:
            with self._database.transaction() as connection:
                upload = self.pending(tenant, upload_id)
                (there,) = connection.execute(
                    "SELECT coalesce(sum(num_bytes), 0) FROM parts JOIN blobs USING (sha256) WHERE upload_id = ?",
                    (upload_id,),
                ).fetchone()
                if there + staged.num_bytes > upload.num_bytes + SPARE_BYTES:
                    raise RequestInvalid(
                        f"data would bring the parts to {there + staged.num_bytes} bytes, but the upload was begun for "
                        f"{upload.num_bytes}; begin another one",
                        "data",
                    )
                self._files.keep(connection, staged)
                part_id, moment = new_id("part_"), int(self._database.now())
                connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?)", (part_id, upload_id, staged.sha256, moment))
        finally:
            self._files.blobs.drop(staged)
        return Part(part_id, upload_id, staged.sha256, staged.num_bytes, moment)

    def complete(
        self,
        tenant: str,
        upload_id: str,
        part_ids: Sequence[str],
        md5: str | None,
        describe: Callable[[Upload, bytes, Path], NewFile],
    ) -> tuple[Upload, StoredFile]:
        """Join the parts in this order to a file, which ``describe`` tells from the upload, the first bytes and all.

        Said again with the same parts it is the file that was made. Raises ``UnknownUpload``, ``UploadNotPending``,
        ``UnknownPart``, ``UploadMismatch``; after any of them the upload is as it was.
        """
        upload = self.get(tenant, upload_id)
        if upload.status is UploadStatus.COMPLETED and upload.part_ids == tuple(part_ids) and upload.file_id:
            return upload, self._files.get(tenant, upload.file_id)
        self.pending(tenant, upload_id)
        hashes = self._hashes(upload_id, part_ids)
        self._spool_dir.mkdir(parents=True, exist_ok=True)
        with full_disk_told(), tempfile.NamedTemporaryFile(dir=self._spool_dir, prefix=SPOOL_PREFIX) as joined:
            digest, num_bytes, head = hashlib.md5(usedforsecurity=False), 0, b""
            for sha256 in hashes:
                with self._files.blobs.path(sha256).open("rb") as part:
                    while piece := part.read(COPY_BYTES):
                        digest.update(piece)
                        joined.write(piece)
                        num_bytes += len(piece)
                        head += piece[: HEAD_BYTES - len(head)]
            joined.flush()
            if num_bytes != upload.num_bytes:
                raise UploadMismatch("bytes", f"{upload.num_bytes} bytes", f"{num_bytes}")
            if md5 is not None and md5.lower() != digest.hexdigest():
                raise UploadMismatch("md5", md5, digest.hexdigest())
            new = describe(upload, head, Path(joined.name))
            staged = self._files.stage(Path(joined.name))
        try:
            with self._database.transaction() as connection:
                # Two may complete it at the same time.
                self.pending(tenant, upload_id)
                file = self._files.insert(connection, tenant, new, staged)
                connection.execute(
                    "UPDATE uploads SET status = 'completed', file_id = ?, part_ids = ? WHERE id = ?",
                    (file.id, json.dumps(list(part_ids)), upload_id),
                )
                parts = self._drop_parts(connection, upload_id)
        finally:
            self._files.blobs.drop(staged)
        self._files.discard_unwanted(parts)
        return self.get(tenant, upload_id), file

    def cancel(self, tenant: str, upload_id: str) -> Upload:
        """Take no more parts and forget those there are. Raises as ``pending``; what was cancelled stays so."""
        with self._database.transaction() as connection:
            if self.get(tenant, upload_id).status is UploadStatus.CANCELLED:
                return self.get(tenant, upload_id)
            self.pending(tenant, upload_id)
            connection.execute("UPDATE uploads SET status = 'cancelled' WHERE id = ?", (upload_id,))
            parts = self._drop_parts(connection, upload_id)
        self._files.discard_unwanted(parts)
        return self.get(tenant, upload_id)

    def _hashes(self, upload_id: str, part_ids: Sequence[str]) -> list[str]:
        with self._database.read() as connection:
            rows = connection.execute("SELECT id, sha256 FROM parts WHERE upload_id = ?", (upload_id,)).fetchall()
        known = {row["id"]: row["sha256"] for row in rows}
        for place, part_id in enumerate(part_ids):
            if part_id not in known:
                raise UnknownPart(upload_id, part_id, f"part_ids.{place}")
        return [known[part_id] for part_id in part_ids]

    def _drop_parts(self, connection: sqlite3.Connection, upload_id: str) -> list[str]:
        rows = connection.execute("DELETE FROM parts WHERE upload_id = ? RETURNING sha256", (upload_id,)).fetchall()
        return [row["sha256"] for row in rows]


def _upload(row: sqlite3.Row) -> Upload:
    return Upload(
        number=row["number"],
        id=row["id"],
        tenant=row["tenant"],
        filename=row["filename"],
        purpose=row["purpose"],
        declared_type=row["declared_type"],
        num_bytes=row["num_bytes"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        file_expires_after_seconds=row["file_expires_after_seconds"],
        status=UploadStatus(row["status"]),
        file_id=row["file_id"],
        part_ids=tuple(json.loads(row["part_ids"])),
    )
