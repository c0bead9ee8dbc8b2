"""One document's derived indexes: those of a long one on the disk, opened when they are sound and made from the store
when not; those of a short one made from the store whenever they are needed.

doc_.../lexical.json      stamp and checksums of the folder below
doc_.../lexical/*         tantivy
doc_.../vectors.fano      stamp, checksum and vector index in one file
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contents import Contents
from retrieval.counted_index import CountedIndex
from retrieval.durability import make_directory
from retrieval.errors import IndexDamaged
from retrieval.lexical_index import LexicalIndex, Searchable
from retrieval.record import Listed
from retrieval.seals import Stamp, read_sealed, seal_folder, verify_folder, write_sealed
from retrieval.store import Store
from retrieval.tantivy_index import TantivyIndex
from retrieval.vector_index import VectorIndex

# Raised whenever the words or the layout of an index change; older indexes are then made anew.
FORMAT = 1
# A document of this many rows or less has no indexes on the disk. Measured on one core: its words are counted in 0.3 ms
# for 5 rows and 2 ms for 64, where opening files takes 0.8 ms. To make the files takes 30 ms and ten synchronisations,
# which is as much as 6 vectors, and little beside 64.
SMALL_ROWS = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The indexes of one document as they are now.

    ``vectors`` is None until all its embeddings stand; ``chunk_of`` says to which chunk each of its rows belongs,
    ``row_spans`` [rows, 2] where the row stands in the text. ``rows``, ascending, are those that may be found, where
    only a part of the document is searched.
    """

    lexical: Searchable
    vectors: VectorIndex | None
    chunk_of: NDArray[np.int32]
    row_spans: NDArray[np.int32]
    rows: NDArray[np.int64] | None = None

    def rows_of(self, ordinal: int) -> Sequence[int]:
        """The rows of a chunk."""
        first, last = np.searchsorted(self.chunk_of, (ordinal, ordinal + 1)).tolist()
        if self.rows is None:
            return range(first, last)
        there: list[int] = self.rows[slice(*np.searchsorted(self.rows, (first, last)))].tolist()
        return there

    @property
    def num_bytes(self) -> int:
        """Host memory the shelf takes: the vector index, and the mapped files of the lexical one."""
        vector_bytes = self.vectors.num_bytes if self.vectors is not None else 0
        return self.lexical.num_bytes + vector_bytes + self.chunk_of.nbytes + self.row_spans.nbytes

    @property
    def embedding_bytes(self) -> int:
        """What of it are the vectors themselves."""
        return 0 if self.vectors is None else 4 * self.vectors.dimension * len(self.vectors)


class ShelfFiles:
    """Loads shelves from folders, each index checked against its stamp and checksum.

    A document of ``large_rows`` rows or more gets a ``large_index``, the others a ``vector_index``; one of
    ``small_rows`` or less has no folder. Calls for one document must not overlap.
    """

    def __init__(
        self,
        directory: Path,
        store: Store,
        contents: Contents,
        fingerprint: str,
        dimension: int,
        vector_index: type[VectorIndex],
        large_index: type[VectorIndex] | None = None,
        large_rows: int = 0,
        small_rows: int | None = None,
    ) -> None:
        self._directory = directory
        self._store = store
        self._contents = contents
        self._fingerprint = fingerprint
        self._dimension = dimension
        self._vector_index = vector_index
        self._large_index = large_index
        self._large_rows = large_rows
        self._small_rows = SMALL_ROWS if small_rows is None else small_rows

    def is_small(self, num_rows: int) -> bool:
        """Whether a document of so many rows has no indexes on the disk."""
        return num_rows <= self._small_rows

    def load(self, record: Listed) -> Shelf:
        """The shelf of a document at the revisions of ``record``; what is missing or unsound is made anew."""
        folder = self._directory / record.id
        is_small = self.is_small(record.num_rows)
        lexical: LexicalIndex
        if is_small:
            if folder.exists():  # From before it was small, or from an earlier program.
                shutil.rmtree(folder)
            lexical = CountedIndex(self._chunks(record))
        else:
            make_directory(folder)
            lexical = self._lexical(folder, record)
        vectors = None
        if record.vectors_revision is not None:
            vectors = self._new_vectors(self._vector_index, record) if is_small else self._vectors(folder, record)
        rows = self._contents.vector_rows(record.number)
        chunk_of = np.array([row.chunk for row in rows], dtype=np.int32)
        spans = np.array([(row.span.start, row.span.end) for row in rows], dtype=np.int32).reshape(len(rows), 2)
        return Shelf(lexical, vectors, chunk_of, spans)

    def _chunks(self, record: Listed) -> Iterator[tuple[str, str]]:
        """Text and heading of each chunk."""
        text = self._store.text(record.number)
        return ((text[chunk.start : chunk.end], chunk.heading) for chunk in self._contents.chunks(record.number))

    def _lexical(self, folder: Path, record: Listed) -> TantivyIndex:
        files, seal = folder / "lexical", folder / "lexical.json"
        stamp: Stamp = {"format": FORMAT, "document": record.id, "revision": record.chunks_revision}
        if seal.exists():
            try:
                verify_folder(files, seal, stamp)
            except IndexDamaged as error:
                logger.warning("the lexical index of %s is made anew: %s", record.id, error)
            else:
                return TantivyIndex.open(files)
        # The seal goes first: a crash while building leaves a folder without a seal, which is not trusted.
        seal.unlink(missing_ok=True)
        shutil.rmtree(files, ignore_errors=True)
        make_directory(files)
        index = TantivyIndex.build(files, self._chunks(record), record.num_characters or 0)
        seal_folder(files, seal, stamp)
        return index

    def _vectors(self, folder: Path, record: Listed) -> VectorIndex:
        path = folder / "vectors.fano"
        is_large = record.num_rows >= self._large_rows
        kind = self._large_index if self._large_index is not None and is_large else self._vector_index
        stamp: Stamp = {
            "format": FORMAT,
            "kind": kind.__name__,
            "document": record.id,
            "revision": record.vectors_revision,
            "embedder": self._fingerprint,
        }
        if path.exists():
            try:
                return kind.from_bytes(self._dimension, read_sealed(path, stamp))
            except IndexDamaged as error:
                logger.warning("the vector index of %s is made anew: %s", record.id, error)
        index = self._new_vectors(kind, record)
        write_sealed(path, stamp, index.to_bytes())
        return index

    def _new_vectors(self, kind: type[VectorIndex], record: Listed) -> VectorIndex:
        vectors = self._contents.embeddings(record.number, self._fingerprint, self._dimension)
        index = kind(self._dimension)
        index.add(np.arange(len(vectors), dtype=np.int64), vectors)
        return index
