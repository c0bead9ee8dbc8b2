"""Plans into tensors: the model, its pools, and what each sequence holds of them."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.saved import SavedSequence
from model.cache.state_pool import StatePool
from model.engine.books import Capacity
from model.engine.sequence import Sequence
from model.engine.stats import PoolCounts
from model.engine.step import PlannedChunk, StepPlan
from model.hybrid import HybridLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes of the tensors that the sequences of one request hold; what they share is counted once."""

    kv: int = 0
    ssm_state: int = 0
    conv_state: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.kv + self.ssm_state + self.conv_state


class ModelRunner:
    """Runs steps and keeps the memory of the sequences between them. Used by the engine thread alone."""

    def __init__(self, model: HybridLM, states: StatePool, blocks: BlockPool, device: str = "cpu") -> None:
        self._model = model
        self._states = states
        self._blocks = blocks
        self._device = device
        self._held: dict[Sequence, _Held] = {}
        self._saved: dict[Sequence, SavedSequence] = {}
        self.saved_bytes = 0

    @property
    def slots(self) -> PoolCounts:
        """State slots by status."""
        return PoolCounts(free=self._states.num_free, used=self._states.num_used)

    @property
    def blocks(self) -> PoolCounts:
        """Key/value blocks by status."""
        return PoolCounts(free=self._blocks.num_free, used=self._blocks.num_used)

    @property
    def num_free_blocks(self) -> int:
        """Key/value blocks nobody holds."""
        return self._blocks.num_free

    @property
    def num_shared_blocks(self) -> int:
        """Key/value blocks that several sequences hold."""
        return self._blocks.num_shared

    @property
    def pool_bytes(self) -> dict[str, int]:
        """Bytes of tensors held between two steps, by pool; a step's workspace is given back at its end."""
        return {
            "weights": self._model.nbytes,
            "ssm_state": self._states.ssm_bytes,
            "conv_state": self._states.conv_bytes,
            "kv": self._blocks.nbytes,
            "workspace": 0,
        }

    def capacity(self, saved_bytes: int) -> Capacity:
        """The pools as the scheduler's books want them, beside host memory of ``saved_bytes``."""
        return Capacity(
            num_slots=self._states.num_slots,
            num_blocks=self._blocks.num_blocks,
            bytes_per_slot=self._states.nbytes // self._states.num_slots,
            bytes_per_block=self._blocks.bytes_per_block,
            saved_bytes=saved_bytes,
        )

    def run(self, plan: StepPlan) -> Tensor:
        """Read the planned tokens; returns the logits [rows, V] float32 of each chunk's last ``num_logits`` tokens.

        Takes a slot and blocks for what is read, and gives back the blocks that no later token sees. After an
        exception the memory of the plan's sequences is undefined and must be given back with ``close``.
        """
        chunks = [self._chunk(planned) for planned in plan.chunks]
        logits = self._model(Batch.pack(chunks, self._device), self._states, self._blocks)
        for planned in plan.chunks:
            self._held[planned.sequence].table.release_hidden(planned.sequence.policy, planned.end)
        return logits

    def fork(self, sequence: Sequence, forks: Collection[Sequence]) -> None:
        """Let ``forks`` hold what ``sequence`` holds: blocks are shared until one writes to them, states copied."""
        held = self._held[sequence]
        for fork in forks:
            slot = self._states.allocate()
            self._states.copy(held.slot, slot)
            self._held[fork] = _Held(slot, held.table.fork())

    def num_missing_blocks(self, sequence: Sequence, end: int) -> int:
        """Blocks the sequence would take to read up to position ``end``."""
        held = self._held.get(sequence)
        table = BlockTable(self._blocks) if held is None else held.table
        return table.num_missing(sequence.num_read, end)

    def num_bytes_to_save(self, sequences: Collection[Sequence]) -> int:
        """Host memory that saving the sequences would take."""
        held = [self._held[sequence] for sequence in sequences if sequence in self._held]
        per_slot = self._states.nbytes // self._states.num_slots
        return sum(each.table.nbytes + per_slot for each in held)

    def num_blocks_to_restore(self, sequences: Collection[Sequence]) -> int:
        """Blocks that saved sequences would take to come back."""
        return sum(self._saved[sequence].num_blocks for sequence in sequences if sequence in self._saved)

    def save(self, sequences: Collection[Sequence]) -> bool:
        """Move what the sequences hold to host memory; False, and nothing was done, where the host has none left."""
        saved: dict[Sequence, SavedSequence] = {}
        try:
            for sequence in sequences:
                if held := self._held.get(sequence):
                    saved[sequence] = SavedSequence.of(self._states, held.slot, held.table)
        except (MemoryError, RuntimeError) as failure:  # torch reports a failed allocation as RuntimeError
            logger.warning("a request could not be saved to host memory: %s", type(failure).__name__)
            return False
        for sequence in saved:
            self._give_back(sequence)
        self._saved |= saved
        self.saved_bytes += sum(each.nbytes for each in saved.values())
        return True

    def restore(self, sequences: Collection[Sequence]) -> None:
        """Move back what was saved. Raises PoolExhausted; the books see to it that this cannot be."""
        for sequence in sequences:
            if saved := self._saved.get(sequence):
                self._held[sequence] = _Held(*saved.restore(self._states, self._blocks))
                self._forget(sequence)

    def held_bytes(self, sequences: Collection[Sequence]) -> HeldBytes:
        """What the sequences of a request hold now, on the device or saved."""
        held = [self._held[sequence] for sequence in sequences if sequence in self._held]
        saved = [self._saved[sequence] for sequence in sequences if sequence in self._saved]
        if len(held) == 1:
            num_blocks = held[0].table.num_held
        else:
            num_blocks = len({block for each in held for block in each.table.blocks if block != RELEASED})
        num_blocks += sum(each.num_blocks for each in saved)
        num_slots, states = len(held) + len(saved), self._states
        return HeldBytes(
            kv=num_blocks * self._blocks.bytes_per_block,
            ssm_state=num_slots * states.ssm_bytes // states.num_slots,
            conv_state=num_slots * states.conv_bytes // states.num_slots,
        )

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds, on the device and on the host. Idempotent."""
        if sequence in self._held:
            self._give_back(sequence)
        if sequence in self._saved:
            self._forget(sequence)

    def check(self) -> None:
        """Assert conservation in both pools, and that what is used is what the sequences hold."""
        self._states.check()
        self._blocks.check(held.table for held in self._held.values())
        assert self._states.num_used == len(self._held), "a slot is held by nobody"
        assert self._held or self._blocks.num_used == 0, "a block is held by nobody"
        assert self.saved_bytes == sum(saved.nbytes for saved in self._saved.values()), "saved bytes differ"
        assert not self._held.keys() & self._saved.keys(), "a sequence is on the device and on the host"

    def _chunk(self, planned: PlannedChunk) -> SequenceChunk:
        sequence = planned.sequence
        held = self._held.get(sequence)
        if held is None:
            held = self._held[sequence] = _Held(self._states.allocate(), BlockTable(self._blocks))
        held.table.prepare(planned.start, planned.end)
        return SequenceChunk(
            token_ids=sequence.token_ids[planned.start : planned.end],
            first_position=planned.start,
            state_slot=held.slot,
            blocks=held.table.blocks,
            policy=sequence.policy,
            num_logits=planned.num_logits,
            is_decode=planned.is_decode,
        )

    def _give_back(self, sequence: Sequence) -> None:
        held = self._held.pop(sequence)
        held.table.free()
        self._states.free(held.slot)

    def _forget(self, sequence: Sequence) -> None:
        self.saved_bytes -= self._saved.pop(sequence).nbytes


@dataclass(frozen=True, slots=True)
class _Held:
    slot: int
    table: BlockTable
