"""What may be kept of a block of keys, and what it says of a query: the candidates for the archive's summary.

A query's attention mass in a block is ``sum exp(q k)`` over its keys. Each summary estimates its logarithm, up to what
is the same for all blocks, from what it kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.policy import BLOCK_TOKENS

LLOYD_ROUNDS = 4
# Steps between the levels of a few bits, in standard deviations: the best ones for a normal distribution (J. Max,
# Quantizing for minimum distortion, 1960).
BEST_STEPS = {1: 1.596, 2: 0.996}
# Of what heads that share a key head say of a block: the most, the mean, or the share of all blocks, summed.
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.amax(-2),
    "mean": lambda scores: scores.mean(-2),
    "share": lambda scores: scores.softmax(-1).sum(-2),
}


@dataclass(frozen=True)
class Summary:
    """What is kept of a block, and what it says of a query.

    ``build`` takes the keys [B, P, E] float32 of all blocks of a text and key head to [B, n] numbers, each kept in
    ``bits``; ``score`` takes queries [..., E] (scaled) and these to [..., B]: higher for more attention mass.
    """

    name: str
    build: Callable[[Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    bits: int = 16

    def of(self, keys: Tensor) -> Tensor:
        """Of keys [B, P, E], rounded as they are kept."""
        kept = self.build(keys.float())
        return kept.bfloat16().float() if self.bits == 16 else kept

    def num_bytes(self, width: int) -> int:
        """Of a block and key head of this width."""
        return self.bits * self.build(torch.randn(2, BLOCK_TOKENS, width)).shape[1] // 8


def _box(keys: Tensor) -> Tensor:
    return torch.cat((keys.amax(1), keys.amin(1)), -1)


def _box_score(queries: Tensor, kept: Tensor) -> Tensor:
    """No key of the block has a larger logit (Quest, arXiv 2406.10774)."""
    width = queries.shape[-1]
    return queries.clamp(min=0) @ kept[:, :width].T + queries.clamp(max=0) @ kept[:, width:].T


def _runs(count: int) -> Callable[[Tensor], Tensor]:
    """Means of ``count`` runs of neighbouring keys."""
    return lambda keys: keys.unflatten(1, (count, -1)).mean(2).flatten(1)


def _best_point(queries: Tensor, kept: Tensor) -> Tensor:
    """Of points [B, n * E] the one with the largest logit."""
    points = kept.reshape(-1, queries.shape[-1])
    return (queries @ points.T).unflatten(-1, (len(kept), -1)).amax(-1)


def _all_points(queries: Tensor, kept: Tensor) -> Tensor:
    points = kept.reshape(-1, queries.shape[-1])
    return (queries @ points.T).unflatten(-1, (len(kept), -1)).logsumexp(-1)


def _moments(count: int) -> Callable[[Tensor], Tensor]:
    """Mean and variance of ``count`` runs of neighbouring keys."""

    def build(keys: Tensor) -> Tensor:
        runs = keys.unflatten(1, (count, -1))
        return torch.cat((runs.mean(2), runs.var(2, correction=0)), -1).flatten(1)

    return build


def _moments_score(queries: Tensor, kept: Tensor) -> Tensor:
    """Two terms of the logarithm's series, as if no two dimensions varied together: one inner product a run."""
    return _all_points(torch.cat((queries, 0.5 * queries.square()), -1), kept)


def _clusters(count: int) -> Callable[[Tensor], Tensor]:
    """Centres of ``count`` clusters (Lloyd's rounds from keys far from each other), and logarithms of their sizes."""

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
        return torch.cat((centres, sizes.log().clamp(min=-1e4)[..., None]), -1).flatten(1)

    return build


def _clusters_score(queries: Tensor, kept: Tensor) -> Tensor:
    return _all_points(torch.cat((queries, torch.ones_like(queries[..., :1])), -1), kept)


def _longest(count: int) -> Callable[[Tensor], Tensor]:
    """The ``count`` longest keys."""

    def build(keys: Tensor) -> Tensor:
        longest = keys.norm(dim=-1).topk(count, -1).indices
        return keys.gather(1, longest[..., None].expand(-1, -1, keys.shape[-1])).flatten(1)

    return build


def _rounded(bits: int) -> Callable[[Tensor], Tensor]:
    """Every key, each dimension in a few bits around its mean over the text."""

    def build(keys: Tensor) -> Tensor:
        rows = keys.flatten(0, 1)
        mean, step = rows.mean(0), BEST_STEPS[bits] * rows.std(0, correction=0).clamp(min=1e-6)
        most = 2 ** (bits - 1)
        level = ((keys - mean) / step - 0.5).round().clamp(-most, most - 1) + 0.5
        return (level * step + mean).flatten(1)

    return build


SUMMARIES = {
    summary.name: summary
    for summary in (
        Summary("mean", _runs(1), _best_point),
        Summary("box (min, max)", _box, _box_score),
        Summary("mean + variance", _moments(1), _moments_score),
        Summary("4 longest", _longest(4), _best_point),
        Summary("4 clusters", _clusters(4), _clusters_score),
        Summary("8 clusters", _clusters(8), _clusters_score),
        Summary("4 runs", _runs(4), _best_point),
        Summary("8 runs", _runs(8), _best_point),
        Summary("16 runs", _runs(16), _best_point),
        Summary("4 runs + variance", _moments(4), _moments_score),
        Summary("16 runs + variance", _moments(16), _moments_score),
        Summary("keys in 1 bit", _rounded(1), _all_points, bits=1),
        Summary("keys in 2 bits", _rounded(2), _all_points, bits=2),
    )
}
# What no summary can beat: half of what the block itself is.
EVERY_KEY = Summary("every key", lambda keys: keys.flatten(1), _all_points)
