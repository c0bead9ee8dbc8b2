"""Under any schedule of forks, writes, releases, saves and restores each sequence reads back what it wrote (law 4)."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from fakes_model import TINY_CONFIG
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.held import Held, bring_back
from model.cache.snapshot import Snapshot
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.errors import PoolExhausted
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

CONFIG = ModelConfig.from_dict(TINY_CONFIG)
NUM_SLOTS, NUM_BLOCKS = 4, 9
POLICIES = [
    AttentionPolicy(),
    AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64),
    AttentionPolicy(PolicyName.WINDOW, sinks=0, window=128),
]
INDEX = st.integers(0, 99)


@dataclass
class Expected:
    """What a sequence must hold: a value at each position, one in its state, and which blocks were given back."""

    policy: AttentionPolicy
    cells: list[int]
    state: int = 0
    released_to: int = 0

    def copy(self) -> "Expected":
        return replace(self, cells=list(self.cells))

    def is_held(self, place: int) -> bool:
        return place < self.policy.sinks // BLOCK_TOKENS or place >= self.released_to

    @property
    def held_places(self) -> list[int]:
        return [place for place in range(-(-len(self.cells) // BLOCK_TOKENS)) if self.is_held(place)]


@dataclass
class Open:
    """A sequence in the pools."""

    slot: int
    table: BlockTable
    expected: Expected


class PoolSchedules(RuleBasedStateMachine):
    """Pools of a few units; every value written is new, so that a cell can be mistaken for no other."""

    @initialize()
    def pools(self) -> None:
        self.states = StatePool(CONFIG, NUM_SLOTS)
        self.blocks = BlockPool(CONFIG, NUM_BLOCKS, Dtype.FLOAT32)
        self.open_ones: list[Open] = []
        self.kept: list[Open] = []
        self.saved: list[tuple[Snapshot, Expected]] = []
        self.last_value = 0

    def new_value(self) -> int:
        self.last_value += 1
        return self.last_value

    def pick(self, index: int) -> Open:
        """An open sequence; one is opened where there is none, so that no rule is ever idle."""
        if not self.open_ones:
            if self.states.num_free == 0:
                self.take_up(0, is_last=True)
            self.open(POLICIES[index % len(POLICIES)])
        return self.open_ones[index % len(self.open_ones)]

    @rule(policy=st.sampled_from(POLICIES))
    def open(self, policy: AttentionPolicy) -> None:
        if self.states.num_free:
            self.open_ones.append(Open(self.states.allocate(), BlockTable(self.blocks), Expected(policy, [])))
        else:
            with pytest.raises(PoolExhausted):
                self.states.allocate()

    @rule(index=INDEX, num_back=st.integers(0, 90), num_tokens=st.integers(1, 200))
    def write(self, index: int, num_back: int, num_tokens: int) -> None:
        one = self.pick(index)
        cells = one.expected.cells
        start = max(len(cells) - num_back, one.expected.released_to * BLOCK_TOKENS)
        end = start + num_tokens
        missing, free, before = one.table.num_missing(start, end), self.blocks.num_free, list(one.table.blocks)
        if missing > free:
            with pytest.raises(PoolExhausted) as refusal:
                one.table.prepare(start, end)
            assert (refusal.value.needed, refusal.value.free) == (missing, free)
            assert list(one.table.blocks) == before
            return
        one.table.prepare(start, end)
        assert self.blocks.num_free == free - missing
        cells += [0] * (end - len(cells))
        for position in range(start, end):
            block, offset = one.table.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            cells[position] = self.new_value()
            self.blocks.keys[:, block, offset] = cells[position]
            self.blocks.values[:, block, offset] = -cells[position]
        one.expected.state = self.new_value()
        self.states.ssm[:, one.slot] = one.expected.state
        self.states.conv[:, one.slot] = -one.expected.state

    @rule(index=INDEX)
    def release(self, index: int) -> None:
        one = self.pick(index)
        next_position = len(one.expected.cells)
        held = len(one.expected.held_places)
        to = one.expected.policy.window_start(next_position) // BLOCK_TOKENS
        one.expected.released_to = max(one.expected.released_to, to)
        num_released = one.table.release_hidden(one.expected.policy, next_position)
        assert num_released == held - len(one.expected.held_places)

    @rule(index=INDEX)
    def fork(self, index: int) -> None:
        one = self.pick(index)
        if self.states.num_free == 0:
            return
        used, slot = self.blocks.num_used, self.states.allocate()
        self.states.copy(one.slot, slot)
        self.open_ones.append(Open(slot, one.table.fork(), one.expected.copy()))
        assert self.blocks.num_used == used

    @rule(index=INDEX)
    def close(self, index: int) -> None:
        one = self.pick(index)
        self.open_ones.remove(one)
        one.table.free()
        self.states.free(one.slot)

    @rule(index=INDEX, closes=st.booleans())
    def save(self, index: int, closes: bool) -> None:
        one = self.pick(index)
        saved = Held(one.slot, one.table).snapshot(self.states, len(one.expected.cells))
        held = len(one.expected.held_places)
        assert len(saved.blocks) == held
        assert saved.nbytes == CONFIG.state_bytes + held * self.blocks.bytes_per_block
        self.saved.append((saved, one.expected.copy()))
        if closes:
            self.open_ones.remove(one)
            one.table.free()
            self.states.free(one.slot)

    @rule(index=INDEX, keeps=st.booleans())
    def restore(self, index: int, keeps: bool) -> None:
        if not self.saved:
            self.save(index, closes=True)
        saved, expected = self.saved[index % len(self.saved)]
        counts = (self.states.num_free, self.blocks.num_free)
        if self.states.num_free == 0 or self.blocks.num_free < len(saved.blocks):
            with pytest.raises(PoolExhausted):
                bring_back(saved, self.states, self.blocks)
            assert counts == (self.states.num_free, self.blocks.num_free)
            return
        held = bring_back(saved, self.states, self.blocks)
        self.open_ones.append(Open(held.slot, held.table, expected.copy()))
        assert counts == (self.states.num_free + 1, self.blocks.num_free + len(saved.blocks))
        if not keeps:
            del self.saved[index % len(self.saved)]

    @rule(index=INDEX, ends=st.booleans())
    def keep(self, index: int, ends: bool) -> None:
        """A checkpoint: of a sequence that goes on, or of one that ends and gives it all it holds."""
        one = self.pick(index)
        if not ends and self.states.num_free == 0:
            return
        held, free = Held(one.slot, one.table), self.states.num_free
        kept = held.keep(self.states) if ends else held.fork(self.states, is_cached=True)
        assert self.states.num_free == free - (not ends)
        self.kept.append(Open(kept.slot, kept.table, one.expected.copy()))
        if ends:
            self.open_ones.remove(one)

    @rule(index=INDEX, is_last=st.booleans())
    def take_up(self, index: int, is_last: bool) -> None:
        """Go on from a checkpoint, which may be given up afterwards."""
        if not self.kept:
            self.keep(index, ends=True)
        one = self.kept[index % len(self.kept)]
        if self.states.num_free:
            forked = Held(one.slot, one.table).fork(self.states)
            self.open_ones.append(Open(forked.slot, forked.table, one.expected.copy()))
        if is_last:
            self.kept.remove(one)
            Held(one.slot, one.table).free(self.states)

    @invariant()
    def each_sequence_reads_what_it_wrote(self) -> None:
        for one in [*self.open_ones, *self.kept]:
            expected = one.expected
            assert [place for place, block in enumerate(one.table.blocks) if block != RELEASED] == expected.held_places
            assert bool((self.states.ssm[:, one.slot] == expected.state).all())
            assert bool((self.states.conv[:, one.slot] == -expected.state).all())
            for place in expected.held_places:
                cells = expected.cells[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS]
                wanted = torch.tensor(cells, dtype=torch.float32)[:, None, None]
                found = self.blocks.keys[:, one.table.blocks[place], : len(cells)]
                assert bool((found == wanted).all()), f"block {place} holds keys of somebody else"
                found = self.blocks.values[:, one.table.blocks[place], : len(cells)]
                assert bool((found == -wanted).all()), f"block {place} holds values of somebody else"

    @invariant()
    def what_is_free_and_what_is_used_is_all(self) -> None:
        used = {block for one in self.open_ones for block in one.table.blocks if block != RELEASED}
        tables = [one.table for one in [*self.open_ones, *self.kept]]
        held = Counter(block for table in tables for block in table.blocks if block != RELEASED)
        self.states.check()
        self.blocks.check(tables)
        assert (self.states.num_used, self.blocks.num_used) == (len(self.open_ones), len(used))
        assert (self.states.num_cached, self.blocks.num_cached) == (len(self.kept), len(held) - len(used))
        assert self.states.num_free + self.states.num_used + self.states.num_cached == NUM_SLOTS
        assert self.blocks.num_free + self.blocks.num_used + self.blocks.num_cached == NUM_BLOCKS
        assert self.blocks.num_shared == sum(count > 1 for count in held.values())
        for table in tables:
            own = [block for block in table.blocks if block != RELEASED]
            assert (table.num_held, table.nbytes) == (len(own), len(own) * self.blocks.bytes_per_block)
            assert table.num_exclusive == sum(held[block] == 1 for block in own)


TestPoolSchedules = PoolSchedules.TestCase
TestPoolSchedules.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_forked_block_is_copied_by_whoever_writes_first_and_by_nobody_else() -> None:
    blocks = BlockPool(CONFIG, 4, Dtype.FLOAT32)
    table = BlockTable(blocks)
    table.prepare(0, 100)
    blocks.keys[:, table.blocks[1]] = 1.0
    fork = table.fork()
    assert (fork.blocks, blocks.num_shared, table.num_exclusive) == (table.blocks, 2, 0)
    assert (table.num_missing(100, 101), fork.num_missing(100, 101)) == (1, 1)
    table.prepare(100, 101)
    assert (list(table.blocks), list(fork.blocks), blocks.num_shared) == ([0, 2], [0, 1], 1)
    assert bool((blocks.keys[:, 2] == 1.0).all())
    assert fork.num_missing(100, 101) == 0
    fork.prepare(100, 101)
    assert (list(fork.blocks), fork.num_exclusive) == ([0, 1], 1)


def test_what_was_given_back_cannot_be_written_to() -> None:
    table = BlockTable(BlockPool(CONFIG, 6, Dtype.FLOAT32))
    table.prepare(0, 300)
    assert table.release_hidden(AttentionPolicy(PolicyName.WINDOW, sinks=0, window=64), 300) == 3
    with pytest.raises(AssertionError, match="given back"):
        table.prepare(191, 192)
