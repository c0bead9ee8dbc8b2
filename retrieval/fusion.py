"""Several rankings into one: weighted reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

# The article's 60 mixes rankings of thousands; among the first five the top ranks must weigh more. Measured together
# with the weights in retrieval.passages.
RANK_CONSTANT = 1


Item = TypeVar("Item", bound=Hashable)


def fuse(rankings: Mapping[str, Sequence[Item]], weights: Mapping[str, float]) -> dict[Item, float]:
    """Score each item by the sum of weight / (1 + rank) over the rankings that hold it, best possible = 1."""
    scores: dict[Item, float] = {}
    ceiling = sum(weights[name] for name, ranking in rankings.items() if ranking) / (RANK_CONSTANT + 1)
    for name, ranking in rankings.items():
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + weights[name] / (RANK_CONSTANT + rank)
    return {item: score / ceiling for item, score in scores.items()}
