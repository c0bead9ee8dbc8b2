"""Taking documents in: what was sent is made durable at once, and one worker thread takes it further."""

import logging
import threading
from typing import TYPE_CHECKING

from retrieval.errors import RetrievalError
from retrieval.passage import Document
from server.logs import log_event
from server.uploads import Upload

if TYPE_CHECKING:
    from retrieval.library import Library

logger = logging.getLogger(__name__)


class Ingestor:
    """Owns the worker thread. Documents that cannot be asked yet go first; what a stop leaves is taken up again.

    A document that nobody waits for any more (it can be asked) makes room for one that just came.
    """

    def __init__(self, library: "Library") -> None:
        self._library = library
        self._changed = threading.Condition()
        self._arrivals: dict[str, str] = {}
        self._given_up: set[str] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def accept(self, tenant: str, upload: Upload, media_type: str) -> tuple[Document, bool]:
        """Make the upload durable and line it up; (document, whether it is new). Blocks for the disk."""
        document, is_new = self._library.add(tenant, upload.name, media_type, upload.path)
        if is_new:
            with self._changed:
                self._arrivals[document.id] = tenant
                self._changed.notify()
            log_event(logger, "document accepted", document=document.id, bytes=upload.num_bytes, media_type=media_type)
        return document, is_new

    def start(self) -> None:
        """Start the worker, first on what an earlier run left unfinished."""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the worker at the next border between two batches; what is left is pending. Idempotent, blocks."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            document_id = self._next()
            if document_id is None:
                with self._changed:
                    # What was accepted since _next looked is seen here: both hold the lock.
                    if not self._arrivals and not self._stopping:
                        self._changed.wait()
                continue
            self._process(document_id)

    def _next(self) -> str | None:
        """The oldest arrival that was not begun, else the oldest document with work left."""
        with self._changed:
            if self._arrivals:
                return next(iter(self._arrivals))
        return next((each for each in self._library.pending() if each not in self._given_up), None)

    def _process(self, document_id: str) -> None:
        with self._changed:
            tenant = self._arrivals.pop(document_id, None)

        def make_room() -> bool:
            if self._stopping:
                return True
            # Asking the store is worth it only when somebody waits; of a resumed document the tenant is not known
            # here, and it has waited longest.
            return bool(self._arrivals) and tenant is not None and self._library.get(tenant, document_id).answerable

        try:
            self._library.process(document_id, make_room)
        except RetrievalError as gone:
            # Deleted while it was being worked on: there is nothing left to do.
            log_event(logger, "document left", document=document_id, reason=str(gone))
            self._given_up.add(document_id)
        except Exception:
            # One document's failure must not end the work on all others; the next start tries it again.
            logger.exception("document %s could not be processed", document_id)
            self._given_up.add(document_id)
