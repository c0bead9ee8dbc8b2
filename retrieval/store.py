"""The store of truth: which documents there are, whose they are, how far they are, and what they say."""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retrieval.blobs import Blobs
from retrieval.database import Database
from retrieval.durability import make_directory
from retrieval.errors import UnknownDocument
from retrieval.passage import DocumentError, DocumentStatus, Span
from retrieval.record import UNFINISHED, Reading, Record, Stage, status_of

TEXT_BLOCK_CHARACTERS = 1 << 15


# What most of a document is in, the key of each row there, and rows that take a few hundred kilobytes.
_PIECES = (
    ("embeddings", "fingerprint, row", 400),
    ("texts", "start", 8),
    ("vector_rows", "row", 5000),
    ("word_counts", "format", 1),
    ("pieces", "max_tokens, overlap_tokens", 1),
    ("chunks", "ordinal", 2000),
    ("fact_keys", "key, form, fact", 2000),
    ("facts", "fact", 2000),
)


class Store:
    """Documents and their texts, in one SQLite file beside the files as they were sent.

    Every method that changes something is durable when it returns. A method that names a document raises
    ``UnknownDocument`` if there is none, if it is another tenant's, or if it is being deleted.
    """

    def __init__(self, directory: Path, has_reader: bool = False) -> None:
        """``has_reader`` is whether somebody reads documents; where nobody does, none waits for it."""
        make_directory(directory)
        self.has_reader = has_reader
        self.database = Database(directory / "store.sqlite3")
        self._blobs = Blobs(directory / "blobs")

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def recover(self, fingerprint: str) -> list[Record]:
        """Set right what an interruption or a new embedder left. Returns the documents still to be deleted.

        Vectors of another embedder than ``fingerprint`` are of no use: their documents go back to the dense
        stage, answerable meanwhile.
        """
        with self.database.write() as (connection, _):
            # By document, for the table of vectors is long, and a start must not read it.
            connection.execute(
                "DELETE FROM embeddings WHERE fingerprint != ?1 AND document IN "
                "(SELECT number FROM documents WHERE fingerprint != ?1)",
                (fingerprint,),
            )
            connection.execute(
                "UPDATE documents SET fingerprint = ?1, vectors_revision = NULL, done = 0, total = num_rows, "
                "stage = CASE stage WHEN 'ready' THEN 'dense' ELSE stage END WHERE fingerprint != ?1",
                (fingerprint,),
            )
            connection.execute("DELETE FROM blobs WHERE sha256 NOT IN (SELECT sha256 FROM documents)")
            wanted = [row[0] for row in connection.execute("SELECT sha256 FROM blobs")]
        self._blobs.sweep(wanted)
        if self.database.is_purge_due:
            self.database.purge()
        self.database.checkpoint()
        return self._records("WHERE stage = 'deleting'")

    def reopen_for_recognisers(self, revision: int) -> None:
        """Give documents whose facts other recognisers found than those of ``revision`` back to be worked on; they can
        be asked meanwhile."""
        with self.database.write() as (connection, _):
            connection.execute(
                "UPDATE documents SET stage = 'dense' WHERE stage = 'ready' AND recognisers != ?", (revision,)
            )

    def add(
        self,
        tenant: str,
        name: str,
        media_type: str,
        source: Path,
        is_to_be_read: bool = False,
        document_id: str | None = None,
    ) -> tuple[Record, bool]:
        """Keep the bytes of ``source`` as a document of ``tenant``; the flag says whether there is work to do.

        The same bytes of the same kind by the same tenant are the document there is already (False), unless
        that one failed: then it is queued again (True). Once it is wanted, it is to be read. A new one gets
        ``document_id``, if one is given, which nobody else may have.
        """
        reading = Reading.WANTED if is_to_be_read else None
        staged = self._blobs.stage(source)
        try:
            with self.database.lock:
                known = self._records(
                    "WHERE tenant = ? AND sha256 = ? AND media_type = ? AND stage != 'deleting'",
                    (tenant, staged.sha256, media_type),
                )
                if known and is_to_be_read and known[0].reading is None:
                    self._update(known[0].number, "reading = ?", (reading,))
                if known and known[0].stage is not Stage.FAILED:
                    return self.record(known[0].document.id), False
                if known:
                    self._requeue(known[0].number)
                    return self.record(known[0].document.id), True
                self._blobs.keep(staged)
                document_id = document_id or f"doc_{uuid.uuid4().hex}"
                with self.database.write() as (connection, _):
                    connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (staged.sha256, staged.num_bytes))
                    connection.execute(
                        "INSERT INTO documents (id, tenant, name, media_type, sha256, created_at, reading, stage) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, 'queued')",
                        (document_id, tenant, name, media_type, staged.sha256, int(time.time()), reading),
                    )
                return self.record(document_id), True
        finally:
            self._blobs.drop(staged)

    def record(self, document_id: str, tenant: str | None = None) -> Record:
        """One document; with ``tenant`` only if it is that tenant's."""
        records = self._records("WHERE d.id = ? AND stage != 'deleting'", (document_id,))
        if not records or (tenant is not None and records[0].document.tenant != tenant):
            raise UnknownDocument(document_id)
        return records[0]

    def records(self, document_ids: Sequence[str], tenant: str | None = None) -> list[Record]:
        """Several documents in their order, by one look at the store; with ``tenant`` only if all are that tenant's."""
        found = self._records(
            "JOIN json_each(?) AS wanted ON wanted.value = d.id WHERE stage != 'deleting'", (json.dumps(document_ids),)
        )
        by_id = {record.document.id: record for record in found if tenant in (None, record.document.tenant)}
        for document_id in document_ids:
            if document_id not in by_id:
                raise UnknownDocument(document_id)
        return [by_id[document_id] for document_id in document_ids]

    def chunks_revisions(self, numbers: Sequence[int]) -> dict[int, int | None]:
        """Of each of these documents that is there the revision at which its chunks were completed."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT number, chunks_revision FROM json_each(?) JOIN documents ON number = value "
                "WHERE stage != 'deleting'",
                (json.dumps(numbers),),
            ).fetchall()
        return dict(rows)

    def page(self, tenant: str, after: str | None, limit: int) -> list[Record]:
        """The tenant's documents, oldest first, from the one after ``after`` on."""
        number = self.record(after, tenant).number if after is not None else 0
        return self._records(
            "WHERE tenant = ? AND number > ? AND stage != 'deleting' ORDER BY number LIMIT ?", (tenant, number, limit)
        )

    def unfinished(self, most: int = -1) -> list[str]:
        """Ids of the documents with work left, ``most`` of them unless negative: first those that cannot be asked yet,
        then those that lack vectors alone, oldest first."""
        found: list[tuple[bool, int, str]] = []
        with self.database.read() as connection:
            # Each stage by itself, for so the index on them gives the first few without a look at the others.
            for stage in UNFINISHED:
                query = "SELECT number, id FROM documents WHERE stage = ? ORDER BY number LIMIT ?"
                found += [(stage is Stage.DENSE, *row) for row in connection.execute(query, (stage, most))]
        ids = [document_id for _, _, document_id in sorted(found)]
        return ids if most < 0 else ids[:most]

    def unread(self, most: int = -1) -> list[Record]:
        """The documents that are done with but for their reading, oldest first, ``most`` of them unless negative."""
        return self._records("WHERE reading = 'wanted' AND stage = 'ready' ORDER BY number LIMIT ?", (most,))

    def end_reading(self, number: int, note: str | None) -> None:
        """The document was read, or the reading was left out for the reason in ``note``."""
        self._update(
            number, "reading = ?, reading_note = ?", (Reading.DONE if note is None else Reading.LEFT_OUT, note)
        )

    def ids(self) -> list[str]:
        """Ids of all documents."""
        with self.database.read() as connection:
            return [row[0] for row in connection.execute("SELECT id FROM documents WHERE stage != 'deleting'")]

    def blob_path(self, record: Record) -> Path:
        """Where the document's bytes lie as they were sent."""
        return self._blobs.path(record.sha256)

    def begin_parsing(self, number: int) -> None:
        """The document is being read from its file."""
        self._update(number, "stage = 'parsing', done = 0, total = 1")

    def write_text(self, number: int, text: str, pages: Sequence[Span]) -> None:
        """Keep the document's text; the next stage is indexing. What a former try left is replaced."""
        with self.database.write() as (connection, _):
            alive(connection, number)
            connection.execute("DELETE FROM texts WHERE document = ?", (number,))
            connection.execute("DELETE FROM pages WHERE document = ?", (number,))
            connection.executemany(
                "INSERT INTO texts VALUES (?, ?, ?)",
                (
                    (number, start, text[start : start + TEXT_BLOCK_CHARACTERS])
                    for start in range(0, len(text), TEXT_BLOCK_CHARACTERS)
                ),
            )
            connection.executemany(
                "INSERT INTO pages VALUES (?, ?, ?, ?)",
                ((number, page, span.start, span.end) for page, span in enumerate(pages, start=1)),
            )
            connection.execute(
                "UPDATE documents SET stage = 'indexing', num_characters = ?, done = 0, total = 1 WHERE number = ?",
                (len(text), number),
            )

    def count_tokens(self, number: int, num_tokens: int) -> None:
        """Note how many tokens of the model the text is."""
        self._update(number, "num_tokens = ?", (num_tokens,))

    def fail(self, number: int, error: DocumentError) -> None:
        """The document could not be brought further, and why. It stays answerable if it was."""
        self._update(number, "stage = 'failed', error_code = ?, error_message = ?", (error.code, error.message))

    def text(self, number: int, start: int = 0, end: int | None = None) -> str:
        """The code points ``start`` to ``end`` of the text, cut to what there is."""
        with self.database.read() as connection:
            return read_text(connection, number, start, end)

    def texts(self, number: int, spans: Sequence[Span]) -> list[str]:
        """The text of each of ``spans``, in their order; every block of the text is read once."""
        return self.texts_of({number: spans})[number]

    def texts_of(self, spans: Mapping[int, Sequence[Span]]) -> dict[int, list[str]]:
        """The same of several documents, by their numbers."""
        with self.database.read() as connection:
            return {number: _texts(connection, number, own) for number, own in spans.items()}

    def pages(self, number: int) -> tuple[Span, ...]:
        """Where each page stands, the first page first; empty for texts without pages."""
        with self.database.read() as connection:
            rows = connection.execute('SELECT start, "end" FROM pages WHERE document = ? ORDER BY page', (number,))
            return tuple(Span(start, end) for start, end in rows)

    def mark_deleting(self, number: int) -> None:
        """From now on the document is unknown to everyone; ``erase`` must follow, after a crash as well."""
        self._update(number, "stage = 'deleting', answerable = 0")

    def erase(self, record: Record) -> None:
        """Take every row of a document off the disk, and its bytes with the last reference to them."""
        with self.database.lock:
            self.database.expect_purge()
            with self.database.read() as connection:
                others = "SELECT 1 FROM documents WHERE sha256 = ? AND number != ? LIMIT 1"
                is_shared = connection.execute(others, (record.sha256, record.number)).fetchone() is not None
            try:
                self._delete_rows(record, is_shared)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                # The journal has to hold every page that changes; with what the file took, a little is enough.
                if not is_shared:
                    self._blobs.discard(record.sha256)
                self._empty(record.number)
                self._delete_rows(record, is_shared)
            if not is_shared:
                self._blobs.discard(record.sha256)
            self.database.purge()

    def num_documents(self) -> dict[str, int]:
        """Documents by status, those of status zero included."""
        counts = {status.value: 0 for status in DocumentStatus}
        with self.database.read() as connection:
            for stage, reading, count in connection.execute(
                "SELECT stage, reading, num_documents FROM tallies WHERE stage != 'deleting'"
            ):
                counts[status_of(Stage(stage), reading, self.has_reader).value] += count
        return counts

    def backlog(self) -> tuple[int, float]:
        """How many documents have work left; and how many seconds the one has waited that came first of those that
        cannot be asked yet, 0 where there is none."""
        in_work = ", ".join(f"'{stage}'" for stage in UNFINISHED)
        with self.database.read() as connection:
            (num_pending,) = connection.execute(
                f"SELECT sum(num_documents) FROM tallies WHERE stage IN ({in_work})"
            ).fetchone()
            # By stage, for that is in an index together with the order of coming.
            first = [
                row[0]
                for stage in UNFINISHED[:-1]
                for row in connection.execute(
                    "SELECT created_at FROM documents WHERE stage = ? ORDER BY number LIMIT 1", (stage,)
                )
            ]
        return int(num_pending), max(0.0, time.time() - min(first)) if first else 0.0

    def disk_bytes(self) -> int:
        """Bytes of the database and of the files as they were sent."""
        with self.database.read() as connection:
            (blobs,) = connection.execute("SELECT num_bytes FROM blob_tally").fetchone()
        return int(blobs) + self.database.disk_bytes()

    def _requeue(self, number: int) -> None:
        with self.database.write() as (connection, _):
            for table in (
                "texts",
                "pages",
                "chunks",
                "vector_rows",
                "word_counts",
                "embeddings",
                "facts",
                "fact_keys",
                "pieces",
            ):
                connection.execute(f"DELETE FROM {table} WHERE document = ?", (number,))
            connection.execute(
                "UPDATE documents SET stage = 'queued', answerable = 0, done = 0, total = 0, num_characters = NULL, "
                "num_tokens = NULL, num_rows = NULL, num_facts = 0, fingerprint = NULL, chunks_revision = NULL, "
                "vectors_revision = NULL, error_code = NULL, error_message = NULL WHERE number = ?",
                (number,),
            )

    def _delete_rows(self, record: Record, is_shared: bool) -> None:
        with self.database.write() as (connection, _):
            connection.execute("DELETE FROM documents WHERE number = ?", (record.number,))
            if not is_shared:
                connection.execute("DELETE FROM blobs WHERE sha256 = ?", (record.sha256,))

    def _empty(self, number: int) -> None:
        """Delete what hangs on a document in pieces, with an empty journal before each."""
        for table, key, most_rows in _PIECES:
            num_deleted = most_rows
            while num_deleted == most_rows:
                self.database.checkpoint()
                with self.database.write() as (connection, _):
                    num_deleted = connection.execute(
                        f"DELETE FROM {table} WHERE document = ?1 AND ({key}) IN "
                        f"(SELECT {key} FROM {table} WHERE document = ?1 LIMIT {most_rows})",
                        (number,),
                    ).rowcount
        self.database.checkpoint()

    def _update(self, number: int, assignments: str, values: Iterable[object] = ()) -> None:
        with self.database.write() as (connection, _):
            alive(connection, number)
            connection.execute(f"UPDATE documents SET {assignments} WHERE number = ?", (*values, number))

    def _records(self, condition: str, values: Sequence[object] = ()) -> list[Record]:
        with self.database.read() as connection:
            connection.row_factory = sqlite3.Row
            try:
                rows = connection.execute(
                    f"SELECT d.*, b.num_bytes FROM documents d JOIN blobs b USING (sha256) {condition}", values
                ).fetchall()
            finally:
                connection.row_factory = None
        return [Record.of(row, self.has_reader) for row in rows]


def alive(connection: sqlite3.Connection, number: int) -> None:
    """Refuse to write to a document that is gone or going.

    Raises:
        UnknownDocument: so that whoever works on it stops.
    """
    row = connection.execute("SELECT 1 FROM documents WHERE number = ? AND stage != 'deleting'", (number,)).fetchone()
    if row is None:
        raise UnknownDocument(f"number {number}")


def _texts(connection: sqlite3.Connection, number: int, spans: Sequence[Span]) -> list[str]:
    found: dict[Span, str] = {}
    start, block = 0, ""
    for span in sorted(spans):
        if not start <= span.start <= span.end <= start + len(block):
            start = span.start - span.start % TEXT_BLOCK_CHARACTERS
            block = read_text(connection, number, start, max(span.end, start + TEXT_BLOCK_CHARACTERS))
        found[span] = block[span.start - start : span.end - start]
    return [found[span] for span in spans]


def read_text(connection: sqlite3.Connection, number: int, start: int = 0, end: int | None = None) -> str:
    """The code points ``start`` to ``end`` of a document's text, cut to what there is."""
    first = start - start % TEXT_BLOCK_CHARACTERS
    last = end if end is not None else 1 << 62
    rows = connection.execute(
        "SELECT text FROM texts WHERE document = ? AND start >= ? AND start < ? ORDER BY start", (number, first, last)
    ).fetchall()
    text = "".join(row[0] for row in rows)
    return text[start - first : None if end is None else max(end - first, 0)]
