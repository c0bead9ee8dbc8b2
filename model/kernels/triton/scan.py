"""The selective scan over a ragged step, with initial and final state, and of one token each; importing this needs
triton.

Of Mamba-1 (arXiv 2312.00752, section 3.3), per sequence, channel i and state n:
    h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t        y_t = (C_t h_t + D u_t) silu(z_t)
A sequence is cut into tiles from its first token of the step on, and all tiles run at once, in three
passes: every tile but the last of a sequence alone from a zero state, which gives the state it leaves and the sum of
its time steps; the short recurrence over tiles, which gives the states they begin with; every tile again from that
state, for y, the last one also for the final state. What fits into one tile needs the third pass alone, which adds up
token by token as a step of one token does.

A program is one warp with BLOCK channels by all states in float32, so that a sum over states waits for no other warp;
wider ones leave a thread with more states than it has registers for. Loads of UNROLLED tokens are in flight together.
Tokens past the end have a time step of zero: decay 1, inflow 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.convolution import silu
from model.kernels.triton.tables import Tables

BLOCK, WARPS, UNROLLED = 32, 1, 4
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _softplus(x: tl.tensor) -> tl.tensor:
    """log(1 + exp(x)), exact where exp(x) is small; x itself from 20 on, as torch has it."""
    e = tl.exp(tl.minimum(x, 20.0))
    w = 1.0 + e
    # log(w) e / (w - 1) makes good for what was rounded off in w (Higham 2002, section 1.14.1).
    log = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.where(x > 20.0, x, log)


@triton.jit
def _channels(
    base: tl.tensor, row: tl.tensor, end: tl.tensor, stride: tl.tensor, lanes: tl.tensor, width: tl.tensor,
    UNROLLED: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """`lanes` of the rows from `row` on, as a tuple of vectors; rows from `end` on are zero."""
    rows: tl.tuple = ()
    for k in tl.static_range(UNROLLED):
        mask = lanes < tl.where(row + k < end, width, 0)
        rows += (tl.load(base + (row + k).to(tl.int64) * stride + lanes, mask=mask, other=0.0),)
    return rows


@triton.jit
def _ends(
    u: tl.tensor, dt: tl.tensor, dt_bias: tl.tensor, a: tl.tensor, b: tl.tensor, ends: tl.tensor, totals: tl.tensor,
    bounds: tl.tensor, tile_sequence: tl.tensor, tile_row: tl.tensor,
    u_stride: tl.tensor, dt_stride: tl.tensor, b_stride: tl.tensor, inner: tl.tensor, num_states: tl.tensor,
    TILE: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """A tile alone from a zero state: the state it leaves, and the sum of its time steps. None if it is the last."""
    tile = tl.program_id(1)
    row, end = tl.load(tile_row + tile), tl.load(bounds + tl.load(tile_sequence + tile) + 1)
    if row + TILE < end:
        i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
        at = n[:, None] * inner + i[None, :]
        inside = (n < num_states)[:, None] & (i < inner)[None, :]
        A = tl.load(a + at, mask=inside, other=0.0) * LOG2_E
        shift = tl.load(dt_bias + i, mask=i < inner, other=0.0)
        h = tl.zeros([STATES, BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for step in range(TILE // UNROLLED):
            t = row + step * UNROLLED
            us = _channels(u, t, end, u_stride, i, inner, UNROLLED)
            dts = _channels(dt, t, end, dt_stride, i, inner, UNROLLED)
            bs = _channels(b, t, end, b_stride, n, num_states, UNROLLED)
            for k in tl.static_range(UNROLLED):
                delta = _softplus(dts[k] + shift)
                h = tl.fma(tl.exp2(delta[None, :] * A), h, (delta * us[k])[None, :] * bs[k][:, None])
                total += delta
        place = tile.to(tl.int64) * inner
        tl.store(totals + place + i, total, mask=i < inner)
        tl.store(ends + place * num_states + at, h, mask=inside)


@triton.jit
def _begins(
    a: tl.tensor, state: tl.tensor, ends: tl.tensor, totals: tl.tensor, slots: tl.tensor, first_tile: tl.tensor,
    inner: tl.tensor, num_states: tl.tensor, BLOCK: tl.constexpr, STATES: tl.constexpr,
) -> None:  # fmt: skip
    """The recurrence over the tiles of a sequence: the state that each begins with, in place of the one it leaves."""
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    sequence = tl.program_id(1)
    slot = tl.load(slots + sequence).to(tl.int64)
    first, last = tl.load(first_tile + sequence), tl.load(first_tile + sequence + 1) - 1
    if first < last:
        at = n[:, None] * inner + i[None, :]
        inside = (n < num_states)[:, None] & (i < inner)[None, :]
        A = tl.load(a + at, mask=inside, other=0.0) * LOG2_E
        held = (n < tl.where(slot >= 0, num_states, 0))[:, None] & inside
        h = tl.load(state + slot * inner * num_states + at, mask=held, other=0.0)
        for step in range(last - first):
            place = (first + step).to(tl.int64) * inner
            total = tl.load(totals + place + i, mask=i < inner, other=0.0)
            end = tl.load(ends + place * num_states + at, mask=inside, other=0.0)
            tl.store(ends + place * num_states + at, h, mask=inside)
            h = tl.exp2(total[None, :] * A) * h + end
        tl.store(ends + last.to(tl.int64) * inner * num_states + at, h, mask=inside)


@triton.jit
def _outputs(
    u: tl.tensor, dt: tl.tensor, dt_bias: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor,
    z: tl.tensor, state: tl.tensor, begins: tl.tensor, y: tl.tensor, bounds: tl.tensor, slots: tl.tensor,
    tile_sequence: tl.tensor, tile_row: tl.tensor, u_stride: tl.tensor, dt_stride: tl.tensor, b_stride: tl.tensor,
    c_stride: tl.tensor, z_stride: tl.tensor, inner: tl.tensor, num_states: tl.tensor,
    TILE: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr, GATED: tl.constexpr,
) -> None:  # fmt: skip
    """y of a tile, from the state it begins with; the last tile of a sequence leaves its state in the slot."""
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    tile = tl.program_id(1)
    sequence, row = tl.load(tile_sequence + tile), tl.load(tile_row + tile)
    start, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    slot = tl.load(slots + sequence).to(tl.int64)
    at = n[:, None] * inner + i[None, :]
    inside = (n < num_states)[:, None] & (i < inner)[None, :]
    A = tl.load(a + at, mask=inside, other=0.0) * LOG2_E
    shift = tl.load(dt_bias + i, mask=i < inner, other=0.0)
    skip = tl.load(d + i, mask=i < inner, other=0.0)
    place = state + slot * inner * num_states + at
    held = (n < tl.where(slot >= 0, num_states, 0))[:, None] & inside
    if end - start <= TILE:
        h = tl.load(place, mask=held, other=0.0)
    else:
        h = tl.load(begins + tile.to(tl.int64) * inner * num_states + at, mask=inside, other=0.0)
    for step in range(tl.cdiv(tl.minimum(TILE, end - row), UNROLLED)):
        t = row + step * UNROLLED
        us = _channels(u, t, end, u_stride, i, inner, UNROLLED)
        dts = _channels(dt, t, end, dt_stride, i, inner, UNROLLED)
        bs = _channels(b, t, end, b_stride, n, num_states, UNROLLED)
        cs = _channels(c, t, end, c_stride, n, num_states, UNROLLED)
        if GATED:
            zs = _channels(z, t, end, z_stride, i, inner, UNROLLED)
        for k in tl.static_range(UNROLLED):
            delta = tl.where(t + k < end, _softplus(dts[k] + shift), 0.0)
            h = tl.fma(tl.exp2(delta[None, :] * A), h, (delta * us[k])[None, :] * bs[k][:, None])
            out = tl.sum(h * cs[k][:, None], axis=0) + skip * us[k]
            if GATED:
                out *= silu(zs[k])
            tl.store(y + (t + k).to(tl.int64) * inner + i, out, mask=i < tl.where(t + k < end, inner, 0))
    if row + TILE >= end:
        tl.store(place, h, mask=held)


@triton.jit
def _step(
    u: tl.tensor, dt: tl.tensor, dt_bias: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor,
    z: tl.tensor, state: tl.tensor, y: tl.tensor, bounds: tl.tensor, slots: tl.tensor,
    u_stride: tl.tensor, dt_stride: tl.tensor, b_stride: tl.tensor, c_stride: tl.tensor, z_stride: tl.tensor,
    inner: tl.tensor, num_states: tl.tensor, BLOCK: tl.constexpr, STATES: tl.constexpr, GATED: tl.constexpr,
) -> None:  # fmt: skip
    """One token of a sequence, or none, as `_outputs` has it."""
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    sequence = tl.program_id(1)
    slot = tl.load(slots + sequence).to(tl.int64)
    row = tl.load(bounds + sequence).to(tl.int64)
    if row < tl.load(bounds + sequence + 1):
        lanes, rows = i < inner, n < num_states
        at = n[:, None] * inner + i[None, :]
        inside = rows[:, None] & lanes[None, :]
        place = state + slot * inner * num_states + at
        held = (n < tl.where(slot >= 0, num_states, 0))[:, None] & inside
        A = tl.load(a + at, mask=inside, other=0.0) * LOG2_E
        x = tl.load(u + row * u_stride + i, mask=lanes, other=0.0)
        delta = _softplus(
            tl.load(dt + row * dt_stride + i, mask=lanes, other=0.0) + tl.load(dt_bias + i, mask=lanes, other=0.0)
        )
        inflow = tl.load(b + row * b_stride + n, mask=rows, other=0.0)
        h = tl.load(place, mask=held, other=0.0)
        h = tl.fma(tl.exp2(delta[None, :] * A), h, (delta * x)[None, :] * inflow[:, None])
        tl.store(place, h, mask=held)
        reads = tl.load(c + row * c_stride + n, mask=rows, other=0.0)
        out = tl.sum(h * reads[:, None], axis=0) + tl.load(d + i, mask=lanes, other=0.0) * x
        if GATED:
            out *= silu(tl.load(z + row * z_stride + i, mask=lanes, other=0.0))
        tl.store(y + row * inner + i, out, mask=lanes)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor | None,
    state: Tensor,
    tables: Tables,
) -> Tensor:
    """See :func:`model.kernels.reference.selective_scan`; ``tables`` are those of the step's recurrences."""
    num_tokens, inner = u.shape
    num_states = a.shape[0]
    y = torch.empty((num_tokens, inner), dtype=torch.float32, device=u.device)
    parts, num_tiles, longest = tables.parts, tables.sizes["num_tiles"], tables.sizes["longest"]
    bounds, slots = parts["bounds"], parts["slots"]
    # Contracted by the compiler, a step and a tile of one token might be rounded at different places.
    given = {
        "BLOCK": BLOCK,
        "STATES": triton.next_power_of_2(num_states),
        "num_warps": WARPS,
        "enable_fp_fusion": False,
    }
    num_blocks = triton.cdiv(inner, BLOCK)
    strides = u.stride(0), dt.stride(0), b.stride(0)
    read_strides = c.stride(0), 0 if z is None else z.stride(0)
    gate, is_gated = u if z is None else z, z is not None
    if longest <= 1:
        _step[num_blocks, tables.sizes["num_sequences"]](
            u, dt, dt_bias, a, b, c, d, gate, state, y, bounds, slots, *strides, *read_strides, inner, num_states,
            GATED=is_gated, **given,
        )  # fmt: skip
        return y
    tile_tokens = tables.sizes["tile_tokens"]
    tiles = parts["tile_sequence"], parts["tile_row"]
    begins = y
    if longest > tile_tokens:
        begins = torch.empty((num_tiles, num_states, inner), dtype=torch.float32, device=u.device)
        totals = torch.empty((num_tiles, inner), dtype=torch.float32, device=u.device)
        _ends[num_blocks, num_tiles](
            u, dt, dt_bias, a, b, begins, totals, bounds, *tiles, *strides, inner, num_states,
            TILE=tile_tokens, UNROLLED=UNROLLED, **given,
        )  # fmt: skip
        _begins[num_blocks, tables.sizes["num_sequences"]](
            a, state, begins, totals, slots, parts["first_tile"], inner, num_states, **given
        )
    _outputs[num_blocks, num_tiles](
        u, dt, dt_bias, a, b, c, d, gate, state, begins, y, bounds, slots, *tiles, *strides, *read_strides,
        inner, num_states, TILE=tile_tokens, UNROLLED=UNROLLED, GATED=is_gated, **given,
    )  # fmt: skip
    return y
