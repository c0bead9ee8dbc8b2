"""The store's tables in memory alone, for what is gone with the process."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import override

from retrieval.database import Database, Transaction
from retrieval.migrations import migrate


class MemoryDatabase(Database):
    """Tables as in ``Database``, on one connection: whoever reads waits for whoever writes. Nothing touches the disk.

    What is deleted is overwritten and its pages are given back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._under_way: Transaction | None = None
        self._writer = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._writer.execute("PRAGMA foreign_keys = ON")
        self._writer.execute("PRAGMA secure_delete = ON")
        migrate(self._writer, Path(":memory:"))
        (self._page_bytes,) = self._writer.execute("PRAGMA page_size").fetchone()

    @override
    def close(self) -> None:
        """Forget everything."""
        with self.lock:
            self._writer.close()

    @override
    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """See ``Database.read``."""
        with self.lock:
            yield self._writer

    @override
    def purge(self) -> bool:
        """Give the pages of what was deleted back."""
        with self.lock:
            # A page a step, and execute takes no second step where there are no rows.
            self._writer.executescript("PRAGMA incremental_vacuum")
            return True

    @property
    def num_bytes(self) -> int:
        """Host memory of all pages."""
        with self.lock:
            (num_pages,) = self._writer.execute("PRAGMA page_count").fetchone()
            return int(num_pages) * int(self._page_bytes)

    @override
    def _shorten_journal(self) -> None:
        """There is none."""
