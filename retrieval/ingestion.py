"""A document on its way from bytes to answers: parsing, indexing, dense. Every step can be taken up again."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from retrieval.chunker import chunk
from retrieval.contents import Contents
from retrieval.durability import is_full
from retrieval.embedder import Embedder
from retrieval.errors import ParseFailed, UnknownDocument, UnsupportedMediaType
from retrieval.fact_book import within_budget
from retrieval.parsers import parse
from retrieval.passage import Document, DocumentError, Span
from retrieval.recognisers import RECOGNISERS_REVISION, recognise
from retrieval.record import UNFINISHED, Record, Stage
from retrieval.shelves import Shelves
from retrieval.stacks import STACKED_ROWS
from retrieval.store import Store
from retrieval.stored_pieces import keep_counts
from retrieval.vector_rows import vector_rows
from retrieval.word_counts import WordCounts, rows_by_chunk

# One commit, one look at ``stop`` and one chance for a question to be embedded between batches.
EMBEDDING_BATCH = 128
# A file of this size or less is read and indexed in one commit, for that is soon done again after an interruption.
SHORT_BYTES = 1 << 16

logger = logging.getLogger(__name__)


class Ingestion:
    """Takes one document at a time through what is left to do; the store says what that is.

    An interruption at any point, ``kill -9`` included, loses at most the step under way: the text once parsed,
    the index once made, and every batch of vectors are committed as they come, those of a short file together.
    """

    def __init__(
        self,
        store: Store,
        contents: Contents,
        shelves: Shelves,
        embedder: Embedder,
        fingerprint: str,
        max_characters: int,
        max_facts: int,
        count_tokens: Callable[[str], int] | None,
    ) -> None:
        self._store = store
        self._contents = contents
        self._shelves = shelves
        self._embedder = embedder
        self._fingerprint = fingerprint
        self._max_characters = max_characters
        self.max_facts = max_facts
        self._count_tokens = count_tokens
        self._lock = threading.Lock()
        self._seconds_left: dict[str, float] = {}
        # Documents whose trouble could not even be written down (a full disk); left alone until the next start.
        self.given_up: set[str] = set()

    def run(self, document_id: str, stop: Callable[[], bool]) -> None:
        """Take the document to ready, or to failed with the reason; return early when ``stop()`` or it is deleted.

        No document's trouble is raised: others wait behind it.
        """
        try:
            self._steps(document_id, stop)
        except UnknownDocument:
            logger.info("%s was deleted while it was read", document_id)
        except ParseFailed as error:
            self._fail(document_id, DocumentError(error.code, str(error)))
        except UnsupportedMediaType as error:
            self._fail(document_id, DocumentError("unsupported_file", str(error)))
        except MemoryError:
            logger.exception("%s did not fit in memory", document_id)
            self._fail(document_id, DocumentError("out_of_memory", "the document did not fit in memory"))
        except Exception as error:
            logger.exception("%s could not be read", document_id)
            if is_full(error):
                self._fail(document_id, DocumentError("storage_full", "the disk is full; make room and send it again"))
                return
            message = f"an unexpected error stopped the reading: {type(error).__name__}: {error}"
            self._fail(document_id, DocumentError("internal_error", message))
        finally:
            with self._lock:
                self._seconds_left.pop(document_id, None)

    def with_seconds_left(self, document: Document) -> Document:
        """The document with the time its stage will still take, if it is being worked on."""
        with self._lock:
            seconds = self._seconds_left.get(document.id)
        return (
            document
            if seconds is None
            else replace(document, progress=replace(document.progress, seconds_left=seconds))
        )

    def _steps(self, document_id: str, stop: Callable[[], bool]) -> None:
        while not stop():
            record = self._store.record(document_id)
            if record.stage not in UNFINISHED:
                return
            if record.stage in (Stage.QUEUED, Stage.PARSING):
                self._parse(record)
            elif record.stage is Stage.INDEXING:
                self._index(record, self._store.text(record.number), self._store.pages(record.number))
            elif record.recognisers != RECOGNISERS_REVISION:
                self._renew_facts(record)
            elif not self._embed(record, stop):
                return

    def _parse(self, record: Record) -> None:
        is_short = record.document.num_bytes <= SHORT_BYTES
        if not is_short:
            self._store.begin_parsing(record.number)
        path = self._store.blob_path(record)
        parsed = parse(path, record.document.media_type, max_characters=self._max_characters)
        if is_short:
            self._index(record, parsed.text, parsed.pages, is_new=True)
        else:
            self._store.write_text(record.number, parsed.text, parsed.pages)

    def _index(self, record: Record, text: str, pages: Sequence[Span], is_new: bool = False) -> None:
        """Find what is to be found in the text, which is kept with it if it ``is_new``."""
        number = record.number
        chunks = chunk(text, pages)
        rows = vector_rows(text, chunks)
        facts, dropped = within_budget(recognise(text), self.max_facts)
        is_small = self._shelves.is_small(len(rows))
        counts = None
        if len(rows) <= STACKED_ROWS:
            texts = [(one.text, one.heading) for one in chunks]
            counts = WordCounts.of(texts, rows_by_chunk([row.chunk for row in rows], len(chunks))).to_bytes()
        with self._store.database.write():
            if is_new:
                self._store.write_text(number, text, pages)
            self._contents.write_index(number, chunks, rows, facts, dropped)
            if counts is not None:
                keep_counts(self._store.database, {number: counts})
            if is_small:
                self._open(number, text)
        if not is_small:
            self._shelves.open(self._store.record(record.document.id))
            self._open(number, text)

    def _open(self, number: int, text: str) -> None:
        self._contents.open_for_questions(number, self._fingerprint)
        if self._count_tokens is not None:
            self._store.count_tokens(number, self._count_tokens(text))

    def _renew_facts(self, record: Record) -> None:
        most = max(0, self.max_facts - self._contents.num_surprising(record.number))
        facts, dropped = within_budget(recognise(self._store.text(record.number)), most)
        self._contents.renew_facts(record.number, facts, dropped)

    def _embed(self, record: Record, stop: Callable[[], bool]) -> bool:
        """Embed what has no vector yet, batch by batch; False when told to stop before the end."""
        text = self._store.text(record.number)
        done = first = self._contents.num_embeddings(record.number, self._fingerprint)
        started = time.monotonic()
        while batch := self._contents.vector_rows(record.number, done, EMBEDDING_BATCH):
            if stop():
                return False
            vectors = self._embedder.embed_passages([text[row.span.start : row.span.end] for row in batch])
            with self._store.database.write():
                self._contents.add_embeddings(record.number, self._fingerprint, done, vectors)
                done += len(batch)
                if done == record.num_rows:
                    self._contents.finish_embeddings(record.number)
            pace = (time.monotonic() - started) / (done - first)
            with self._lock:
                self._seconds_left[record.document.id] = pace * (record.num_rows - done)
        if first == done:  # Nothing was left to embed.
            self._contents.finish_embeddings(record.number)
        if not self._shelves.is_small(record.num_rows):
            self._shelves.open(self._store.record(record.document.id))
        return True

    def _fail(self, document_id: str, error: DocumentError) -> None:
        try:
            self._store.fail(self._store.record(document_id).number, error)
        except UnknownDocument:
            logger.info("%s was deleted while it was read", document_id)
        except (sqlite3.Error, OSError):
            logger.exception("%s failed (%s), and the store cannot be written", document_id, error.code)
            self.given_up.add(document_id)
