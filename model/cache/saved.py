"""A sequence in host memory: everything it remembers, apart from the pools, to be put back bit for bit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.state_pool import StatePool
from model.errors import PoolExhausted


@dataclass(frozen=True, slots=True)
class SavedSequence:
    """The state and the blocks of one sequence.

    ``ssm`` [Mamba layers, N, I] and ``conv`` [Mamba layers, K-1, I] are float32; ``keys`` and ``values``
    [attention layers, held blocks, P, G, E] are in the weight dtype. ``is_held[position // P]`` says which logical
    blocks these are; the others had been given back.
    """

    ssm: Tensor
    conv: Tensor
    keys: Tensor
    values: Tensor
    is_held: tuple[bool, ...]

    @staticmethod
    def of(states: StatePool, slot: int, table: BlockTable) -> "SavedSequence":
        """A copy of what stands in ``slot`` and ``table``, which keep what they hold."""
        held = torch.tensor([block for block in table.blocks if block != RELEASED], dtype=torch.int64)
        keys, values = table.pool.keys, table.pool.values
        return SavedSequence(
            ssm=states.ssm[:, slot].to("cpu", copy=True),
            conv=states.conv[:, slot].to("cpu", copy=True),
            keys=keys.index_select(1, held.to(keys.device)).cpu(),
            values=values.index_select(1, held.to(values.device)).cpu(),
            is_held=tuple(block != RELEASED for block in table.blocks),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that ``restore`` takes."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.ssm.nbytes + self.conv.nbytes + self.keys.nbytes + self.values.nbytes

    def restore(self, states: StatePool, pool: BlockPool) -> tuple[int, BlockTable]:
        """A slot and a table that hold the same. Raises PoolExhausted, then nothing was taken."""
        if states.num_free == 0:
            raise PoolExhausted("state", 1, 0, states.num_slots)
        blocks = pool.allocate(self.num_blocks)
        slot = states.allocate()
        states.ssm[:, slot] = self.ssm.to(states.ssm.device)
        states.conv[:, slot] = self.conv.to(states.conv.device)
        places = torch.tensor(blocks, dtype=torch.int64, device=pool.keys.device)
        pool.keys.index_copy_(1, places, self.keys.to(pool.keys.device))
        pool.values.index_copy_(1, places, self.values.to(pool.values.device))
        taken = iter(blocks)
        return slot, BlockTable(pool, (next(taken) if held else RELEASED for held in self.is_held))
