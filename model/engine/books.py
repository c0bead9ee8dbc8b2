"""The books of slots, blocks and host memory: what fits, and what is sure to run to its end. No torch."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from model.cache.plan import num_archived_blocks, num_resident_blocks
from model.engine.sequence import Sequence, SequenceGroup, Status
from model.policy import AttentionPolicy


class Memory(Protocol):
    """What holds the tensors of sequences: ``model.engine.runner.ModelRunner``."""

    @property
    def num_free_blocks(self) -> int:
        """Key/value blocks that no sequence holds: free ones, and those of checkpoints, which make room."""

    @property
    def saved_bytes(self) -> int:
        """Host memory that preempted sequences take."""

    def num_missing_blocks(self, sequence: Sequence, end: int) -> int:
        """Blocks the sequence would take to read up to position ``end``."""

    def num_blocks_to_restore(self, sequences: Collection[Sequence]) -> int:
        """Blocks that saved sequences would take to come back."""

    def num_bytes_to_save(self, sequences: Collection[Sequence]) -> int:
        """Host memory that saving the sequences would take."""

    @property
    def num_archive_blocks_free(self) -> int:
        """Blocks of the archive that no sequence holds, on the device or saved, and no name: free ones, and those of
        checkpoints that make room."""

    def num_archived(self, sequence: Sequence) -> int:
        """Blocks of the archive that the sequence holds, on the device or saved."""

    def num_archived_found(self, sequence: Sequence) -> int:
        """Blocks of the archive that the sequence would take up with ``begin`` and that are not among the free ones."""

    def begin(self, sequence: Sequence, beside: Collection[Sequence]) -> None:
        """Take up the beginning of a new sequence's prompt, as far as it is there, and tell its group; ``beside`` are
        those that run."""

    def advance(self, sequence: Sequence) -> None:
        """Skip what another sequence has read meanwhile."""

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds."""

    def save(self, sequences: Collection[Sequence]) -> bool:
        """Move what the sequences hold to host memory; False, and nothing was done, where the host has none left."""

    def restore(self, sequences: Collection[Sequence]) -> None:
        """Move it back."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The pools, and what a unit of each takes. ``saved_bytes`` is the host memory for preempted requests."""

    num_slots: int
    num_blocks: int
    bytes_per_slot: int
    bytes_per_block: int
    saved_bytes: int


class Books:
    """What requests hold and may come to hold. One question is at the centre: is what was admitted sure to end?

    It is if one of two things holds (``is_safe``): the worst cases of all that run fit into the block pool together,
    so that nobody ever lacks a block; or all that was admitted but the smallest fits into the host memory for
    preempted requests, so that the others can make way for any one that lacks a block.

    Room in the archive cannot be made by preemption: a saved request keeps its blocks there. So all that those admitted
    may still need of it must be there when one more is admitted (``has_archive_room``).
    """

    def __init__(self, memory: Memory, capacity: Capacity, chunk_tokens: int) -> None:
        self.capacity = capacity
        self._memory = memory
        self._chunk_tokens = chunk_tokens

    def blocks_needed(self, num_tokens: int, policy: AttentionPolicy) -> int:
        """Most blocks a sequence of ``num_tokens`` ever holds at once."""
        return num_resident_blocks(policy, num_tokens, self._chunk_tokens)

    def worst_blocks(self, group: SequenceGroup) -> int:
        """Most blocks the request can come to hold; nothing is counted as shared, since a saved request shares
        nothing when it comes back."""
        return group.num_slots * self.blocks_needed(group.max_num_tokens, group.policy)

    def num_free_slots(self, running: Collection[SequenceGroup]) -> int:
        """Slots that no running request holds or is going to fork into."""
        return self.capacity.num_slots - sum(group.num_slots for group in running)

    def is_safe(self, running: Collection[SequenceGroup], saved: Collection[SequenceGroup]) -> bool:
        """Whether everyone can run to the end from here."""
        if sum(map(self.worst_blocks, running)) <= self.capacity.num_blocks:
            return True
        worst = [self._worst_bytes(group) for group in (*running, *saved)]
        return sum(worst) - min(worst) <= self.capacity.saved_bytes

    def fits(self, group: SequenceGroup, running: Collection[SequenceGroup], saved: Collection[SequenceGroup]) -> bool:
        """Whether ``group`` may run beside ``running`` now, while ``saved`` waits in host memory."""
        together = [*running, group]
        if group.num_slots > self.num_free_slots(running) or not self.is_safe(together, saved):
            return False
        worst_blocks = sum(map(self.worst_blocks, together))
        return worst_blocks <= self.capacity.num_blocks or self._next_blocks(group, running) <= (
            self._memory.num_free_blocks
        )

    def archive_blocks_missing(self, group: SequenceGroup) -> int:
        """Most blocks of the archive that the request can come to need beside those it holds."""
        lengths = group.num_prompt_tokens, group.request.sampling.max_tokens
        held = [self._memory.num_archived(sequence) for sequence in group.sequences]
        shared, own = num_archived_blocks(group.policy, *lengths, group.num_slots)
        # What is shared is held by each of the choices, which are at the same place.
        return shared - min(shared, max(held)) + own - sum(max(0, each - shared) for each in held)

    def has_archive_room(self, group: SequenceGroup, admitted: Collection[SequenceGroup]) -> bool:
        """Whether ``group`` may come to hold what it can need of the archive beside those ``admitted``."""
        missing = self.archive_blocks_missing(group)
        if not missing:
            return True
        room = self._memory.num_archive_blocks_free - sum(map(self.archive_blocks_missing, admitted))
        return missing <= room or missing - self._memory.num_archived_found(group.sequences[0]) <= room

    def can_save(self, group: SequenceGroup) -> bool:
        """Whether host memory has room for what the request holds now."""
        needed = self._memory.num_bytes_to_save(group.sequences)
        return self._memory.saved_bytes + needed <= self.capacity.saved_bytes

    def _next_blocks(self, group: SequenceGroup, running: Collection[SequenceGroup]) -> int:
        """Blocks for ``group`` to come back or to read its prompt, beside the prompts of others, and one for each
        stream to grow into."""
        sequences = [sequence for each in running for sequence in each.sequences]
        growing = sum(sequence.is_decoding for sequence in sequences) + group.num_slots
        others = sum(self._missing_for_prompt(sequence) for sequence in sequences if not sequence.is_decoding)
        if group.status is Status.SAVED:
            return growing + others + self._memory.num_blocks_to_restore(group.sequences)
        return growing + others + self.blocks_needed(group.num_prompt_tokens, group.policy)

    def _missing_for_prompt(self, sequence: Sequence) -> int:
        needed = self.blocks_needed(sequence.num_prompt_tokens, sequence.policy)
        return min(needed, self._memory.num_missing_blocks(sequence, sequence.num_prompt_tokens))

    def _worst_bytes(self, group: SequenceGroup) -> int:
        capacity = self.capacity
        return group.num_slots * capacity.bytes_per_slot + self.worst_blocks(group) * capacity.bytes_per_block
