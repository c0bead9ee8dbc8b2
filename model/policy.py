"""Attention policies: which older tokens a query may see, as a function of absolute positions alone."""

from dataclasses import dataclass
from enum import StrEnum

BLOCK_TOKENS = 64


class PolicyName(StrEnum):
    """How much of the past an attention layer keeps on the device."""

    FULL = "full"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class AttentionPolicy:
    """Every earlier token (``full``), or sinks and the most recent tokens (``window``).

    Under ``window`` a query at position p sees the positions ``[0, sinks)`` and
    ``[window_start(p), p]``. Masks depend on absolute positions only, so no split of a
    prompt into chunks can change what a token sees.
    """

    name: PolicyName = PolicyName.FULL
    sinks: int = 64
    window: int = 2048

    def __post_init__(self) -> None:
        for key in ("sinks", "window"):
            value = getattr(self, key)
            if value < 0 or value % BLOCK_TOKENS or (key == "window" and value == 0):
                raise ValueError(f"policy.{key} is {value}, expected a multiple of {BLOCK_TOKENS} tokens")

    def __str__(self) -> str:
        """The name, with the numbers that mean something under it."""
        if self.name is PolicyName.FULL:
            return self.name.value
        return f"{self.name.value}, sinks {self.sinks}, window {self.window}"

    def window_start(self, position: int) -> int:
        """First position of the window of ``position``: the block border at or before p - window + 1."""
        if self.name is PolicyName.FULL:
            return 0
        return max(0, (position - self.window + 1) // BLOCK_TOKENS * BLOCK_TOKENS)

    def sees(self, query: int, key: int) -> bool:
        """Whether the token at ``query`` attends to the token at ``key``."""
        return key <= query and (key < self.sinks or key >= self.window_start(query) or self.name is PolicyName.FULL)

    def max_resident_tokens(self, num_tokens: int, chunk_tokens: int) -> int:
        """Most tokens whose keys a sequence of ``num_tokens`` holds while read in chunks of ``chunk_tokens``."""
        if self.name is PolicyName.FULL:
            return num_tokens
        return min(num_tokens, self.sinks + self.window + BLOCK_TOKENS + chunk_tokens)
