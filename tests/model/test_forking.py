"""Sequences that are read, forked, hidden, saved and restored, against a plain record of what each should remember."""

from dataclasses import dataclass, field

import torch
from fakes_model import TINY_CONFIG
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.cache.saved import SavedSequence
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.errors import PoolExhausted
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

CONFIG = ModelConfig.from_dict(TINY_CONFIG)
NUM_SLOTS, NUM_BLOCKS = 4, 14
POLICIES = st.sampled_from([AttentionPolicy(), AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)])


@dataclass(eq=False)
class Remembered:
    """What one sequence holds, and what it should read there: the mark written last at each position."""

    policy: AttentionPolicy
    slot: int = -1
    table: BlockTable | None = None
    saved: SavedSequence | None = None
    marks: list[float] = field(default_factory=list)
    state: float = 0.0


class Memory(RuleBasedStateMachine):
    """Any order of reading, forking, hiding, saving, restoring and closing."""

    def __init__(self) -> None:
        super().__init__()
        self.states = StatePool(CONFIG, NUM_SLOTS)
        self.blocks = BlockPool(CONFIG, NUM_BLOCKS, Dtype.FLOAT32)
        self.sequences: list[Remembered] = []
        self.mark = 0.0

    def pick(self, number: int, saved: bool = False) -> Remembered | None:
        able = [each for each in self.sequences if (each.saved is not None) == saved]
        return able[number % len(able)] if able else None

    @rule(policy=POLICIES)
    def open(self, policy: AttentionPolicy) -> None:
        if self.states.num_free:
            self.sequences.append(Remembered(policy, self.states.allocate(), BlockTable(self.blocks)))

    @rule(number=st.integers(0, 9), num_tokens=st.integers(1, 150))
    def read(self, number: int, num_tokens: int) -> None:
        sequence = self.pick(number)
        if sequence is None or sequence.table is None:
            return
        table, start = sequence.table, len(sequence.marks)
        missing, before = table.num_missing(start, start + num_tokens), table.blocks[:]
        free = self.blocks.num_free
        try:
            table.prepare(start, start + num_tokens)
        except PoolExhausted as refused:
            assert missing > free and table.blocks == before and self.blocks.num_free == free
            assert (refused.needed, refused.free) == (missing, free)
            return
        assert self.blocks.num_free == free - missing and table.num_missing(start, start + num_tokens) == 0
        for position in range(start, start + num_tokens):
            self.mark += 1.0
            sequence.marks.append(self.mark)
            block, row = table.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
            self.blocks.keys[:, block, row] = self.mark
            self.blocks.values[:, block, row] = -self.mark
        sequence.state = self.mark
        self.states.ssm[:, sequence.slot] = self.mark
        self.states.conv[:, sequence.slot] = -self.mark
        table.release_hidden(sequence.policy, len(sequence.marks))

    @rule(number=st.integers(0, 9))
    def fork(self, number: int) -> None:
        sequence = self.pick(number)
        if sequence is None or sequence.table is None or not self.states.num_free:
            return
        slot = self.states.allocate()
        self.states.copy(sequence.slot, slot)
        self.sequences.append(
            Remembered(sequence.policy, slot, sequence.table.fork(), marks=list(sequence.marks), state=sequence.state)
        )

    @rule(number=st.integers(0, 9))
    def save(self, number: int) -> None:
        sequence = self.pick(number)
        if sequence is None or sequence.table is None:
            return
        sequence.saved = SavedSequence.of(self.states, sequence.slot, sequence.table)
        held = sequence.table.num_held
        assert sequence.saved.num_blocks == held
        per_slot = CONFIG.state_bytes
        assert sequence.saved.nbytes == per_slot + held * self.blocks.bytes_per_block
        sequence.table.free()
        self.states.free(sequence.slot)
        sequence.table = None

    @rule(number=st.integers(0, 9))
    @precondition(lambda self: any(each.saved for each in self.sequences))
    def restore(self, number: int) -> None:
        sequence = self.pick(number, saved=True)
        assert sequence is not None and sequence.saved is not None
        free = self.states.num_free, self.blocks.num_free
        try:
            sequence.slot, sequence.table = sequence.saved.restore(self.states, self.blocks)
        except PoolExhausted:
            assert (self.states.num_free, self.blocks.num_free) == free, "a refusal takes nothing"
            assert free[0] == 0 or free[1] < sequence.saved.num_blocks
            return
        sequence.saved = None

    @rule(number=st.integers(0, 9), is_saved=st.booleans())
    def close(self, number: int, is_saved: bool) -> None:
        sequence = self.pick(number, is_saved)
        if sequence is None:
            return
        if sequence.table is not None:
            sequence.table.free()
            self.states.free(sequence.slot)
        self.sequences.remove(sequence)

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        tables = [each.table for each in self.sequences if each.table is not None]
        self.states.check()
        self.blocks.check(tables)
        assert self.states.num_used == len(tables)
        assert tables or self.blocks.num_used == 0
        for sequence in self.sequences:
            if sequence.table is None:
                continue
            assert sequence.table.num_held == sum(block != RELEASED for block in sequence.table.blocks)
            assert (self.states.ssm[:, sequence.slot] == sequence.state).all()
            assert (self.states.conv[:, sequence.slot] == -sequence.state).all()
            for place, block in enumerate(sequence.table.blocks):
                if block == RELEASED:
                    continue
                marks = torch.tensor(sequence.marks[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS])
                found = self.blocks.keys[:, block, : len(marks)]
                assert torch.equal(found, marks[None, :, None, None].expand_as(found)), "another wrote here"
                assert torch.equal(self.blocks.values[:, block, : len(marks)], -found)

    def teardown(self) -> None:
        while self.sequences:
            self.close(0, self.sequences[0].saved is not None)
        self.everything_is_where_it_should_be()
        assert (self.states.num_free, self.blocks.num_free) == (NUM_SLOTS, NUM_BLOCKS)


TestMemory = Memory.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_exclusive_blocks_are_those_a_fork_does_not_share() -> None:
    pool = BlockPool(CONFIG, 6, Dtype.FLOAT32)
    table = BlockTable(pool)
    table.prepare(0, 130)
    fork = table.fork()
    assert (table.num_exclusive, fork.num_exclusive, pool.num_shared) == (0, 0, 3)
    fork.prepare(130, 200)
    assert (table.num_exclusive, fork.num_exclusive, pool.num_shared, pool.num_used) == (1, 2, 2, 5)
    assert fork.blocks[:2] == table.blocks[:2] and fork.blocks[2] != table.blocks[2]
