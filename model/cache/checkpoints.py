"""Checkpoints of texts that were read: found again by their tokens, moved down the tiers when room is needed.

On the device they take slots and blocks that nobody uses now; these are ``cached`` and are given up the moment a
sequence wants them. What is given up moves to host memory within a budget, where blocks that several checkpoints have
in common stand once. What was used longest ago goes first. An anchored path keeps its deepest checkpoint on the host
when others go; only if nothing but anchored ones is left is one given up, which is counted and logged, never silent.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from model.cache.archive_room import ArchiveRoom
from model.cache.block_pool import BlockPool
from model.cache.checkpoint import Anchor, Checkpoint
from model.cache.held import Held, bring_back
from model.cache.host_tier import HostTier
from model.cache.kv_archive import ArchivedBlock
from model.cache.place import Place
from model.cache.prefix_tree import PrefixNode, PrefixTree
from model.cache.snapshot import BlockContent, Snapshot
from model.cache.state_pool import StatePool
from model.errors import HostBudgetExceeded

logger = logging.getLogger(__name__)

# A text that has less than this in common with another begins differently: reading so little costs no step.
LEAST_COMMON_TOKENS = 16
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Found:
    """The deepest usable checkpoint of a text, how many tokens of it were seen before, and the reason: where the
    checkpoint was kept, or why there is none."""

    checkpoint: Checkpoint | None
    num_common: int
    reason: str


class Checkpoints:
    """All checkpoints of one engine. ``trees`` are told apart by whatever must not be mixed: tenant and policy.

    ``num_lost`` counts anchored checkpoints that had to be given up. ``archive_room`` is what of the archive is to be
    had.
    """

    def __init__(self, states: StatePool, blocks: BlockPool, budget_bytes: int) -> None:
        self.num_lost = 0
        self._states = states
        self._blocks = blocks
        self._trees: dict[Hashable, PrefixTree[Checkpoint]] = {}
        self._resident: list[Checkpoint] = []
        self._host = HostTier(budget_bytes, self._drop)
        self._anchors: dict[Hashable, Anchor] = {}
        self._now = 0
        self.archive_room = ArchiveRoom(
            blocks.archive, lambda: (each.archive_numbers for each in self._protected().values())
        )

    @property
    def num_resident(self) -> int:
        """Checkpoints on the device."""
        return len(self._resident)

    @property
    def num_on_host(self) -> int:
        """Checkpoints in host memory alone."""
        return len(self._host.checkpoints)

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory: tensors, each counted once, and the tokens of the paths."""
        return self._host.num_bytes + TOKEN_BYTES * sum(tree.num_tokens for tree in self._trees.values())

    def holdings(self) -> Iterable[Held]:
        """What checkpoints hold of the pools."""
        return [each.held for each in self._resident if each.held is not None]

    def kept(self) -> Iterable[Checkpoint]:
        """All of them."""
        return (*self._resident, *self._host.checkpoints)

    # Looking up and keeping.

    def find(
        self,
        tree: Hashable,
        token_ids: Sequence[int],
        needs_information: bool = False,
        selected_from: Callable[[int], int | None] = lambda _: None,
    ) -> Found:
        """The deepest checkpoint from which the text can be read on. ``selected_from`` says of a number of tokens where
        among them selection must have begun."""
        if tree not in self._trees:
            return Found(None, 0, "empty")
        match = self._trees[tree].match(token_ids)
        kept = [
            node.kept
            for node in match.kept
            if node.kept is not None and node.kept.selected_from == selected_from(node.depth)
        ]
        # After the whole text there is no token left to read, so the row that draws the next one must be known.
        usable = [each for each in kept if each.num_tokens < len(token_ids) or each.hidden is not None]
        informed = [each for each in usable if each.information_bits is not None]
        chosen = informed if needs_information else usable
        if chosen:
            return Found(chosen[-1], match.num_common, chosen[-1].place.value)
        if match.num_common < LEAST_COMMON_TOKENS:
            return Found(None, match.num_common, "different")
        if usable:
            return Found(None, match.num_common, "no_information")
        return Found(None, match.num_common, "evicted" if match.was_kept else "not_kept")

    def num_archived_held(self, checkpoint: Checkpoint) -> int:
        """Blocks of a checkpoint in the archive that are not among the free ones."""
        return self.archive_room.num_taken(checkpoint.archive_numbers)

    def open(self, checkpoint: Checkpoint) -> Held | None:
        """What a sequence takes up from ``checkpoint``, or None where the pools have no room for it."""
        self._touch(checkpoint)
        if checkpoint.held is not None:
            self.make_room(1, 0, spared=checkpoint)
            return checkpoint.held.fork(self._states) if self._states.num_free else None
        snapshot = checkpoint.snapshot
        assert snapshot is not None, "a checkpoint is on the device or on the host"
        self.make_room(1, len(snapshot.blocks))
        if not self._states.num_free or self._blocks.num_free < len(snapshot.blocks):
            return None
        return bring_back(snapshot, self._states, self._blocks)

    def keep(
        self,
        tree: Hashable,
        token_ids: Sequence[int],
        num_tokens: int,
        held: Held,
        place: Place,
        hidden: Tensor | None = None,
        information_bits: float | None = None,
        selected_from: int | None = None,
    ) -> None:
        """Keep what was remembered after the first ``num_tokens``; ``held`` is a checkpoint's and now belongs here.

        Of two that selected from different places on, the later stays.
        """
        node = self._trees.setdefault(tree, PrefixTree()).node(token_ids, num_tokens)
        if node.kept is not None and node.kept.selected_from != selected_from:
            self._withdraw(node.kept)
        known = node.kept
        if known is None:
            known = node.kept = Checkpoint(tree, node, place, 0, held, None, hidden, information_bits, selected_from)
            self._resident.append(known)
        else:
            if known.held is not None:
                held.free(self._states)
            else:
                self._host.leave(known)
                known.held = held
                self._resident.append(known)
            known.hidden = hidden if known.hidden is None else known.hidden
            known.information_bits = information_bits if known.information_bits is None else known.information_bits
        self._touch(known)

    def keep_snapshot(self, tree: Hashable, token_ids: Sequence[int], snapshot: Snapshot, place: Place) -> bool:
        """Keep a snapshot, all in this engine's memory, on the host; False where the budget has no room for it."""
        known = next((each for each in self.path(tree, token_ids) if each.num_tokens == snapshot.num_tokens), None)
        if known is not None and known.selected_from != snapshot.selected_from:
            self._drop(known)
            known = None
        if known is None:
            if not self._host.make_room(snapshot, self._protected()):
                return False
            node = self._trees.setdefault(tree, PrefixTree()).node(token_ids, snapshot.num_tokens)
            told = snapshot.hidden, snapshot.information_bits, snapshot.selected_from
            known = Checkpoint(tree, node, place, 0, None, None, *told)
            node.kept = known
            self._host.enter(known, snapshot)
        self._touch(known)
        return True

    def make_room(self, num_slots: int, num_blocks: int, spared: Checkpoint | None = None) -> None:
        """Give up checkpoints on the device, but for the ``spared`` one, until so much is free, or none is left."""
        while True:
            lacks_slots, lacks_blocks = self._states.num_free < num_slots, self._blocks.num_free < num_blocks
            if not (lacks_slots or lacks_blocks):
                return
            candidates = [each for each in self._resident if each is not spared]
            if not candidates:
                return
            self._step_down(candidates, lacks_blocks and not lacks_slots)

    def make_archive_room(self, num_blocks: int, is_promised: bool = False) -> bool:
        """Give up checkpoints that nobody holds on to until the archive has so much room; False where it has not even
        then, or where it was promised to others. A block goes with the last that refers to it; what was used longest
        ago goes first.

        A promise is kept: where names came after it, what they hold on to goes at the very last, as in ``make_room``.
        """
        archive, room = self._blocks.archive, self.archive_room
        if not is_promised and num_blocks > room.num_unpromised:
            return False
        if archive.secure(num_blocks):
            return True
        protected = self._protected()
        for victim in sorted(self.kept(), key=lambda each: each.touched):
            if id(victim) not in protected and room.has_free(victim.archive_numbers):
                self._drop(victim)
                if archive.secure(num_blocks):
                    return True
        # Where it is the disk that refuses, a name that goes would help by chance alone.
        while is_promised and num_blocks > archive.num_free:
            unused = [each for each in self.kept() if archive.num_unused(each.archive_numbers)]
            if not unused:
                return False
            self._lose(min(unused, key=lambda each: each.touched), "the attention archive was promised to others")
        return is_promised and archive.secure(num_blocks)

    # Paths with names.

    def anchor(self, key: Hashable, tree: Hashable, token_ids: Sequence[int]) -> None:
        """Hold on to the deepest checkpoint on the path of ``token_ids``; ``key`` lets go of where it was before."""
        node = self._trees.setdefault(tree, PrefixTree()).node(token_ids, len(token_ids))
        node.num_anchors += 1
        self.unanchor(key)
        self._anchors[key] = Anchor(key, tree, node)
        self.archive_room.renew()

    def unanchor(self, key: Hashable) -> None:
        """Let go of a path; nothing if ``key`` has none."""
        if (anchor := self._anchors.pop(key, None)) is not None:
            anchor.node.num_anchors -= 1
            self.archive_room.renew()
            self._prune(anchor.tree, anchor.node)

    def release(self, key: Hashable) -> None:
        """What ``key`` holds on to is on the disk too, so it may be given up here."""
        if key in self._anchors:
            self._anchors[key].is_safe = True
            self.archive_room.renew()

    def path(self, tree: Hashable, token_ids: Sequence[int]) -> list[Checkpoint]:
        """The checkpoints on the way along ``token_ids``, shallow to deep."""
        if tree not in self._trees:
            return []
        return [node.kept for node in self._trees[tree].match(token_ids).kept if node.kept is not None]

    def thin(self, tree: Hashable, token_ids: Sequence[int], is_wanted: Callable[[int], bool]) -> int:
        """Drop the checkpoints on the path after numbers of tokens that are not wanted, but for those that anchors hold
        on to. How many were dropped."""
        anchored = {
            id(kept)
            for anchor in self._anchors.values()
            if (kept := next((node.kept for node in anchor.node.upward() if node.kept is not None), None)) is not None
        }
        dropped = [
            each for each in self.path(tree, token_ids) if not is_wanted(each.num_tokens) and id(each) not in anchored
        ]
        for checkpoint in dropped:
            self._drop(checkpoint)
        return len(dropped)

    def snapshot(self, checkpoint: Checkpoint) -> Snapshot:
        """The checkpoint as host tensors, which may be read anywhere; it stays where it is."""
        snapshot = checkpoint.copied(self._states)
        self._states.settle()
        self._blocks.settle()
        return snapshot

    def admit(self, tree: Hashable, token_ids: Sequence[int], snapshots: Iterable[Snapshot]) -> int:
        """Take snapshots of prefixes of ``token_ids`` into host memory; bytes that this takes.

        Raises HostBudgetExceeded or ArchiveFull; those before the one without room stay.
        """
        before = self._host.num_bytes
        archived: dict[int, tuple[BlockContent, ArchivedBlock]] = {}
        for apart in snapshots:
            snapshot = self._archived(apart, archived)
            added = self._host.added_bytes(snapshot)
            if not self.keep_snapshot(tree, token_ids, snapshot, Place.RESTORED):
                raise HostBudgetExceeded(added, self._host.budget_bytes, self._host.num_bytes)
        return self._host.num_bytes - before

    def forget(self, tree: Hashable, token_ids: Sequence[int], num_general: int) -> int:
        """Drop every checkpoint of texts that have more than ``num_general`` tokens in common with ``token_ids``, but
        for what lies on the way to an anchor. How many were dropped."""
        top = self._trees[tree].beyond(token_ids, num_general) if tree in self._trees else None
        if top is None:
            return 0
        anchored = {id(node) for anchor in self._anchors.values() for node in anchor.node.upward()}
        dropped = [node.kept for node in top.subtree() if node.kept is not None and id(node) not in anchored]
        for checkpoint in dropped:
            self._drop(checkpoint)
        return len(dropped)

    def check(self) -> None:
        """Assert that every checkpoint stands in its tree and in one tier, and that bytes are those of the tensors."""
        kept = set()
        for tree in self._trees.values():
            tree.check()
            kept |= {id(node.kept) for node in tree.nodes() if node.kept is not None}
        assert kept == {id(each) for each in self.kept()}, "a checkpoint is in no tier or no tree"
        assert all(each.held is not None and each.snapshot is None for each in self._resident), "not on the device"
        assert all(each.held is None for each in self._host.checkpoints), "not on the host"
        self._host.check()
        held = Counter(id(anchor.node) for anchor in self._anchors.values())
        counted = {id(node): node.num_anchors for tree in self._trees.values() for node in tree.nodes()}
        assert all(counted[node] == count for node, count in held.items()), "anchors are counted wrongly"

    def _archived(self, snapshot: Snapshot, known: dict[int, tuple[BlockContent, ArchivedBlock]]) -> Snapshot:
        """The snapshot with what left its window in the archive; ``known`` are contents that are there already."""
        apart = [block for block in snapshot.archive if isinstance(block, BlockContent) and id(block) not in known]
        if apart and not self.make_archive_room(len(apart)):
            raise self._blocks.archive.full(len(apart), self.archive_room.num_unpromised)
        for block in apart:
            known[id(block)] = block, self._blocks.archive.put(block.keys, block.values)
        blocks = [known[id(block)][1] if isinstance(block, BlockContent) else block for block in snapshot.archive]
        return replace(snapshot, archive=tuple(blocks))

    # Tiers.

    def _touch(self, checkpoint: Checkpoint) -> None:
        self._now += 1
        checkpoint.touched = self._now
        self.archive_room.renew()

    def _protected(self) -> dict[int, Checkpoint]:
        """The checkpoints that anchors hold on to and that exist nowhere else, by id."""
        deepest = (
            next((node.kept for node in anchor.node.upward() if node.kept is not None), None)
            for anchor in self._anchors.values()
            if not anchor.is_safe
        )
        return {id(checkpoint): checkpoint for checkpoint in deepest if checkpoint is not None}

    def _step_down(self, candidates: list[Checkpoint], for_blocks: bool) -> None:
        """Move the one that was used longest ago from the device to the host, or drop it where the host has no room;
        one that must not be dropped only if all are such."""
        protected = self._protected()

        def order(checkpoint: Checkpoint) -> tuple[bool, int]:
            held = checkpoint.held
            # One that shares all its blocks with sequences gives none back.
            return for_blocks and held is not None and held.table.num_cached == 0, checkpoint.touched

        oldest = sorted(candidates, key=order)
        for victim in oldest:
            snapshot = victim.copied(self._states)
            if self._host.make_room(snapshot, protected):
                assert victim.held is not None
                victim.held.free(self._states)
                victim.held = None
                self._resident.remove(victim)
                self._host.enter(victim, snapshot)
                return
            if id(victim) not in protected:
                self._drop(victim)
                return
        self._lose(oldest[0], "host memory for sessions is full of unsaved ones")

    def _lose(self, checkpoint: Checkpoint, reason: str) -> None:
        """Give up what an anchor holds on to, or what stands behind such a one."""
        is_lost = id(checkpoint) in self._protected()
        self._drop(checkpoint)
        if not is_lost:
            return
        self.num_lost += 1
        logger.warning(
            "%s; the state after %d tokens was given up and will be read again", reason, checkpoint.num_tokens
        )

    def _drop(self, checkpoint: Checkpoint) -> None:
        """Give a checkpoint up for good."""
        self._withdraw(checkpoint)
        node = checkpoint.node
        node.was_kept = True
        self._prune(checkpoint.tree, node)

    def _withdraw(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint from its node."""
        if checkpoint.held is not None:
            checkpoint.held.free(self._states)
            checkpoint.held = None
            self._resident.remove(checkpoint)
        else:
            self._host.leave(checkpoint)
        checkpoint.node.kept = None
        self.archive_room.renew()

    def _prune(self, tree: Hashable, node: PrefixNode[Checkpoint]) -> None:
        self._trees[tree].prune(node)
        if not self._trees[tree].num_tokens:
            del self._trees[tree]
