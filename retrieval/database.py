"""One SQLite file: a single writer, many readers, a revision that every change advances."""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from retrieval.durability import sync_directory
from retrieval.errors import StoreInvalid
from retrieval.journal import Journal
from retrieval.migrations import migrate
from retrieval.scrubbing import scrub

BUSY_SECONDS = 10.0
# Pages in the journal. A longer one is moved into the file, as SQLite does by itself at this length.
MOST_FRAMES = 1000

logger = logging.getLogger(__name__)


class Transaction(NamedTuple):
    """A change under way: the connection to make it on, and the revision the store will have after it."""

    connection: sqlite3.Connection
    revision: int


class Database:
    """WAL journal, ``synchronous=FULL``: what a transaction committed is on the disk.

    ``secure_delete`` overwrites deleted content with zeros, and ``purge`` empties the journal and overwrites what
    SQLite leaves of it elsewhere, so that deleted text is nowhere on the disk. Readers never wait for the writer, nor
    it for them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lock = threading.RLock()
        self._under_way: Transaction | None = None
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        try:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            migrate(self._writer, path)
        except sqlite3.OperationalError:  # No permission, no room: the file itself may be sound.
            raise
        except sqlite3.DatabaseError as error:
            raise StoreInvalid(
                f"{path} cannot be read as a store ({error}); restore it from a backup, or move it away to start empty"
            ) from error
        (page_bytes,) = self._writer.execute("PRAGMA page_size").fetchone()
        self._journal = Journal(path.with_name(path.name + "-wal"), page_bytes)
        # SQLite would empty the journal by itself, and nobody would know which pages were in it.
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        # Kept open: closing any descriptor of a file drops all locks that this process has on it (fcntl(2)).
        self._file: int | None = os.open(path, os.O_RDWR)
        self._due = path.with_name(path.name + "-purge")

    def close(self) -> None:
        """Close all connections; SQLite then empties and removes the journal."""
        with self.lock, self._idle_lock:
            while self._idle:
                self._idle.pop().close()
            self._writer.close()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that bumps the revision. An exception inside undoes all of it.

        One inside another is a part of it: nothing of either is on the disk before the outer one ends.
        """
        with self.lock:
            if self._under_way is not None:  # This thread's own, for it has the lock.
                yield self._under_way
                return
            self._writer.execute("BEGIN IMMEDIATE")
            with ExitStack() as undo:
                undo.callback(self._undo)
                (revision,) = self._writer.execute("UPDATE revision SET value = value + 1 RETURNING value").fetchone()
                self._under_way = Transaction(self._writer, revision)
                yield self._under_way
                self._writer.execute("COMMIT")
                undo.pop_all()
                self._under_way = None
            self._shorten_journal()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection nobody else uses meanwhile. All reads inside see one state of the store."""
        with self._idle_lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("ROLLBACK")
            with self._idle_lock:
                self._idle.append(connection)

    def revision(self) -> int:
        """How many changes the store has seen."""
        with self.read() as connection:
            (value,) = connection.execute("SELECT value FROM revision").fetchone()
            return int(value)

    def checkpoint(self) -> bool:
        """Move the journal into the file and cut it to nothing. False when a reader was in the way too long."""
        with self.lock:
            self._journal.look()
            (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy

    @property
    def is_purge_due(self) -> bool:
        """Whether something was to be deleted for good, and a crash may have come before ``purge``."""
        return self._due.exists()

    def expect_purge(self) -> None:
        """Note durably that something is about to be deleted for good."""
        self._due.touch()
        sync_directory(self._due.parent)

    def purge(self) -> bool:
        """Overwrite what is left of deleted content: in the journal, and in the middle of pages (see ``scrubbing``).

        False when a reader was in the way too long; it is then due at the next purge or start. The first purge of a
        process reads the whole file, each later one the pages that were written to since the one before.
        """
        with self.lock:
            if not self.checkpoint():
                logger.warning("deleted content is still in the journal of %s: a reader was in the way", self._path)
                return False
            # What is in the cache would come back with the next change of its page.
            self._writer.execute("PRAGMA shrink_memory")
            assert self._file is not None, "closed"
            scrub(self._file, self._journal.pages)
            self._journal.forget()
            self._due.unlink(missing_ok=True)
            sync_directory(self._due.parent)
            return True

    def disk_bytes(self) -> int:
        """Bytes of the file and its journal."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            try:
                total += self._path.with_name(self._path.name + suffix).stat().st_size
            except FileNotFoundError:
                continue
        return total

    def _shorten_journal(self) -> None:
        """Move a long journal into the file, as far as nobody reads it."""
        if self._journal.look() > MOST_FRAMES:
            with suppress(sqlite3.OperationalError):  # The change is on the disk, and the journal may wait.
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _undo(self) -> None:
        self._under_way = None
        # Of some errors, a full disk among them, SQLite has undone the transaction itself.
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        # Connections change threads, but read() and write() hand each to one thread at a time.
        connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        return connection
