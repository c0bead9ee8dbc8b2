"""What is laid out of documents, read from the store many at a time: their words, counted, and their vectors."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval.contents import Contents, unit_rows
from retrieval.database import Database
from retrieval.laid_out import Piece
from retrieval.record import Listed
from retrieval.store import Store, alive
from retrieval.word_counts import COUNTS_FORMAT, WordCounts, rows_by_chunk

# Documents read at once.
_BATCH = 512


class StoredPieces:
    """Reads pieces. Where a document was taken in by an earlier program its words are counted when they are first
    read."""

    def __init__(self, store: Store, contents: Contents, fingerprint: str, dimension: int) -> None:
        self._store = store
        self._contents = contents
        self._fingerprint = fingerprint
        self._dimension = dimension

    def pieces(self, records: Sequence[Listed]) -> list[Piece]:
        """The pieces of documents, in their order.

        Raises:
            UnknownDocument: one of them is gone.
        """
        found: list[Piece] = []
        for first in range(0, len(records), _BATCH):
            found += self._batch(records[first : first + _BATCH])
        return found

    def _batch(self, records: Sequence[Listed]) -> list[Piece]:
        counts, vectors = self._read(
            [record.number for record in records],
            [record.number for record in records if record.vectors_revision is not None],
        )
        missing: dict[int, bytes] = {}
        for record in records:
            if record.number not in counts:
                self._store.record(record.id)  # which raises for one that is gone
                missing[record.number] = self._counted(record)
        if missing:
            keep_counts(self._store.database, missing)
            counts.update(missing)
        none = np.empty((0, self._dimension), np.float32)
        return [
            Piece(record.number, record.chunks_revision or 0, -1, counts[record.number], None)
            if record.vectors_revision is None
            else Piece(
                record.number,
                record.chunks_revision or 0,
                record.vectors_revision,
                counts[record.number],
                vectors.get(record.number, none),
            )
            for record in records
        ]

    def _read(
        self, numbers: Sequence[int], with_vectors: Sequence[int]
    ) -> tuple[dict[int, bytes], dict[int, NDArray[np.float32]]]:
        with self._store.database.read() as connection:
            counts = dict(
                connection.execute(
                    "SELECT document, counts FROM json_each(?) JOIN word_counts ON document = value WHERE format = ?",
                    (json.dumps(numbers), COUNTS_FORMAT),
                ).fetchall()
            )
            rows = connection.execute(
                "SELECT document, vector FROM json_each(?) CROSS JOIN embeddings "
                "ON document = value AND fingerprint = ? ORDER BY json_each.key, row",
                (json.dumps(with_vectors), self._fingerprint),
            ).fetchall()
        vectors = unit_rows([vector for _, vector in rows], self._dimension)
        owners = np.fromiter((number for number, _ in rows), np.int64, len(rows))
        edges = [*np.flatnonzero(np.diff(owners, prepend=-1)).tolist(), len(rows)]
        return counts, {int(owners[first]): vectors[first:end] for first, end in pairwise(edges)}

    def _counted(self, record: Listed) -> bytes:
        text, chunks = self._store.text(record.number), self._contents.chunks(record.number)
        rows = [row.chunk for row in self._contents.vector_rows(record.number)]
        texts = [(text[chunk.start : chunk.end], chunk.heading) for chunk in chunks]
        return WordCounts.of(texts, rows_by_chunk(rows, len(chunks))).to_bytes()


def keep_counts(database: Database, counts: Mapping[int, bytes]) -> None:
    """Keep the counted words (``WordCounts.to_bytes``) of documents by their numbers.

    Raises:
        UnknownDocument: one of them was deleted meanwhile.
    """
    with database.write() as (connection, _):
        for number, content in counts.items():
            alive(connection, number)
            connection.execute("INSERT OR REPLACE INTO word_counts VALUES (?, ?, ?)", (number, COUNTS_FORMAT, content))
