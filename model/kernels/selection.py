"""Which of the blocks that left the windows a token sees: the specification, in plain torch.

A block of keys is summed up, for each key head, by the means of its runs of a few neighbouring keys. Its score for a
token is the largest product of one of these with one of the query heads that share the key head, and the token sees the
``select`` blocks with the largest, of equal ones the earlier. So what it sees depends on its own query and on what
stands before it, and on nothing that is read beside it. Queries are rounded to the dtype of the keys before that, as
the widest instruction set has to: so all choose the same. ``bench/archive_summaries.py`` and ``bench/archive_worth.py``
have the measurement: one vector for all 64 keys loses a sentence among its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.index_plan import IndexPlan
from model.kernels.block_index import BlockIndex, as_strips, lists_of
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from model.tiles import SUMMARY_ROWS


@dataclass(frozen=True, slots=True)
class ArchivedLayer:
    """What left the windows, as one attention layer of a step reads it.

    ``memory`` and ``file`` [blocks, layers, 2, P, G, E] are keys and values by number, those in the file after those in
    memory; ``summaries`` [layers, G, blocks, *summary_shape] means of runs. For each sequence ``tables`` has the number
    by place, -1 where the block stays on the device, and ``select_from`` the first position that selects. Where there
    is a ``plan``, ``indexes`` has for each sequence those that its tokens choose by, from its first block on.
    """

    memory: Tensor
    file: Tensor
    summaries: Tensor
    layer: int
    tables: Sequence[Sequence[int]]
    select_from: Sequence[int]
    indexes: Sequence[Sequence[BlockIndex]] = ()
    plan: IndexPlan | None = None

    def block(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values [P, G, E] of one block."""
        near = len(self.memory)
        keys, values = (self.memory[number] if number < near else self.file[number - near])[self.layer]
        return keys, values

    def put(self, number: int, keys: Tensor, values: Tensor) -> None:
        """Keep ``keys`` and ``values`` [P, G, E] of a block that is complete, with their summary."""
        kept_keys, kept_values = self.block(number)
        kept_keys.copy_(keys)
        kept_values.copy_(values)
        self.summaries[self.layer, :, number] = summary(kept_keys)


def summary(keys: Tensor) -> Tensor:
    """[..., P, G, E] -> [..., G, *summary_shape], in the dtype of the keys: R means of runs of neighbours.

    Added up one by one, so that every implementation comes to the same bits.
    """
    together = keys.shape[-3] // SUMMARY_ROWS
    parts = keys.float().view(*keys.shape[:-3], SUMMARY_ROWS, together, *keys.shape[-2:]).unbind(-3)
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return as_strips(total.div_(together).transpose(-3, -2).to(keys.dtype)).squeeze(-4)


def means_of(summaries: Tensor, width: int) -> Tensor:
    """[..., *summary_shape] -> [..., R, E], of heads of ``width``."""
    return summaries.transpose(-3, -2).flatten(-2)[..., :width]


def candidates(policy: AttentionPolicy, position: int, select_from: int) -> range:
    """Places of the blocks that the token at ``position`` may select."""
    first = policy.sinks // BLOCK_TOKENS
    if policy.name is not PolicyName.ARCHIVE or position < select_from:
        return range(first, first)
    return range(first, max(first, policy.window_start(position) // BLOCK_TOKENS))


def first_selecting(policy: AttentionPolicy, select_from: int) -> int:
    """The first position whose token has a choice; only under policy ``archive``."""
    return max(select_from, policy.sinks + BLOCK_TOKENS + policy.window - 1)


def choose(
    queries: Tensor, archive: ArchivedLayer, index: int, first: int, policy: AttentionPolicy, num_places: int
) -> Tensor:
    """Which blocks the tokens of sequence ``index`` from position ``first`` on select: [G, T, num_places], a boolean.

    ``queries`` are [T, H, E]. Scores are float64, so that only what is equal is a tie.
    """
    num_tokens, num_heads, width = queries.shape
    num_groups = archive.summaries.shape[1]
    chosen = torch.zeros(num_groups, num_tokens, num_places, dtype=torch.bool)
    last = candidates(policy, first + num_tokens - 1, archive.select_from[index])
    if not last:
        return chosen
    numbers = torch.tensor([archive.tables[index][place] for place in last])
    means = means_of(archive.summaries[archive.layer][:, numbers], width).double()
    grouped = queries.to(archive.summaries.dtype).double().view(num_tokens, num_groups, num_heads // num_groups, width)
    scores = torch.einsum("tghe,gnre->gtnhr", grouped, means).flatten(3).amax(-1)
    for token in range(num_tokens):
        places = candidates(policy, first + token, archive.select_from[index])
        if archive.plan is not None and len(places) > policy.select:
            count = archive.plan.num_indexed(policy, first + token, archive.select_from[index])
            size = archive.plan.num_blocks
            for number, each in enumerate(archive.indexes[index][:count]):
                found = scores_by_index(each, archive.layer, grouped[token], archive.plan.num_probed)
                scores[:, token, number * size : (number + 1) * size] = found
        ranked, order = scores[:, token, : len(places)].sort(dim=-1, descending=True, stable=True)
        for group in range(num_groups):
            found = order[group, : policy.select][ranked[group, : policy.select] > float("-inf")]
            chosen[group, token, found + last.start] = True
    return chosen


def scores_by_index(index: BlockIndex, layer: int, queries: Tensor, num_probed: int) -> Tensor:
    """[G, B] float64 of the blocks of an index for one token's ``queries`` [G, heads, E] float64: of means in the
    ``num_probed`` lists whose centres have the largest products, of equal ones the earlier; -inf where none is."""
    num_groups, _, width = queries.shape
    scores = torch.full((num_groups, index.num_blocks), float("-inf"), dtype=torch.float64)
    centres = means_of(index.centres[layer], width).flatten(1, 2)[:, : index.num_lists].double()
    likeness = torch.einsum("ghe,gle->glh", queries, centres).amax(-1)
    best = likeness.sort(dim=-1, descending=True, stable=True).indices[:, :num_probed]
    for group in range(num_groups):
        strips, places = lists_of(index, layer, group, best[group].tolist())
        found = torch.einsum("he,nre->nrh", queries[group], means_of(strips, width).double()).amax(-1)
        scores[group].scatter_reduce_(0, places.flatten().long(), found.flatten(), "amax")
    return scores


def chosen_places(
    queries: Tensor,
    query_start: Tensor,
    first_positions: Sequence[int],
    policies: Sequence[AttentionPolicy],
    archive: ArchivedLayer,
) -> Tensor:
    """Which blocks the tokens of some sequences select: their places [T, G, most] int32, rising, -1 behind them.

    ``queries`` are [T, H, E] in host memory, in the dtype of the keys; the rows of sequence ``s`` are those from
    ``query_start[s]`` on, its tokens stand from ``first_positions[s]`` on, and all read under policy ``archive``.
    ``most`` is the largest ``select``.
    """
    most = max(policy.select for policy in policies)
    places = torch.full((len(queries), archive.summaries.shape[1], most), -1, dtype=torch.int32)
    bounds = query_start.tolist()
    for index, (first, policy) in enumerate(zip(first_positions, policies, strict=True)):
        start, end = bounds[index], bounds[index + 1]
        num_places = policy.window_start(first + end - start - 1) // BLOCK_TOKENS
        chosen = choose(queries[start:end], archive, index, first, policy, num_places).transpose(0, 1)
        # The count of those before it is where a block stands in the list.
        order = chosen.cumsum(-1) - 1
        rows, groups, found = chosen.nonzero(as_tuple=True)
        places[start + rows, groups, order[rows, groups, found]] = found.int()
    return places
