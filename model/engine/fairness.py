"""Whose turn it is: tenants share the engine by the tokens it has worked on for them. No torch."""

from collections import Counter
from collections.abc import Collection, Iterable

# A drawn token costs a whole pass over the weights, a token of a prompt shares one (arXiv 2401.00588, section 3.2).
COMPLETION_WEIGHT = 2


class FairShare:
    """Virtual token counters (Sheng et al. 2024, arXiv 2401.00588): who was served least is next.

    A tenant that comes back does not start ahead of those who are there, so that idling saves nothing up.
    """

    def __init__(self) -> None:
        self._served: Counter[str] = Counter()

    def arrive(self, tenant: str, active: Collection[str]) -> None:
        """``tenant`` sends a request; ``active`` are the tenants that have others here."""
        if not active:
            self._served.clear()
        elif tenant not in active:
            self._served[tenant] = max(self._served[tenant], min(self._served[each] for each in active))

    def serve(self, tenant: str, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """A step worked on this many tokens for ``tenant``."""
        self._served[tenant] += num_prompt_tokens + COMPLETION_WEIGHT * num_completion_tokens

    def served(self, tenant: str) -> int:
        """Weighted tokens served to ``tenant``."""
        return self._served[tenant]

    def first(self, tenants: Iterable[str]) -> str:
        """Who of ``tenants`` was served least; of equals the first."""
        return min(tenants, key=self._served.__getitem__)
