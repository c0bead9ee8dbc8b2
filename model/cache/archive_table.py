"""Which blocks of the archive are those of one sequence, checkpoint or snapshot."""

from array import array
from collections.abc import Iterable, Sequence

from model.cache.archive_index import SharedIndex
from model.cache.kv_archive import ArchivedBlock, KvArchive
from model.kernels.block_index import BlockIndex
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

# Stands in a table where the block stays on the device: a sink.
ON_DEVICE = -1


class ArchiveTable:
    """``numbers[position // P]`` is a block of the archive, for all positions that left the window.

    A sequence's table holds its blocks, and is freed; one that ``is_cached``, a checkpoint's, only refers to them, and
    ends when nobody refers to it.
    """

    def __init__(self, archive: KvArchive, is_cached: bool = False) -> None:
        self.archive = archive
        self.is_cached = is_cached
        # 64-bit integers in one piece, which a native step reads where they lie.
        self.numbers = array("q")
        self._blocks: list[ArchivedBlock] = []
        self._indexes: list[SharedIndex] = []

    @property
    def num_blocks(self) -> int:
        """Blocks of the archive, shared ones in full."""
        return len(self._blocks)

    @property
    def blocks(self) -> Sequence[ArchivedBlock]:
        """The blocks, by rising place; the first stands behind the sinks."""
        return self._blocks

    @property
    def first_place(self) -> int:
        """Place of the first of them."""
        return len(self.numbers) - len(self._blocks)

    def extend(self, first_place: int, blocks: Iterable[ArchivedBlock]) -> None:
        """The next blocks; the first of all stands at ``first_place``."""
        if not self._blocks:
            self.numbers = array("q", [ON_DEVICE]) * first_place
        added = list(blocks)
        numbers = array("q", [block.number for block in added])
        self._blocks += added
        self.numbers.extend(numbers)
        if not self.is_cached:
            self.archive.hold(numbers)
        self._index()

    def indexes(self, policy: AttentionPolicy, end: int, select_from: int) -> Sequence[BlockIndex]:
        """Those by which tokens before ``end`` choose; waits for them."""
        if self.archive.plan is None:
            return ()
        count = self.archive.plan.num_indexed(policy, end - 1, select_from)
        return [index.made() for index in self._indexes[:count]]

    @property
    def shared_indexes(self) -> Sequence[SharedIndex]:
        """Those over its blocks, by rising place."""
        return self._indexes

    def places_leaving(self, policy: AttentionPolicy, end: int) -> range:
        """Places of the blocks that leave the window when everything before ``end`` is read."""
        if policy.name is not PolicyName.ARCHIVE:
            return range(0)
        first = policy.sinks // BLOCK_TOKENS
        return range(max(first, len(self.numbers)), policy.window_start(end) // BLOCK_TOKENS)

    def fork(self, is_cached: bool = False) -> "ArchiveTable":
        """A table of the same blocks."""
        fork = ArchiveTable(self.archive, is_cached)
        fork.numbers = self.numbers[:]
        fork._blocks = self._blocks[:]
        fork._indexes = self._indexes[:]
        if not is_cached:
            self.archive.hold(fork.numbers)
        return fork

    def free(self) -> None:
        """Let everything go; the table is then that of an empty sequence."""
        if not self.is_cached:
            self.archive.let_go(self.numbers)
        self.numbers = array("q")
        self._blocks = []
        self._indexes = []

    def _index(self) -> None:
        """Have indexes of as many blocks as are complete; who shares all of them shares the index."""
        if self.archive.plan is None or self.archive.indexes is None:
            return
        size, first = self.archive.plan.num_blocks, self.first_place
        while (end := (len(self._indexes) + 1) * size) <= len(self._blocks):
            last = self._blocks[end - 1]
            numbers = tuple(self.numbers[first + end - size : first + end])
            if last.index is None or last.index.numbers != numbers:
                last.index = self.archive.indexes.new(numbers)
            self._indexes.append(last.index)
