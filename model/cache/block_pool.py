"""Key/value blocks, reference counted, and the table that maps a sequence's positions to them."""

import heapq
import weakref
from array import array
from collections.abc import Iterable

import torch

from model.cache.archive_table import ArchiveTable
from model.cache.fetched_blocks import FetchedBlocks
from model.cache.host_copies import HostCopies
from model.cache.kv_archive import ArchivedBlock, KvArchive
from model.cache.snapshot import BlockContent
from model.config import Dtype, ModelConfig
from model.errors import PoolExhausted
from model.huge_pages import zeros
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

TORCH_DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16, Dtype.INT8: torch.int8}

# Stands in a block table where a block was given back because no later token sees it.
RELEASED = -1


class BlockPool:
    """A fixed number of blocks of P tokens; one block holds its tokens' keys and values in every attention layer.

    ``keys`` and ``values`` [attention layers, num_blocks, P, G, E] as the weight dtype says. All memory is taken at
    construction. The lowest free blocks are handed out first, which keeps the blocks of a sequence in long runs
    that are read in place. ``num_shared`` blocks are held more than once; the ``num_cached`` are held by checkpoints
    alone, which can be given up, and are neither free nor used.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        dtype: Dtype,
        device: str = "cpu",
        archive: KvArchive | None = None,
        fetched: FetchedBlocks | None = None,
    ) -> None:
        """``archive`` is where blocks go that leave the windows; without it nobody may read under that policy.
        ``fetched`` is what comes back of it, where attention is not on the host."""
        assert fetched is None or fetched.archive is archive, "what is fetched comes from another archive"
        shape = (config.num_attention_layers, num_blocks, BLOCK_TOKENS, config.num_kv_heads, config.head_width)
        # Zeros, not uninitialised memory: the unused tail of a block must not hold NaN. Written and not only promised:
        # pages that are touched later could be refused later.
        held = TORCH_DTYPES[dtype.kept]
        self.keys = zeros(shape, held, device).zero_()
        self.values = zeros(shape, held, device).zero_()
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks))
        self._references = [0] * num_blocks
        # How many of the references are those of checkpoints.
        self._kept = [0] * num_blocks
        self.num_shared = 0
        self.num_cached = 0
        # Host memory that holds the same as a full block, as long as somebody has it: it is copied once.
        self._copies = weakref.WeakValueDictionary[int, BlockContent]()
        # And the other way round: which block holds it, or held it last.
        self._stands_in = weakref.WeakKeyDictionary[BlockContent, int]()
        self._host = HostCopies.of(device)
        self.archive = KvArchive(config, dtype) if archive is None else archive
        self.fetched = fetched
        # What a full block is in the archive, as long as somebody has it there: it is copied once, too.
        self._archived = weakref.WeakValueDictionary[int, ArchivedBlock]()

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold; a shared block counts once."""
        return self.num_blocks - len(self._free) - self.num_cached

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def device_bytes(self) -> int:
        """Bytes of all tensors held on the device: the blocks, and what was fetched of the archive."""
        return self.nbytes + (0 if self.fetched is None else self.fetched.nbytes)

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all attention layers."""
        return self.nbytes // self.num_blocks

    def references(self, block: int) -> int:
        """How often ``block`` is held."""
        return self._references[block]

    def allocate(self, num_blocks: int) -> list[int]:
        """Hand out ``num_blocks`` blocks, each held once. Raises PoolExhausted, then nothing was taken."""
        if num_blocks > len(self._free):
            raise PoolExhausted("kv", num_blocks, len(self._free), self.num_blocks)
        taken = [heapq.heappop(self._free) for _ in range(num_blocks)]
        for block in taken:
            self._references[block] = 1
            self._copies.pop(block, None)
            self._archived.pop(block, None)
        return taken

    def share(self, blocks: Iterable[int], is_cached: bool = False) -> None:
        """Hold each of ``blocks`` once more, ``is_cached`` for a checkpoint. Whoever writes to a shared block must copy
        it first."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is free and cannot be shared"
            self.num_cached -= self.is_cached(block)
            self._references[block] += 1
            self._kept[block] += is_cached
            self.num_cached += self.is_cached(block)
            self.num_shared += self._references[block] == 2

    def free(self, blocks: Iterable[int], is_cached: bool = False) -> None:
        """Hold each of ``blocks`` once less; a block that nobody holds any more is free."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} was freed more often than it was held"
            assert not is_cached or self._kept[block] > 0, f"block {block} is held by no checkpoint"
            self.num_cached -= self.is_cached(block)
            self._references[block] -= 1
            self._kept[block] -= is_cached
            self.num_cached += self.is_cached(block)
            self.num_shared -= self._references[block] == 1
            if self._references[block] == 0:
                heapq.heappush(self._free, block)

    def is_cached(self, block: int) -> bool:
        """Whether checkpoints alone hold the block."""
        return 0 < self._kept[block] == self._references[block]

    def copy(self, source: int, target: int) -> None:
        """Overwrite the keys and values of block ``target`` with those of ``source``."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def content(self, block: int, num_tokens: int = BLOCK_TOKENS) -> BlockContent:
        """The keys and values of the first ``num_tokens`` of ``block`` in host memory, zeros behind them, from the next
        ``settle`` on.

        Those of a full block, which is not written to any more, are shared by all who ask.
        """
        is_full = num_tokens >= BLOCK_TOKENS
        if is_full and (copy := self._copies.get(block)) is not None:
            return copy
        keys, values = (tensor[:, block] for tensor in (self.keys, self.values))
        if not is_full:
            keys, values = keys.clone(), values.clone()
            # What an earlier holder left behind is nobody's business any more.
            keys[:, num_tokens:] = 0
            values[:, num_tokens:] = 0
        content = BlockContent(self._host.begin(keys), self._host.begin(values))
        if is_full:
            self._copies[block] = content
            self._stands_in[content] = block
        return content

    def standing(self, content: BlockContent) -> int | None:
        """The block that holds the same as ``content``, if somebody holds one."""
        block = self._stands_in.get(content)
        return block if block is not None and self._copies.get(block) is content and self._references[block] else None

    def unarchived(self, blocks: Iterable[int]) -> list[int]:
        """Those of ``blocks`` that the archive does not have."""
        return [block for block in blocks if block not in self._archived]

    def archive_places(self, blocks: Iterable[int]) -> tuple[list[ArchivedBlock], list[int]]:
        """Where in the archive the full ``blocks`` are or are to be; and of the latter, pairs of the block and the
        number that it is to be copied to. Raises ArchiveFull, then nothing was taken."""
        wanted = list(blocks)
        made = iter(self.archive.allocate(len(self.unarchived(wanted))))
        places: list[ArchivedBlock] = []
        leaving: list[int] = []
        for block in wanted:
            place = self._archived.get(block)
            if place is None:
                place = self._archived[block] = next(made)
                leaving += (block, place.number)
            places.append(place)
        return places, leaving

    def settle(self) -> None:
        """Wait for what was copied to the host. Idempotent."""
        self._host.settle()

    def fill(self, block: int, content: BlockContent, is_full: bool) -> None:
        """Overwrite the keys and values of ``block`` with ``content``."""
        self.keys[:, block] = content.keys.to(self.keys.device)
        self.values[:, block] = content.values.to(self.values.device)
        if is_full:
            self._copies[block] = content
            self._stands_in[content] = block

    def check(self, tables: Iterable["BlockTable"] = ()) -> None:
        """Assert conservation; with every table that holds blocks given, also that the counts are theirs."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block was freed twice"
        for block, count in enumerate(self._references):
            assert (count == 0) == (block in free), f"block {block} is held {count} times and free is {block in free}"
        assert self.num_cached == sum(map(self.is_cached, range(self.num_blocks))), (
            "the number of cached blocks is wrong"
        )
        held = [0] * self.num_blocks
        kept = [0] * self.num_blocks
        assert self.num_shared == sum(count > 1 for count in self._references), "the number of shared blocks is wrong"
        listed = list(tables)
        for table in listed:
            for block in table.blocks:
                if block != RELEASED:
                    held[block] += 1
                    kept[block] += table.is_cached
        assert not listed or held == self._references, "reference counts differ from what the tables hold"
        assert not listed or kept == self._kept, "checkpoints hold other blocks than is written"


class BlockTable:
    """Where the keys and values of one sequence stand: ``blocks[position // P]`` is a block of the pool.

    Blocks that no later token can see are given back and leave ``RELEASED`` behind. Forked tables share blocks; who
    writes to a shared one gets a copy of its own first. ``num_held`` blocks of ``pool`` are held now. The table of a
    checkpoint ``is_cached`` and is never written to.
    """

    def __init__(
        self,
        pool: BlockPool,
        blocks: Iterable[int] = (),
        is_cached: bool = False,
        archive: ArchiveTable | None = None,
    ) -> None:
        """``blocks`` are entries whose references become this table's; ``archive`` is what left the window."""
        # 64-bit integers in one piece, which a native step reads where they lie: a step must not cost the length.
        self.blocks = array("q", blocks)
        self.num_held = len(self.blocks) - self.blocks.count(RELEASED)
        self.pool = pool
        self.is_cached = is_cached
        self.archive = ArchiveTable(pool.archive, is_cached) if archive is None else archive
        self._num_scanned = 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values this table holds, shared ones in full."""
        return self.num_held * self.pool.bytes_per_block

    @property
    def num_exclusive(self) -> int:
        """Blocks that nobody else holds."""
        return sum(block != RELEASED and self.pool.references(block) == 1 for block in self.blocks)

    @property
    def num_cached(self) -> int:
        """Blocks that checkpoints alone hold."""
        return sum(block != RELEASED and self.pool.is_cached(block) for block in self.blocks)

    def fork(self, is_cached: bool = False) -> "BlockTable":
        """A table of the same tokens that shares every block, ``is_cached`` for a checkpoint."""
        self.pool.share((block for block in self.blocks if block != RELEASED), is_cached)
        fork = BlockTable(self.pool, self.blocks, is_cached, self.archive.fork(is_cached))
        fork._num_scanned = self._num_scanned
        return fork

    def num_missing(self, start: int, end: int) -> int:
        """Blocks that ``prepare(start, end)`` would take from the pool."""
        return len(self._shared(start, end)) + self._num_beyond(end)

    def prepare(self, start: int, end: int) -> None:
        """Make the positions ``start`` to ``end`` writable: have blocks for them that nobody else holds.

        Shared blocks are copied first. Raises PoolExhausted, then nothing was changed.
        """
        shared = self._shared(start, end)
        taken = self.pool.allocate(len(shared) + self._num_beyond(end))
        for place, block in zip(shared, taken, strict=False):
            self.pool.copy(self.blocks[place], block)
            self.pool.free((self.blocks[place],))
            self.blocks[place] = block
        self.blocks.extend(taken[len(shared) :])
        self.num_held += len(taken) - len(shared)

    def leaving(self, policy: AttentionPolicy, end: int) -> tuple[list[int], int]:
        """The blocks for which ``leave(policy, end)`` would take places in the archive, and the number of those that
        are not there yet."""
        places = self.archive.places_leaving(policy, end)
        present = self.blocks[places.start : places.stop]
        return self.pool.unarchived(present), len(places) - len(present)

    def leave(self, policy: AttentionPolicy, end: int) -> list[int]:
        """Take places in the archive for what leaves the window when everything before ``end`` is read: pairs of a
        block and the number it must be copied to while that is read. Raises ArchiveFull, then nothing was taken."""
        places = self.archive.places_leaving(policy, end)
        if not places:
            return []
        found, leaving = self.pool.archive_places(self.blocks[places.start : places.stop])
        self.archive.extend(policy.sinks // BLOCK_TOKENS, found)
        return leaving

    def release_hidden(self, policy: AttentionPolicy, next_position: int) -> int:
        """Give back the blocks that no token from ``next_position`` on sees; returns how many."""
        if policy.name is PolicyName.FULL:
            return 0
        start = max(self._num_scanned, policy.sinks // BLOCK_TOKENS)
        stop = min(policy.window_start(next_position) // BLOCK_TOKENS, len(self.blocks))
        hidden = [block for block in self.blocks[start:stop] if block != RELEASED]
        self.pool.free(hidden)
        self.blocks[start:stop] = array("q", [RELEASED]) * max(0, stop - start)
        self._num_scanned = max(start, stop)
        self.num_held -= len(hidden)
        return len(hidden)

    def free(self) -> None:
        """Give back every block; the table is then that of an empty sequence."""
        self.pool.free((block for block in self.blocks if block != RELEASED), self.is_cached)
        self.archive.free()
        self.blocks = array("q")
        self.num_held = 0
        self._num_scanned = 0

    def _shared(self, start: int, end: int) -> list[int]:
        """Places of the blocks under positions ``start`` to ``end`` that others hold too."""
        places = range(start // BLOCK_TOKENS, min(-(-end // BLOCK_TOKENS), len(self.blocks)))
        blocks = self.blocks[places.start : places.stop]
        assert RELEASED not in blocks, f"positions {start} to {end} were given back and are written to"
        return [place for place, block in zip(places, blocks, strict=True) if self.pool.references(block) > 1]

    def _num_beyond(self, end: int) -> int:
        """Blocks between the end of the table and position ``end``."""
        return max(0, -(-end // BLOCK_TOKENS) - len(self.blocks))
