"""Key/value blocks, reference counted, and the table that maps a sequence's positions to them."""

import heapq
from collections.abc import Iterable

import torch

from model.config import Dtype, ModelConfig
from model.errors import PoolExhausted
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

TORCH_DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16}

# Stands in a block table where a block was given back because no later token sees it.
RELEASED = -1


class BlockPool:
    """A fixed number of blocks of P tokens; one block holds its tokens' keys and values in every attention layer.

    ``keys`` and ``values`` [attention layers, num_blocks, P, G, E] in the weight dtype. All memory is taken at
    construction. The lowest free blocks are handed out first, which keeps the blocks of a sequence in long runs
    that are read in place.
    """

    def __init__(self, config: ModelConfig, num_blocks: int, dtype: Dtype, device: str = "cpu") -> None:
        shape = (config.num_attention_layers, num_blocks, BLOCK_TOKENS, config.num_kv_heads, config.head_width)
        # Zeros, not uninitialised memory: the unused tail of a block must not hold NaN.
        self.keys = torch.zeros(shape, dtype=TORCH_DTYPES[dtype], device=device)
        self.values = torch.zeros(shape, dtype=TORCH_DTYPES[dtype], device=device)
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks held at least once; a shared block counts once."""
        return self.num_blocks - len(self._free)

    @property
    def num_shared(self) -> int:
        """Blocks held more than once."""
        return sum(count > 1 for count in self._references)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        return self.keys.nbytes + self.values.nbytes

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
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Hold each of ``blocks`` once more. Whoever writes to a shared block must copy it first."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is free and cannot be shared"
            self._references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Hold each of ``blocks`` once less; a block that nobody holds any more is free."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} was freed more often than it was held"
            self._references[block] -= 1
            if self._references[block] == 0:
                heapq.heappush(self._free, block)

    def copy(self, source: int, target: int) -> None:
        """Overwrite the keys and values of block ``target`` with those of ``source``."""
        self.keys[:, target] = self.keys[:, source]
        self.values[:, target] = self.values[:, source]

    def check(self, tables: Iterable["BlockTable"] = ()) -> None:
        """Assert conservation; with every table that holds blocks given, also that the counts are theirs."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block was freed twice"
        for block, count in enumerate(self._references):
            assert (count == 0) == (block in free), f"block {block} is held {count} times and free is {block in free}"
        held = [0] * self.num_blocks
        listed = list(tables)
        for table in listed:
            for block in table.blocks:
                if block != RELEASED:
                    held[block] += 1
        assert not listed or held == self._references, "reference counts differ from what the tables hold"


class BlockTable:
    """Where the keys and values of one sequence stand: ``blocks[position // P]`` is a block of the pool.

    Blocks that no later token can see are given back and leave ``RELEASED`` behind.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.blocks: list[int] = []
        self._pool = pool
        self._num_scanned = 0

    @property
    def num_held(self) -> int:
        """Blocks this table holds now."""
        return len(self.blocks) - self.blocks.count(RELEASED)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values this table holds, shared ones in full."""
        return self.num_held * self._pool.bytes_per_block

    def num_missing(self, num_tokens: int) -> int:
        """Blocks that ``reserve(num_tokens)`` would take from the pool."""
        return max(0, -(-num_tokens // BLOCK_TOKENS) - len(self.blocks))

    def reserve(self, num_tokens: int) -> None:
        """Have a block for every position below ``num_tokens``. Raises PoolExhausted, then nothing was taken."""
        self.blocks += self._pool.allocate(self.num_missing(num_tokens))

    def release_hidden(self, policy: AttentionPolicy, next_position: int) -> int:
        """Give back the blocks that no token from ``next_position`` on sees; returns how many."""
        if policy.name is PolicyName.FULL:
            return 0
        start = max(self._num_scanned, policy.sinks // BLOCK_TOKENS)
        stop = min(policy.window_start(next_position) // BLOCK_TOKENS, len(self.blocks))
        hidden = [block for block in self.blocks[start:stop] if block != RELEASED]
        self._pool.free(hidden)
        self.blocks[start:stop] = [RELEASED] * max(0, stop - start)
        self._num_scanned = max(start, stop)
        return len(hidden)

    def free(self) -> None:
        """Give back every block; the table is then that of an empty sequence."""
        self._pool.free(block for block in self.blocks if block != RELEASED)
        self.blocks.clear()
        self._num_scanned = 0
