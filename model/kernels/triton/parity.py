"""The self-check at the start: every kernel beside its reference twin on the device itself, on a few tokens.

A compiler for a new device, or a new compiler, may be wrong where an older one was right. What differs is not used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels import REFERENCE, Kernels
from model.kernels.listed import ListedTokens
from model.kernels.triton import tables
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName

# Largest differences in units of the largest value, or of 1 where that is more. In float32 sums have another order, in
# bfloat16 weights and results are rounded at other places, and Triton's interpreter cuts off.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6}

SINKS, WINDOW = BLOCK_TOKENS, 2 * BLOCK_TOKENS
WINDOWED = AttentionPolicy(PolicyName.WINDOW, SINKS, WINDOW)
# Tokens that are there already, and tokens of the step: decodes and prompts, short, over a border, far beyond a window.
SPANS = ((0, 1), (SINKS + 3 * WINDOW + 7, 1), (0, 3), (BLOCK_TOKENS - 1, 2), (SINKS + 2 * WINDOW + 5, BLOCK_TOKENS + 3))


@dataclass(frozen=True, slots=True)
class Geometry:
    """The widths that a kernel is compiled for."""

    inner: int = 48
    num_states: int = 16
    num_taps: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 24

    @staticmethod
    def of(model: ModelConfig) -> "Geometry":
        """Those of ``model``."""
        return Geometry(
            model.inner_size,
            model.state_size,
            model.conv_width,
            model.num_heads,
            model.num_kv_heads,
            model.head_width,
        )


def disagreement(kernels: Kernels, device: str, geometry: Geometry) -> str | None:
    """Which kernel differs from its twin and by how much; None where none does. Raises what compiling raises."""
    with torch.inference_mode():
        for name, found, expected in _results(kernels, device, geometry):
            tolerance = TOLERANCES[found.dtype]
            scale = max(1.0, float(expected.abs().max()))
            difference = float((found.float() - expected.float()).abs().max()) / scale
            # Not the other way round: NaN is a difference, too.
            if not difference <= tolerance:
                return f"{name} differs by {difference:.1e} of the largest value, expected at most {tolerance:.0e}"
    return None


def _results(kernels: Kernels, device: str, geometry: Geometry) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    tile = tables.TILE_TOKENS
    for lengths in ([1, 1, 1], [tile + 1, 1, 2 * tile, 3]):
        yield from _recurrences(kernels, geometry, lengths, normal)
    for dtype in TOLERANCES:
        yield from _attention(kernels, geometry, dtype, normal)


def _recurrences(
    kernels: Kernels, geometry: Geometry, lengths: list[int], normal: Callable[..., Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    inner, num_states, num_taps = geometry.inner, geometry.num_states, geometry.num_taps
    num_tokens, num_slots = sum(lengths), len(lengths) + 1
    step = torch.tensor([0, *lengths]).cumsum(0), torch.arange(num_slots - 1, 0, -1)
    xz = normal(num_tokens, 2 * inner)
    weight, bias = normal(num_taps, inner), normal(inner)
    conv = normal(num_slots, num_taps - 1, inner)
    kind = f"{'step' if max(lengths) == 1 else 'prompt'} of {lengths} tokens"
    states = conv.clone(), conv.clone()
    u, expected = (
        each.causal_conv(xz[:, :inner], weight, bias, state, *step)
        for each, state in zip((kernels, REFERENCE), states, strict=True)
    )
    yield f"causal_conv, {kind}", u, expected
    yield f"the state of causal_conv, {kind}", *states
    steering = normal(num_tokens, 2 * num_states)
    given = (
        expected,
        normal(num_tokens, inner) - 2,
        normal(inner),
        -torch.exp(normal(num_states, inner)),
        steering[:, :num_states],
        steering[:, num_states:],
        normal(inner),
        xz[:, inner:],
    )
    ssm = normal(num_slots, num_states, inner)
    states = ssm.clone(), ssm.clone()
    y, expected = (
        each.selective_scan(*given, state, *step) for each, state in zip((kernels, REFERENCE), states, strict=True)
    )
    yield f"selective_scan, {kind}", y, expected
    yield f"the state of selective_scan, {kind}", *states


def _attention(
    kernels: Kernels, geometry: Geometry, dtype: torch.dtype, normal: Callable[..., Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    heads, groups, width = geometry.num_heads, geometry.num_kv_heads, geometry.head_width
    num_blocks = [-(-(first + count) // BLOCK_TOKENS) for first, count in SPANS]
    # From the last block of the pool to the first, so that none lies where its position would be.
    free = list(range(sum(num_blocks), 0, -1))
    block_tables = [[free.pop() for _ in range(count)][::-1] for count in num_blocks]
    keys, values = (normal(sum(num_blocks) + 1, BLOCK_TOKENS, groups, width).to(dtype) for _ in range(2))
    lengths = [count for _, count in SPANS]
    step = torch.tensor([0, *lengths]).cumsum(0), [first for first, _ in SPANS], block_tables
    wide = normal(sum(lengths), (heads + 2 * groups) * width)
    queries = wide[:, : heads * width].to(dtype).view(-1, heads, width)
    for policy in (AttentionPolicy(), WINDOWED):
        policies = [policy] * len(SPANS)
        found, expected = (each.attend(queries, keys, values, *step, policies) for each in (kernels, REFERENCE))
        yield f"attend in {dtype}, policy {policy}", found, expected
    yield from _listed(kernels, dtype, queries, keys, values, normal)
    rows = [block * BLOCK_TOKENS + offset for offset, block in enumerate(block_tables[-1][: sum(lengths)])]
    chosen = slice(0, len(rows))
    k, v = wide[chosen, heads * width :].chunk(2, dim=1)
    pools = (keys, values), (keys.clone(), values.clone())
    for each, pool in zip((kernels, REFERENCE), pools, strict=True):
        each.store_kv(k, v, *pool, torch.tensor(rows, device=keys.device))
    for name, found, expected in zip(("keys", "values"), *pools, strict=True):
        yield f"store_kv in {dtype}, {name}", found, expected


def _listed(
    kernels: Kernels,
    dtype: torch.dtype,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    normal: Callable[..., Tensor],
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Two tokens, of blocks of the pool and fetched ones in turn, other ones for each key head."""
    groups, width = keys.shape[2:]
    fetched = normal(3, 2, BLOCK_TOKENS, width).to(dtype)
    lists = [[[group % len(keys), -1 - (group + row) % 3, 1, -2 + row] for group in range(groups)] for row in range(2)]
    numbers = [np.array(each, np.int32) for each in ([0, len(queries) - 1], lists, [3, 4], [BLOCK_TOKENS - 1, 5])]
    tokens = ListedTokens(*numbers)
    found, expected = torch.zeros((2, *queries.shape), dtype=dtype, device=queries.device)
    for each, out in ((kernels, found), (REFERENCE, expected)):
        each.attend_listed(queries, keys, values, fetched, tokens, out)
    yield f"attend_listed in {dtype}", found, expected
