"""Tokens each of which brings a list of the blocks that it sees, for each key head: those that select."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.policy import BLOCK_TOKENS

Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class ListedTokens:
    """What N tokens of a step see, told on the host.

    ``rows`` [N] are their rows among the queries. ``entries`` [N, G, width] are blocks by rising place: ``block`` of
    the pool, or ``-1 - slot`` of the strips that were fetched. The first ``num_entries`` [N] of each list count, as
    many for every key head; all their keys are seen but those behind the token itself in the last, in which it stands
    at ``offsets`` [N].
    """

    rows: Integers
    entries: Integers
    num_entries: Integers
    offsets: Integers

    def __post_init__(self) -> None:
        count, _, width = self.entries.shape
        shapes = self.rows.shape, self.num_entries.shape, self.offsets.shape
        assert shapes == ((count,),) * 3, f"lists of {count} tokens, and {shapes}"
        assert self.num_entries.min(initial=1) > 0, "a token sees at least itself"
        assert self.num_entries.max(initial=0) <= width, f"{self.num_entries} entries in lists of {width}"
        assert self.offsets.max(initial=0) < BLOCK_TOKENS, f"offsets {self.offsets}"
