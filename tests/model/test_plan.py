"""The bill is right (law 9): what is planned from the configurations is what is allocated, to the byte."""

import gc
from collections.abc import Mapping

import pytest
from fakes_live import LiveBytes
from fakes_model import CHECKPOINT_KINDS, TINY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import Batch, SequenceChunk
from model.cache.block_pool import BlockPool, BlockTable
from model.cache.plan import MemoryPlan, num_resident_blocks
from model.cache.state_pool import StatePool
from model.config import Dtype, EngineConfig, ModelConfig
from model.hybrid import HybridLM
from model.kernels import REFERENCE
from model.policy import AttentionPolicy, PolicyName

WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=256)

MIDDLE = {"hidden_size": 64, "intermediate_size": 256, "mamba_d_state": 16, "mamba_dt_rank": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("kind", CHECKPOINT_KINDS)
def test_plan_equals_allocation(kind: str, dtype: Dtype, checkpoints) -> None:
    config = ModelConfig.from_pretrained(checkpoints[kind].directory)
    engine = EngineConfig(num_slots=3, max_context_tokens=1000, dtype=dtype, policy=WINDOW)
    plan = MemoryPlan.of(config, engine)
    model = HybridLM(config, REFERENCE, dtype)
    states, blocks = StatePool(config, plan.num_states), BlockPool(config, plan.num_blocks, dtype)
    held = {
        "weights": model.nbytes,
        "ssm_state": states.ssm_bytes,
        "conv_state": states.conv_bytes,
        "kv": blocks.nbytes,
    }
    assert {pool: size for pool, size in plan.pool_bytes.items() if pool != "workspace"} == held
    assert plan.total_bytes == sum(held.values()) + plan.workspace_bytes
    assert plan.bytes_per_slot == states.nbytes // plan.num_states == config.state_bytes
    assert plan.bytes_per_block == blocks.bytes_per_block == 64 * config.kv_bytes_per_token(dtype)


geometries = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([8, 24, 40]),
        "intermediate_size": st.integers(1, 50),
        "num_hidden_layers": st.integers(1, 9),
        "attn_layer_period": st.integers(3, 5),
        "attn_layer_offset": st.integers(0, 2),
        "mamba_d_state": st.integers(1, 9),
        "mamba_d_conv": st.integers(2, 5),
        "mamba_expand": st.integers(1, 3),
        "mamba_dt_rank": st.integers(1, 5),
        "mamba_conv_bias": st.booleans(),
        "mamba_proj_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_experts": st.sampled_from([1, 3]),
        "num_experts_per_tok": st.just(1),
        "expert_layer_period": st.just(2),
        "expert_layer_offset": st.integers(0, 1),
    }
)


@settings(max_examples=60, deadline=None)
@given(values=geometries, num_slots=st.integers(1, 4), num_blocks=st.integers(1, 9), dtype=st.sampled_from(Dtype))
def test_plan_equals_allocation_for_any_geometry(
    values: Mapping[str, object], num_slots: int, num_blocks: int, dtype: Dtype
) -> None:
    config = ModelConfig.from_dict({**TINY_CONFIG, **values})
    plan = MemoryPlan.of(config, EngineConfig(num_slots=num_slots, num_blocks=num_blocks, dtype=dtype))
    model = HybridLM(config, REFERENCE, dtype, device="meta")
    states = StatePool(config, plan.num_states, device="meta")
    blocks = BlockPool(config, num_blocks, dtype, device="meta")
    assert plan.weight_bytes == model.nbytes
    assert sum(parameter.numel() for parameter in model.parameters()) >= config.num_parameters()
    assert (plan.ssm_state_bytes, plan.conv_state_bytes) == (states.ssm_bytes, states.conv_bytes)
    assert (plan.kv_bytes, plan.num_blocks) == (blocks.nbytes, num_blocks)


@settings(max_examples=100, deadline=None)
@given(
    num_tokens=st.integers(1, 2000),
    chunk_blocks=st.integers(1, 5),
    policy=st.sampled_from([AttentionPolicy(), WINDOW, AttentionPolicy(PolicyName.WINDOW, 0, 64)]),
)
def test_a_sequence_never_holds_more_blocks_than_planned(
    num_tokens: int, chunk_blocks: int, policy: AttentionPolicy
) -> None:
    """Read in chunks, then decoded token by token: the pool of exactly the planned size suffices."""
    config = ModelConfig.from_dict(TINY_CONFIG)
    chunk_tokens = 64 * chunk_blocks
    pool = BlockPool(config, num_resident_blocks(policy, num_tokens, chunk_tokens), Dtype.FLOAT32, device="meta")
    table, position = BlockTable(pool), 0
    while position < num_tokens:
        table.release_hidden(policy, position)
        step = chunk_tokens if position + chunk_tokens <= num_tokens // 2 else 1
        start, position = position, min(position + step, num_tokens)
        table.prepare(start, position)


def test_resident_bytes_do_not_grow_under_window_and_grow_by_the_slope_under_full() -> None:
    config = ModelConfig.from_dict(TINY_CONFIG)

    def kv_bytes(policy: AttentionPolicy, num_tokens: int) -> int:
        return MemoryPlan.of(config, EngineConfig(num_slots=1, max_context_tokens=num_tokens, policy=policy)).kv_bytes

    assert kv_bytes(WINDOW, 2**20) == kv_bytes(WINDOW, 2**14)
    slope = (kv_bytes(AttentionPolicy(), 2**20) - kv_bytes(AttentionPolicy(), 2**19)) / 2**19
    assert slope == config.kv_bytes_per_token(Dtype.FLOAT32) == 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("change", "policy", "dtype"),
    [
        ({"num_hidden_layers": 1}, AttentionPolicy(), Dtype.FLOAT32),
        ({"num_hidden_layers": 1, "mamba_dt_rank": 60}, AttentionPolicy(), Dtype.BFLOAT16),
        ({}, AttentionPolicy(), Dtype.FLOAT32),
        ({}, AttentionPolicy(), Dtype.BFLOAT16),
        ({}, WINDOW, Dtype.BFLOAT16),
        (EXPERTS | {"num_hidden_layers": 2, "intermediate_size": 4096}, AttentionPolicy(), Dtype.FLOAT32),
        (EXPERTS | {"num_hidden_layers": 2, "intermediate_size": 4096}, AttentionPolicy(), Dtype.BFLOAT16),
        ({"num_attention_heads": 16, "head_dim": 64}, AttentionPolicy(), Dtype.BFLOAT16),
        ({"vocab_size": 500_000, "tie_word_embeddings": True}, AttentionPolicy(), Dtype.FLOAT32),
    ],
)
def test_the_workspace_is_an_upper_bound_and_no_fantasy(
    change: Mapping[str, object], policy: AttentionPolicy, dtype: Dtype
) -> None:
    config = ModelConfig.from_dict(TINY_CONFIG | MIDDLE | change)
    engine = EngineConfig(num_slots=2, max_context_tokens=4096, dtype=dtype, policy=policy, prefill_chunk_tokens=64)
    plan = MemoryPlan.of(config, engine)
    model = HybridLM(config, REFERENCE, dtype)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    states, blocks = StatePool(config, plan.num_states), BlockPool(config, plan.num_blocks, dtype)
    table, slot = BlockTable(blocks), states.allocate()
    peaks = []
    held = [*model.parameters(), states.ssm, states.conv, blocks.keys, blocks.values]
    for first, num_tokens, num_logits in (
        *((first, 64, 0) for first in range(0, 3904, 64)),
        (3904, 64, 64),
        (3968, 1, 1),
    ):
        table.release_hidden(policy, first)
        table.prepare(first, first + num_tokens)
        if first < 3904:
            continue
        batch = Batch.pack([SequenceChunk([1] * num_tokens, first, slot, table.blocks, policy, num_logits)])
        gc.collect()
        with LiveBytes(held) as counter:
            model(batch, states, blocks)
        peaks.append(counter.peak)
    assert max(peaks) <= plan.workspace_bytes
    # The plan counts with full attention, which a request may choose whatever the engine's own policy is.
    if policy.name is PolicyName.FULL:
        assert plan.workspace_bytes <= 4 * max(peaks)
