"""Plans into tensors: the model, its pools, and what each sequence holds of them."""

import logging
from collections.abc import Collection

import torch
from torch import Tensor

from model.batch import Batch, SequenceChunk
from model.cache.archive_room import ArchiveRoom
from model.cache.archive_table import ArchiveTable
from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.checkpoint import Checkpoint
from model.cache.checkpoints import Checkpoints
from model.cache.held import Held, bring_back
from model.cache.kv_archive import ArchivedBlock
from model.cache.place import Place
from model.cache.snapshot import Snapshot
from model.cache.state_pool import StatePool
from model.decode_graphs import DecodeGraphs
from model.engine.books import Capacity
from model.engine.holdings import HeldBytes, Holding
from model.engine.placement import LEAST_TOKENS
from model.engine.recollection import Recollection, tree_of
from model.engine.sequence import Sequence
from model.engine.stats import PoolCounts
from model.engine.step import PlannedChunk, StepPlan
from model.errors import ArchiveFull
from model.hybrid import HybridLM
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import FEW_ROWS, ROUND_ROWS

logger = logging.getLogger(__name__)


class ModelRunner:
    """Runs steps and keeps the memory of the sequences between them. Used by the engine thread alone.

    ``num_slots`` is how many sequences may hold state at once; the pool may have more slots, for checkpoints.
    ``checkpoint_bytes`` is the host memory that checkpoints may take.
    """

    def __init__(
        self,
        model: HybridLM,
        states: StatePool,
        blocks: BlockPool,
        device: str = "cpu",
        num_slots: int | None = None,
        checkpoint_bytes: int = 0,
        chunk_tokens: int = 512,
    ) -> None:
        self._model = model
        self._states = states
        self._blocks = blocks
        self._device = device
        self._num_slots = states.num_slots if num_slots is None else num_slots
        self._chunk_tokens = chunk_tokens
        self._held: dict[Sequence, Held] = {}
        self._saved: dict[Sequence, Snapshot] = {}
        # What is saved stays in the archive, and is its sequence's there.
        self._saved_archives: dict[Sequence, ArchiveTable] = {}
        self.checkpoints = Checkpoints(states, blocks, checkpoint_bytes)
        self._recollection = Recollection(model, states, self.checkpoints, self._held, device, chunk_tokens)
        self.saved_bytes = 0
        self._graphs: DecodeGraphs | None = None

    @property
    def slots(self) -> PoolCounts:
        """State slots by status."""
        return PoolCounts(self._states.num_free, self._states.num_used, self._states.num_cached)

    @property
    def blocks(self) -> PoolCounts:
        """Key/value blocks by status."""
        return PoolCounts(self._blocks.num_free, self._blocks.num_used, self._blocks.num_cached)

    @property
    def num_free_blocks(self) -> int:
        """Key/value blocks that no sequence holds: free ones, and those of checkpoints, which make room."""
        return self._blocks.num_free + self._blocks.num_cached

    @property
    def num_shared_blocks(self) -> int:
        """Key/value blocks that several sequences hold."""
        return self._blocks.num_shared

    @property
    def workspace_bytes(self) -> int:
        """Bytes that steps hold beside the pools; more after a step that needed more than any before."""
        return self._model.workspace_bytes

    @property
    def archive_blocks(self) -> PoolCounts:
        """Blocks of the archive by status."""
        archive = self._blocks.archive
        return PoolCounts(archive.num_free, archive.num_used, archive.num_cached)

    @property
    def archive_room(self) -> ArchiveRoom:
        """What of the archive is to be had."""
        return self.checkpoints.archive_room

    def archive_full(self, num_blocks: int) -> ArchiveFull:
        """Why ``num_blocks`` of it are not to be had."""
        return self._blocks.archive.full(num_blocks, self.archive_room.num_unpromised)

    @property
    def num_archive_blocks_free(self) -> int:
        """Blocks of the archive that no sequence holds, on the device or saved, and no name: free ones, and those of
        checkpoints that make room."""
        return self.archive_room.num_free

    @property
    def archive_bytes(self) -> dict[str, int]:
        """Host memory of the archive, by pool."""
        return self._blocks.archive.memory_bytes

    @property
    def archive_disk_bytes(self) -> int:
        """Bytes of its file."""
        return self._blocks.archive.disk_bytes

    @property
    def pool_bytes(self) -> dict[str, int]:
        """Bytes of tensors held between two steps, by pool."""
        return {
            "weights": self._model.nbytes,
            "ssm_state": self._states.ssm_bytes,
            "conv_state": self._states.conv_bytes,
            "kv": self._blocks.device_bytes,
            "workspace": self._model.workspace_bytes,
        }

    def capacity(self, saved_bytes: int) -> Capacity:
        """The pools as the scheduler's books want them, beside host memory of ``saved_bytes``."""
        return Capacity(
            num_slots=self._num_slots,
            num_blocks=self._blocks.num_blocks,
            bytes_per_slot=self._states.nbytes // self._states.num_slots,
            bytes_per_block=self._blocks.bytes_per_block,
            saved_bytes=saved_bytes,
        )

    def warm_up(self) -> None:
        """Read and draw a little of nothing, so that the first request does not wait for what is made at first use:
        programs for the usual numbers of rows, threads, the addresses of the weights."""
        policy = AttentionPolicy()
        num_most = min(self._chunk_tokens, self._blocks.num_blocks * BLOCK_TOKENS)
        held = Held(self._states.allocate(), BlockTable(self._blocks))
        try:
            held.table.prepare(0, num_most)
            for num_tokens in (*FEW_ROWS, ROUND_ROWS, num_most):
                ids = [0] * min(num_tokens, num_most)
                chunk = SequenceChunk(ids, 0, held.slot, held.table.blocks, policy)
                self._model(Batch.pack([chunk], self._device), self._states, self._blocks)
            chunk = SequenceChunk([0], num_most - 1, held.slot, held.table.blocks, policy, is_decode=True)
            self._model(Batch.pack([chunk], self._device), self._states, self._blocks)
        finally:
            held.free(self._states)
        pools = self._states, self._blocks
        self._graphs, reason = DecodeGraphs.verified(self._model, *pools, self._device, self._num_slots)
        if self._device != "cpu":
            logger.info("decode graphs are %s: %s", "off" if self._graphs is None else "on", reason)

    def starved(self, plan: StepPlan) -> tuple[Sequence, ArchiveFull] | None:
        """A sequence of the plan for which the archive has no room, since the disk has none, and why; room was made as
        far as there is any.

        The one that is to grow last: those before it have room.
        """
        leaving: set[int] = set()
        needed = num_new = 0
        for planned in plan.chunks:
            sequence, held = planned.sequence, self._held.get(planned.sequence)
            if not planned.num_tokens or sequence.policy.name is not PolicyName.ARCHIVE:
                continue
            table = BlockTable(self._blocks) if held is None else held.table
            blocks, num_later = table.leaving(sequence.policy, planned.end)
            # Choices of one request leave the same blocks behind.
            leaving.update(blocks)
            num_new += num_later
            before, needed = needed, len(leaving) + num_new
            if needed > before and not self.checkpoints.make_archive_room(needed, is_promised=True):
                return sequence, self._blocks.archive.full(needed - before)
        return None

    def run(self, plan: StepPlan) -> Tensor:
        """Read the planned tokens; returns the logits [rows, V] float32 of each chunk's last ``num_logits`` tokens.

        Takes a slot and blocks for what is read, and gives back the blocks that no later token sees. After an
        exception the memory of the plan's sequences is undefined and must be given back with ``close``. What is to be
        kept of the prompts is kept.
        """
        reading = [planned for planned in plan.chunks if planned.num_tokens]
        if len(reading) < len(plan.chunks):
            return self._run_with_recalled(plan, reading)
        return self._read(reading)

    def _run_with_recalled(self, plan: StepPlan, reading: list[PlannedChunk]) -> Tensor:
        """As ``run``, where the first token of some prompts is drawn without reading."""
        logits = self._read(reading) if reading else None
        rows: list[Tensor] = []
        start = 0
        for planned in plan.chunks:
            if not planned.num_tokens:
                rows.append(self._recollection.first_logits(planned.sequence))
            elif logits is not None:
                rows.append(logits[start : start + planned.num_logits])
                start += planned.num_logits
        return torch.cat(rows)

    def _read(self, reading: list[PlannedChunk]) -> Tensor:
        chunks = [self._chunk(planned) for planned in reading]
        batch = Batch.pack(chunks, self._device)
        if self._graphs is None:
            read = self._model.read(batch, self._states, self._blocks)
        else:
            read = self._graphs.read(batch)
        self._blocks.archive.rest()
        # What moved to the host before the step arrives while the device is still at it.
        self._states.settle()
        self._blocks.settle()
        start = row = 0
        for planned in reading:
            self._held[planned.sequence].table.release_hidden(planned.sequence.policy, planned.end)
            if planned.is_decode:
                continue
            surprisal = None if read.surprisal is None else read.surprisal[start : start + planned.num_tokens]
            start, row = start + planned.num_tokens, row + planned.num_logits
            self._recollection.was_read(planned, read.hidden[row - 1] if planned.num_logits else None, surprisal)
        return read.logits

    def begin(self, sequence: Sequence, beside: Collection[Sequence]) -> None:
        """Take up the beginning of a new sequence's prompt, as far as it is there, and tell its group."""
        self._recollection.begin(sequence, beside)

    def advance(self, sequence: Sequence) -> None:
        """Skip what another sequence has read meanwhile."""
        self._recollection.advance(sequence)

    def num_archived(self, sequence: Sequence) -> int:
        """Blocks of the archive that the sequence holds, on the device or saved."""
        if (held := self._held.get(sequence)) is not None:
            return held.table.archive.num_blocks
        return self._saved_archives[sequence].num_blocks if sequence in self._saved_archives else 0

    def num_archived_found(self, sequence: Sequence) -> int:
        """Blocks of the archive that the sequence would take up with ``begin`` and that are not among the free ones."""
        return self._recollection.num_archived_found(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Give back what the sequence holds, and keep what it remembers for whoever goes on from there."""
        group, num_read = sequence.group, sequence.num_read
        if group.request.keep.nothing or group.is_forgotten or num_read < LEAST_TOKENS:
            self.close(sequence)
            return
        ids, place = sequence.token_ids[:num_read], Place.TURN if sequence.num_completion_tokens else Place.ABORTED
        if (held := self._held.pop(sequence, None)) is not None:
            since = sequence.selected_from(num_read)
            self.checkpoints.keep(tree_of(sequence), ids, num_read, held.keep(self._states), place, selected_from=since)
        elif (saved := self._saved.get(sequence)) is not None:
            self._forget(sequence)
            self.checkpoints.keep_snapshot(tree_of(sequence), ids, saved, place)
        self._recollection.forget(sequence)

    def fork(self, sequence: Sequence, forks: Collection[Sequence]) -> None:
        """Let ``forks`` hold what ``sequence`` holds: blocks are shared until one writes to them, states copied."""
        held = self._held[sequence]
        for fork in forks:
            self.checkpoints.make_room(1, 0)
            self._held[fork] = held.fork(self._states)

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
        return sum(len(self._saved[sequence].blocks) for sequence in sequences if sequence in self._saved)

    def save(self, sequences: Collection[Sequence]) -> bool:
        """Move what the sequences hold to host memory; False, and nothing was done, where the host has none left."""
        saved: dict[Sequence, Snapshot] = {}
        try:
            for sequence in sequences:
                if held := self._held.get(sequence):
                    since = sequence.selected_from(sequence.num_read)
                    saved[sequence] = held.snapshot(self._states, sequence.num_read, selected_from=since)
        except (MemoryError, RuntimeError) as failure:  # torch reports a failed allocation as RuntimeError
            logger.warning("a request could not be saved to host memory: %s", type(failure).__name__)
            return False
        for sequence in saved:
            self._saved_archives[sequence] = self._held[sequence].table.archive.fork()
            self._give_back(sequence)
        self._saved |= saved
        self.saved_bytes += sum(each.nbytes for each in saved.values())
        return True

    def restore(self, sequences: Collection[Sequence]) -> None:
        """Move back what was saved. Raises PoolExhausted; the books see to it that this cannot be."""
        for sequence in sequences:
            if saved := self._saved.get(sequence):
                self.checkpoints.make_room(1, len(saved.blocks))
                self._held[sequence] = bring_back(saved, self._states, self._blocks)
                self._forget(sequence)

    def held_bytes(self, sequences: Collection[Sequence]) -> HeldBytes:
        """What the sequences of a request hold now, on the device or saved."""
        held = [self._held[sequence] for sequence in sequences if sequence in self._held]
        saved = [self._saved[sequence] for sequence in sequences if sequence in self._saved]
        if len(held) == 1:
            num_blocks = held[0].table.num_held
        else:
            num_blocks = len({block for each in held for block in each.table.blocks if block != RELEASED})
        num_blocks += sum(len(each.blocks) for each in saved)
        num_slots, states = len(held) + len(saved), self._states
        num_archived, archive = self._num_archived(held, saved), self._blocks.archive
        return HeldBytes(
            kv=num_blocks * self._blocks.bytes_per_block,
            ssm_state=num_slots * states.ssm_bytes // states.num_slots,
            conv_state=num_slots * states.conv_bytes // states.num_slots,
            kv_archive=num_archived * archive.bytes_per_block,
            kv_summaries=num_archived * archive.bytes_per_summary + self._index_bytes(held, saved),
        )

    def archive_numbers(self) -> set[int]:
        """Blocks of the archive that sequences hold, on the device or saved."""
        return {block.number for table in self._archives() for block in table.blocks}

    def _archives(self) -> list[ArchiveTable]:
        return [*(held.table.archive for held in self._held.values()), *self._saved_archives.values()]

    def _num_archived(self, held: Collection[Held], saved: Collection[Snapshot]) -> int:
        """Different blocks of the archive."""
        if len(held) == 1 and not saved:
            (only,) = held
            return only.table.archive.num_blocks
        blocks = {id(block) for each in held for block in each.table.archive.blocks}
        return len(blocks.union(id(block) for each in saved for block in each.archive))

    def _index_bytes(self, held: Collection[Held], saved: Collection[Snapshot]) -> int:
        """Bytes of the different indexes over these blocks."""
        if self._blocks.archive.plan is None:
            return 0
        indexes = {index for each in held for index in each.table.archive.shared_indexes}
        blocks = [block for each in saved for block in each.archive if isinstance(block, ArchivedBlock)]
        return sum(index.nbytes for index in indexes.union(block.index for block in blocks if block.index is not None))

    def holding(self, checkpoint: Checkpoint) -> Holding:
        """Where a checkpoint is and what it takes."""
        held, snapshot, states = checkpoint.held, checkpoint.snapshot, self._states
        num_blocks = held.table.num_held if held is not None else len(snapshot.blocks) if snapshot is not None else 0
        return Holding(
            tier="host" if held is None else "resident",
            num_tokens=checkpoint.num_tokens,
            kv_bytes=num_blocks * self._blocks.bytes_per_block,
            ssm_state_bytes=states.ssm_bytes // states.num_slots,
            conv_state_bytes=states.conv_bytes // states.num_slots,
            kv_archive_bytes=sum(number >= 0 for number in checkpoint.archive_numbers)
            * self._blocks.archive.bytes_per_block,
        )

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds, on the device and on the host. Idempotent."""
        if sequence in self._held:
            self._give_back(sequence)
        if sequence in self._saved:
            self._forget(sequence)
        self._recollection.forget(sequence)

    def check(self) -> None:
        """Assert conservation in both pools, and that sequences and checkpoints hold what is used and cached."""
        self._states.check()
        self.checkpoints.check()
        self._blocks.check(held.table for held in (*self._held.values(), *self.checkpoints.holdings()))
        self._blocks.archive.check(table.numbers for table in self._archives())
        assert self._saved_archives.keys() == self._saved.keys(), "a saved sequence lost what it has in the archive"
        assert self._states.num_used == len(self._held), "a slot is held by nobody"
        assert self._states.num_cached == self.checkpoints.num_resident, "a cached slot is no checkpoint's"
        assert self._held or self._blocks.num_used == 0, "a block is held by nobody"
        recalled = set(self._recollection.sequences)
        assert recalled <= self._held.keys() | self._saved.keys(), "a recalled prompt holds nothing"
        assert self.saved_bytes == sum(saved.nbytes for saved in self._saved.values()), "saved bytes differ"
        assert not self._held.keys() & self._saved.keys(), "a sequence is on the device and on the host"

    def _chunk(self, planned: PlannedChunk) -> SequenceChunk:
        sequence = planned.sequence
        held = self._held.get(sequence)
        if held is None:
            self.checkpoints.make_room(1, 0)
            held = self._held[sequence] = Held(self._states.allocate(), BlockTable(self._blocks))
        if num_missing := held.table.num_missing(planned.start, planned.end):
            self.checkpoints.make_room(0, num_missing)
            held.table.prepare(planned.start, planned.end)
        is_measured = not planned.is_decode and sequence.group.is_told(planned.end)
        return SequenceChunk(
            token_ids=sequence.token_ids[planned.start : planned.end],
            first_position=planned.start,
            state_slot=held.slot,
            blocks=held.table.blocks,
            policy=sequence.policy,
            num_logits=planned.num_logits,
            is_decode=planned.is_decode,
            next_ids=sequence.token_ids[planned.start + 1 : planned.end + 1] if is_measured else None,
            leaving=held.table.leave(sequence.policy, planned.end),
            archived=held.table.archive.numbers,
            select_from=sequence.group.request.select_from,
            indexes=held.table.archive.indexes(sequence.policy, planned.end, sequence.group.request.select_from),
        )

    def _give_back(self, sequence: Sequence) -> None:
        self._held.pop(sequence).free(self._states)

    def _forget(self, sequence: Sequence) -> None:
        self.saved_bytes -= self._saved.pop(sequence).nbytes
        self._saved_archives.pop(sequence).free()
