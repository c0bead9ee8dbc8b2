"""The selective scan over packed rows on a GPU, forward and backward, in Triton; importing this needs triton.

The recurrence of Mamba-1 (Gu & Dao 2023, arXiv 2312.00752, section 3.3), per row, channel i and state n:
    h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t        y_t = C_t h_t + D u_t
A row is cut into chunks of CHUNK tokens, and all chunks run at once, in three passes: every chunk alone from a zero
state, which gives its end state and its decay; the short recurrence over chunks, which gives the states they begin
with; every chunk again from that state, for y. Only the states at the chunks' beginnings are kept. The backward pass
is the same with time reversed, and recomputes the states between: at every BACKWARD_TILE-th token into a scratch of
bounded size, within a tile in registers. Sums have one order, so a call gives the same bits every time.

A program is one warp with BLOCK channels by 16 states in fp32, so that a sum over channels or states is mostly one
within threads and waits for no other warp. It walks its chunk token by token; the walk over a tile is unrolled, so
that its loads are in flight together. Tokens past the end of a row read as zeros: decay 1, input 0.
`training.parallel_scan` is the same in plain torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK, BLOCK, WARPS = 128, 32, 1
TILE, BACKWARD_TILE = 8, 4  # the backward walk holds every state and decay of a tile in registers
LANES = 128
SCRATCH_BYTES = 128 << 20
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
STATES = tl.constexpr(16)
# A step so long that nothing decays as slowly as to outlive it; `a` is held below -SLOWEST so that this is so.
FOREVER = tl.constexpr(1e30)
SLOWEST = 1e-20


@triton.jit
def _width(t: tl.tensor, tokens: tl.tensor, width: tl.tensor) -> tl.tensor:
    """The width of row t of a [tokens, width] matrix: rows past the end have none."""
    return tl.where(t < tokens, width, 0)


@triton.jit
def _rows(
    base: tl.tensor, first: tl.tensor, tokens: tl.tensor, width: tl.tensor, lanes: tl.tensor, TILE: tl.constexpr
) -> tl.tuple:  # fmt: skip
    """`lanes` of the rows first .. first + TILE - 1 of a [tokens, width] matrix, as a tuple of fp32 vectors."""
    rows = ()
    for k in tl.static_range(TILE):
        row = tl.load(base + ((first + k) * width + lanes), mask=lanes < _width(first + k, tokens, width), other=0.0)
        rows += (row.to(tl.float32),)
    return rows


@triton.jit
def _steps(dts: tl.tuple, reset: tl.tensor, first: tl.tensor, tokens: tl.tensor, TILE: tl.constexpr) -> tl.tuple:
    """The dt of a tile's decays: FOREVER where a document begins."""
    steps = ()
    for k in tl.static_range(TILE):
        fresh = tl.load(reset + (first + k), mask=first + k < tokens, other=0) != 0
        steps += (tl.where(fresh, FOREVER, dts[k]),)
    return steps


@triton.jit
def _ends(
    x: tl.tensor, dt: tl.tensor, a2: tl.tensor, v: tl.tensor, reset: tl.tensor, decays: tl.tensor, ends: tl.tensor,
    tokens: tl.tensor, inner: tl.tensor,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, REVERSE: tl.constexpr,
) -> None:  # fmt: skip
    """Each chunk alone, of x, v = u, b: its decay and the state it leaves behind.

    REVERSE, of x, v = dy, c: its decay and the gradient that reaches the state before it.
    """
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    chunk, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    lanes = i < inner
    at = i[:, None] * STATES + n[None, :]
    A = tl.load(a2 + at, mask=lanes[:, None], other=0.0)
    h = tl.full([BLOCK, STATES], 0.0, tl.float32)
    total = tl.full([BLOCK], 0.0, tl.float32)
    start = row * tokens
    x, dt, v, reset = x + start * inner, dt + start * inner, v + start * STATES, reset + start
    for step in range(CHUNK // TILE):
        t = chunk * CHUNK + ((CHUNK // TILE - 1 - step) if REVERSE else step) * TILE
        xs, dts = _rows(x, t, tokens, inner, i, TILE), _rows(dt, t, tokens, inner, i, TILE)
        vs = _rows(v, t, tokens, STATES, n, TILE)
        steps = _steps(dts, reset, t, tokens, TILE)
        for k in tl.static_range(TILE - 1 if REVERSE else 0, -1 if REVERSE else TILE, -1 if REVERSE else 1):
            decay = tl.exp2(steps[k][:, None] * A)
            if REVERSE:
                h = decay * (h + xs[k][:, None] * vs[k][None, :])
            else:
                h = decay * h + (dts[k] * xs[k])[:, None] * vs[k][None, :]
            total += steps[k]
    place = (row * tl.num_programs(1) + chunk) * inner * STATES
    tl.store(decays + place + at, tl.exp2(total[:, None] * A), mask=lanes[:, None])
    tl.store(ends + place + at, h, mask=lanes[:, None])


@triton.jit
def _combine(
    decays: tl.tensor, ends: tl.tensor, start: tl.tensor, final: tl.tensor, chunks: tl.tensor, width: tl.tensor,
    LANES: tl.constexpr, REVERSE: tl.constexpr,
) -> None:  # fmt: skip
    """The recurrence over chunks; replaces each chunk's end by the state it begins with (REVERSE: ends with)."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < width
    row = tl.program_id(1).to(tl.int64)
    h = tl.load(start + row * width + lane, mask=inside, other=0.0)
    for step in range(chunks):
        at = (row * chunks + (chunks - 1 - step if REVERSE else step)) * width + lane
        decay, end = tl.load(decays + at, mask=inside, other=0.0), tl.load(ends + at, mask=inside, other=0.0)
        tl.store(ends + at, h, mask=inside)
        h = decay * h + end
    tl.store(final + row * width + lane, h, mask=inside)


@triton.jit
def _outputs(
    u: tl.tensor, dt: tl.tensor, a2: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, reset: tl.tensor,
    begins: tl.tensor, y: tl.tensor, tokens: tl.tensor, inner: tl.tensor,
    CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """y of each chunk, from the state it begins with."""
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    chunk, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    lanes = i < inner
    at = i[:, None] * STATES + n[None, :]
    A = tl.load(a2 + at, mask=lanes[:, None], other=0.0)
    skip = tl.load(d + i, mask=lanes, other=0.0)
    h = tl.load(begins + (row * tl.num_programs(1) + chunk) * inner * STATES + at, mask=lanes[:, None], other=0.0)
    start = row * tokens
    u, dt, y, b, c = u + start * inner, dt + start * inner, y + start * inner, b + start * STATES, c + start * STATES
    reset += start
    for step in range(CHUNK // TILE):
        t = chunk * CHUNK + step * TILE
        us, dts = _rows(u, t, tokens, inner, i, TILE), _rows(dt, t, tokens, inner, i, TILE)
        bs, cs = _rows(b, t, tokens, STATES, n, TILE), _rows(c, t, tokens, STATES, n, TILE)
        steps = _steps(dts, reset, t, tokens, TILE)
        ys = ()
        for k in tl.static_range(TILE):
            h = tl.exp2(steps[k][:, None] * A) * h + (dts[k] * us[k])[:, None] * bs[k][None, :]
            ys += (tl.sum(h * cs[k][None, :], axis=1) + skip * us[k],)
        for k in tl.static_range(TILE):
            tl.store(y + ((t + k) * inner + i), ys[k], mask=i < _width(t + k, tokens, inner))


@triton.jit(do_not_specialize=["first"])
def _gradients(
    u: tl.tensor, dt: tl.tensor, a2: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor, reset: tl.tensor,
    dy: tl.tensor, begins: tl.tensor, scratch: tl.tensor, dends: tl.tensor, du: tl.tensor, ddt: tl.tensor,
    da: tl.tensor, dbc: tl.tensor, dd: tl.tensor, first: tl.tensor, chunks: tl.tensor, rows: tl.tensor,
    tokens: tl.tensor, inner: tl.tensor, CHUNK: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """All gradients of a chunk, from the state it begins with and the gradient of the state it ends with.

    The launch covers the chunks of all rows from `first` on. Sums over a program's tokens go to da [B, chunks, I, 16]
    and dd [B, chunks, I], sums over its channels to dbc [blocks, B, T, 16, 2].
    """
    i, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    place = tl.program_id(1) + first
    chunk, row = place % chunks, (place // chunks).to(tl.int64)
    lanes = i < inner
    at = i[:, None] * STATES + n[None, :]
    A = tl.load(a2 + at, mask=lanes[:, None], other=0.0)
    skip = tl.load(d + i, mask=lanes, other=0.0)
    h = tl.load(begins + place.to(tl.int64) * inner * STATES + at, mask=lanes[:, None], other=0.0)
    scratch += tl.program_id(1).to(tl.int64) * (CHUNK // TILE) * inner * STATES
    start = row * tokens
    u, dt, dy = u + start * inner, dt + start * inner, dy + start * inner
    du, ddt = du + start * inner, ddt + start * inner
    b, c, reset = b + start * STATES, c + start * STATES, reset + start
    for step in range(CHUNK // TILE):
        tl.store(scratch + (step * inner * STATES + at), h, mask=lanes[:, None])
        t = chunk * CHUNK + step * TILE
        us, dts = _rows(u, t, tokens, inner, i, TILE), _rows(dt, t, tokens, inner, i, TILE)
        bs = _rows(b, t, tokens, STATES, n, TILE)
        steps = _steps(dts, reset, t, tokens, TILE)
        for k in tl.static_range(TILE):
            h = tl.exp2(steps[k][:, None] * A) * h + (dts[k] * us[k])[:, None] * bs[k][None, :]
    tl.debug_barrier()  # the scratch is read below by whichever thread the compiler chooses
    g = tl.load(dends + place.to(tl.int64) * inner * STATES + at, mask=lanes[:, None], other=0.0)
    grad_a = tl.full([BLOCK, STATES], 0.0, tl.float32)
    grad_d = tl.full([BLOCK], 0.0, tl.float32)
    dbc += (tl.program_id(0).to(tl.int64) * rows + row) * tokens * STATES * 2
    pair = n[:, None] * 2 + tl.arange(0, 2)[None, :]
    for back in range(CHUNK // TILE):
        step = CHUNK // TILE - 1 - back
        t = chunk * CHUNK + step * TILE
        us, dts = _rows(u, t, tokens, inner, i, TILE), _rows(dt, t, tokens, inner, i, TILE)
        dys = _rows(dy, t, tokens, inner, i, TILE)
        bs, cs = _rows(b, t, tokens, STATES, n, TILE), _rows(c, t, tokens, STATES, n, TILE)
        steps = _steps(dts, reset, t, tokens, TILE)
        h = tl.load(scratch + (step * inner * STATES + at), mask=lanes[:, None], other=0.0)
        hs = (h,)
        for k in tl.static_range(TILE):
            h = tl.exp2(steps[k][:, None] * A) * h + (dts[k] * us[k])[:, None] * bs[k][None, :]
            hs += (h,)
        for k in tl.static_range(TILE - 1, -1, -1):
            g += dys[k][:, None] * cs[k][None, :]
            sums = tl.sum(tl.join((dts[k] * us[k])[:, None] * g, dys[k][:, None] * hs[k + 1]), axis=0)
            tl.store(dbc + ((t + k) * (STATES * 2) + pair), sums, mask=pair < _width(t + k, tokens, STATES * 2))
            inflow = tl.sum(g * bs[k][None, :], axis=1)
            g *= tl.exp2(steps[k][:, None] * A)
            through = g * hs[k]
            grad_a += through * dts[k][:, None]
            grad_d += dys[k] * us[k]
            inside = i < _width(t + k, tokens, inner)
            tl.store(du + ((t + k) * inner + i), inflow * dts[k] + dys[k] * skip, mask=inside)
            tl.store(ddt + ((t + k) * inner + i), tl.sum(through * A, axis=1) * LN_2 + inflow * us[k], mask=inside)
    tl.store(da + place.to(tl.int64) * inner * STATES + at, grad_a, mask=lanes[:, None])
    tl.store(dd + place.to(tl.int64) * inner + i, grad_d, mask=lanes)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h0: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, tokens, inner = u.shape
        u, dt, b, c, reset = (x.contiguous() for x in (u, dt, b, c, reset.view(torch.uint8)))
        a2, d, h0 = (x.float().contiguous() for x in ((a * LOG2_E).clamp(max=-SLOWEST), d, h0))
        grid = triton.cdiv(inner, BLOCK), triton.cdiv(tokens, CHUNK), rows
        sizes = {"CHUNK": CHUNK, "TILE": TILE, "BLOCK": BLOCK, "num_warps": WARPS}
        begins = a2.new_empty(rows, grid[1], inner, STATES.value)
        decays = torch.empty_like(begins)
        y, final = torch.empty_like(u), torch.empty_like(h0)
        _ends[grid](u, dt, a2, b, reset, decays, begins, tokens, inner, REVERSE=False, **sizes)
        _chain(decays, begins, h0, final, reverse=False)
        _outputs[grid](u, dt, a2, b, c, d, reset, begins, y, tokens, inner, **sizes)
        ctx.save_for_backward(u, dt, a2, b, c, d, reset, begins)
        return y, final

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a2, b, c, d, reset, begins = ctx.saved_tensors
        rows, tokens, inner = u.shape
        dy, dfinal = dy.contiguous(), dfinal.contiguous()
        grid = triton.cdiv(inner, BLOCK), triton.cdiv(tokens, CHUNK), rows
        sizes = {"CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": WARPS}
        decays, dends = torch.empty_like(begins), torch.empty_like(begins)
        dh0 = torch.empty_like(dfinal)
        _ends[grid](dy, dt, a2, c, reset, decays, dends, tokens, inner, REVERSE=True, TILE=TILE, **sizes)
        _chain(decays, dends, dfinal, dh0, reverse=True)
        du, ddt, da, dd = (torch.empty_like(x) for x in (u, dt, begins, begins[..., 0]))
        dbc = a2.new_empty(grid[0], rows, tokens, STATES.value, 2)
        tiles = CHUNK // BACKWARD_TILE
        places, wave = rows * grid[1], max(1, SCRATCH_BYTES // (tiles * a2.nbytes))
        scratch = a2.new_empty(min(wave, places), tiles, inner, STATES.value)
        for first in range(0, places, wave):
            _gradients[grid[0], min(wave, places - first)](
                u, dt, a2, b, c, d, reset, dy, begins, scratch, dends, du, ddt, da, dbc, dd,
                first, grid[1], rows, tokens, inner, TILE=BACKWARD_TILE, **sizes,
            )  # fmt: skip
        db, dc = dbc.sum(0).unbind(-1)
        return du, ddt, da.sum((0, 1)), db, dc, dd.sum((0, 1)), dh0, None


def _chain(decays: Tensor, ends: Tensor, start: Tensor, final: Tensor, reverse: bool) -> None:
    rows, chunks, inner, states = ends.shape
    grid = triton.cdiv(inner * states, LANES), rows
    _combine[grid](decays, ends, start, final, chunks, inner * states, LANES=LANES, REVERSE=reverse)


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, h0: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """y [B, T, I] in the dtype of u and the state after the last token, [B, I, 16] fp32; gradients for all but reset.

    Takes u, dt [B, T, I] (dt positive) and b, c [B, T, 16] in bf16 or fp32, a [I, 16] (negative) and d [I] fp32, the
    state before the first token h0 [B, I, 16] fp32, and reset [B, T] bool: true where a document begins, so that what
    came before counts for nothing. Inside, everything is fp32.
    """
    return _Scan.apply(u, dt, a, b, c, d, h0, reset)
