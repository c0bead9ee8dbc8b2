"""Requests that wait: a line for each tenant. No torch."""

from collections.abc import Iterator

from model.engine.fairness import FairShare
from model.engine.sequence import SequenceGroup, Status


class WaitingLine:
    """First come, first served within a tenant; between tenants, who was served least.

    A request that was preempted keeps the place its arrival gives it, before all that came later.
    """

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self._lines: dict[str, list[SequenceGroup]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[SequenceGroup]:
        return (group for line in self._lines.values() for group in line)

    @property
    def num_new(self) -> int:
        """Requests that were never admitted."""
        return sum(group.status is Status.WAITING for group in self)

    def add(self, group: SequenceGroup) -> None:
        """Take a place in the line."""
        line = self._lines.setdefault(group.tenant, [])
        place = len(line)
        while place and line[place - 1].submitted_at > group.submitted_at:
            place -= 1
        line.insert(place, group)

    def remove(self, group: SequenceGroup) -> None:
        """Leave the line."""
        line = self._lines[group.tenant]
        line.remove(group)
        if not line:
            del self._lines[group.tenant]

    def first(self, is_saved: bool = False) -> SequenceGroup | None:
        """Who is next, with ``is_saved`` of those that were preempted; None when nobody waits that wants to run. Who
        reads in the background comes after all others."""
        for in_background in (False, True):
            heads = {
                tenant: head
                for tenant, line in self._lines.items()
                if (head := next((group for group in line if _is_next(group, in_background, is_saved)), None))
                is not None
            }
            if heads:
                return heads[self._shares.first(heads)]
        return None


def _is_next(group: SequenceGroup, in_background: bool, is_saved: bool) -> bool:
    is_wanted = group.status is Status.SAVED or not is_saved
    return is_wanted and not group.is_paused and group.request.is_background == in_background
