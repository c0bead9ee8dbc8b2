"""The vector index by FAISS, flat and exact, behind the contract of ``retrieval.vector_index``.

What FAISS leaves to its caller is done here: it crashes when one thread adds while another searches, so changes
are made on a copy; it stores duplicate ids and vectors of any length without a word, so both are refused; with
more than one OpenMP thread a query of a tenth of a millisecond waits for the threads to wake (measured: 16 ms),
so every call runs on one. A process that has searched must not fork.
"""

import threading
from collections.abc import Callable
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.errors import VectorsInvalid
from retrieval.vector_index import Hits, check_query, check_rows, ranked

# Fetched beyond k, so that equal scores at the border are usually settled by the first search.
TIE_MARGIN = 8
# One node of the id map beside the vector and the id (libstdc++ unordered_map: node, hash, bucket).
ID_MAP_BYTES = 48


class FaissIndex:
    """``IndexIDMap2(IndexFlatIP)``: exact inner products. Flat is the right index up to about 100,000 rows."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._lock = threading.Lock()
        # Replaced whole, never changed in place: a search works on the index it began with.
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._dimension

    @property
    def num_bytes(self) -> int:
        """Host memory the index holds, vectors included."""
        return len(self) * (4 * self._dimension + 8 + ID_MAP_BYTES)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See ``VectorIndex.add``."""
        faiss.omp_set_num_threads(1)
        with self._lock:
            check_rows(ids, vectors, self._dimension, set(faiss.vector_to_array(self._index.id_map).tolist()))
            changed = faiss.clone_index(self._index)
            changed.add_with_ids(np.ascontiguousarray(vectors), np.ascontiguousarray(ids))
            self._index = changed

    def remove(self, ids: NDArray[np.int64]) -> int:
        """See ``VectorIndex.remove``."""
        faiss.omp_set_num_threads(1)
        with self._lock:
            changed: Any = faiss.clone_index(self._index)
            removed = int(changed.remove_ids(np.ascontiguousarray(ids)))
            self._index = changed
            return removed

    def search(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Hits:
        """See ``VectorIndex.search``."""
        check_query(query, self._dimension)
        # The number of threads is kept by OpenMP for each calling thread, so it is said in every call.
        faiss.omp_set_num_threads(1)
        index = self._index
        row = np.ascontiguousarray(query[np.newaxis])
        parameters = None
        if among is not None:
            parameters = faiss.SearchParameters()
            parameters.sel = chosen(among)

        def nearest(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            scores, ids = index.search(row, count, params=parameters)
            return scores[0], ids[0]

        return best_of(nearest, k, int(index.ntotal) if among is None else min(int(index.ntotal), len(among)))

    def products(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``VectorIndex.products``."""
        check_query(query, self._dimension)
        return products_of(self._index, query, ids)

    def to_bytes(self) -> bytes:
        """See ``VectorIndex.to_bytes``."""
        return bytes(faiss.serialize_index(self._index).tobytes())

    @classmethod
    def from_bytes(cls, dimension: int, content: bytes) -> Self:
        """See ``VectorIndex.from_bytes``."""
        index = cls(dimension)
        index._index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        return index


def best_of(nearest: Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]], k: int, total: int) -> Hits:
    """The best ``k`` of at most ``total`` rows, ties by id: ``nearest`` gives so many (scores, ids), best first, ids of
    -1 after the last there is, and is asked for more as long as a tie might go on beyond them."""
    k = min(k, total)
    if k == 0:
        return []
    fetched = min(k + TIE_MARGIN, total)
    scores, ids = nearest(fetched)
    while fetched < total and ids[-1] >= 0 and scores[k - 1] == scores[-1]:
        fetched = min(2 * fetched, total)
        scores, ids = nearest(fetched)
    there = ids >= 0
    return ranked(ids[there], scores[there], k)


def chosen(ids: NDArray[np.int64]) -> faiss.IDSelector:
    """Lets a search see ``ids`` alone, and keeps them as long as it is kept."""
    if len(ids) and np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids))):
        # A part of a text is mostly one run of rows, which needs no look into a table for each row.
        run: faiss.IDSelector = faiss.IDSelectorRange(int(ids[0]), int(ids[-1]) + 1)
        return run
    selector: faiss.IDSelector = faiss.IDSelectorBatch(np.ascontiguousarray(ids))
    return selector


def products_of(index: faiss.Index, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products of ``query`` with rows of a FAISS index. Raises ``VectorsInvalid`` for an id it does not hold."""
    if len(ids) == 0:
        return np.empty(0, np.float32)
    try:
        vectors = index.reconstruct_batch(np.ascontiguousarray(ids))
    except RuntimeError as error:
        raise VectorsInvalid(f"one of the ids is not in the index: {error}") from None
    found: NDArray[np.float32] = vectors @ query
    return found
