"""Pools: nothing is lost, nothing is held twice, and what is refused changes nothing (law 4)."""

import pytest
import torch
from fakes_model import TINY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import RELEASED, BlockPool
from model.cache.state_pool import StatePool
from model.config import Dtype, ModelConfig
from model.errors import PoolExhausted
from model.policy import AttentionPolicy, PolicyName

CONFIG = ModelConfig.from_dict(TINY_CONFIG)
WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=64)


def test_a_slot_is_fresh_when_it_is_handed_out() -> None:
    pool = StatePool(CONFIG, 2)
    slot = pool.allocate()
    pool.ssm[:, slot], pool.conv[:, slot] = 1.0, 2.0
    other = pool.allocate()
    assert (slot, other, pool.num_free, pool.num_used) == (0, 1, 0, 2)
    pool.free(slot)
    assert pool.allocate() == slot
    assert not pool.ssm[:, slot].any()
    assert not pool.conv[:, slot].any()


def test_copy_and_zero_touch_one_slot() -> None:
    pool = StatePool(CONFIG, 3)
    first, second, third = (pool.allocate() for _ in range(3))
    pool.ssm.normal_()
    pool.conv.normal_()
    kept = pool.ssm[:, third].clone()
    pool.copy(first, second)
    assert torch.equal(pool.ssm[:, second], pool.ssm[:, first])
    assert torch.equal(pool.conv[:, second], pool.conv[:, first])
    pool.zero(first)
    assert not pool.ssm[:, first].any()
    assert pool.ssm[:, second].any()
    assert torch.equal(pool.ssm[:, third], kept)
    pool.free(first)
    with pytest.raises(AssertionError, match="free slot"):
        pool.copy(second, first)


def test_an_exhausted_state_pool_says_how_many_there_are() -> None:
    pool = StatePool(CONFIG, 1)
    pool.allocate()
    with pytest.raises(PoolExhausted) as refusal:
        pool.allocate()
    assert (refusal.value.pool, refusal.value.needed, refusal.value.free, refusal.value.total) == ("state", 1, 0, 1)
    with pytest.raises(AssertionError, match="not in use"):
        StatePool(CONFIG, 1).free(0)


@settings(max_examples=60, deadline=None)
@given(schedule=st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=40))
def test_state_slots_are_conserved_under_any_schedule(schedule: list[tuple[bool, int]]) -> None:
    pool, held = StatePool(CONFIG, 4), []
    for takes, index in schedule:
        if takes and pool.num_free:
            slot = pool.allocate()
            assert slot not in held
            held.append(slot)
        elif held:
            pool.free(held.pop(index % len(held)))
        pool.check()
        assert (pool.num_used, pool.num_free) == (len(held), 4 - len(held))


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    pool = BlockPool(CONFIG, 2, Dtype.FLOAT32)
    [block] = pool.allocate(1)
    pool.share([block])
    assert (pool.references(block), pool.num_used, pool.num_shared) == (2, 1, 1)
    pool.free([block])
    assert (pool.references(block), pool.num_free) == (1, 1)
    pool.free([block])
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="more often than it was held"):
        pool.free([block])
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.share([block])


def test_blocks_come_lowest_first_so_that_a_sequence_lies_in_a_run() -> None:
    pool = BlockPool(CONFIG, 6, Dtype.FLOAT32)
    assert pool.allocate(4) == [0, 1, 2, 3]
    pool.free([2, 0, 1])
    assert pool.allocate(4) == [0, 1, 2, 4]
    with pytest.raises(PoolExhausted) as refusal:
        pool.allocate(2)
    assert (refusal.value.pool, refusal.value.needed, refusal.value.free, refusal.value.total) == ("kv", 2, 1, 6)
    assert pool.num_free == 1


def test_a_block_is_copied_in_every_layer() -> None:
    pool = BlockPool(CONFIG, 3, Dtype.BFLOAT16)
    assert pool.keys.shape == (2, 3, 64, 1, 8)
    pool.keys.normal_()
    pool.values.normal_()
    kept = pool.keys[:, 2].clone()
    pool.copy(0, 1)
    assert torch.equal(pool.keys[:, 1], pool.keys[:, 0])
    assert torch.equal(pool.values[:, 1], pool.values[:, 0])
    assert torch.equal(pool.keys[:, 2], kept)


def test_pack_lays_sequences_one_after_another() -> None:
    blocks = [RELEASED, 7, 3]
    batch = Batch.pack(
        [
            SequenceChunk([5, 6], 127, 2, blocks, WINDOW, num_logits=2),
            SequenceChunk([8], 0, 0, [4], AttentionPolicy(), num_logits=0),
            SequenceChunk([9, 10, 11], 62, 1, [1, 0], AttentionPolicy()),
        ]
    )
    assert batch.num_tokens == 6
    assert batch.input_ids.tolist() == [5, 6, 8, 9, 10, 11]
    assert batch.query_start.tolist() == [0, 2, 3, 6]
    assert batch.state_slots.tolist() == [2, 0, 1]
    assert batch.kv_rows.tolist() == [7 * 64 + 63, 3 * 64, 4 * 64, 64 + 62, 64 + 63, 0]
    assert batch.logits_rows.tolist() == [0, 1, 5]
    assert batch.first_positions == (127, 0, 62)
    assert batch.policies == (WINDOW, AttentionPolicy(), AttentionPolicy())


@pytest.mark.parametrize(
    ("chunks", "law"),
    [
        ([], "at least one sequence"),
        ([SequenceChunk([], 0, 0, [0], WINDOW, 0)], "logits"),
        ([SequenceChunk([1], 0, 0, [0], WINDOW, 2)], "logits"),
        ([SequenceChunk([1], 0, 0, [0], WINDOW), SequenceChunk([1], 0, 0, [1], WINDOW)], "share a state slot"),
        ([SequenceChunk([1, 2], 63, 0, [0], WINDOW)], "too short"),
        ([SequenceChunk([1, 2], 63, 0, [RELEASED, 0], WINDOW)], "given back"),
    ],
)
def test_pack_asserts_its_laws(chunks: list[SequenceChunk], law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        Batch.pack(chunks)
