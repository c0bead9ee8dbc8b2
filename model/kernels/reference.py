"""The specification of every kernel, in plain torch: the oracle of the fast twins, and what runs where there are none.

What all twins share:

* **Token-major.** A step's tokens lie one after another in rows; sequence ``s`` owns the rows
  ``query_start[s]:query_start[s + 1]``. ``query_start [S+1]`` and ``state_slots [S]`` are contiguous int64 tensors
  on the CPU, so that a native twin reads them through one pointer.
* **State in, state out.** Sequence ``s`` starts from the state in slot ``state_slots[s]`` of the pool and leaves its
  final state there, in place. A fresh sequence starts from zeros, which the pool provides. No two sequences of one
  step share a slot; slots not named are untouched. A sequence may have no rows: its state is then unchanged.
* **float32** for activations, parameters and recurrent state. ``attend`` alone works in the dtype of the pool.
* **Strides.** Activations ``[T, ...]`` have unit stride in the last dimension and any row stride (they are column
  slices of a projection's output). Parameters, one slot of a state and the result are contiguous.

Layouts: SSM state ``[slots, N, I]`` and convolution state ``[slots, K-1, I]``, oldest input first. The inner channel
is last everywhere because the scan is independent per channel: one vector register holds neighbouring channels.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.listed import ListedTokens
from model.kernels.selection import ArchivedLayer, candidates, choose
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import QUERY_TILE_TOKENS, RUN_BLOCKS, SCAN_TILE_TOKENS, key_tile_blocks

# The finite stand-in for the maximum of a row of scores that shows nothing.
LOWEST_PEAK = -1e30


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    query_start: Tensor,
    state_slots: Tensor,
) -> Tensor:
    """Depthwise causal convolution over time, then SiLU.

    ``y[t] = silu(bias + sum_k weight[k] * x[t - K + 1 + k])``, where inputs before the chunk come from ``state``.

    Takes x [T, I] fp32 (any row stride), weight [K, I] fp32 (row K-1 weighs the present token), bias [I] fp32 or None,
    state [slots, K-1, I] fp32: the last K-1 inputs, oldest first. Returns [T, I] fp32, contiguous.
    Mutates the slots of ``state`` named by ``state_slots``.
    """
    num_taps = weight.shape[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start, end, slot in _ragged(query_start, state_slots):
        num_tokens = end - start
        inputs = torch.cat((state[slot], x[start:end]))
        out = inputs[:num_tokens] * weight[0]
        for tap in range(1, num_taps):
            out.addcmul_(inputs[tap : tap + num_tokens], weight[tap])
        if bias is not None:
            out += bias
        torch.mul(out, torch.sigmoid(out), out=y[start:end])
        state[slot] = inputs[num_tokens:]
    return y


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
    query_start: Tensor,
    state_slots: Tensor,
) -> Tensor:
    """The Mamba-1 recurrence (arXiv 2312.00752, algorithm 2) with initial and final state.

    With ``delta = softplus(dt[t] + dt_bias)``, per state row n and channel i:
    ``h[n, i] = exp(delta[i] * a[n, i]) * h[n, i] + delta[i] * u[t, i] * b[t, n]`` and
    ``y[t, i] = (sum_n c[t, n] * h[n, i] + d[i] * u[t, i]) * silu(z[t, i])``; without z the last factor is 1.

    Takes u [T, I], dt [T, I] (before bias and softplus), dt_bias [I], a [N, I] (``-exp(A_log)``, transposed),
    b [T, N], c [T, N], d [I], z [T, I] or None, state [slots, N, I]; all fp32, the activations with any row stride.
    Returns [T, I] fp32, contiguous. Mutates the slots of ``state`` named by ``state_slots``.
    """
    delta = F.softplus(dt + dt_bias)
    driven = delta * u
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    for start, end, slot in _ragged(query_start, state_slots):
        hidden = state[slot]
        for tile in range(start, end, SCAN_TILE_TOKENS):
            stop = min(tile + SCAN_TILE_TOKENS, end)
            decay = torch.exp(delta[tile:stop, None] * a)
            inflow = driven[tile:stop, None] * b[tile:stop, :, None]
            for step in range(stop - tile):
                hidden = torch.addcmul(inflow[step], decay[step], hidden, out=inflow[step])
            y[tile:stop] = torch.matmul(c[tile:stop, None], inflow)[:, 0]
        if end > start:
            state[slot] = hidden
    y.addcmul_(u, d)
    return y if z is None else y.mul_(F.silu(z))


def store_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, kv_rows: Tensor) -> None:
    """Write a step's keys and values into one layer's pool, rounded to its dtype.

    Takes k and v [T, G * E] float32 (any row stride), the pool's keys and values [num_blocks, P, G, E], and for each
    token the row ``block * P + offset`` that is its own, kv_rows [T] int64 on the device. Mutates those rows alone.
    """
    for rows, pool in ((k, keys), (v, values)):
        pool.flatten(0, 1).index_copy_(0, kv_rows, rows.to(pool.dtype).view(-1, *pool.shape[2:]))


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_start: Tensor,
    first_positions: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    policies: Sequence[AttentionPolicy],
    archive: ArchivedLayer | None = None,
) -> Tensor:
    """Softmax attention of each token over the keys its policy shows it, scaled by ``E ** -0.5``.

    Takes queries [T, H, E] (any row stride) and one layer's paged pool, keys and values [num_blocks, P, G, E] in the
    dtype of the queries. The tokens of sequence ``s`` stand at the consecutive positions from ``first_positions[s]``
    on; ``block_tables[s]`` maps logical block ``position // P`` to a block of the pool, -1 where the block was given
    back. Keys and values of the step's own tokens are already in the pool. Query head ``h``
    reads key head ``h // (H / G)``. Scores and sums are float32. Returns [T, H, E] in the dtype of the queries,
    contiguous. Mutates nothing. Under policy ``archive`` a token also sees the blocks between its sinks and its window
    that :func:`model.kernels.selection.choose` names; these are read from ``archive``.

    Only blocks that some query sees are read, in tiles, with the softmax carried along
    (Milakov and Gimelshein 2018), so temporaries do not grow with the length of the sequence.
    """
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    bounds = query_start.tolist()
    for index, (first, table, policy) in enumerate(zip(first_positions, block_tables, policies, strict=True)):
        start, end = bounds[index], bounds[index + 1]
        for tile in range(start, end, QUERY_TILE_TOKENS):
            stop = min(tile + QUERY_TILE_TOKENS, end)
            if archive is not None and candidates(policy, first + stop - 1 - start, archive.select_from[index]):
                place = first + tile - start
                _attend_selected(queries[tile:stop], keys, values, place, table, policy, archive, index, out[tile:stop])
                continue
            _attend_tile(queries[tile:stop], keys, values, first + tile - start, table, policy, out[tile:stop])
    return out


def attend_listed(
    queries: Tensor, keys: Tensor, values: Tensor, fetched: Tensor, tokens: ListedTokens, out: Tensor
) -> None:
    """Softmax attention of single tokens over the blocks that each of them lists, scaled by ``E ** -0.5``.

    Takes queries [T, H, E] (any row stride), one layer's paged pool as in :func:`attend`, and ``fetched``
    [slots, 2, P, E]: keys and values of one key head of a block each, in the dtype of the pool. Writes the rows of
    ``tokens`` in ``out`` [T, H, E] and no others. What a token gets depends on its own list alone.
    """
    num_heads, width = queries.shape[1:]
    num_groups, device = keys.shape[2], keys.device
    groups = torch.arange(num_groups, device=device)[:, None]
    for row, lists, count, offset in zip(
        tokens.rows.tolist(), tokens.entries, tokens.num_entries.tolist(), tokens.offsets.tolist(), strict=True
    ):
        entries = torch.from_numpy(lists[:, :count]).long().to(device)
        is_near = (entries >= 0)[..., None, None]
        strips = fetched[(-1 - entries).clamp_min_(0)]
        blocks = entries.clamp_min(0)
        length = (count - 1) * keys.shape[1] + offset + 1
        seen_keys, seen_values = (
            torch.where(is_near, pool[blocks, :, groups], strips[:, :, part]).flatten(1, 2)[:, :length]
            for part, pool in enumerate((keys, values))
        )
        scores = _scores(queries[row].view(num_groups, -1, width) * width**-0.5, seen_keys).float()
        _, total, mixed = _softmax_step(scores, seen_values, None)
        out[row] = mixed.div_(total).view(num_heads, width).to(out.dtype)


def _ragged(query_start: Tensor, state_slots: Tensor) -> Iterator[tuple[int, int, int]]:
    bounds = query_start.tolist()
    return zip(bounds[:-1], bounds[1:], state_slots.tolist(), strict=True)


def _attend_tile(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    first: int,
    table: Sequence[int],
    policy: AttentionPolicy,
    out: Tensor,
) -> None:
    """Attention of the tokens at positions ``first ..`` of one sequence into ``out`` [T, H, E]."""
    num_tokens, num_heads, width = queries.shape
    _, block_tokens, num_groups, _ = keys.shape
    per_group = num_heads // num_groups
    # Query heads that share a key head become rows of one product: no key is ever repeated in memory.
    rows = queries.view(num_tokens, num_groups, per_group, width).permute(1, 2, 0, 3)
    rows = rows.reshape(num_groups, per_group * num_tokens, width) * width**-0.5
    tile_blocks = key_tile_blocks(num_heads * num_tokens, block_tokens)
    carried: tuple[Tensor, Tensor, Tensor] | None = None
    for low, high in _visible_ranges(first, num_tokens, policy):
        for block, chosen in _tiles(table[low // block_tokens : -(-high // block_tokens)], tile_blocks):
            start = low + block * block_tokens
            length = min(high - start, len(chosen) * block_tokens)
            tile_keys = _gather(keys, chosen)[:length].transpose(0, 1)
            tile_values = _gather(values, chosen)[:length].transpose(0, 1)
            scores = _scores(rows, tile_keys).float()
            if num_tokens > 1:
                _hide(scores, first, num_tokens, start, policy)
            carried = _softmax_step(scores, tile_values, carried)
    assert carried is not None, "a token sees at least itself"
    _, total, mixed = carried
    mixed = mixed.div_(total).view(num_groups, per_group, num_tokens, width)
    out.view(num_tokens, num_groups, per_group, width).copy_(mixed.permute(2, 0, 1, 3))


def _attend_selected(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    first: int,
    table: Sequence[int],
    policy: AttentionPolicy,
    archive: ArchivedLayer,
    index: int,
    out: Tensor,
) -> None:
    """As ``_attend_tile``, where some tokens also see blocks of the archive. Where all is seen, the tiles are those of
    full attention, and so are all sums."""
    num_tokens, num_heads, width = queries.shape
    _, block_tokens, num_groups, _ = keys.shape
    per_group = num_heads // num_groups
    rows = queries.view(num_tokens, num_groups, per_group, width).permute(1, 2, 0, 3)
    rows = rows.reshape(num_groups, per_group * num_tokens, width) * width**-0.5
    end = first + num_tokens
    chosen = choose(queries, archive, index, first, policy, -(-end // block_tokens))
    window = policy.window_start(first) // block_tokens
    sinks = policy.sinks // block_tokens
    is_read = chosen.any(1).any(0)
    is_read[:sinks] = True
    is_read[window:] = True
    places = is_read.nonzero()[:, 0].tolist()
    position = torch.arange(first, end)[:, None]
    start = torch.tensor([policy.window_start(each) for each in range(first, end)])[:, None]
    carried: tuple[Tensor, Tensor, Tensor] | None = None
    tile_blocks = key_tile_blocks(num_heads * num_tokens, block_tokens)
    for low in range(0, len(places), tile_blocks):
        read = places[low : low + tile_blocks]
        pairs = [
            archive.block(archive.tables[index][place])
            if sinks <= place < window
            else (keys[table[place]], values[table[place]])
            for place in read
        ]
        length = len(read) * block_tokens - max(0, (read[-1] + 1) * block_tokens - end)
        tile_keys, tile_values = (torch.cat(each)[:length].transpose(0, 1) for each in zip(*pairs, strict=True))
        key = (torch.tensor(read)[:, None] * block_tokens + torch.arange(block_tokens)).flatten()[:length]
        scores = _scores(rows, tile_keys).float()
        is_between = (key >= policy.sinks) & (key < start)
        hidden = (key > position) | (is_between & ~chosen[:, :, key // block_tokens])
        scores.view(num_groups, per_group, num_tokens, length).masked_fill_(hidden[:, None], float("-inf"))
        carried = _softmax_step(scores, tile_values, carried)
    assert carried is not None, "a token sees at least itself"
    _, total, mixed = carried
    mixed = mixed.div_(total).view(num_groups, per_group, num_tokens, width)
    out.view(num_tokens, num_groups, per_group, width).copy_(mixed.permute(2, 0, 1, 3))


def _visible_ranges(first: int, num_tokens: int, policy: AttentionPolicy) -> list[tuple[int, int]]:
    """Half-open position ranges, from block borders on, outside which no token of the tile sees anything.

    Under ``window`` these are the sinks and the union of the tokens' windows.
    """
    end = first + num_tokens
    window_start = policy.window_start(first)
    if policy.name is PolicyName.FULL or window_start <= policy.sinks:
        return [(0, end)]
    return [(0, policy.sinks), (window_start, end)] if policy.sinks else [(window_start, end)]


def _tiles(blocks: Sequence[int], tile_blocks: int) -> list[tuple[int, Sequence[int]]]:
    """Cut ``blocks`` into tiles of at most ``tile_blocks``, with the index each starts at.

    Long runs of neighbours in the pool become tiles of their own, because they are read in place.
    """
    borders = [0, *(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1] + 1), len(blocks)]
    if len(borders) > 2 + len(blocks) // RUN_BLOCKS:
        borders = [0, len(blocks)]
    return [
        (start, blocks[start : min(start + tile_blocks, stop)])
        for begin, stop in pairwise(borders)
        for start in range(begin, stop, tile_blocks)
    ]


def _gather(pool: Tensor, blocks: Sequence[int]) -> Tensor:
    """[num tokens, G, E]: a view where the blocks lie one after another in the pool, else a copy."""
    start, count = blocks[0], len(blocks)
    if blocks[-1] - start == count - 1 and all(blocks[i] == start + i for i in range(count)):
        return pool[start : start + count].flatten(0, 1)
    return pool.index_select(0, torch.tensor(blocks, device=pool.device)).flatten(0, 1)


def _scores(rows: Tensor, keys: Tensor) -> Tensor:
    """``rows @ keys.T`` per group: [G, rows, E] and [G, length, E] -> [G, rows, length]."""
    # One product per group: torch's batched bfloat16 product is up to 20 times slower for the few rows of decoding.
    scores = torch.empty((*rows.shape[:2], keys.shape[1]), dtype=rows.dtype, device=rows.device)
    for group in range(rows.shape[0]):
        torch.mm(rows[group], keys[group].t(), out=scores[group])
    return scores


def _hide(scores: Tensor, first: int, num_tokens: int, low: int, policy: AttentionPolicy) -> None:
    """Set the scores [G, H/G * T, length] of keys from position ``low`` on that a token does not see to -inf."""
    length = scores.shape[-1]
    full = policy.name is PolicyName.FULL
    last = first + num_tokens - 1
    none_late = low + length - 1 <= first
    none_early = full or low + length <= policy.sinks or low >= policy.window_start(last)
    if none_late and none_early:
        return
    key = torch.arange(low, low + length, device=scores.device)
    position = torch.arange(first, first + num_tokens, device=scores.device)[:, None]
    hidden = key > position
    if not full:
        # The array form of AttentionPolicy.window_start.
        start = torch.div(position - policy.window + 1, BLOCK_TOKENS, rounding_mode="floor") * BLOCK_TOKENS
        hidden |= (key >= policy.sinks) & (key < start)
    scores.view(-1, num_tokens, length).masked_fill_(hidden, float("-inf"))


def _softmax_step(
    scores: Tensor, values: Tensor, carried: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a tile to the running softmax: row maximum, sum of weights, weighted sum of ``values`` [G, length, E].

    Overwrites ``scores`` [G, rows, length] float32 and what was carried.
    """
    # A row that sees nothing in this tile keeps a finite peak: its weights are then 0, not 0 / 0.
    peak = scores.amax(-1, keepdim=True).clamp_min_(LOWEST_PEAK)
    if carried is not None:
        peak = torch.maximum(peak, carried[0])
    weights = scores.sub_(peak).exp_()
    total = weights.sum(-1, keepdim=True)
    mixed = torch.bmm(weights.to(values.dtype), values).float()
    if carried is not None:
        shrink = torch.exp(carried[0] - peak)
        total.add_(carried[1].mul_(shrink))
        mixed.add_(carried[2].mul_(shrink))
    return peak, total, mixed
