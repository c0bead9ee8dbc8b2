"""Files, uploads and vector stores of all tenants over one library, from ``start`` to ``stop``."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.passage import Cutting, DocumentStatus, Passage, Span
from server.documents.erasing import Eraser
from server.documents.ingesting import Ingestor
from server.errors import DeletionUnfinished
from server.files.chunking import Cutter
from server.files.database import FilesDatabase
from server.files.errors import FileUnanswerable, StoreFileNotReady
from server.files.file_table import FileTable
from server.files.filters import Comparison, Compound, Filter, parse_filter
from server.files.making import TROUBLE, DocumentMaker, fault_of
from server.files.membership import Membership
from server.files.nouns import FileStatus, Hit, RankingOptions, StoreDocument
from server.files.store_table import StoreTable
from server.files.upload_table import UploadTable
from server.sessions.errors import SessionError
from server.sessions.refusals import DocumentInUse, SessionBusy

if TYPE_CHECKING:
    from retrieval.library import Library

logger = logging.getLogger(__name__)

UPKEEP_SECONDS = 30.0
POLL_SECONDS = 0.05


class Files:
    """What the routes and whoever answers from files work with. ``table``, ``uploads``, ``stores`` and ``membership``
    block for the disk and are for worker threads; the methods here are for the event loop.

    A document lives as long as one of its files, unless somebody also sent it as a document.
    """

    def __init__(
        self,
        data_dir: Path,
        spool_dir: Path,
        library: "Library",
        ingestor: Ingestor,
        eraser: Eraser,
        cutter: Cutter,
        is_to_be_read: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database = FilesDatabase(data_dir / "files.sqlite3", now)
        self.table = FileTable(self._database, data_dir / "files", data_dir / "blobs")
        self.uploads = UploadTable(self._database, self.table, spool_dir)
        self.stores = StoreTable(self._database)
        self.membership = Membership(self._database, self.table, self.stores)
        self._library = library
        self._eraser = eraser
        self._maker = DocumentMaker(library, ingestor, self.table, self.membership, cutter, is_to_be_read)
        self._collecting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def recover(self) -> None:
        """Set right what a crash left. Blocks for the disk."""
        self.table.recover()
        self._maker.recover()

    def start(self) -> None:
        """Begin, on the running event loop."""
        loop = asyncio.get_running_loop()
        for work in (self._maker.run(), self._keep_up()):
            task = loop.create_task(work)
            task.add_done_callback(_tell_failure)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End after what is being written. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def disk_bytes(self) -> int:
        """Bytes on the disk that are there for files alone. From any thread; blocks for the disk."""
        return self.table.own_bytes() + self._database.disk_bytes()

    def wake(self) -> None:
        """Something was put into a store, or became answerable. From any thread."""
        self._maker.wake()

    def now(self) -> float:
        """Seconds since 1970, by the clock that decides what has expired."""
        return self._database.now()

    async def text(self, tenant: str, store_id: str, file_id: str) -> str:
        """The whole text of a file in a store.

        Raises ``UnknownVectorStore``, ``UnknownStoreFile``; ``StoreFileNotReady`` where it is not completed.
        """
        return await anyio.to_thread.run_sync(self._text, tenant, store_id, file_id)

    async def delete_file(self, tenant: str, file_id: str) -> None:
        """Delete a file for good, and the document made of it with its last file. Sessions that contain the document
        keep it.

        Raises ``UnknownFile``; ``DeletionUnfinished`` where the disk has no room for deleting, which is tried again.
        """
        await anyio.to_thread.run_sync(self.table.delete, tenant, file_id)
        await self._collect()

    async def keep_posted(self, tenant: str, document_id: str) -> bool:
        """Somebody sent as a document what was one already. False if it is just being deleted: send it again."""
        return await anyio.to_thread.run_sync(self._maker.keep_posted, tenant, document_id)

    async def document_deleted(self, tenant: str, document_id: str) -> None:
        """A document was deleted; the stores do not have it any more."""
        await anyio.to_thread.run_sync(self.table.forget_document, tenant, document_id)

    async def documents_of_stores(
        self, tenant: str, vector_store_ids: Sequence[str], filters: Mapping[str, Any] | Filter | None = None
    ) -> list[StoreDocument]:
        """See ``FileDocuments``."""
        filter_ = _parsed(filters)
        return await anyio.to_thread.run_sync(self._documents_of_stores, tenant, vector_store_ids, filter_)

    async def document_of_file(self, tenant: str, file_id: str) -> StoreDocument:
        """See ``FileDocuments``."""
        file = await anyio.to_thread.run_sync(self.table.get, tenant, file_id)
        if file.media_type is None:
            raise FileUnanswerable(file_id, "unsupported_file", file.refusal or "it is of an unknown kind")
        while (document := await anyio.to_thread.run_sync(self._maker.make, file)) is None:
            await asyncio.sleep(POLL_SECONDS)
        while not document.answerable:
            if document.status is DocumentStatus.FAILED:
                raise FileUnanswerable(file_id, *(fault_of(document) or ("server_error", "its document failed")))
            await asyncio.sleep(POLL_SECONDS)
            try:
                document = await anyio.to_thread.run_sync(self._library.get, tenant, document.id)
            except UnknownDocument:
                raise FileUnanswerable(file_id, "server_error", "its document was deleted meanwhile") from None
        return StoreDocument(document.id, file.id, file.filename)

    async def search(
        self,
        tenant: str,
        vector_store_ids: Sequence[str],
        query: str | Sequence[str],
        max_num_results: int = 10,
        filters: Mapping[str, Any] | Filter | None = None,
        ranking_options: RankingOptions | None = None,
    ) -> list[Hit]:
        """See ``FileDocuments``."""
        documents = await self.documents_of_stores(tenant, vector_store_ids, filters)
        queries = [query] if isinstance(query, str) else list(dict.fromkeys(query))
        threshold = (ranking_options or RankingOptions()).score_threshold
        return await anyio.to_thread.run_sync(self._search, tenant, documents, queries, max_num_results, threshold)

    def _documents_of_stores(
        self, tenant: str, vector_store_ids: Sequence[str], filter_: Filter | None
    ) -> list[StoreDocument]:
        self.stores.use(tenant, vector_store_ids, "vector_store_ids")
        found: list[StoreDocument] = []
        for store_id in dict.fromkeys(vector_store_ids):
            found += self.membership.documents(tenant, store_id, filter_)
        return found

    def _text(self, tenant: str, store_id: str, file_id: str) -> str:
        file = self.membership.get(tenant, store_id, file_id)
        document_id = self.table.document(self.table.get(tenant, file_id))
        if file.status is not FileStatus.COMPLETED or document_id is None:
            raise StoreFileNotReady(store_id, file_id, file.status.value, file.error[1] if file.error else None)
        return self._library.text(tenant, document_id)

    def _search(
        self, tenant: str, documents: Sequence[StoreDocument], queries: Sequence[str], most: int, threshold: float
    ) -> list[Hit]:
        files: dict[tuple[str, Cutting | None], dict[str, StoreDocument]] = {}
        for document in documents:
            files.setdefault((document.document_id, document.cutting), {}).setdefault(document.file_id, document)
        cuttings = cuttings_of(documents)
        best: dict[tuple[str, Span, Cutting | None], Passage] = {}
        for query in queries:
            for passage in self._passages(tenant, query, documents, cuttings, most):
                place = (passage.document_id, passage.span, passage.cutting)
                if place not in best or best[place].score < passage.score:
                    best[place] = passage
        hits = [
            Hit(
                file_id=file.file_id,
                filename=file.filename,
                document_id=passage.document_id,
                attributes=file.attributes,
                score=passage.score,
                text=passage.text,
                start=passage.span.start,
                end=passage.span.end,
                page=passage.page,
            )
            # Sorting keeps the order of one search among equals.
            for passage in sorted(best.values(), key=lambda each: -each.score)
            if passage.score >= threshold
            for file in files[passage.document_id, passage.cutting].values()
        ]
        return hits[:most]

    def _passages(
        self,
        tenant: str,
        query: str,
        documents: Sequence[StoreDocument],
        cuttings: Mapping[str, Sequence[Cutting | None]],
        most: int,
    ) -> Sequence[Passage]:
        left = list(dict.fromkeys(each.document_id for each in documents))
        while left:
            try:
                return self._library.search(tenant, query, left, most, cuttings=cuttings).passages
            except UnknownDocument as gone:  # deleted since the stores were looked at
                left.remove(gone.document_id)
            except DocumentNotReady as unready:  # being read anew
                left.remove(unready.document.id)
        return ()

    async def _collect(self) -> None:
        """Delete the documents that no file has any more."""
        async with self._collecting:
            unfinished: DeletionUnfinished | None = None
            for tenant, document_id, is_owned in await anyio.to_thread.run_sync(self.table.without_file):
                try:
                    await self._collect_one(tenant, document_id, is_owned)
                except (DocumentInUse, SessionBusy):
                    continue  # It goes with the session.
                except DeletionUnfinished as error:
                    unfinished = error
            if unfinished is not None:
                raise unfinished

    async def _collect_one(self, tenant: str, document_id: str, is_owned: bool) -> None:
        await anyio.to_thread.run_sync(self._maker.begin_leaving, document_id)
        try:
            # Its file may have come back before that.
            if (tenant, document_id, is_owned) not in await anyio.to_thread.run_sync(self.table.without_file):
                return
            if is_owned:
                try:
                    await self._eraser.erase(tenant, document_id, cascade=False)
                except UnknownDocument:
                    pass
            await anyio.to_thread.run_sync(self.table.forget_document, tenant, document_id)
        finally:
            self._maker.end_leaving(document_id)

    async def _keep_up(self) -> None:
        while True:
            try:
                await anyio.to_thread.run_sync(self.table.forget_places)
                await anyio.to_thread.run_sync(self.table.discard_unwanted)
                await self._collect()
            except (*TROUBLE, SessionError):
                # A full disk, say: the next round tries it again.
                logger.exception("the upkeep of files did not come to its end")
            await asyncio.sleep(UPKEEP_SECONDS)


def cuttings_of(documents: Sequence[StoreDocument]) -> dict[str, tuple[Cutting | None, ...]]:
    """How each document is cut for its files, where not for the question alone."""
    ways: dict[str, dict[Cutting | None, None]] = {}
    for each in documents:
        ways.setdefault(each.document_id, {})[each.cutting] = None
    return {document: tuple(each) for document, each in ways.items() if any(each)}


def _parsed(filters: Mapping[str, Any] | Filter | None) -> Filter | None:
    return filters if filters is None or isinstance(filters, Comparison | Compound) else parse_filter(filters)


def _tell_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the work on files has ended: %s", error, exc_info=error)
