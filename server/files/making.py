"""Files become documents of the library: one thread of work that takes up what is under way, after a crash as well."""

import asyncio
import logging
import sqlite3
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio.to_thread

from retrieval.errors import RetrievalError, UnknownDocument
from retrieval.passage import Document, DocumentStatus
from server.documents.ingesting import Ingestor
from server.documents.uploads import Upload
from server.errors import StorageFull
from server.files.chunking import Cutter
from server.files.file_table import FileTable
from server.files.membership import Membership
from server.files.nouns import StoredFile

if TYPE_CHECKING:
    from retrieval.library import Library

logger = logging.getLogger(__name__)

# The worker tells when it is done with a document; a deletion, or a failure that it cannot note, nobody tells.
LOOK_SECONDS = 0.2
# A document can be asked before its vectors are there, by keys and words. A file is complete with them: who waited for
# it finds by meaning, too, and the same question finds the same again.
SETTLED = (DocumentStatus.READY, DocumentStatus.READING, DocumentStatus.FAILED)
MOST_LOOKED_AT = 8
MOST_BEGUN = 64
LEAVING_SECONDS = 0.01
RETRY_SECONDS = 1.0
# What the library and the disk may refuse at any time.
TROUBLE = (RetrievalError, StorageFull, sqlite3.Error, OSError)

GIVEN_UP = "something failed inside the server; the next start of it tries again"
# What of a document's errors is the file's fault; the rest is the server's.
_OWN_FAULTS = ("storage_full", "out_of_memory", "internal_error")


class DocumentMaker:
    """Makes documents of files and tells the stores when these can be asked.

    ``run`` is for the event loop, everything else for any thread.
    """

    def __init__(
        self,
        library: "Library",
        ingestor: Ingestor,
        files: FileTable,
        membership: Membership,
        cutter: Cutter,
        is_to_be_read: bool,
    ) -> None:
        self._library = library
        self._ingestor = ingestor
        self._files = files
        self._membership = membership
        self._cutter = cutter
        self._is_to_be_read = is_to_be_read
        self._lock = threading.Lock()
        self._leaving: set[str] = set()
        self._last_begun = 0
        self._awaited: dict[str, str] = {}
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def recover(self) -> None:
        """Tell the stores of documents that are gone, where a crash kept that from being said."""
        for tenant, document_id in self._files.documents():
            if self._look(tenant, document_id) is None:
                # Of a file that is still under way it may just not have been made yet.
                self._membership.lose(tenant, document_id)

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            try:
                has_more = await anyio.to_thread.run_sync(self._round)
            except TROUBLE:
                # A full disk, say, or a locked database. Nobody else would tell the stores anything any more.
                logger.exception("files could not be made documents; it is tried again")
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if has_more:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if self._awaited else None):
                    await self._news.wait()

    def wake(self) -> None:
        """There may be something to do."""
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop has ended.
                self._loop.call_soon_threadsafe(self._news.set)

    def make(self, file: StoredFile) -> Document | None:
        """The document of the file's content, made if there is none or it failed. It may not be answerable yet.

        None while such a document is being deleted: ask again. Raises ``StorageFull``.
        """
        assert file.media_type is not None, "the file cannot be read"
        upload = Upload(file.filename, file.media_type, self._files.path(file), file.num_bytes, b"")
        with self._lock:
            intended = self._files.intend(file)
            if intended in self._leaving:
                return None
            document = self._look(file.tenant, intended)
            if document is not None and document.status is not DocumentStatus.FAILED:
                return document
            document, _ = self._ingestor.accept(file.tenant, upload, file.media_type, self._is_to_be_read, intended)
            if document.id in self._leaving:
                return None
            if document.id != intended:
                self._files.found(file, document.id)
            self._files.share(file)
            return document

    def begin_leaving(self, document_id: str) -> None:
        """The document is about to be deleted: nobody may take it for his own before it is gone."""
        with self._lock:
            self._leaving.add(document_id)

    def end_leaving(self, document_id: str) -> None:
        """The document is gone, or stays after all."""
        with self._lock:
            self._leaving.discard(document_id)

    def keep_posted(self, tenant: str, document_id: str) -> bool:
        """Somebody sent what was a document already, and it is to stay without its files as well. False if it is
        just being deleted, and has to be sent again."""
        with self._lock:
            if document_id in self._leaving:
                return False
            self._files.release(tenant, document_id)
            return True

    def _round(self) -> bool:
        """Begin with what is new and look at what is awaited. Whether there is more that is new."""
        new = self._membership.under_way(self._last_begun, MOST_BEGUN)
        for number, file in new:
            self._begin(file)
            self._last_begun = number
        # They become answerable about in the order in which they were begun.
        num_waiting = 0
        for document_id, tenant in list(self._awaited.items()):
            num_waiting += not self._settle(tenant, document_id, self._look(tenant, document_id))
            if num_waiting == MOST_LOOKED_AT:
                break
        return len(new) == MOST_BEGUN

    def _begin(self, file: StoredFile) -> None:
        if file.media_type is None:
            self._membership.fail(file.id, "unsupported_file", file.refusal or "")
            return
        try:
            while (document := self.make(file)) is None:
                time.sleep(LEAVING_SECONDS)
        except StorageFull as error:
            self._membership.fail(file.id, "server_error", str(error))
        except TROUBLE:
            # One file's failure must not end the work on all others.
            logger.exception("file %s could not be made a document", file.id)
            self._membership.fail(file.id, "server_error", "something failed inside the server; add the file again")
        else:
            self._awaited[document.id] = file.tenant
            self._settle(file.tenant, document.id, document)

    def _settle(self, tenant: str, document_id: str, document: Document | None) -> bool:
        """Tell the stores how it went with a document. Whether that can be said yet."""
        if document is None:
            self._files.forget_document(tenant, document_id)
        elif document.status in SETTLED:
            self._tell(tenant, document_id, fault_of(document))
        elif self._ingestor.has_given_up(document_id):
            self._tell(tenant, document_id, None if document.answerable else ("server_error", GIVEN_UP))
        else:
            return False
        self._awaited.pop(document_id, None)
        return True

    def _tell(self, tenant: str, document_id: str, fault: tuple[str, str] | None) -> None:
        # One way of cutting after the other; a file that comes meanwhile is seen to by itself.
        for cutting in self._membership.cuttings(tenant, document_id):
            try:
                if cutting is not None and fault is None and not self._library.is_cut(tenant, document_id, cutting):
                    text = self._library.text(tenant, document_id)
                    self._library.cut(tenant, document_id, cutting, self._cutter.pieces(text, cutting))
            except UnknownDocument:
                self._files.forget_document(tenant, document_id)
                return
            self._membership.settle(tenant, document_id, cutting, fault)

    def _look(self, tenant: str, document_id: str) -> Document | None:
        try:
            return self._library.get(tenant, document_id)
        except UnknownDocument:
            return None


def fault_of(document: Document) -> tuple[str, str] | None:
    """Why a document cannot be asked, as (code, message) of a vector store's file; None if it can."""
    if document.answerable or document.error is None:
        return None
    code, message = document.error.code, document.error.message
    if code == "unsupported_file":
        return code, message
    return ("server_error" if code in _OWN_FAULTS else "invalid_file"), message
