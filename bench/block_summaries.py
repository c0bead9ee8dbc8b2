"""What may be kept of a block of keys, and what it says of a query: the candidates for the archive's summary.

A query's attention mass in a block is ``sum exp(q k)`` over its keys; each summary estimates its logarithm, up to what
is the same for all blocks, from a few vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.policy import BLOCK_TOKENS

LLOYD_ROUNDS = 4
POWER_ROUNDS = 8
# Of what heads that share a key head say of a block: the most, the mean, or the share of all blocks, summed.
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.amax(-2),
    "mean": lambda scores: scores.mean(-2),
    "share": lambda scores: scores.softmax(-1).sum(-2),
}


@dataclass(frozen=True)
class Summary:
    """What is kept of a block, and what it says of a query.

    ``build`` takes keys [B, P, E] float32 to [B, n] numbers; ``score`` takes queries [..., E] (scaled) and these to
    [..., B]: higher for a block with more attention mass.
    """

    name: str
    build: Callable[[Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]

    def of(self, keys: Tensor) -> Tensor:
        """Of keys [B, P, E], rounded to bfloat16 as they are kept."""
        return self.build(keys.float()).bfloat16().float()


def _box_score(queries: Tensor, kept: Tensor) -> Tensor:
    width = queries.shape[-1]
    return queries.clamp(min=0) @ kept[:, :width].T + queries.clamp(max=0) @ kept[:, width:].T


def _box(keys: Tensor) -> Tensor:
    return torch.cat((keys.amax(1), keys.amin(1)), -1)


def _spread(keys: Tensor) -> Tensor:
    return torch.cat((keys.mean(1), keys.std(1, correction=0)), -1)


def _spread_score(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def score(queries: Tensor, kept: Tensor) -> Tensor:
        width = queries.shape[-1]
        variance = queries.square() @ kept[:, width:].square().T
        return queries @ kept[:, :width].T + factor * variance.clamp(min=0).sqrt()

    return score


def _moments(keys: Tensor) -> Tensor:
    return torch.cat((keys.mean(1), keys.var(1, correction=0)), -1)


def _moments_score(queries: Tensor, kept: Tensor) -> Tensor:
    """Two terms of the logarithm's series, as if no two dimensions varied together: one inner product."""
    return torch.cat((queries, 0.5 * queries.square()), -1) @ kept.T


def _axis(keys: Tensor) -> Tensor:
    """The mean, and the main axis as long as the standard deviation along it."""
    mean = keys.mean(1, keepdim=True)
    off = keys - mean
    axis = off[torch.arange(len(off)), off.norm(dim=-1).argmax(-1)]
    for _ in range(POWER_ROUNDS):
        axis = torch.nn.functional.normalize(torch.einsum("bpe,bp->be", off, torch.einsum("bpe,be->bp", off, axis)))
    spread = torch.einsum("bpe,be->bp", off, axis).square().mean(-1, keepdim=True).sqrt()
    return torch.cat((mean[:, 0], axis * spread), -1)


def _axis_score(queries: Tensor, kept: Tensor) -> Tensor:
    width = queries.shape[-1]
    return queries @ kept[:, :width].T + 0.5 * (queries @ kept[:, width:].T).square()


def _points_score(queries: Tensor, kept: Tensor) -> Tensor:
    """Of points [B, n * E] with the logarithms of how many keys each stands for behind them."""
    width = queries.shape[-1]
    count = kept.shape[1] // (width + 1)
    points = kept[:, : count * width].reshape(-1, width)
    return ((queries @ points.T).unflatten(-1, (-1, count)) + kept[:, count * width :]).logsumexp(-1)


def _runs(count: int) -> Callable[[Tensor], Tensor]:
    """Means of ``count`` runs of neighbouring keys."""

    def build(keys: Tensor) -> Tensor:
        means = keys.unflatten(1, (count, -1)).mean(2)
        return torch.cat((means.flatten(1), torch.zeros(len(keys), count)), -1)

    return build


def _clusters(count: int) -> Callable[[Tensor], Tensor]:
    """Centres of ``count`` clusters (Lloyd's rounds from keys far from each other)."""

    def build(keys: Tensor) -> Tensor:
        rows = torch.arange(len(keys))
        centres = keys[rows, (keys - keys.mean(1, keepdim=True)).norm(dim=-1).argmax(-1)][:, None]
        while centres.shape[1] < count:
            far = torch.cdist(keys, centres).amin(-1).argmax(-1)
            centres = torch.cat((centres, keys[rows, far][:, None]), 1)
        for _ in range(LLOYD_ROUNDS):
            owner = torch.nn.functional.one_hot(torch.cdist(keys, centres).argmin(-1), count).float()
            sizes = owner.sum(1)
            means = torch.einsum("bpn,bpe->bne", owner, keys) / sizes.clamp(min=1)[..., None]
            centres = torch.where(sizes[..., None] > 0, means, centres)
        # An empty cluster stands for no key.
        return torch.cat((centres.flatten(1), sizes.log().clamp(min=-1e4)), -1)

    return build


def _norms(count: int) -> Callable[[Tensor], Tensor]:
    """The ``count`` longest keys."""

    def build(keys: Tensor) -> Tensor:
        longest = keys.norm(dim=-1).topk(count, -1).indices
        points = keys.gather(1, longest[..., None].expand(-1, -1, keys.shape[-1]))
        return torch.cat((points.flatten(1), torch.zeros(len(keys), count)), -1)

    return build


def _outliers(count: int) -> Callable[[Tensor], Tensor]:
    """The ``count`` keys furthest from the mean, and the mean of the others."""

    def build(keys: Tensor) -> Tensor:
        num_keys, width = keys.shape[1:]
        order = (keys - keys.mean(1, keepdim=True)).norm(dim=-1).argsort(dim=-1, descending=True, stable=True)
        ordered = keys.gather(1, order[..., None].expand(-1, -1, width))
        points = torch.cat((ordered[:, count:].mean(1, keepdim=True), ordered[:, :count]), 1)
        sizes = torch.tensor([float(num_keys - count), *[1.0] * count]).log().expand(len(keys), -1)
        return torch.cat((points.flatten(1), sizes), -1)

    return build


SUMMARIES = {
    summary.name: summary
    for summary in (
        Summary("mean", lambda keys: keys.mean(1), lambda queries, kept: queries @ kept.T),
        Summary("box (min, max)", _box, _box_score),
        Summary("mean + std", _spread, _spread_score(1.0)),
        Summary("mean + 2 std", _spread, _spread_score(2.0)),
        Summary("mean + variance / 2", _moments, _moments_score),
        Summary("mean + main axis", _axis, _axis_score),
        Summary("mean + 1 outlier", _outliers(1), _points_score),
        Summary("mean + 3 outliers", _outliers(3), _points_score),
        Summary("2 longest", _norms(2), _points_score),
        Summary("4 longest", _norms(4), _points_score),
        Summary("2 runs", _runs(2), _points_score),
        Summary("4 runs", _runs(4), _points_score),
        Summary("2 clusters", _clusters(2), _points_score),
        Summary("4 clusters", _clusters(4), _points_score),
    )
}


def kept_bytes(summary: Summary, width: int) -> int:
    """Bytes of a block and key head in bfloat16."""
    return 2 * summary.of(torch.randn(1, BLOCK_TOKENS, width)).shape[1]
