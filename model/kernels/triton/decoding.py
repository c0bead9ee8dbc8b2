"""Attention of single queries over paged keys and values; importing this needs triton.

A decoding sequence has one query and, under policy ``full``, many keys: its blocks are split among several programs,
which leave peak, sum and weighted sum; a second launch brings these together (as FlashDecoding does). How they are
split depends on the sequence alone. All blocks of its table are visible to it: only in the last one are keys hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.attention import LEAST_ROWS, LOG2_E, LOWEST_PEAK, weigh
from model.kernels.triton.tables import SPAN_COLUMNS, Tables
from model.policy import BLOCK_TOKENS
from model.tiles import MAX_SPLITS

WARPS, STAGES = 4, 2
COLUMNS = tl.constexpr(len(SPAN_COLUMNS))
FIRST, ENTRIES, SINK_BLOCKS, SKIPPED, SPLIT, ROW = (
    tl.constexpr(SPAN_COLUMNS.index(name))
    for name in ("first_position", "num_entries", "sink_blocks", "skipped_blocks", "split_blocks", "row")
)


@triton.jit(do_not_specialize=["table_width"])
def _splits(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, peaks: tl.tensor, totals: tl.tensor, parts: tl.tensor,
    spans: tl.tensor, entries: tl.tensor, decodes: tl.tensor,
    scale: tl.tensor, query_stride: tl.tensor, table_width: tl.tensor,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """The heads of one key head over one split of a sequence's blocks: peaks and totals [D, splits, H] and parts
    [D, splits, H, E], not divided by the totals."""
    decode, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(decodes + decode)
    own = spans + sequence * COLUMNS
    num_entries, split_blocks = tl.load(own + ENTRIES), tl.load(own + SPLIT)
    begin = split * split_blocks
    if begin < num_entries:
        position = tl.load(own + FIRST)
        sink_blocks, skipped = tl.load(own + SINK_BLOCKS), tl.load(own + SKIPPED)
        entries += sequence.to(tl.int64) * table_width
        head, e, p = tl.arange(0, ROWS), tl.arange(0, PADDED), tl.arange(0, BLOCK)
        heads: tl.constexpr = HEADS // GROUPS
        inside = (head < heads)[:, None] & (e < WIDTH)[None, :]
        at = (group * heads + head)[:, None] * WIDTH + e[None, :]
        query = tl.load(queries + tl.load(own + ROW).to(tl.int64) * query_stride + at, mask=inside, other=0.0)
        peak = tl.full([ROWS], LOWEST_PEAK, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        mixed = tl.zeros([ROWS, PADDED], tl.float32)
        for step in range(tl.minimum(split_blocks, num_entries - begin)):
            place = begin + step
            entry = tl.load(entries + place).to(tl.int64)
            block = (entry * BLOCK * GROUPS + group) * WIDTH + p[:, None] * (GROUPS * WIDTH) + e[None, :]
            key = tl.load(keys + block, mask=(e < WIDTH)[None, :], other=0.0)
            value = tl.load(values + block, mask=(e < WIDTH)[None, :], other=0.0)
            seen = (place + tl.where(place < sink_blocks, 0, skipped)) * BLOCK + p
            late = (seen > position)[None, :] & (head >= 0)[:, None]
            peak, total, mixed = weigh(query, key, value, late, scale, peak, total, mixed)
        line = (decode.to(tl.int64) * tl.num_programs(2) + split) * HEADS + group * heads
        tl.store(peaks + line + head, peak, mask=head < heads)
        tl.store(totals + line + head, total, mask=head < heads)
        tl.store(parts + (line + head)[:, None] * WIDTH + e[None, :], mixed, mask=inside)


@triton.jit(do_not_specialize=["num_splits"])
def _together(
    peaks: tl.tensor, totals: tl.tensor, parts: tl.tensor, out: tl.tensor,
    spans: tl.tensor, decodes: tl.tensor, num_splits: tl.tensor,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr,
) -> None:  # fmt: skip
    """One head of a sequence: the splits that it has, weighed by what each one saw. Zeros where nothing is seen."""
    decode, head = tl.program_id(0), tl.program_id(1)
    own = spans + tl.load(decodes + decode) * COLUMNS
    used = tl.cdiv(tl.load(own + ENTRIES), tl.load(own + SPLIT))
    s, e = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    line = (decode.to(tl.int64) * num_splits + s) * HEADS + head
    peak = tl.load(peaks + line, mask=s < used, other=LOWEST_PEAK)
    share = tl.exp2(peak - tl.max(peak, axis=0))
    total = tl.sum(share * tl.load(totals + line, mask=s < used, other=0.0), axis=0)
    inside = (s < used)[:, None] & (e < WIDTH)[None, :]
    mixed = tl.sum(share[:, None] * tl.load(parts + line[:, None] * WIDTH + e[None, :], mask=inside, other=0.0), axis=0)
    mixed = mixed / tl.where(used > 0, total, 1.0)
    line = tl.load(own + ROW).to(tl.int64) * HEADS + head
    tl.store(out + line * WIDTH + e, mixed.to(out.dtype.element_ty), mask=e < WIDTH)


def attend_decodes(queries: Tensor, keys: Tensor, values: Tensor, tables: Tables, out: Tensor) -> None:
    """The rows of ``out`` [T, H, E] that belong to sequences of one token; see
    :func:`model.kernels.reference.attend`."""
    _, num_heads, width = queries.shape
    num_groups = keys.shape[2]
    parts, num_decodes, num_splits = tables.parts, tables.sizes["num_decodes"], tables.sizes["num_splits"]
    padded = max(LEAST_ROWS, triton.next_power_of_2(width))
    shape = num_decodes, num_splits, num_heads
    peaks, totals = torch.empty((2, *shape), dtype=torch.float32, device=queries.device)
    mixed = torch.empty((*shape, width), dtype=torch.float32, device=queries.device)
    _splits[num_decodes, num_groups, num_splits](
        queries, keys, values, peaks, totals, mixed, parts["spans"], parts["entries"], parts["decodes"],
        width**-0.5 * LOG2_E.value, queries.stride(0), tables.sizes["width"],
        HEADS=num_heads, GROUPS=num_groups, WIDTH=width, PADDED=padded, BLOCK=BLOCK_TOKENS,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(num_heads // num_groups)), num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    bring_together(peaks, totals, mixed, parts["spans"], parts["decodes"], out)


def bring_together(peaks: Tensor, totals: Tensor, parts: Tensor, spans: Tensor, decodes: Tensor, out: Tensor) -> None:
    """What splits of the ``decodes`` saw, peaks and totals [D, splits, H] and parts [D, splits, H, E], into their rows
    of ``out`` [T, H, E]."""
    num_decodes, num_splits, num_heads, width = parts.shape
    _together[num_decodes, num_heads](
        peaks, totals, parts, out, spans, decodes, num_splits,
        HEADS=num_heads, WIDTH=width, PADDED=max(LEAST_ROWS, triton.next_power_of_2(width)), SPLITS=MAX_SPLITS,
        num_warps=WARPS,
    )  # fmt: skip
