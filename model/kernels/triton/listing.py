"""Attention of tokens that bring a list of blocks for each key head; importing this needs triton.

As :mod:`model.kernels.triton.decoding`, with which it splits a list and brings the splits together: a token that
selects every block has the list of one under policy ``full``, and gets its bits. Some blocks are strips of one key head
that were fetched from the host; their keys and values lie together.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.listed import ListedTokens
from model.kernels.triton.attention import LEAST_ROWS, LOG2_E, LOWEST_PEAK, weigh
from model.kernels.triton.decoding import COLUMNS, ENTRIES, ROW, SPLIT, STAGES, WARPS, bring_together
from model.kernels.triton.tables import Tables, listed_pieces
from model.policy import BLOCK_TOKENS


@triton.jit(do_not_specialize=["table_width"])
def _splits(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, fetched: tl.tensor,
    peaks: tl.tensor, totals: tl.tensor, parts: tl.tensor, spans: tl.tensor, entries: tl.tensor, offsets: tl.tensor,
    scale: tl.tensor, query_stride: tl.tensor, table_width: tl.tensor,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """The heads of one key head over one split of a token's list: peaks and totals [N, splits, H] and parts
    [N, splits, H, E], not divided by the totals."""
    token, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    own = spans + token * COLUMNS
    num_entries, split_blocks = tl.load(own + ENTRIES), tl.load(own + SPLIT)
    begin = split * split_blocks
    if begin < num_entries:
        offset = tl.load(offsets + token)
        entries += (token.to(tl.int64) * GROUPS + group) * table_width
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
            # Of two loads one is masked away: it moves nothing, and adds zeros.
            near = (e < tl.where(entry >= 0, WIDTH, 0))[None, :]
            far = (e < tl.where(entry < 0, WIDTH, 0))[None, :]
            block = (entry * BLOCK * GROUPS + group) * WIDTH + p[:, None] * (GROUPS * WIDTH) + e[None, :]
            strip = (-1 - entry) * (2 * BLOCK * WIDTH) + p[:, None] * WIDTH + e[None, :]
            key = tl.load(keys + block, mask=near, other=0.0) + tl.load(fetched + strip, mask=far, other=0.0)
            value = tl.load(values + block, mask=near, other=0.0)
            value += tl.load(fetched + strip + BLOCK * WIDTH, mask=far, other=0.0)
            late = (p > tl.where(place == num_entries - 1, offset, BLOCK))[None, :] & (head >= 0)[:, None]
            peak, total, mixed = weigh(query, key, value, late, scale, peak, total, mixed)
        line = (token.to(tl.int64) * tl.num_programs(2) + split) * HEADS + group * heads
        tl.store(peaks + line + head, peak, mask=head < heads)
        tl.store(totals + line + head, total, mask=head < heads)
        tl.store(parts + (line + head)[:, None] * WIDTH + e[None, :], mixed, mask=inside)


def attend_listed(
    queries: Tensor, keys: Tensor, values: Tensor, fetched: Tensor, tokens: ListedTokens, out: Tensor
) -> None:
    """See :func:`model.kernels.reference.attend_listed`."""
    _, num_heads, width = queries.shape
    num_groups, count = keys.shape[2], len(tokens.rows)
    pieces = listed_pieces(tokens)
    spans = pieces["spans"]
    num_splits = int(np.max(-(-spans[:, 1] // spans[:, 6]), initial=1))
    parts = Tables.sent(pieces, {}, str(queries.device)).parts
    padded = max(LEAST_ROWS, triton.next_power_of_2(width))
    shape = count, num_splits, num_heads
    peaks, totals = torch.empty((2, *shape), dtype=torch.float32, device=queries.device)
    mixed = torch.empty((*shape, width), dtype=torch.float32, device=queries.device)
    _splits[count, num_groups, num_splits](
        queries, keys, values, fetched, peaks, totals, mixed, parts["spans"], parts["entries"], parts["offsets"],
        width**-0.5 * LOG2_E.value, queries.stride(0), tokens.entries.shape[2],
        HEADS=num_heads, GROUPS=num_groups, WIDTH=width, PADDED=padded, BLOCK=BLOCK_TOKENS,
        ROWS=max(LEAST_ROWS, triton.next_power_of_2(num_heads // num_groups)), num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    bring_together(peaks, totals, mixed, parts["spans"], parts["decodes"], out)
