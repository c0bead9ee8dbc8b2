"""Documents that go for good: taken from everyone at once, and then off the disk, however often that is interrupted."""

import sqlite3
from collections.abc import Callable

from retrieval.record import Record
from retrieval.shelves import Shelves
from retrieval.stacks import Stacks
from retrieval.store import Store


class Deletion:
    """Deletes, and remembers what it could not finish. Any number of threads may delete at once."""

    def __init__(self, store: Store, shelves: Shelves, stacks: Stacks) -> None:
        self._store = store
        self._shelves = shelves
        self._stacks = stacks
        self._half_done: dict[str, Record] = {}

    def run(self, tenant: str, document_id: str, wait: Callable[[str], None]) -> None:
        """Delete a document of ``tenant``, or go on with it; ``wait`` returns when nobody works on it any more.

        Raises:
            UnknownDocument: there is none of this id, or it is another tenant's.
        """
        record = self._half_done.get(document_id)
        if record is None or record.document.tenant != tenant:
            record = self._store.record(document_id, tenant)
            try:
                self._store.mark_deleting(record.number)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                # Indexes can be made anew, and the room that they take may be what is missing.
                self._shelves.discard(document_id)
                self._store.mark_deleting(record.number)
        wait(document_id)
        try:
            self.erase(record)
        except (OSError, sqlite3.OperationalError):
            self._half_done[document_id] = record
            raise
        self._half_done.pop(document_id, None)

    def is_half_done(self, tenant: str, document_id: str) -> bool:
        """Whether a deletion was interrupted."""
        record = self._half_done.get(document_id)
        return record is not None and record.document.tenant == tenant

    def erase(self, record: Record) -> None:
        """Take what is left of a document that nobody knows any more off the disk."""
        # The rows go last: as long as they stand, the next start knows there is something to delete.
        self._shelves.discard(record.id)
        self._stacks.discard(record.document.tenant, record.number)
        self._store.erase(record)
