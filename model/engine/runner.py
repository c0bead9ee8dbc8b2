"""Plans into tensors: the model, its pools, and what each sequence holds of them."""

from dataclasses import dataclass

from torch import Tensor

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.state_pool import StatePool
from model.engine.scheduler import PlannedChunk, StepPlan
from model.engine.sequence import Sequence
from model.engine.stats import PoolCounts
from model.hybrid import HybridLM


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """Bytes of the tensors that one sequence holds."""

    kv: int
    ssm_state: int
    conv_state: int

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
        self._held: dict[str, _Held] = {}

    @property
    def vocab_size(self) -> int:
        """V: ids the model can read and draw."""
        return self._model.config.vocab_size

    @property
    def slots(self) -> PoolCounts:
        """State slots by status."""
        return PoolCounts(free=self._states.num_free, used=self._states.num_used)

    @property
    def blocks(self) -> PoolCounts:
        """Key/value blocks by status."""
        return PoolCounts(free=self._blocks.num_free, used=self._blocks.num_used)

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

    def run(self, plan: StepPlan) -> list[Tensor | None]:
        """Read the planned tokens; for each chunk the logits [V] float32 after it, None where no token is drawn.

        Takes a slot and blocks for what is read, and gives back the blocks that no later token sees. After an
        exception the memory of the plan's sequences is undefined and must be given back with ``close``.
        """
        chunks = [self._chunk(planned) for planned in plan.chunks]
        rows = iter(self._model(Batch.pack(chunks, self._device), self._states, self._blocks))
        for planned in plan.chunks:
            table = self._held[planned.sequence.request_id].table
            table.release_hidden(planned.sequence.policy, planned.end)
        return [next(rows) if planned.draws_token else None for planned in plan.chunks]

    def held_bytes(self, sequence: Sequence) -> HeldBytes:
        """What the sequence holds now."""
        held = self._held.get(sequence.request_id)
        if held is None:
            return HeldBytes(0, 0, 0)
        num_slots = self._states.num_slots
        return HeldBytes(held.table.nbytes, self._states.ssm_bytes // num_slots, self._states.conv_bytes // num_slots)

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds. Idempotent."""
        held = self._held.pop(sequence.request_id, None)
        if held is not None:
            held.table.free()
            self._states.free(held.slot)

    def check(self) -> None:
        """Assert conservation in both pools, and that what is used is what the sequences hold."""
        self._states.check()
        self._blocks.check(held.table for held in self._held.values())
        assert self._states.num_used == len(self._held), "a slot is held by nobody"
        assert self._held or self._blocks.num_used == 0, "a block is held by nobody"

    def _chunk(self, planned: PlannedChunk) -> SequenceChunk:
        sequence = planned.sequence
        held = self._held.get(sequence.request_id)
        if held is None:
            held = self._held[sequence.request_id] = _Held(self._states.allocate(), BlockTable(self._blocks))
        held.table.reserve(planned.end)
        return SequenceChunk(
            token_ids=sequence.token_ids[planned.start : planned.end],
            first_position=planned.start,
            state_slot=held.slot,
            blocks=held.table.blocks,
            policy=sequence.policy,
            num_logits=int(planned.draws_token),
        )


@dataclass(frozen=True, slots=True)
class _Held:
    slot: int
    table: BlockTable
