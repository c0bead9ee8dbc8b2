"""Taking documents in: what was sent is made durable at once, and one worker thread takes it further."""

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from retrieval.durability import is_full
from retrieval.errors import UnknownDocument
from retrieval.passage import Document
from server.documents.uploads import Upload
from server.errors import StorageFull
from server.logs import log_event

if TYPE_CHECKING:
    from retrieval.library import Library

logger = logging.getLogger(__name__)


class Ingestor:
    """Owns the worker thread. Documents that cannot be asked yet go first; what a stop leaves is taken up again.

    A document that nobody waits for any more (it can be asked) makes room for one that cannot be asked yet.
    """

    def __init__(self, library: "Library", on_done: Callable[[], None] = lambda: None) -> None:
        """``on_done`` is called on the worker's thread whenever it is done with a document, or one is to be read."""
        self._library = library
        self._on_done = on_done
        self._changed = threading.Condition()
        self._num_arrivals = 0
        self._given_up: set[str] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def accept(
        self, tenant: str, upload: Upload, media_type: str, is_to_be_read: bool, document_id: str | None = None
    ) -> tuple[Document, bool]:
        """Make the upload durable and line it up, a new one under the id given; (document, whether it is new). Blocks
        for the disk.

        Raises ``StorageFull``, and then nothing of it was kept.
        """
        try:
            document, is_new = self._library.add(
                tenant, upload.name, media_type, upload.path, is_to_be_read, document_id
            )
        except (OSError, sqlite3.OperationalError) as error:
            if is_full(error):
                raise StorageFull from error
            raise
        if is_new:
            with self._changed:
                self._given_up.discard(document.id)
                self._num_arrivals += 1
                self._changed.notify()
            log_event(logger, "document accepted", document=document.id, bytes=upload.num_bytes, media_type=media_type)
        elif is_to_be_read:
            self._on_done()
        return document, is_new

    def has_given_up(self, document_id: str) -> bool:
        """Whether the document's failure could not even be told; the next start tries it again."""
        return document_id in self._given_up

    def start(self) -> None:
        """Start the worker, first on what an earlier run left unfinished."""
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float | None = None) -> bool:
        """End the worker at the next border between two steps; what is left is pending. Idempotent, blocks.

        False when the step under way takes longer than the timeout; the store survives being left in it.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            with self._changed:
                num_seen = self._num_arrivals
            document_id, others_wait = self._next()
            if document_id is not None:
                self._process(document_id, others_wait, num_seen)
                continue
            with self._changed:
                # What arrived after _next looked changed the count.
                if self._num_arrivals == num_seen and not self._stopping:
                    self._changed.wait()

    def _next(self) -> tuple[str | None, bool]:
        """Of the documents with work left the oldest that cannot be asked yet, else the oldest; and whether there is
        another one that cannot be asked yet."""
        most = 2 + len(self._given_up)
        pending = [each for each in self._library.pending(most) if each not in self._given_up]
        waiting = [each for each in pending if not self._is_answerable(each)]
        return next(iter(waiting or pending), None), len(waiting) > 1

    def _is_answerable(self, document_id: str) -> bool:
        try:
            return self._library.is_answerable(document_id)
        except UnknownDocument:
            return True  # deleted meanwhile: nobody waits for it

    def _process(self, document_id: str, others_wait: bool, num_seen: int) -> None:
        def make_room() -> bool:
            # One that came after _next looked may have to wait, too.
            wanted = others_wait or self._num_arrivals > num_seen
            return self._stopping or (wanted and self._is_answerable(document_id))

        try:
            self._library.process(document_id, make_room)
        except Exception:
            # The library writes what is wrong with a document into the document, so this is a defect, of whatever kind:
            # as at the top of a request, it must not end the work on all others. The next start tries it again.
            logger.exception("document %s could not be processed", document_id)
            self._given_up.add(document_id)
        self._on_done()
