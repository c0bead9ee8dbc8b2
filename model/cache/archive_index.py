"""Indexes over blocks of the archive: made by FAISS in a thread beside the engine, awaited by whoever chooses by one.

An index is a function of the means of its blocks, and who uses it depends on positions alone: when it was made changes
nothing but who waits.
"""

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from model.index_plan import IndexPlan
from model.kernels.block_index import BlockIndex
from model.kernels.selection import means_of

SEED = 7
ROUNDS = 10
# Means of a list, at most, that k-means is run on.
TRAINED_ROWS = 32


class SharedIndex:
    """The index of neighbouring blocks, whose ``numbers`` they are. It is there as long as the last of these."""

    __slots__ = ("__weakref__", "_made", "_owner", "numbers")

    def __init__(self, owner: "ArchiveIndexes", numbers: Sequence[int]) -> None:
        self._owner = owner
        self._made: Future[BlockIndex] | None = None
        self.numbers = tuple(numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; 0 until it is made."""
        return self._made.result().nbytes if self._made is not None and self._made.done() else 0

    def start(self) -> None:
        """Have it made: what its blocks hold is final."""
        if self._made is None:
            self._made = self._owner.submit(self.numbers)

    def made(self) -> BlockIndex:
        """Waits for it."""
        self.start()
        assert self._made is not None
        return self._made.result()


class ArchiveIndexes:
    """All indexes over one archive's ``summaries`` [layers, G, blocks, *summary_shape], of heads of ``width``."""

    def __init__(self, plan: IndexPlan, summaries: Tensor, width: int) -> None:
        self.plan = plan
        self._summaries = summaries
        self._width = width
        self._present = weakref.WeakSet[SharedIndex]()
        self._begun: list[weakref.ref[SharedIndex]] = []
        self._thread: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._present)

    @property
    def nbytes(self) -> int:
        """Bytes of all that are there."""
        return sum(each.nbytes for each in self._present)

    def new(self, numbers: Sequence[int]) -> SharedIndex:
        """Of blocks that hold, or will when the step is over, what they are to."""
        made = SharedIndex(self, numbers)
        self._present.add(made)
        self._begun.append(weakref.ref(made))
        return made

    def start(self) -> None:
        """A step is over: what its blocks were to hold, they do."""
        begun, self._begun = self._begun, []
        for each in begun:
            if (index := each()) is not None:
                index.start()

    def submit(self, numbers: Sequence[int]) -> "Future[BlockIndex]":
        """Have an index made of a copy of the means, so that nobody waits for their blocks."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "archive-index")
        return self._thread.submit(make_index, self.plan, means_of(self._summaries[:, :, list(numbers)], self._width))


def make_index(plan: IndexPlan, means: Tensor) -> BlockIndex:
    """``means`` [layers, G, B, R, E] in lists around the centres of k-means (Lloyd's rounds of FAISS, from a seed)."""
    # A dependency of the extras, and slow to import.
    import faiss

    # Of this thread alone; the engine's cores are the engine's, and one thread adds up in one order.
    faiss.omp_set_num_threads(1)
    layers, groups, num_blocks, num_rows, width = means.shape
    centres = torch.empty((layers, groups, plan.num_lists, width))
    owners = torch.empty((layers, groups, num_blocks * num_rows), dtype=torch.int64)
    for layer in range(layers):
        for group in range(groups):
            rows = np.ascontiguousarray(means[layer, group].flatten(0, 1).float().numpy())
            clusters = faiss.Kmeans(
                width,
                plan.num_lists,
                niter=ROUNDS,
                seed=SEED,
                min_points_per_centroid=1,
                max_points_per_centroid=TRAINED_ROWS,
            )
            clusters.train(rows)
            _, nearest = clusters.index.search(rows, 1)
            centres[layer, group] = torch.from_numpy(clusters.centroids)
            owners[layer, group] = torch.from_numpy(nearest[:, 0])
    return BlockIndex.of(means, centres.to(means.dtype), owners)
