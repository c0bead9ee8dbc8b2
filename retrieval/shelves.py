"""The derived indexes of all documents: made when needed, kept in memory while used, never trusted.

Every index carries the revision of the store it was made from. One that is missing, altered, or of another
revision is made again from the store when it is next needed, and nobody can tell from the answers.
"""

import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from retrieval.durability import TEMPORARY_SUFFIX, make_directory, sync_directory, tree_bytes
from retrieval.record import Record
from retrieval.shelf_files import Shelf, ShelfFiles
from retrieval.store import Store

_Revisions = tuple[int | None, int | None]


class Shelves:
    """Opens, makes and removes shelves; keeps the last used ones in memory up to ``max_bytes``.

    Shelves handed out never change and stay usable by whoever holds them.
    """

    def __init__(self, directory: Path, store: Store, files: ShelfFiles, row_bytes: int, max_bytes: int) -> None:
        self._directory = directory
        self._store = store
        self._files = files
        self._row_bytes = row_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # One lock a document, so that one is made only once and never while it is discarded.
        self._making: dict[str, threading.Lock] = {}
        self._open: OrderedDict[str, tuple[_Revisions, Shelf]] = OrderedDict()
        self._open_bytes = 0
        self._open_vectors = 0
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

    def open(self, record: Record) -> Shelf:
        """The shelf of a document at the revisions of ``record``.

        Raises:
            UnknownDocument: it is being deleted.
        """
        wanted = (record.chunks_revision, record.vectors_revision)
        document_id = record.document.id
        if shelf := self._cached(document_id, wanted):
            return shelf
        with self._making_lock(document_id):
            if shelf := self._cached(document_id, wanted):
                return shelf
            # A deletion marks the document before it waits for this lock to discard the shelf: either the
            # document is found gone here, or its files are taken after they were made.
            self._store.record(document_id)
            shelf = self._files.load(record)
            disk_bytes = tree_bytes(self._directory / document_id)
            with self._lock:
                self._forget(document_id)
                self._open[document_id] = (wanted, shelf)
                self._open_bytes += shelf.num_bytes
                self._open_vectors += _num_vectors(shelf)
                self._note_disk_bytes(document_id, disk_bytes)
                while len(self._open) > 1 and self._open_bytes > self._max_bytes:
                    self._forget(next(iter(self._open)))
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
            with self._lock:
                self._forget(document_id)
                self._note_disk_bytes(document_id, 0)
                self._making.pop(document_id, None)

    def close(self) -> None:
        """Let go of all shelves."""
        with self._lock:
            self._open.clear()
            self._open_bytes = self._open_vectors = 0

    def host_bytes(self) -> dict[str, int]:
        """Memory held now: the vectors themselves, and the rest of the indexes."""
        with self._lock:
            embeddings = self._row_bytes * self._open_vectors
            return {"index": self._open_bytes - embeddings, "embeddings": embeddings}

    def disk_bytes(self) -> int:
        """Bytes of all index files."""
        with self._lock:
            return self._total_disk_bytes

    def _forget(self, document_id: str) -> None:
        """Let go of a shelf, if it is held. For the holder of the lock."""
        if document_id in self._open:
            _, shelf = self._open.pop(document_id)
            self._open_bytes -= shelf.num_bytes
            self._open_vectors -= _num_vectors(shelf)

    def _note_disk_bytes(self, document_id: str, num_bytes: int) -> None:
        """What the files of a document take now. For the holder of the lock, or before there are others."""
        self._total_disk_bytes += num_bytes - self._disk_bytes.pop(document_id, 0)
        if num_bytes:
            self._disk_bytes[document_id] = num_bytes

    def _making_lock(self, document_id: str) -> threading.Lock:
        with self._lock:
            return self._making.setdefault(document_id, threading.Lock())

    def _cached(self, document_id: str, wanted: _Revisions) -> Shelf | None:
        with self._lock:
            if document_id not in self._open or self._open[document_id][0] != wanted:
                return None
            self._open.move_to_end(document_id)
            return self._open[document_id][1]


def _num_vectors(shelf: Shelf) -> int:
    return 0 if shelf.vectors is None else len(shelf.vectors)
