"""Which keys a token sees, against a dense mask in plain torch; and what the pool may forget."""

import pytest
import torch
from fakes_model import TINY_CONFIG, Reader, load, random_ids, relative_difference
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache.block_pool import RELEASED, BlockPool, BlockTable
from model.config import Dtype, ModelConfig
from model.kernels import Kernels
from model.policy import AttentionPolicy, PolicyName

WINDOW = AttentionPolicy(PolicyName.WINDOW, sinks=64, window=128)
policies = st.one_of(
    st.just(AttentionPolicy()),
    st.builds(
        AttentionPolicy,
        st.just(PolicyName.WINDOW),
        st.sampled_from([0, 64, 192]),
        st.sampled_from([64, 128, 320]),
    ),
)


def dense_mask(num_tokens: int, policy: AttentionPolicy) -> Tensor:
    """[query, key]: the rule of the contract, position by position."""
    position = torch.arange(num_tokens)
    query, key = position[:, None], position[None, :]
    seen = key <= query
    if policy.name is PolicyName.WINDOW:
        start = torch.floor((query - policy.window + 1) / 64) * 64
        seen &= (key < policy.sinks) | (key >= start)
    return seen


def dense_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention in float64 with one row of the mask per query: q [T, H, E], k and v [keys, G, E]."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1).double(), v.repeat_interleave(repeats, 1).double()
    scores = torch.einsum("qhe,khe->hqk", q.double(), k) / q.shape[2] ** 0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, v)


@settings(max_examples=60, deadline=None)
@given(
    policy=policies,
    start=st.integers(0, 600),
    num_tokens=st.one_of(st.just(1), st.integers(1, 300)),
    heads=st.sampled_from([(1, 1), (2, 4), (1, 4), (4, 4)]),
    scattered=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(policy=AttentionPolicy(), start=0, num_tokens=2, heads=(1, 1), scattered=False, seed=0)
@example(policy=WINDOW, start=254, num_tokens=3, heads=(2, 4), scattered=True, seed=0)
def test_attend_equals_a_dense_mask(
    kernels: Kernels,
    policy: AttentionPolicy,
    start: int,
    num_tokens: int,
    heads: tuple[int, int],
    scattered: bool,
    seed: int,
) -> None:
    num_groups, num_heads = heads
    length, generator = start + num_tokens, torch.Generator().manual_seed(seed)
    num_blocks = -(-length // 64)
    q = torch.randn(num_tokens, num_heads, 8, generator=generator)
    k, v = torch.randn(2, num_blocks * 64, num_groups, 8, generator=generator)
    order = torch.randperm(num_blocks + 2, generator=generator) if scattered else torch.arange(num_blocks + 2)
    table = order[:num_blocks].tolist()
    # What no query of the chunk sees was given back, and must not be read: it holds NaN.
    seen = dense_mask(length, policy)[start:]
    keys = torch.full((num_blocks + 2, 64, num_groups, 8), float("nan"))
    values = keys.clone()
    for logical, block in enumerate(table):
        if seen[:, logical * 64 : (logical + 1) * 64].any():
            keys[block], values[block] = (x[logical * 64 : (logical + 1) * 64] for x in (k, v))
        else:
            table[logical] = RELEASED
    found = kernels.attend(q, keys, values, torch.tensor([0, num_tokens]), [start], [table], [policy])
    expected = dense_attention(q, k[:length], v[:length], seen)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5


def test_the_mask_is_the_policy_of_the_contract() -> None:
    seen = dense_mask(300, WINDOW)
    assert torch.equal(seen, torch.tensor([[WINDOW.sees(q, k) for k in range(300)] for q in range(300)]))
    # Position 255 sees the sinks and its 128 positions; 256 still sees from the block border at 128 on.
    assert seen[255].nonzero().flatten().tolist() == [*range(64), *range(128, 256)]
    assert seen[256].nonzero().flatten().tolist() == [*range(64), *range(128, 257)]


def test_a_row_that_sees_nothing_in_the_first_tile_is_no_nan(kernels: Kernels) -> None:
    policy = AttentionPolicy(PolicyName.WINDOW, sinks=0, window=64)
    # 64 heads make a tile of scores one or two blocks wide, so late rows start on blocks they do not see.
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(400, 64, 4, generator=generator)
    k, v = torch.randn(2, 448, 1, 4, generator=generator)
    pool = (k.view(7, 64, 1, 4), v.view(7, 64, 1, 4))
    found = kernels.attend(q, *pool, torch.tensor([0, 400]), [0], [list(range(7))], [policy])
    expected = dense_attention(q, k[:400], v[:400], dense_mask(400, policy))
    assert float((found - expected).abs().max()) <= 1e-5


def test_scores_of_long_ranges_are_joined_across_tiles(kernels: Kernels) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 4, generator=generator) * 3
    k, v = torch.randn(2, 9000, 1, 4, generator=generator)
    pool = [torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 24)).view(141, 64, 1, 4) for x in (k, v)]
    found = kernels.attend(q, *pool, torch.tensor([0, 2]), [8998], [list(range(141))], [AttentionPolicy()])
    expected = dense_attention(q, k, v, dense_mask(9000, AttentionPolicy())[-2:])
    assert float((found - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    ("splits", "num_blocks"), [((), 8), ((100, 200, 300, 400), 6), ((1, 2, 3, 127, 255, 256, 320, 383, 400), 5)]
)
def test_a_model_under_window_equals_a_model_with_a_dense_mask(
    splits: tuple[int, ...], num_blocks: int, checkpoints, kernels: Kernels
) -> None:
    checkpoint, ids = checkpoints["dense"], random_ids(500, seed=9)
    mask = torch.where(dense_mask(500, WINDOW), 0.0, float("-inf"))[None, None]
    checkpoint.reference.set_attn_implementation("eager")
    with torch.no_grad():
        masks = {"full_attention": mask, "linear_attention": None}
        expected = checkpoint.reference(torch.tensor([ids]), attention_mask=masks, use_cache=False).logits[0]
        full = checkpoint.reference(torch.tensor([ids]), use_cache=False).logits[0]
    assert relative_difference(full[-1], expected[-1]) > 0.01

    # Split, the sequence does not fit the pool unless hidden blocks are given back and used again.
    reader = Reader(load(checkpoint.directory, kernels=kernels), num_blocks=num_blocks)
    sequence = reader.open(WINDOW)
    reader.blocks.keys.fill_(float("nan"))
    reader.blocks.values.fill_(float("nan"))
    found = sequence.read(ids, splits)
    assert relative_difference(found, expected) <= 1e-4


def test_released_blocks_are_those_no_later_token_sees() -> None:
    config = ModelConfig.from_dict(TINY_CONFIG)
    pool = BlockPool(config, 12, Dtype.FLOAT32)
    table = BlockTable(pool)
    table.prepare(0, 640)
    assert table.release_hidden(AttentionPolicy(), 640) == 0
    # Position 640 sees from 640 - 128 + 1 = 513, whose block begins at 512: blocks 1 to 7 go, 0 is the sinks'.
    assert table.release_hidden(WINDOW, 640) == 7
    assert [block == RELEASED for block in table.blocks] == [False, *[True] * 7, False, False]
    assert (table.num_held, pool.num_free, table.nbytes) == (3, 9, 3 * pool.bytes_per_block)
    assert table.release_hidden(WINDOW, 640) == 0
    pool.check([table])
    table.free()
    assert (pool.num_free, list(table.blocks)) == (12, [])
