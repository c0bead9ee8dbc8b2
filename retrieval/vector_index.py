"""Nearest neighbours by inner product: the contract, and the exact index that is its ground truth."""

import io
import threading
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import VectorsInvalid

# Rows come from half precision renormalised in single precision; 1e-3 tells a unit vector from a raw one.
UNIT_TOLERANCE = 1e-3

Hits = list[tuple[int, float]]


class VectorIndex(Protocol):
    """Seven methods and two sizes. Any number of threads may search while one adds or removes.

    Ids are the caller's, non-negative and unique; vectors are float32 rows of unit length.
    """

    def __init__(self, dimension: int) -> None: ...

    @property
    def dimension(self) -> int:
        """Width of a vector."""

    @property
    def num_bytes(self) -> int:
        """Host memory the index holds, vectors included."""

    def __len__(self) -> int:
        """Vectors held."""

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add ``vectors`` [n, dimension] under ``ids`` [n]; all or none.

        Raises:
            VectorsInvalid: shape, length or ids break the contract.
        """

    def remove(self, ids: NDArray[np.int64]) -> int:
        """Remove those of ``ids`` that are there; says how many. Their vectors are gone from memory."""

    def search(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Hits:
        """The ``k`` nearest (id, inner product) to ``query`` [dimension], best first, equal ones by id.

        With ``among`` the nearest of these ids, each once, of which none is missed; others than those held are passed
        over.

        Raises:
            VectorsInvalid: the query is not a unit vector of this dimension.
        """

    def products(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The inner products [n] of ``query`` with the vectors of ``ids`` [n], which must all be there.

        Raises:
            VectorsInvalid: an id is not in the index, or the query is as ``search`` refuses it.
        """

    def to_bytes(self) -> bytes:
        """The index as bytes, without a checksum: whoever stores them adds one."""

    @classmethod
    def from_bytes(cls, dimension: int, content: bytes) -> Self:
        """The index that ``to_bytes`` wrote. Only for bytes whose checksum was verified."""


def ranked(ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Hits:
    """The first ``k`` of hits, best first, equal ones by id."""
    order = np.lexsort((ids, -scores))[:k]
    return [(int(ids[row]), float(scores[row])) for row in order]


class ExactIndex:
    """All inner products, by numpy. The specification of ``VectorIndex``."""

    def __init__(self, dimension: int) -> None:
        self._lock = threading.Lock()
        # Replaced as a pair, never changed in place: a search works on the pair it began with.
        self._rows = (np.empty(0, np.int64), np.empty((0, dimension), np.float32))
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._dimension

    @property
    def num_bytes(self) -> int:
        """Host memory the index holds, vectors included."""
        ids, vectors = self._rows
        return ids.nbytes + vectors.nbytes

    def __len__(self) -> int:
        return len(self._rows[0])

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See ``VectorIndex.add``."""
        with self._lock:
            known, rows = self._rows
            check_rows(ids, vectors, self._dimension, set(known.tolist()))
            self._rows = (np.concatenate([known, ids]), np.concatenate([rows, vectors]))

    def remove(self, ids: NDArray[np.int64]) -> int:
        """See ``VectorIndex.remove``."""
        with self._lock:
            known, rows = self._rows
            kept = ~np.isin(known, ids)
            self._rows = (known[kept], rows[kept])
            return int(len(known) - kept.sum())

    def search(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Hits:
        """See ``VectorIndex.search``."""
        check_query(query, self._dimension)
        ids, vectors = self._rows
        if among is not None:
            inside = np.isin(ids, among)
            ids, vectors = ids[inside], vectors[inside]
        return ranked(ids, vectors @ query, k)

    def products(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``VectorIndex.products``."""
        check_query(query, self._dimension)
        known, vectors = self._rows
        row_of = {number: row for row, number in enumerate(known.tolist())}
        try:
            rows = [row_of[number] for number in ids.tolist()]
        except KeyError as error:
            raise VectorsInvalid(f"id {error.args[0]} is not in the index") from None
        found: NDArray[np.float32] = vectors[rows] @ query
        return found

    def to_bytes(self) -> bytes:
        """See ``VectorIndex.to_bytes``."""
        ids, vectors = self._rows
        target = io.BytesIO()
        np.savez(target, ids=ids, vectors=vectors)
        return target.getvalue()

    @classmethod
    def from_bytes(cls, dimension: int, content: bytes) -> Self:
        """See ``VectorIndex.from_bytes``."""
        index = cls(dimension)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index.add(arrays["ids"], arrays["vectors"])
        return index


def check_rows(ids: NDArray[np.int64], vectors: NDArray[np.float32], dimension: int, known: set[int]) -> None:
    """Refuse what an index would store silently wrong.

    Raises:
        VectorsInvalid: naming what was given and what is expected.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise VectorsInvalid(f"vectors have shape {vectors.shape}, this index holds rows of {dimension}")
    if vectors.dtype != np.float32:
        raise VectorsInvalid(f"vectors are {vectors.dtype}, expected float32")
    if ids.shape != (len(vectors),):
        raise VectorsInvalid(f"{len(vectors)} vectors came with ids of shape {ids.shape}, expected ({len(vectors)},)")
    if len(ids) == 0:
        return
    if ids.min() < 0:
        raise VectorsInvalid(f"id {ids.min()} is negative; -1 means 'nothing found' to FAISS")
    norms = np.linalg.norm(vectors, axis=1)
    # Written so that a NaN, which compares as false, is refused too.
    wrong = ~(np.abs(norms - 1.0) <= UNIT_TOLERANCE)
    if wrong.any():
        row = int(wrong.argmax())
        raise VectorsInvalid(f"vector {row} has length {norms[row]:.6g}, expected 1; normalise before adding")
    unique, counts = np.unique(ids, return_counts=True)
    twice = known.intersection(ids.tolist()) | set(unique[counts > 1].tolist())
    if twice:
        raise VectorsInvalid(f"id {min(twice)} is in the index already or given twice; remove it first")


def check_query(query: NDArray[np.float32], dimension: int) -> None:
    """Refuse a query that would find nonsense.

    Raises:
        VectorsInvalid: naming what was given and what is expected.
    """
    if query.shape != (dimension,):
        raise VectorsInvalid(f"query has shape {query.shape}, expected ({dimension},)")
    norm = float(np.linalg.norm(query))
    if not abs(norm - 1.0) <= UNIT_TOLERANCE:
        raise VectorsInvalid(f"query has length {norm:.6g}, expected 1; normalise before searching")
