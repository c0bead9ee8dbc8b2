"""The flat index with its rows on a GPU as well: that picks the nearest rows, and the CPU compares those exactly.

So it answers as ``FaissIndex`` does, to the last bit and the last tie, whatever the device rounds: where its rounding
could have moved a row across the border of what it picked, all rows are compared. Everything but a search is the CPU's:
a device index cannot take out rows, and is made anew after each change.
"""

import threading
from functools import cache
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.errors import IndexUnavailable
from retrieval.faiss_index import FaissIndex
from retrieval.vector_index import Hits, check_query

# Picked beyond k. FAISS selects no more than 2048 rows on a device.
_MARGIN = 64
_MOST_PICKED = 2048
# No inner product of unit vectors is off by more on the device: single precision, a few hundred terms (n * 2^-24).
_ROUNDING = 1e-4
# What FAISS may take on the device beside the rows.
_TEMPORARY_BYTES = 1 << 26


class GpuIndex(FaissIndex):
    """``GpuIndexFlat`` beside ``FaissIndex``; its 4 bytes a component on the first device are not in ``num_bytes``."""

    # The resources of a device serve one call at a time.
    _device_lock = threading.Lock()

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self._on_device: tuple[Any, NDArray[np.int64], Any] | None = None

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """See ``VectorIndex.add``."""
        super().add(ids, vectors)
        self._bring_over()

    def remove(self, ids: NDArray[np.int64]) -> int:
        """See ``VectorIndex.remove``."""
        removed = super().remove(ids)
        self._bring_over()
        return removed

    def search(self, query: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None) -> Hits:
        """See ``VectorIndex.search``."""
        check_query(query, self._dimension)
        on_device, total = self._on_device, len(self)
        num_picked = min(k + _MARGIN, total)
        # While rows come or go, what is on the device is not what is held.
        is_current = on_device is not None and on_device[0] is self._index
        if among is not None or not is_current or not k or num_picked > _MOST_PICKED:
            return super().search(query, k, among)
        assert on_device is not None, "it is current"
        _, ids, index = on_device
        with self._device_lock:
            scores, rows = index.search(np.ascontiguousarray(query[np.newaxis]), num_picked)
        hits = super().search(query, k, ids[rows[0]])
        is_beyond_doubt = num_picked == total or hits[-1][1] > float(scores[0, -1]) + _ROUNDING
        return hits if is_beyond_doubt else super().search(query, k)

    @classmethod
    def from_bytes(cls, dimension: int, content: bytes) -> Self:
        """See ``VectorIndex.from_bytes``."""
        index = super().from_bytes(dimension, content)
        index._bring_over()
        return index

    def _bring_over(self) -> None:
        held = self._index
        if not held.ntotal:
            self._on_device = None
            return
        with self._device_lock:
            rows = self._copied(faiss.downcast_index(held.index))
        self._on_device = (held, faiss.vector_to_array(held.id_map), rows)

    def _copied(self, flat: faiss.Index) -> faiss.Index:
        """The rows of a flat index on the first device, in single precision."""
        gpu: Any = faiss
        copy: faiss.Index = gpu.GpuIndexFlat(_resources(), flat)
        return copy


def check_device() -> None:
    """Make sure that there is a device and a FAISS that can use it.

    Raises:
        IndexUnavailable: saying which of the two is missing.
    """
    if not hasattr(faiss, "StandardGpuResources"):
        raise IndexUnavailable(
            "this FAISS knows no GPU; install fano with the extra gpu in place of cpu, or set FANO_INDEX_DEVICE=cpu"
        )
    if not faiss.get_num_gpus():
        raise IndexUnavailable("FAISS finds no GPU here; check the driver, or set FANO_INDEX_DEVICE=cpu")


@cache
def _resources() -> object:
    gpu: Any = faiss
    resources = gpu.StandardGpuResources()
    resources.setTempMemory(_TEMPORARY_BYTES)
    made: object = resources
    return made
