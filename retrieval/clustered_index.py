"""The vector index by FAISS for many rows: inverted lists around centroids, behind the same contract as the flat one.

A query looks at the lists whose centroids are nearest, so some of the nearest rows may be missed; what it finds has
its exact inner product. The centroids are found by k-means with a fixed seed on one thread: the same rows in the same
order give the same index, byte for byte, so an index that is made anew answers as before. Figures are in
``bench/RESULTS.md`` (``python -m bench.vector_index``).
"""

import threading
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.faiss_index import ID_MAP_BYTES, best_of, chosen, products_of
from retrieval.vector_index import Hits, check_query, check_rows

# A document of so many sentences gets this index. Measured at 200,000 rows of sentence embeddings, one thread: all rows
# take 19.0 ms a question, the lists 5.0 ms, in which 99.7 % of the nearest 50 are found; below it the flat index costs
# little beside the embedding of the question, and misses nothing.
LARGE_ROWS = 200_000
# Fewer rows a list make k-means fit noise (FAISS warns below 39).
_ROWS_PER_LIST = 39
_TRAINING_ROWS_PER_LIST = 64
_TRAINING_ROUNDS = 10
_SEED = 1234
# A quarter of the lists is looked at; an index with no more than these lists is exact.
_PROBED_SHARE = 0.25
_LEAST_PROBED = 64
# The stubs of FAISS leave this class out.
_NO_MAP, _HASH_TABLE = faiss.DirectMap.NoMap, faiss.DirectMap.Hashtable  # type: ignore[attr-defined]
# Rows may come and go until they are twice or half as many as the centroids were made for.
_DRIFT = 2


class ClusteredIndex:
    """``IndexIVFFlat`` of about two lists for the root of the number of rows, full vectors in every list."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._lock = threading.Lock()
        # Replaced whole, never changed in place: a search works on the index it began with.
        self._index: Any = _empty(dimension, 1)
        self._num_trained = 0

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self._dimension

    @property
    def num_bytes(self) -> int:
        """Host memory the index holds, vectors included."""
        return len(self) * (4 * self._dimension + 8 + ID_MAP_BYTES) + int(self._index.nlist) * 4 * self._dimension

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See ``VectorIndex.add``."""
        faiss.omp_set_num_threads(1)
        with self._lock:
            held_ids, held = _rows(self._index)
            check_rows(ids, vectors, self._dimension, set(held_ids.tolist()))
            if len(ids):
                self._change(ids, vectors, held_ids, held)

    def remove(self, ids: NDArray[np.int64]) -> int:
        """See ``VectorIndex.remove``."""
        faiss.omp_set_num_threads(1)
        with self._lock:
            held_ids, held = _rows(self._index)
            kept = ~np.isin(held_ids, ids)
            removed = int(len(kept) - kept.sum())
            if removed:
                none = np.empty(0, np.int64), np.empty((0, self._dimension), np.float32)
                self._change(*none, held_ids[kept], held[kept])
            return removed

    def search(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Hits:
        """See ``VectorIndex.search``; of all rows those in lists far from the query may be missed, others come in their
        stead. Among some, all lists are looked at: what is compared is no more than those."""
        check_query(query, self._dimension)
        faiss.omp_set_num_threads(1)
        index = self._index
        num_lists = int(index.nlist)
        probed = max(_LEAST_PROBED, round(_PROBED_SHARE * num_lists))
        row = np.ascontiguousarray(query[np.newaxis])

        def nearest(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            scores, ids = index.search(row, count, params=_probing(min(probed, num_lists)))
            if ids[0, -1] < 0:  # The lists held fewer than asked for.
                scores, ids = index.search(row, count, params=_probing(num_lists))
            return scores[0], ids[0]

        def nearest_among(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            scores, ids = index.search(row, count, params=parameters)
            return scores[0], ids[0]

        if among is None:
            return best_of(nearest, k, int(index.ntotal))
        parameters = _probing(num_lists)
        parameters.sel = chosen(among)
        return best_of(nearest_among, k, min(int(index.ntotal), len(among)))

    def products(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See ``VectorIndex.products``."""
        check_query(query, self._dimension)
        return products_of(self._index, query, ids)

    def to_bytes(self) -> bytes:
        """See ``VectorIndex.to_bytes``."""
        # The map from ids to rows is a hash table, which is made anew from the lists.
        index: Any = faiss.clone_index(self._index)
        index.set_direct_map_type(_NO_MAP)
        return self._num_trained.to_bytes(8, "little") + bytes(faiss.serialize_index(index).tobytes())

    @classmethod
    def from_bytes(cls, dimension: int, content: bytes) -> Self:
        """See ``VectorIndex.from_bytes``."""
        index = cls(dimension)
        index._num_trained = int.from_bytes(content[:8], "little")
        index._index = faiss.deserialize_index(np.frombuffer(content, np.uint8, offset=8))
        index._index.set_direct_map_type(_HASH_TABLE)
        return index

    def _change(
        self,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float32],
        held_ids: NDArray[np.int64],
        held: NDArray[np.float32],
    ) -> None:
        """Hold ``held`` and ``vectors``, in lists of their own: nothing of what was held before stays in memory."""
        all_ids, rows = np.concatenate([held_ids, ids]), np.concatenate([held, vectors])
        total, trained = len(all_ids), self._num_trained
        if total and trained / _DRIFT <= total <= trained * _DRIFT:
            changed: Any = faiss.clone_index(self._index)
            changed.reset()
        else:
            changed = _empty(self._dimension, max(1, min(round(2 * total**0.5), total // _ROWS_PER_LIST)))
            if total:
                changed.train(rows)
            trained = total
        changed.set_direct_map_type(_HASH_TABLE)
        if total:
            changed.add_with_ids(rows, all_ids)
        self._index, self._num_trained = changed, trained


def _empty(dimension: int, num_lists: int) -> faiss.IndexIVFFlat:
    # Owned by the index, whose Python wrapper keeps the quantizer alive.
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, num_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = _SEED
    index.cp.niter = _TRAINING_ROUNDS
    index.cp.max_points_per_centroid = _TRAINING_ROWS_PER_LIST
    index.cp.min_points_per_centroid = 1  # Few rows are exact whatever the lists are; nothing to warn about.
    return index


def _probing(num_lists: int) -> faiss.IVFSearchParameters:
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = num_lists
    return parameters


def _rows(index: faiss.IndexIVFFlat) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All ids and vectors, list by list."""
    ids, vectors = [np.empty(0, np.int64)], [np.empty((0, index.d), np.float32)]
    lists: Any = index.invlists
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            ids.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
            vectors.append(codes.view(np.float32).reshape(size, index.d).copy())
    return np.concatenate(ids), np.concatenate(vectors)
