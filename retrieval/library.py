"""The archive as the rest of the program sees it: documents in, passages out."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from retrieval.catalogue import Catalogue
from retrieval.clustered_index import LARGE_ROWS, ClusteredIndex
from retrieval.contents import Contents
from retrieval.cutting import Cuttings
from retrieval.deletion import Deletion
from retrieval.durability import make_directory
from retrieval.embedder import Embedder
from retrieval.errors import DataDirectoryInUse, DocumentNotReady
from retrieval.fact_book import FactBook, ListedFact
from retrieval.faiss_index import FaissIndex
from retrieval.index_memory import IndexMemory
from retrieval.ingestion import Ingestion
from retrieval.keys import fold
from retrieval.library_stats import LibraryStats
from retrieval.limits import Limits
from retrieval.passage import Cutting, Document, DocumentStatus, Progress, SearchResult, Span, page_at
from retrieval.recognisers import RECOGNISERS_REVISION
from retrieval.scope import Scope
from retrieval.search import Search
from retrieval.shelf_files import ShelfFiles
from retrieval.shelves import Shelves
from retrieval.stacks import Stacks
from retrieval.store import Store
from retrieval.stored_pieces import StoredPieces
from retrieval.surprises import Surprises
from retrieval.texts import Texts
from retrieval.vector_index import VectorIndex


def never() -> bool:
    """Do not stop."""
    return False


class Library:
    """Documents of all tenants in one data directory, which one process at a time may hold.

    ``process`` runs on one thread at a time; every other method on any thread at any time. A method that is
    given an id of no document, or of another tenant's, raises ``UnknownDocument``. ``surprises`` takes what its reader
    finds surprising.
    """

    def __init__(
        self,
        lock: FileLock,
        store: Store,
        contents: Contents,
        shelves: Shelves,
        stacks: Stacks,
        memory: IndexMemory,
        ingestion: Ingestion,
        search: Search,
    ) -> None:
        self._file_lock = lock
        self._store = store
        self._contents = contents
        self._facts = FactBook(store.database)
        self._cuttings = Cuttings(store.database)
        self.surprises = Surprises(store, ingestion.max_facts)
        self._shelves = shelves
        self._stacks = stacks
        self._memory = memory
        self._catalogue = Catalogue(store, contents, memory)
        self._ingestion = ingestion
        self._search = search
        self._texts = Texts(store, contents)
        self._at_work: set[str] = set()
        self._deletion = Deletion(store, shelves, stacks)
        self._readings: dict[str, Progress] = {}
        self._work_done = threading.Condition()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        embedder: Embedder,
        *,
        count_tokens: Callable[[str], int] | None = None,
        limits: Limits | None = None,
        has_reader: bool = False,
        large_index: type[VectorIndex] = ClusteredIndex,
    ) -> Self:
        """Open the library in ``data_dir``, made if need be, and finish what an interruption left undone.

        ``count_tokens`` says how many tokens of the serving model a text is; without it documents do not tell. With
        ``has_reader`` somebody asks for ``unread`` documents; a document that is to be read is ready only then.

        ``large_index`` is the kind of index that documents of ``LARGE_ROWS`` rows or more get.

        Raises:
            DataDirectoryInUse: another process, or this one, has it open.
            StoreInvalid: the store is damaged or was written by a newer program.
        """
        make_directory(data_dir)
        lock = FileLock(data_dir / "library.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataDirectoryInUse(
                f"{data_dir} is in use by another process; stop it, or name another data directory"
            ) from None
        with ExitStack() as undo:
            undo.callback(lock.release)
            store = Store(data_dir, has_reader)
            library = cls._open_locked(lock, store, data_dir, embedder, count_tokens, limits or Limits(), large_index)
            undo.pop_all()
        return library

    def close(self) -> None:
        """Let go of the data directory. No other method may be running or be called afterwards."""
        self._memory.clear()
        self._store.close()
        self._file_lock.release()

    def add(
        self,
        tenant: str,
        name: str,
        media_type: str,
        blob_path: Path,
        is_to_be_read: bool = False,
        document_id: str | None = None,
    ) -> tuple[Document, bool]:
        """Keep the file ``blob_path``, which stays where it is, as a document; it is on the disk on return.

        The flag says whether there is work to do: False for content this tenant has sent before as this media
        type, which is the document there is. One that failed is queued again under its id (True). That a document
        is to be read is as durable as the document; it can be asked for later, but not taken back. A new document
        gets ``document_id``, if one is given, which must be of no other.
        """
        record, accepted = self._store.add(tenant, name, media_type, blob_path, is_to_be_read, document_id)
        return record.document, accepted

    def pending(self, most: int = -1) -> list[str]:
        """Ids of the documents ``process`` has work with, ``most`` of them unless negative: first those that cannot be
        asked yet, each kind oldest first."""
        given_up = self._ingestion.given_up
        unfinished = self._store.unfinished(most if most < 0 else most + len(given_up))
        found = [one for one in unfinished if one not in given_up]
        return found if most < 0 else found[:most]

    def is_answerable(self, document_id: str) -> bool:
        """Whether the document, whoever's it is, can be asked by now."""
        return self._store.record(document_id).document.answerable

    def process(self, document_id: str, stop: Callable[[], bool] = never) -> None:
        """Do what is left to do with a document, whoever's it is, until it is ready or failed.

        ``stop`` is asked between steps; after it the document can be taken up again where it was left. What goes
        wrong with the document stands in its ``error`` and is not raised.
        """
        with self._work_done:
            self._at_work.add(document_id)
        try:
            self._ingestion.run(document_id, stop)
        finally:
            with self._work_done:
                self._at_work.discard(document_id)
                self._work_done.notify_all()

    def unread(self, most: int = -1) -> Sequence[Document]:
        """The documents of all tenants that wait to be read and for nothing else, oldest first, ``most`` of them unless
        negative."""
        return [record.document for record in self._store.unread(most)]

    def tell_reading(self, document_id: str, done: int, total: int, seconds_left: float | None) -> None:
        """How far the reading of a document is, in tokens."""
        self._store.record(document_id)
        with self._work_done:
            self._readings[document_id] = Progress(DocumentStatus.READING.value, done, total, seconds_left)

    def end_reading(self, document_id: str, note: str | None = None) -> None:
        """The document was read to its end; or, with a ``note``, that was left out for this reason."""
        self._store.end_reading(self._store.record(document_id).number, note)
        with self._work_done:
            self._readings.pop(document_id, None)

    def get(self, tenant: str, document_id: str) -> Document:
        """One document, with its progress."""
        return self._with_progress(self._store.record(document_id, tenant).document)

    def get_all(self, tenant: str, document_ids: Sequence[str]) -> Sequence[Document]:
        """Several documents in their order, by one look at the store."""
        return [self._with_progress(record.document) for record in self._store.records(document_ids, tenant)]

    def list(self, tenant: str, after: str | None = None, limit: int = 100) -> Sequence[Document]:
        """The tenant's documents in the order they came, from the one after ``after`` on."""
        records = self._store.page(tenant, after, limit)
        return [self._with_progress(record.document) for record in records]

    def text(self, tenant: str, document_id: str, start: int = 0, end: int | None = None) -> str:
        """Code points ``start`` to ``end`` of the document's text, cut to what there is; empty before parsing."""
        return self._store.text(self._store.record(document_id, tenant).number, start, end)

    def page(self, tenant: str, document_id: str, position: int) -> int | None:
        """The page, counted from 1, on which the code point stands; None for texts without pages."""
        return page_at(self._store.pages(self._store.record(document_id, tenant).number), position)

    def delete(self, tenant: str, document_id: str) -> None:
        """Delete a document for good: when this returns nothing of it is on the disk.

        Waits for ``process`` to let go of it. A deletion that was interrupted, as by a disk without room, is finished
        when it is asked for again, or by the next ``open``.
        """
        self._deletion.run(tenant, document_id, self._wait_for)

    def is_half_deleted(self, tenant: str, document_id: str) -> bool:
        """Whether the deletion of a document was interrupted: it is unknown to everyone, but may not all be gone."""
        return self._deletion.is_half_done(tenant, document_id)

    def search(
        self,
        tenant: str,
        query: str,
        document_ids: Sequence[str],
        max_passages: int = 5,
        scope: Scope | None = None,
        cuttings: Mapping[str, Sequence[Cutting | None]] | None = None,
    ) -> SearchResult:
        """The passages of these documents that may hold the answer, best first; nothing of any other document, and
        nothing outside ``scope``.

        ``cuttings`` says, by its id, of each document whose passages are not put together for the question alone how
        they are cut, in one way or in several; ``scope`` has no parts of these. Those were told by ``cut``.

        Raises:
            DocumentNotReady: one of them cannot be asked yet, or has failed.
        """
        try:
            documents = self._catalogue.select(tenant, document_ids)
        except DocumentNotReady as unready:
            raise DocumentNotReady(self._with_progress(unready.document)) from None
        return self._search.run(query, documents, max_passages, scope, cuttings)

    def is_cut(self, tenant: str, document_id: str, cutting: Cutting) -> bool:
        """Whether somebody told where the document is cut so."""
        return self._cuttings.has(self._store.record(document_id, tenant).number, cutting)

    def cut(self, tenant: str, document_id: str, cutting: Cutting, pieces: Sequence[Span]) -> None:
        """Keep where the document's text is cut, for passages that are to be such pieces; on the disk on return."""
        self._cuttings.keep(self._store.record(document_id, tenant).number, cutting, pieces)

    def pieces(self, tenant: str, document_id: str, cutting: Cutting) -> Sequence[Span]:
        """The pieces of a document that ``is_cut`` so, in reading order."""
        return self._cuttings.pieces(self._store.record(document_id, tenant).number, cutting)

    def locate(
        self, tenant: str, document_ids: Sequence[str], text: str, limit: int = 100, scope: Scope | None = None
    ) -> Sequence[tuple[str, Span]]:
        """Where ``text`` stands in these documents, document by document in the order given, ``limit`` places at most;
        whole in a part of ``scope`` where the document is in it.

        In each document as ``retrieval.occurrences`` has it: verbatim, or else but for blanks and line ends. Empty
        for a text that stands nowhere, and for one without anything but blanks.

        Raises:
            DocumentNotReady: one of them has no text yet.
        """
        records = []
        for document_id in dict.fromkeys(document_ids):
            records.append(self._store.record(document_id, tenant))
            if records[-1].num_characters is None:
                raise DocumentNotReady(self._with_progress(records[-1].document))
        return self._texts.places(records, text, limit, scope)

    def page_spans(self, tenant: str, document_id: str) -> Sequence[Span]:
        """Where each page stands, the first page first; empty for texts without pages."""
        return self._store.pages(self._store.record(document_id, tenant).number)

    def sections(self, tenant: str, document_id: str) -> Sequence[tuple[tuple[str, ...], Span]]:
        """The titles above each place of the text, outermost first, and how far that goes; in reading order."""
        return self._texts.sections(self._store.record(document_id, tenant))

    def sentence(self, tenant: str, document_id: str, span: Span) -> Span:
        """The sentence or row around ``span``, which lies in the text."""
        return self._texts.sentence(self._store.record(document_id, tenant), span)

    def pin(self, tenant: str, document_id: str, span: Span, key: str | None = None) -> tuple[ListedFact, bool]:
        """Keep ``span``, which lies in the text and is not empty, as a fact, under ``key`` if it has one. It is on the
        disk on return. The flag is False for a pin that was there.

        Raises:
            DocumentNotReady: the document has no text yet.
        """
        record = self._store.record(document_id, tenant)
        if record.document.num_characters is None:
            raise DocumentNotReady(self._with_progress(record.document))
        assert 0 < len(span) and span.end <= record.document.num_characters, f"{span} is not in the text"
        text = self._store.text(record.number, span.start, span.end)
        pin, is_new = self._facts.pin(record.number, span, text, self._texts.sentence(record, span), key)
        return self._facts.get(record.number, pin), is_new

    def unpin(self, tenant: str, document_id: str, fact_id: str) -> None:
        """Forget a pin for good.

        Raises:
            UnknownFact: the document has no fact of this id.
            FactNotPinned: it is no pin.
        """
        self._facts.unpin(self._store.record(document_id, tenant).number, fact_id)

    def facts(
        self,
        tenant: str,
        document_id: str,
        *,
        after: str | None = None,
        limit: int = 100,
        kind: str | None = None,
        source: str | None = None,
        key: str | None = None,
    ) -> Sequence[ListedFact]:
        """Facts of a document in reading order, from the one after ``after`` on; ``key`` in any form they fold to.

        Raises:
            UnknownFact: there is no fact ``after``.
        """
        number = self._store.record(document_id, tenant).number
        keys = fold(key) if key is not None else ()
        if key is not None and not keys:
            return []
        return self._facts.page(number, limit, after, kind, source, keys)

    def dropped_facts(self, tenant: str, document_id: str) -> Mapping[str, int]:
        """How many facts of each kind the document has beyond its budget; pins are never left out."""
        return self._facts.dropped(self._store.record(document_id, tenant).number)

    def stats(self) -> LibraryStats:
        """What the library holds and takes; reads counters only, so it costs the same for any number of documents."""
        num_vectors, num_facts = self._contents.totals()
        num_pending, waiting_seconds = self._store.backlog()
        return LibraryStats(
            num_documents=self._store.num_documents(),
            num_vectors=num_vectors,
            num_facts=num_facts,
            host_bytes=self._memory.host_bytes(),
            disk_bytes={"store": self._store.disk_bytes(), "index": self._shelves.disk_bytes()},
            num_pending=num_pending,
            waiting_seconds=waiting_seconds,
        )

    @classmethod
    def _open_locked(
        cls,
        lock: FileLock,
        store: Store,
        data_dir: Path,
        embedder: Embedder,
        count_tokens: Callable[[str], int] | None,
        limits: Limits,
        large_index: type[VectorIndex],
    ) -> Self:
        # Read once: an embedder at work answers only between its batches.
        fingerprint, dimension = embedder.fingerprint, embedder.dimension
        contents = Contents(store.database)
        folder = data_dir / "indexes"
        files = ShelfFiles(
            folder, store, contents, fingerprint, dimension, FaissIndex, large_index, large_rows=LARGE_ROWS
        )
        memory = IndexMemory(limits.max_index_bytes)
        shelves = Shelves(folder, store, files, memory)
        stacks = Stacks(StoredPieces(store, contents, fingerprint, dimension), memory, dimension)
        ingestion = Ingestion(
            store, contents, shelves, embedder, fingerprint, limits.max_characters, limits.max_facts, count_tokens
        )
        search = Search(store, contents, shelves, embedder, stacks)
        library = cls(lock, store, contents, shelves, stacks, memory, ingestion, search)
        for record in store.recover(fingerprint):
            library._deletion.erase(record)
        store.reopen_for_recognisers(RECOGNISERS_REVISION)
        shelves.sweep(store.ids())
        return library

    def _with_progress(self, document: Document) -> Document:
        with self._work_done:
            told = self._readings.get(document.id)
        if told is not None and document.status is DocumentStatus.READING:
            return replace(document, progress=told)
        return self._ingestion.with_seconds_left(document)

    def _wait_for(self, document_id: str) -> None:
        with self._work_done:
            self._work_done.wait_for(lambda: document_id not in self._at_work)
            self._readings.pop(document_id, None)
