"""Which documents are asked together, looked up by their ids; many of them are kept as long as none changes."""

import json
from collections.abc import Sequence

from retrieval.contents import Contents
from retrieval.errors import DocumentNotReady, UnknownDocument
from retrieval.index_memory import IndexMemory
from retrieval.record import Entry
from retrieval.selection import Selection
from retrieval.stacks import TOGETHER
from retrieval.store import Store


class Catalogue:
    """Looks documents up. Any number of threads may ask at once."""

    def __init__(self, store: Store, contents: Contents, memory: IndexMemory) -> None:
        self._store = store
        self._contents = contents
        self._memory = memory

    def select(self, tenant: str, document_ids: Sequence[str]) -> Selection:
        """The documents of ``tenant`` with these ids, each once, by one look at the store.

        Raises:
            UnknownDocument: there is none of such an id, or it is another tenant's.
            DocumentNotReady: one of them cannot be asked yet, or has failed.
        """
        ids = tuple(dict.fromkeys(document_ids))
        is_many = len(ids) >= TOGETHER
        # Before the look: what changes after it is seen by the next question.
        revision = self._store.database.revision()
        key = ("selection", tenant, ids)
        known = self._memory.get(key, None, Selection) if is_many else None
        if known is not None and known.as_of == revision:
            return known
        entries = self._entries(tenant, ids)
        if known is not None and known.is_of(entries):
            known.as_of = revision
            return known
        selection = Selection(entries, tenant, revision)
        if is_many:
            selection.names(self._contents)  # which is most of what is to be kept
            self._memory.keep(key, None, selection)
        return selection

    def _entries(self, tenant: str, ids: Sequence[str]) -> list[Entry]:
        with self._store.database.read() as connection:
            rows = connection.execute(
                "SELECT number, documents.id, name, answerable, num_characters, coalesce(num_rows, 0), "
                "chunks_revision, vectors_revision "
                "FROM json_each(?) AS wanted CROSS JOIN documents ON documents.id = wanted.value "
                "WHERE tenant = ? AND stage != 'deleting' ORDER BY wanted.key",
                (json.dumps(ids), tenant),
            ).fetchall()
        entries = list(map(Entry._make, rows))
        if len(entries) < len(ids):
            known = {entry.id for entry in entries}
            raise UnknownDocument(next(document_id for document_id in ids if document_id not in known))
        for entry in entries:
            if not entry.is_answerable:
                raise DocumentNotReady(self._store.record(entry.id, tenant).document)
        return entries
