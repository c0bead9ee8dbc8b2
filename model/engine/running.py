"""What an engine needs of whatever runs its model."""

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from model.cache.archive_room import ArchiveRoom
from model.cache.checkpoint import Checkpoint
from model.cache.checkpoints import Checkpoints
from model.engine.books import Memory
from model.engine.holdings import HeldBytes, Holding
from model.engine.sequence import Sequence
from model.engine.stats import PoolCounts
from model.engine.step import StepPlan
from model.errors import ArchiveFull


class Runner(Memory, Protocol):
    """What the engine needs of ``model.engine.runner.ModelRunner``."""

    @property
    def slots(self) -> PoolCounts:
        """State slots by status."""

    @property
    def blocks(self) -> PoolCounts:
        """Key/value blocks by status."""

    @property
    def num_shared_blocks(self) -> int:
        """Key/value blocks that several sequences hold."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes that steps hold beside the pools."""

    @property
    def archive_blocks(self) -> PoolCounts:
        """Blocks of the archive by status."""

    @property
    def archive_room(self) -> ArchiveRoom:
        """What of the archive is to be had."""

    def archive_full(self, num_blocks: int) -> ArchiveFull:
        """Why ``num_blocks`` of it are not to be had."""

    @property
    def archive_bytes(self) -> Mapping[str, int]:
        """Host memory of the archive, by pool."""

    @property
    def archive_disk_bytes(self) -> int:
        """Bytes of its file."""

    def starved(self, plan: StepPlan) -> tuple[Sequence, ArchiveFull] | None:
        """A sequence of the plan for which the archive has no room, and why; room was made as far as there is any."""

    def run(self, plan: StepPlan) -> Tensor:
        """Read the planned tokens; logits [rows, V] of each chunk's last ``num_logits`` tokens."""

    def fork(self, sequence: Sequence, forks: Collection[Sequence]) -> None:
        """Let ``forks`` hold what ``sequence`` holds."""

    def held_bytes(self, sequences: Collection[Sequence]) -> HeldBytes:
        """What the sequences of one request hold now."""

    @property
    def checkpoints(self) -> Checkpoints:
        """What was kept of texts that were read."""

    def holding(self, checkpoint: Checkpoint) -> Holding:
        """Where a checkpoint is and what it takes."""

    def retire(self, sequence: Sequence) -> None:
        """Give back what the sequence holds, and keep what it remembers for whoever goes on from there."""

    def close(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds."""

    def check(self) -> None:
        """Assert conservation."""
