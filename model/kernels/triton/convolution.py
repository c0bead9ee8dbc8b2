"""The causal convolution over a ragged step, and of one token each; importing this needs triton.

Of a prompt the outputs come first, from the old state, and then the new state: in one launch a program could read what
another has already replaced.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.tables import Tables

ROWS, BLOCK, WARPS = 8, 128, 4
STEP_BLOCK, STEP_WARPS = 128, 1


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """x / (1 + exp(-x)), without the exponential of a large number."""
    small = tl.exp(-tl.abs(x))
    return x * (tl.where(x >= 0, 1.0, small) / (1.0 + small))


@triton.jit
def _outputs(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, state: tl.tensor, y: tl.tensor,
    bounds: tl.tensor, slots: tl.tensor, tile_sequence: tl.tensor, tile_row: tl.tensor,
    x_stride: tl.tensor, inner: tl.tensor,
    TAPS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of a sequence by a block of channels: each token from the inputs before it, which may be in the state."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lanes = i < inner
    tile = tl.program_id(1)
    sequence = tl.load(tile_sequence + tile)
    slot = tl.load(slots + sequence).to(tl.int64)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    first = tl.load(tile_row + tile)
    old = tl.where(slot >= 0, start, -TAPS)  # inputs before this row are in the state, if there is one
    state += slot * (TAPS - 1) * inner
    for step in range(tl.cdiv(tl.minimum(TILE, end - first), ROWS)):
        t = first + step * ROWS + tl.arange(0, ROWS)
        out = tl.zeros([ROWS, BLOCK], tl.float32)
        for tap in tl.static_range(TAPS):
            source = t - (TAPS - 1) + tap
            inside = (source >= start) & (source < end)
            own = x + source.to(tl.int64)[:, None] * x_stride + i[None, :]
            before = state + (source - start + (TAPS - 1))[:, None] * inner + i[None, :]
            value = tl.load(own, mask=inside[:, None] & lanes[None, :], other=0.0)
            value += tl.load(before, mask=(source < old)[:, None] & lanes[None, :], other=0.0)
            out += value * tl.load(weight + tap * inner + i, mask=lanes, other=0.0)[None, :]
        if BIASED:
            out += tl.load(bias + i, mask=lanes, other=0.0)[None, :]
        place = y + t.to(tl.int64)[:, None] * inner + i[None, :]
        tl.store(place, silu(out), mask=(t < end)[:, None] & lanes[None, :])


@triton.jit
def _tails(
    x: tl.tensor, state: tl.tensor, bounds: tl.tensor, slots: tl.tensor, x_stride: tl.tensor, inner: tl.tensor,
    TAPS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The last inputs of each sequence into its slot; of a short one some are those that were there."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sequence = tl.program_id(1)
    slot = tl.load(slots + sequence).to(tl.int64)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    state += slot * (TAPS - 1) * inner + i
    width = tl.where(slot >= 0, inner, 0)
    kept: tl.tuple = ()
    for tap in tl.static_range(TAPS - 1):
        source = end - (TAPS - 1) + tap
        new, old = tl.where(source >= start, width, 0), tl.where(source < start, width, 0)
        value = tl.load(x + source.to(tl.int64) * x_stride + i, mask=i < new, other=0.0)
        value += tl.load(state + (source - start + (TAPS - 1)) * inner, mask=i < old, other=0.0)
        kept += (value,)
    tl.debug_barrier()  # all is read before any of it is replaced
    for tap in tl.static_range(TAPS - 1):
        tl.store(state + tap * inner, kept[tap], mask=i < width)


@triton.jit
def _step(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, state: tl.tensor, y: tl.tensor,
    bounds: tl.tensor, slots: tl.tensor, x_stride: tl.tensor, inner: tl.tensor,
    TAPS: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr,
) -> None:  # fmt: skip
    """One token of a sequence, or none: output and state at once."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sequence = tl.program_id(1)
    slot = tl.load(slots + sequence).to(tl.int64)
    row = tl.load(bounds + sequence)
    width = tl.where(row < tl.load(bounds + sequence + 1), inner, 0)
    lanes, held = i < width, i < tl.where(slot >= 0, width, 0)
    state += slot * (TAPS - 1) * inner + i
    out = tl.zeros([BLOCK], tl.float32)
    kept: tl.tuple = ()
    for tap in tl.static_range(TAPS):
        if tap < TAPS - 1:
            value = tl.load(state + tap * inner, mask=held, other=0.0)
        else:
            value = tl.load(x + row.to(tl.int64) * x_stride + i, mask=lanes, other=0.0)
        out += value * tl.load(weight + tap * inner + i, mask=lanes, other=0.0)
        kept += (value,)
    if BIASED:
        out += tl.load(bias + i, mask=lanes, other=0.0)
    tl.store(y + row.to(tl.int64) * inner + i, silu(out), mask=lanes)
    tl.debug_barrier()
    for tap in tl.static_range(TAPS - 1):
        tl.store(state + tap * inner, kept[tap + 1], mask=held)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, tables: Tables) -> Tensor:
    """See :func:`model.kernels.reference.causal_conv`; ``tables`` are those of the step's recurrences."""
    num_taps, inner = weight.shape
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    parts, num_sequences = tables.parts, tables.sizes["num_sequences"]
    # Contracted by the compiler, a step and a tile of one token might be rounded at different places.
    given = {"TAPS": num_taps, "BIASED": bias is not None, "enable_fp_fusion": False}
    # An address is asked for, whether it is used or not.
    shift = weight if bias is None else bias
    bounds, slots = parts["bounds"], parts["slots"]
    if tables.sizes["longest"] <= 1:
        grid = triton.cdiv(inner, STEP_BLOCK), num_sequences
        _step[grid](
            x, weight, shift, state, y, bounds, slots, x.stride(0), inner,
            BLOCK=STEP_BLOCK, num_warps=STEP_WARPS, **given,
        )  # fmt: skip
        return y
    grid = triton.cdiv(inner, BLOCK), tables.sizes["num_tiles"]
    _outputs[grid](
        x, weight, shift, state, y, bounds, slots, parts["tile_sequence"], parts["tile_row"], x.stride(0), inner,
        TILE=tables.sizes["tile_tokens"], ROWS=ROWS, BLOCK=BLOCK, num_warps=WARPS, **given,
    )  # fmt: skip
    _tails[grid[0], num_sequences](
        x, state, bounds, slots, x.stride(0), inner, TAPS=num_taps, BLOCK=BLOCK, num_warps=WARPS
    )
    return y
