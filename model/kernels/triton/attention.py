"""Attention over paged keys and values: the queries of prompts, in tiles; importing this needs triton.

The softmax is carried along from block to block (Milakov and Gimelshein 2018; FlashAttention-2, arXiv 2307.08691). A
tile reads the blocks of the sinks and those from its first token's window on, and no others. Query heads that share a
key head are rows of one product. Where a block stands in the table is said in :mod:`model.kernels.triton.tables`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.tables import SPAN_COLUMNS, Tables
from model.policy import BLOCK_TOKENS

# Rows of a tile, by the bytes of a number: query tokens by the query heads of a key head. tl.dot wants 16 at least.
# Float32 is multiplied in full precision without tensor cores, and holds no more in registers.
TILE_ROWS, LEAST_ROWS = {2: 64, 4: 16}, 16
WARPS, STAGES = 4, 2
LOG2_E = tl.constexpr(1.4426950408889634)
# The finite stand-in for the maximum of a row of scores that shows nothing, as in the reference.
LOWEST_PEAK = tl.constexpr(-1e30)
# Triton's interpreter (3.9) multiplies the bits of bfloat16 as whole numbers: there the same products are in float32.
WIDENED = tl.constexpr(bool(triton.knobs.runtime.interpret))
COLUMNS = tl.constexpr(len(SPAN_COLUMNS))
FIRST, SINK_BLOCKS, SKIPPED, SINKS, WINDOW, ROW = (
    tl.constexpr(SPAN_COLUMNS.index(name))
    for name in ("first_position", "sink_blocks", "skipped_blocks", "sinks", "window", "row")
)


def tile_tokens(num_heads: int, num_groups: int, dtype: torch.dtype) -> int:
    """Query tokens of a tile: so many that their heads in a group fill its rows."""
    per_group: int = triton.next_power_of_2(num_heads // num_groups)
    return max(1, TILE_ROWS[dtype.itemsize] // per_group)


@triton.jit
def weigh(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, hidden: tl.tensor, scale: tl.tensor,
    peak: tl.tensor, total: tl.tensor, mixed: tl.tensor,
) -> tl.tuple:  # fmt: skip
    """One block of keys into the softmax that is carried along, in powers of two; `hidden` is what a row does not see.

    query [M, E], key and value [P, E], hidden [M, P], peak and total [M], mixed [M, E].
    """
    if WIDENED:
        scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee") * scale
    else:
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(hidden, float("-inf"), scores)
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    weights = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(weights, axis=1)
    mixed *= shrink[:, None]
    weights = weights.to(value.dtype)
    if WIDENED:
        mixed = tl.dot(weights.to(tl.float32), value.to(tl.float32), mixed, input_precision="ieee")
    else:
        mixed = tl.dot(weights, value, mixed, input_precision="ieee")
    return higher, total, mixed


@triton.jit(do_not_specialize=["table_width"])
def _tiles(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, out: tl.tensor,
    spans: tl.tensor, entries: tl.tensor, lengths: tl.tensor, tile_sequence: tl.tensor, tile_token: tl.tensor,
    scale: tl.tensor, query_stride: tl.tensor, table_width: tl.tensor,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of queries of one sequence, and one key head. Row m is token m // PER_GROUP by head m % PER_GROUP."""
    tile, group = tl.program_id(0), tl.program_id(1)
    sequence = tl.load(tile_sequence + tile)
    own = spans + sequence * COLUMNS
    first = tl.load(own + FIRST)
    sink_blocks, skipped = tl.load(own + SINK_BLOCKS), tl.load(own + SKIPPED)
    sinks, window = tl.load(own + SINKS), tl.load(own + WINDOW)
    begin = tl.load(tile_token + tile)
    end = tl.minimum(begin + TOKENS, tl.load(lengths + sequence))
    entries += sequence.to(tl.int64) * table_width

    m, e, p = tl.arange(0, ROWS), tl.arange(0, PADDED), tl.arange(0, BLOCK)
    token, head = begin + m // PER_GROUP, m % PER_GROUP
    heads: tl.constexpr = HEADS // GROUPS
    rows = (token < end) & (head < heads)
    inside = rows[:, None] & (e < WIDTH)[None, :]
    line = (tl.load(own + ROW) + token).to(tl.int64)
    at = (group * heads + head)[:, None] * WIDTH + e[None, :]
    query = tl.load(queries + line[:, None] * query_stride + at, mask=inside, other=0.0)
    position = first + token
    window_start = tl.maximum(position - window + 1, 0) // BLOCK * BLOCK
    peak = tl.full([ROWS], LOWEST_PEAK, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PADDED], tl.float32)

    stop = (first + end - 1) // BLOCK + 1
    num_sinks = tl.minimum(sink_blocks, stop)
    window_block = tl.maximum(tl.maximum(first + begin - window + 1, 0) // BLOCK, sink_blocks)
    for step in range(num_sinks + tl.maximum(stop - window_block, 0)):
        # Logical block: first those of the sinks, then those of the window.
        place = tl.where(step < num_sinks, step, window_block + step - num_sinks)
        entry = tl.load(entries + tl.where(step < num_sinks, place, place - skipped)).to(tl.int64)
        block = (entry * BLOCK * GROUPS + group) * WIDTH + p[:, None] * (GROUPS * WIDTH) + e[None, :]
        key = tl.load(keys + block, mask=(e < WIDTH)[None, :], other=0.0)
        value = tl.load(values + block, mask=(e < WIDTH)[None, :], other=0.0)
        seen = place * BLOCK + p
        late = seen[None, :] > position[:, None]
        early = (seen >= sinks)[None, :] & (seen[None, :] < window_start[:, None])
        peak, total, mixed = weigh(query, key, value, late | early, scale, peak, total, mixed)
    # A row that is no query has seen what others see, and is not stored.
    mixed = mixed / tl.where(rows, total, 1.0)[:, None]
    tl.store(out + line[:, None] * (HEADS * WIDTH) + at, mixed.to(out.dtype.element_ty), mask=inside)


def attend_prompts(queries: Tensor, keys: Tensor, values: Tensor, tables: Tables, out: Tensor) -> None:
    """The rows of ``out`` [T, H, E] that belong to sequences of more than one token; see
    :func:`model.kernels.reference.attend`."""
    _, num_heads, width = queries.shape
    num_groups = keys.shape[2]
    per_group = triton.next_power_of_2(num_heads // num_groups)
    parts, tokens = tables.parts, tile_tokens(num_heads, num_groups, queries.dtype)
    _tiles[tables.sizes["num_tiles"], num_groups](
        queries, keys, values, out,
        parts["spans"], parts["entries"], parts["lengths"], parts["tile_sequence"], parts["tile_token"],
        width**-0.5 * LOG2_E.value, queries.stride(0), tables.sizes["width"],
        HEADS=num_heads, GROUPS=num_groups, PER_GROUP=per_group, WIDTH=width,
        PADDED=max(LEAST_ROWS, triton.next_power_of_2(width)), BLOCK=BLOCK_TOKENS, TOKENS=tokens,
        ROWS=max(LEAST_ROWS, tokens * per_group), num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
