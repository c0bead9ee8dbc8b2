"""Texts that are kept in memory while somebody asks about them: the store of the archive of long prompts."""

import time
import uuid

from retrieval.memory_database import MemoryDatabase
from retrieval.record import Record
from retrieval.store import Store


class PromptStore(Store):
    """A store without files: nothing of it is on the disk, nothing of it outlives the process."""

    def __init__(self) -> None:
        self.has_reader = False
        self.memory = MemoryDatabase()
        self.database = self.memory

    def put(self, text: str) -> int:
        """Keep a text; the number that its contents hang on."""
        document_id = uuid.uuid4().hex
        with self.database.write() as (connection, _):
            connection.execute("INSERT INTO blobs VALUES (?, ?)", (document_id, len(text.encode())))
            row = connection.execute(
                "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, stage) "
                "VALUES (?, '', '', 'text/plain', ?, ?, 'queued') RETURNING number",
                (document_id, document_id, int(time.time())),
            ).fetchone()
            number = int(row[0])
            self.write_text(number, text, ())
        return number

    def of_number(self, number: int) -> Record:
        """A text's row."""
        (record,) = self._records("WHERE d.number = ?", (number,))
        return record

    def drop(self, record: Record) -> None:
        """Forget a text and all that was found in it."""
        with self.database.lock:
            with self.database.write() as (connection, _):
                connection.execute("DELETE FROM documents WHERE number = ?", (record.number,))
                connection.execute("DELETE FROM blobs WHERE sha256 = ?", (record.sha256,))
            self.database.purge()
