"""Keys and values that left the windows, in blocks in host memory, and beyond a budget in a file that is mapped.

A block is written once, when it leaves the window of whoever reads, and never again, so sequences, checkpoints and
snapshots share it: it is there as long as one of them refers to it, and its memory goes back to the system with the
last reference, in whatever thread that goes. Beside the keys and values of a block stands its summary, by which tokens
choose it. What is read is attended to where it lies: on a CPU nothing is fetched.
"""

import logging
import mmap
import os
import tempfile
import weakref
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from heapq import heappop, heappush, nsmallest
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.cache.archive_index import ArchiveIndexes, SharedIndex
from model.config import Dtype, ModelConfig
from model.errors import ArchiveFull
from model.index_plan import IndexPlan
from model.kernels.selection import summary
from model.policy import BLOCK_TOKENS
from model.tiles import summary_shape

logger = logging.getLogger(__name__)

DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16}
STEPS_BETWEEN_RESTS = 64
# Address space without a promise of memory.
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class ArchivedBlock:
    """One block of the archive: there as long as somebody refers to it."""

    __slots__ = ("__weakref__", "_archive", "index", "number")

    def __init__(self, archive: "KvArchive", number: int) -> None:
        self._archive = archive
        self.number = number
        # Of blocks of which this is the last: it is there as long as they are.
        self.index: SharedIndex | None = None

    @property
    def keys(self) -> Tensor:
        """[attention layers, P, G, E], where they lie."""
        return self._archive.block(self.number)[:, 0]

    @property
    def values(self) -> Tensor:
        """[attention layers, P, G, E], where they lie."""
        return self._archive.block(self.number)[:, 1]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self._archive.bytes_per_block

    def __del__(self) -> None:
        self._archive.returned.append(self.number)


class KvArchive:
    """At most ``memory_bytes`` of blocks and of summaries, which are in memory for the blocks on the disk too, and
    ``disk_bytes`` of blocks in a file without a name in ``directory``, which is gone with the process. What the system
    keeps of the file in its cache is its own. Address space is taken at once, memory and disk when they are needed.
    Used by one thread; only the last reference to a block may go in another.

    ``keys_values`` are [blocks, layers, 2, P, G, E] in memory and likewise in the file; ``summaries`` [layers, G,
    blocks, *summary_shape], of all blocks, in memory. ``num_used`` blocks are those of sequences; the ``num_cached``
    are referred to by checkpoints and snapshots alone. ``serials`` [blocks] tell what had a number before from what has
    it now: no two blocks that were ever allocated share one.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: Dtype,
        memory_bytes: int = 0,
        disk_bytes: int = 0,
        directory: Path | None = None,
        plan: IndexPlan | None = None,
    ) -> None:
        """``plan`` is how blocks are indexed, if they are; see ``model/index_plan.py``."""
        self.bytes_per_block, self.bytes_per_summary = config.archive_bytes_per_block(dtype)
        self.num_in_memory, num_on_disk = config.num_archive_blocks(dtype, memory_bytes, disk_bytes, plan)
        self.num_blocks = self.num_in_memory + num_on_disk
        layers, heads, width = config.num_attention_layers, config.num_kv_heads, config.head_width
        held = DTYPES[dtype.kept]
        shape = (layers, 2, BLOCK_TOKENS, heads, width)
        self._memory = _reserve(self.num_in_memory * self.bytes_per_block)
        self._disk, self._descriptor = _reserve_file(num_on_disk * self.bytes_per_block, directory)
        if self._disk is not None:
            weakref.finalize(self, os.close, self._descriptor)
        self.keys_values = (
            _tensor(self._memory, (self.num_in_memory, *shape), held),
            _tensor(self._disk, (num_on_disk, *shape), held),
        )
        summaries = (layers, heads, self.num_blocks, *summary_shape(width, held.itemsize))
        self._summaries = _reserve(self.num_blocks * self.bytes_per_summary)
        self.summaries = _tensor(self._summaries, summaries, held)
        self.plan = plan
        self.indexes = None if plan is None else ArchiveIndexes(plan, self.summaries, width)
        # Numbers whose last reference went, in whatever thread.
        self.returned: deque[int] = deque()
        self._free: list[int] = []
        self._num_begun = 0
        self._num_given = 0
        self._num_disk_live = 0
        self._backed: set[int] = set()
        self._num_steps = 0
        self.serials = np.zeros(self.num_blocks, dtype=np.int64)
        # How many sequences hold each block.
        self._uses = np.zeros(self.num_blocks, dtype=np.int32)
        self._num_used = 0

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to."""
        self._collect()
        return self.num_blocks - self._num_begun + len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold; a shared block counts once."""
        return self._num_used

    @property
    def num_cached(self) -> int:
        """Blocks that checkpoints and snapshots alone refer to."""
        return self.num_blocks - self.num_free - self._num_used

    @property
    def num_live(self) -> int:
        """Blocks that somebody refers to."""
        return self.num_blocks - self.num_free

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Host memory that is taken, by the names of ``model.engine.stats.ARCHIVE_POOLS``."""
        live = self.num_live
        near = live - self._num_disk_live
        indexed = 0 if self.indexes is None else self.indexes.nbytes
        return {"kv_archive": near * self.bytes_per_block, "kv_summaries": live * self.bytes_per_summary + indexed}

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file that are taken."""
        self._collect()
        return self._num_disk_live * self.bytes_per_block

    def block(self, number: int) -> Tensor:
        """Keys and values [layers, 2, P, G, E] of one block, where they lie."""
        near, far = self.keys_values
        return near[number] if number < self.num_in_memory else far[number - self.num_in_memory]

    def allocate(self, num_blocks: int) -> list[ArchivedBlock]:
        """Blocks to be written to, those in memory first. Raises ArchiveFull, then nothing was taken."""
        if not self.secure(num_blocks):
            raise self.full(num_blocks)
        taken: list[ArchivedBlock] = []
        for _ in range(num_blocks):
            number = heappop(self._free) if self._free else self._num_begun
            self._num_begun = max(self._num_begun, number + 1)
            self._num_disk_live += number >= self.num_in_memory
            self._num_given += 1
            self.serials[number] = self._num_given
            taken.append(ArchivedBlock(self, number))
        return taken

    def secure(self, num_blocks: int) -> bool:
        """Whether ``num_blocks`` may be allocated. The disk is asked for its part of them: a page of a mapping that has
        no room behind it ends the process when it is written."""
        if num_blocks > self.num_free:
            return False
        if self._num_begun + num_blocks <= self.num_in_memory:
            return True
        fresh = range(self._num_begun, self._num_begun + num_blocks)
        wanted = [*nsmallest(num_blocks, self._free), *fresh][:num_blocks]
        return all(number < self.num_in_memory or self._is_backed(number) for number in wanted)

    def put(self, keys: Tensor, values: Tensor) -> ArchivedBlock:
        """A block with ``keys`` and ``values`` [layers, P, G, E], and its summary. Raises ArchiveFull."""
        (made,) = self.allocate(1)
        made.keys.copy_(keys)
        made.values.copy_(values)
        self.summaries[:, :, made.number] = summary(made.keys)
        return made

    def hold(self, numbers: "array[int]") -> None:
        """A sequence holds these blocks, each once more."""
        held = present(numbers)
        self._num_used += int((self._uses[held] == 0).sum())
        self._uses[held] += 1

    def let_go(self, numbers: "array[int]") -> None:
        """A sequence holds these blocks once less."""
        held = present(numbers)
        self._uses[held] -= 1
        assert (self._uses[held] >= 0).all(), "a block of the archive was let go more often than it was held"
        self._num_used -= int((self._uses[held] == 0).sum())

    def num_unused(self, numbers: "array[int]") -> int:
        """How many of the blocks in a table no sequence holds."""
        return int((self._uses[present(numbers)] == 0).sum())

    def uses(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """How many sequences hold each of the blocks."""
        held: npt.NDArray[np.int32] = self._uses[numbers]
        return held

    def rest(self) -> None:
        """A step is over: blocks that it completed are indexed, and every so often what was read of the file leaves the
        process; the system has it, or reads it again."""
        if self.indexes is not None:
            self.indexes.start()
        self._num_steps += 1
        if self._num_disk_live and self._disk is not None and self._num_steps % STEPS_BETWEEN_RESTS == 0:
            self._disk.madvise(mmap.MADV_DONTNEED)

    def full(self, num_blocks: int, num_free: int | None = None) -> ArchiveFull:
        """Why ``num_blocks`` more are not to be had, of ``num_free`` that may be."""
        each = self.bytes_per_block + self.bytes_per_summary
        taken = self.num_live if num_free is None else self.num_blocks - num_free
        return ArchiveFull(num_blocks * each, self.num_blocks * each, taken * each)

    def check(self, held: Iterable[Sequence[int]], referred: Iterable[Sequence[int]] = ()) -> None:
        """Assert conservation: sequences hold what is used, and with ``referred``, the tables of all checkpoints, that
        nothing else is there."""
        uses = np.zeros(self.num_blocks, dtype=np.int32)
        live: set[int] = set()
        for table in held:
            numbers = [number for number in table if number >= 0]
            uses[numbers] += 1
            live |= set(numbers)
        assert (uses == self._uses).all(), "sequences hold other blocks of the archive than is written"
        assert self._num_used == int((uses > 0).sum()), "the number of used blocks is wrong"
        assert self.num_free + self.num_used + self.num_cached == self.num_blocks, "a block of the archive got lost"
        live |= {number for table in referred for number in table if number >= 0}
        assert len(live) <= self.num_live, "a block of the archive is referred to and free"
        free = set(self._free)
        assert len(free) == len(self._free) and not free & live, "a block of the archive was freed twice"

    def _collect(self) -> None:
        """Take back what is not referred to any more, and give its memory to the system."""
        if not self.returned:
            return
        taken_back: list[int] = []
        while self.returned:
            number = self.returned.popleft()
            taken_back.append(number)
            on_disk = number >= self.num_in_memory
            region, advice = (self._disk, mmap.MADV_REMOVE) if on_disk else (self._memory, mmap.MADV_DONTNEED)
            self._num_disk_live -= on_disk
            self._backed.discard(number)
            heappush(self._free, number)
            if region is not None and self.bytes_per_block % mmap.PAGESIZE == 0:
                start = (number - on_disk * self.num_in_memory) * self.bytes_per_block
                # A file system that cannot give back parts of a file keeps them.
                with suppress(OSError):
                    region.madvise(advice, start, self.bytes_per_block)
        self._give_back_summaries(np.array(taken_back))

    def _give_back_summaries(self, numbers: npt.NDArray[np.int64]) -> None:
        """Give the system the whole pages of summaries of free blocks among which are these ``numbers``."""
        is_free = np.zeros(self._num_begun + 2, dtype=np.int8)
        is_free[np.array(self._free) + 1] = 1
        borders = np.flatnonzero(np.diff(is_free)).reshape(-1, 2)
        layers, heads = self.summaries.shape[:2]
        each = self.summaries[0, 0, 0].nbytes
        for first, end in borders[np.unique(np.searchsorted(borders[:, 1], numbers, side="right"))].tolist():
            for row in range(0, layers * heads * self.num_blocks, self.num_blocks):
                start = -(-(row + first) * each // mmap.PAGESIZE) * mmap.PAGESIZE
                size = (row + end) * each // mmap.PAGESIZE * mmap.PAGESIZE - start
                if size > 0 and self._summaries is not None:
                    self._summaries.madvise(mmap.MADV_DONTNEED, start, size)

    def _is_backed(self, number: int) -> bool:
        """Whether the disk has room for a block, which is taken."""
        if number in self._backed:
            return True
        start = (number - self.num_in_memory) * self.bytes_per_block
        try:
            os.posix_fallocate(self._descriptor, start, self.bytes_per_block)
        except OSError as error:
            logger.warning("the disk has no room for the attention archive: %s", error.strerror)
            return False
        self._backed.add(number)
        return True


def present(numbers: "array[int]") -> npt.NDArray[np.int64]:
    """Of the numbers in a table, those of blocks of the archive."""
    found = np.frombuffer(numbers, dtype=np.int64) if numbers else np.empty(0, dtype=np.int64)
    return found[found >= 0]


def _reserve(num_bytes: int) -> mmap.mmap | None:
    if not num_bytes:
        return None
    region = mmap.mmap(-1, num_bytes, flags=FLAGS)
    # In huge pages a few blocks would take more memory than they say.
    with suppress(OSError, AttributeError):
        region.madvise(mmap.MADV_NOHUGEPAGE)
    return region


def _reserve_file(num_bytes: int, directory: Path | None) -> tuple[mmap.mmap | None, int]:
    """A mapping of a file without a name, and its descriptor; with both of them the file goes."""
    if not num_bytes:
        return None, -1
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix="kv-archive-", dir=directory)
    os.unlink(path)
    os.ftruncate(descriptor, num_bytes)
    return mmap.mmap(descriptor, num_bytes), descriptor


def _tensor(region: mmap.mmap | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if region is None or not prod(shape):
        return torch.empty(*shape, dtype=dtype)
    # The tensor holds the mapping, which ends with the last view of it.
    return torch.frombuffer(region, dtype=dtype, count=prod(shape)).view(*shape)
