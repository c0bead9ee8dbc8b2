"""How sure a share of right answers is."""

import math
from collections.abc import Sequence

import numpy as np

# Of a normal distribution 95 % lie within so many standard deviations.
Z95 = 1.96
DRAWS = 2000


def wilson(num_right: int, num_asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate (E. B. Wilson, JASA 1927); it says something at 0 and at 100 %, too."""
    if num_asked == 0:
        return 0.0, 1.0
    rate, spread = num_right / num_asked, Z95**2 / num_asked
    middle = rate + spread / 2
    half = Z95 * math.sqrt(rate * (1 - rate) / num_asked + spread / (4 * num_asked))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean of values that are no mere yes or no, by drawing them again (seed 0)."""
    drawn = np.asarray(values, dtype=float)
    means = drawn[np.random.default_rng(0).integers(0, len(drawn), (DRAWS, len(drawn)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
