"""Checkpoints in host memory, within a budget: blocks that several have in common stand, and count, once."""

from collections import Counter
from collections.abc import Callable, Collection

from model.cache.checkpoint import Checkpoint
from model.cache.snapshot import Snapshot


class HostTier:
    """At most ``budget_bytes`` of snapshots; ``num_bytes`` are there. Room is made by ``drop``, which gives one up for
    good and has it ``leave``."""

    def __init__(self, budget_bytes: int, drop: Callable[[Checkpoint], None]) -> None:
        self.budget_bytes = budget_bytes
        self.checkpoints: list[Checkpoint] = []
        self.num_bytes = 0
        self._drop = drop
        self._content_uses = Counter[int]()

    def make_room(self, snapshot: Snapshot, protected: Collection[int]) -> bool:
        """Drop what was used longest ago until ``snapshot`` fits; False where it does not even when all but the
        ``protected`` ones, by id, are gone."""

        def fits() -> bool:
            # Anew each time: what is dropped may be all that shared a block with the snapshot.
            return self.num_bytes + self.added_bytes(snapshot) <= self.budget_bytes

        if snapshot.nbytes > self.budget_bytes and not fits():
            return False
        for victim in sorted(self.checkpoints, key=lambda each: each.touched):
            if fits():
                break
            if id(victim) not in protected:
                self._drop(victim)
        return fits()

    def added_bytes(self, snapshot: Snapshot) -> int:
        """Bytes that would be held more: contents that stand there already cost nothing."""
        new = {id(each): each.nbytes for each in snapshot.blocks.values() if not self._content_uses[id(each)]}
        return snapshot.state_bytes + sum(new.values())

    def enter(self, checkpoint: Checkpoint, snapshot: Snapshot) -> None:
        """The checkpoint is here from now on, as ``snapshot``."""
        self.num_bytes += self.added_bytes(snapshot)
        self._content_uses.update(id(content) for content in snapshot.blocks.values())
        checkpoint.snapshot = snapshot
        self.checkpoints.append(checkpoint)

    def leave(self, checkpoint: Checkpoint) -> None:
        """The checkpoint is not here any more."""
        snapshot = checkpoint.snapshot
        assert snapshot is not None, "it is not in host memory"
        checkpoint.snapshot = None
        self.checkpoints.remove(checkpoint)
        for content in snapshot.blocks.values():
            self._content_uses[id(content)] -= 1
            if not self._content_uses[id(content)]:
                del self._content_uses[id(content)]
        self.num_bytes -= self.added_bytes(snapshot)

    def check(self) -> None:
        """Assert that bytes are those of the tensors, and within the budget."""
        snapshots = [each.snapshot for each in self.checkpoints if each.snapshot is not None]
        assert len(snapshots) == len(self.checkpoints), "a checkpoint is on the host and has no snapshot"
        contents = {id(content): content.nbytes for each in snapshots for content in each.blocks.values()}
        total = sum(contents.values()) + sum(each.state_bytes for each in snapshots)
        assert total == self.num_bytes, "host bytes differ from those of the tensors"
        assert self.num_bytes <= self.budget_bytes, "the host budget is overrun"
