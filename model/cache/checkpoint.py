"""What was kept of a text that was read, and where in the tiers it is."""

from array import array
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from model.cache.held import Held
from model.cache.kv_archive import ArchivedBlock
from model.cache.place import Place
from model.cache.prefix_tree import PrefixNode
from model.cache.snapshot import Snapshot
from model.cache.state_pool import StatePool


@dataclass(slots=True, eq=False)
class Checkpoint:
    """The memory of the first ``node.depth`` tokens of a text: on the device (``held``) or on the host (``snapshot``).

    ``touched`` orders checkpoints by their last use. ``hidden`` [D], ``information_bits`` and
    ``selected_from`` are as in ``Snapshot``.
    """

    tree: Hashable
    node: "PrefixNode[Checkpoint]"
    place: Place
    touched: int
    held: Held | None
    snapshot: Snapshot | None = None
    hidden: Tensor | None = None
    information_bits: float | None = None
    selected_from: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that were read."""
        return self.node.depth

    def copied(self, states: StatePool) -> Snapshot:
        """As host tensors, whose contents may be on their way until the pools have settled; it stays where it is."""
        if self.snapshot is not None:
            return self.snapshot
        assert self.held is not None, "a checkpoint is on the device or on the host"
        return self.held.snapshot(states, self.num_tokens, self.hidden, self.information_bits, self.selected_from)

    @property
    def archive_numbers(self) -> "array[int]":
        """Its blocks in the archive, by place."""
        if self.held is not None:
            return self.held.table.archive.numbers
        assert self.snapshot is not None, "a checkpoint is on the device or on the host"
        return array("q", (block.number for block in self.snapshot.archive if isinstance(block, ArchivedBlock)))


@dataclass(slots=True, eq=False)
class Anchor:
    """A path whose deepest checkpoint must not vanish; ``is_safe`` when it is on the disk, too."""

    key: Hashable
    tree: Hashable
    node: "PrefixNode[Checkpoint]"
    is_safe: bool = False
