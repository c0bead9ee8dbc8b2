"""Attention policies: which older tokens a query may see, as a function of absolute positions alone."""

from dataclasses import dataclass
from enum import StrEnum

BLOCK_TOKENS = 64


class PolicyName(StrEnum):
    """How much of the past an attention layer keeps on the device."""

    FULL = "full"
    WINDOW = "window"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class AttentionPolicy:
    """Every earlier token (``full``); sinks and the most recent tokens (``window``); or these and the ``select`` blocks
    between them that suit the query best (``archive``).

    Under ``window`` a query at position p sees the positions ``[0, sinks)`` and ``[window_start(p), p]``. Under
    ``archive`` each key head also sees the blocks of ``[sinks, window_start(p))`` whose summaries meet the token's own
    query best, earlier ones first where two are equal. Both depend on absolute positions and on what stands there, so
    no split of a prompt into chunks can change what a token sees.
    """

    name: PolicyName = PolicyName.FULL
    sinks: int = 64
    window: int = 2048
    select: int = 16

    def __post_init__(self) -> None:
        for key in ("sinks", "window"):
            value = getattr(self, key)
            if value < 0 or value % BLOCK_TOKENS or (key == "window" and value == 0):
                raise ValueError(f"policy.{key} is {value}, expected a multiple of {BLOCK_TOKENS} tokens")
        if self.select < 1:
            raise ValueError(f"policy.select is {self.select}, expected at least 1 block")

    def __str__(self) -> str:
        """The name, with the numbers that mean something under it."""
        if self.name is PolicyName.FULL:
            return self.name.value
        told = f"{self.name.value}, sinks {self.sinks}, window {self.window}"
        return f"{told}, select {self.select}" if self.name is PolicyName.ARCHIVE else told

    def window_start(self, position: int) -> int:
        """First position of the window of ``position``: the block border at or before p - window + 1."""
        if self.name is PolicyName.FULL:
            return 0
        return max(0, (position - self.window + 1) // BLOCK_TOKENS * BLOCK_TOKENS)

    def sees(self, query: int, key: int) -> bool:
        """Whether the token at ``query`` attends to the token at ``key``, whatever either says: what is selected is not
        among it."""
        return key <= query and (key < self.sinks or key >= self.window_start(query) or self.name is PolicyName.FULL)

    def max_resident_tokens(self, num_tokens: int, chunk_tokens: int) -> int:
        """Most tokens whose keys a sequence of ``num_tokens`` holds while read in chunks of ``chunk_tokens``."""
        if self.name is PolicyName.FULL:
            return num_tokens
        return min(num_tokens, self.sinks + self.window + BLOCK_TOKENS + chunk_tokens)

    def num_archived(self, num_tokens: int) -> int:
        """Blocks that have left the window when ``num_tokens`` are read."""
        if self.name is not PolicyName.ARCHIVE:
            return 0
        return max(0, self.window_start(num_tokens) - self.sinks) // BLOCK_TOKENS

    def selected_from(self, num_tokens: int, select_from: int) -> int | None:
        """``select_from`` where a token among the first ``num_tokens`` of a text may select a block, else None.

        What is remembered of a text depends on where selection began only if it did."""
        last = num_tokens - 1
        if self.name is not PolicyName.ARCHIVE or last < select_from or self.window_start(last) <= self.sinks:
            return None
        return select_from
