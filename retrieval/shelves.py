"""The derived indexes of all documents: made when needed, kept in memory while used, never trusted.

Every index carries the revision of the store it was made from. One that is missing, altered, or of another
revision is made again from the store when it is next needed, and nobody can tell from the answers.
"""

import shutil
import threading
from collections.abc import Iterable
from pathlib import Path

from retrieval.durability import TEMPORARY_SUFFIX, make_directory, sync_directory, tree_bytes
from retrieval.index_memory import IndexMemory
from retrieval.record import Listed
from retrieval.shelf_files import Shelf, ShelfFiles
from retrieval.store import Store


class Shelves:
    """Opens, makes and removes shelves; the last used ones are kept in ``memory``.

    Shelves handed out never change and stay usable by whoever holds them.
    """

    def __init__(self, directory: Path, store: Store, files: ShelfFiles, memory: IndexMemory) -> None:
        self._directory = directory
        self._store = store
        self._files = files
        self._memory = memory
        self._lock = threading.Lock()
        # One lock a document, so that one is made only once and never while it is discarded.
        self._making: dict[str, threading.Lock] = {}
        self._disk_bytes: dict[str, int] = {}
        self._total_disk_bytes = 0
        make_directory(directory)

    def sweep(self, wanted: Iterable[str]) -> None:
        """Remove the folders of all documents but ``wanted``, and of these what was being written at a crash."""
        known = set(wanted)
        for path in self._directory.iterdir():
            if path.name in known:
                for leftover in path.glob(f".*{TEMPORARY_SUFFIX}"):
                    leftover.unlink()
                self._note_disk_bytes(path.name, tree_bytes(path))
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def open(self, record: Listed) -> Shelf:
        """The shelf of a document at the revisions of ``record``.

        Raises:
            UnknownDocument: it is being deleted.
        """
        wanted = (record.chunks_revision, record.vectors_revision)
        document_id = record.id
        if shelf := self._memory.get(document_id, wanted, Shelf):
            return shelf
        with self._making_lock(document_id):
            if shelf := self._memory.get(document_id, wanted, Shelf):
                return shelf
            # A deletion marks the document before it waits for this lock to discard the shelf: either the
            # document is found gone here, or its files are taken after they were made.
            self._store.record(document_id)
            shelf = self._files.load(record)
            disk_bytes = tree_bytes(self._directory / document_id)
            with self._lock:
                self._note_disk_bytes(document_id, disk_bytes)
            self._memory.keep(document_id, wanted, shelf)
        return shelf

    def is_small(self, num_rows: int) -> bool:
        """Whether the shelf of a document of so many rows is made when a question needs it."""
        return self._files.is_small(num_rows)

    def discard(self, document_id: str) -> None:
        """Take a document's indexes off the disk and out of memory."""
        with self._making_lock(document_id):
            path = self._directory / document_id
            if path.exists():
                shutil.rmtree(path)
                sync_directory(self._directory)
            self._memory.forget(document_id)
            with self._lock:
                self._note_disk_bytes(document_id, 0)
                self._making.pop(document_id, None)

    def disk_bytes(self) -> int:
        """Bytes of all index files."""
        with self._lock:
            return self._total_disk_bytes

    def _note_disk_bytes(self, document_id: str, num_bytes: int) -> None:
        """What the files of a document take now. For the holder of the lock, or before there are others."""
        self._total_disk_bytes += num_bytes - self._disk_bytes.pop(document_id, 0)
        if num_bytes:
            self._disk_bytes[document_id] = num_bytes

    def _making_lock(self, document_id: str) -> threading.Lock:
        with self._lock:
            return self._making.setdefault(document_id, threading.Lock())
