"""Checkpoints without pools: what was read, by its tokens, with small tensors that depend on them alone."""

import zlib
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

from model.errors import HostBudgetExceeded

if TYPE_CHECKING:
    from model.cache.snapshot import Snapshot

Tree = Hashable
Ids = tuple[int, ...]
SSM_BYTES, CONV_BYTES, KV_BYTES = 256, 192, 16_384


@dataclass(frozen=True)
class FakeHolding:
    """As the engine's."""

    tier: str = "none"
    num_tokens: int = 0
    kv_bytes: int = 0
    ssm_state_bytes: int = 0
    conv_state_bytes: int = 0
    kv_archive_bytes: int = 0


@dataclass(frozen=True)
class FakeCheckpoint:
    """After how many tokens, and which."""

    ids: Ids

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@dataclass
class FakeCheckpoints:
    """``kept`` maps tree and tokens to the tier; ``room`` is how many restored ones the host takes."""

    kept: dict[tuple[Tree, Ids], str] = field(default_factory=dict)
    anchors: dict[Hashable, tuple[Tree, Ids]] = field(default_factory=dict)
    released: set[Hashable] = field(default_factory=set)
    room: int = 1000

    def keep(self, tree: Tree, token_ids: Sequence[int]) -> None:
        self.kept[tree, tuple(token_ids)] = "resident"

    def drop_all(self) -> None:
        """As if memory was short."""
        self.kept.clear()

    def anchor(self, key: Hashable, tree: Tree, token_ids: Sequence[int]) -> None:
        self.anchors[key] = (tree, tuple(token_ids))
        self.released.discard(key)

    def unanchor(self, key: Hashable) -> None:
        self.anchors.pop(key, None)
        self.released.discard(key)

    def release(self, key: Hashable) -> None:
        if key in self.anchors:
            self.released.add(key)

    def path(self, tree: Tree, token_ids: Sequence[int]) -> list[FakeCheckpoint]:
        text = tuple(token_ids)
        found = [ids for where, ids in self.kept if where == tree and text[: len(ids)] == ids]
        return [FakeCheckpoint(ids) for ids in sorted(found, key=len)]

    def find(
        self,
        tree: Tree,
        token_ids: Sequence[int],
        needs_information: bool,
        selected_from: Callable[[int], int | None],
    ) -> SimpleNamespace:
        return SimpleNamespace(checkpoint=next(reversed(self.path(tree, token_ids)), None))

    def holding(self, tree: Tree, token_ids: Sequence[int]) -> FakeHolding:
        path = self.path(tree, token_ids)
        if not path:
            return FakeHolding()
        return FakeHolding(self.kept[tree, path[-1].ids], path[-1].num_tokens, KV_BYTES, SSM_BYTES, CONV_BYTES)

    def num_archived_held(self, checkpoint: "FakeCheckpoint") -> int:
        return 0

    def snapshot(self, checkpoint: FakeCheckpoint) -> "Snapshot":
        return fake_snapshot(checkpoint.ids)

    def thin(self, tree: Tree, token_ids: Sequence[int], is_wanted: Callable[[int], bool]) -> int:
        dropped = [each.ids for each in self.path(tree, token_ids) if not is_wanted(each.num_tokens)]
        for ids in dropped:
            del self.kept[tree, ids]
        return len(dropped)

    def admit(self, tree: Tree, token_ids: Sequence[int], snapshots: "Iterable[Snapshot]") -> int:
        for snapshot in snapshots:
            if not self.room:
                raise HostBudgetExceeded(snapshot.nbytes, 0, 0)
            self.room -= 1
            self.kept.setdefault((tree, tuple(token_ids[: snapshot.num_tokens])), "host")
        return 0

    def forget(self, tree: Tree, token_ids: Sequence[int], num_general: int) -> int:
        anchored = [ids for where, ids in self.anchors.values() if where == tree]
        head = tuple(token_ids[: num_general + 1])
        dropped = [
            (where, ids)
            for where, ids in self.kept
            if where == tree
            and ids[: num_general + 1] == head
            and not any(other[: len(ids)] == ids for other in anchored)
        ]
        for each in dropped:
            del self.kept[each]
        return len(dropped)


def fake_snapshot(ids: Ids) -> "Snapshot":
    """A state that tells its tokens apart from others."""
    import torch

    from model.cache.snapshot import BlockContent, Snapshot

    generator = torch.Generator().manual_seed(zlib.crc32(array("i", ids).tobytes()))
    block = BlockContent(torch.randn(2, 64, 1, 16, generator=generator), torch.randn(2, 64, 1, 16, generator=generator))
    return Snapshot(
        num_tokens=len(ids),
        ssm=torch.randn(2, 4, 8, generator=generator),
        conv=torch.randn(2, 3, 8, generator=generator),
        blocks={(len(ids) - 1) // 64: block},
    )
