"""Counts of one cell: how often was everything found, how much of it, at which depth."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.recall.cases import Case, num_found
from bench.recall.intervals import wilson
from retrieval.passage import Span

NUM_DEPTHS = 10


@dataclass
class Hits:
    """Of ``asked`` questions: all parts in the first passage, all in the first few; parts found of all parts."""

    asked: int = 0
    first: int = 0
    found: int = 0
    parts: int = 0
    parts_found: int = 0
    by_depth: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in range(NUM_DEPTHS)])

    def note(self, case: Case, spans: Sequence[Span]) -> bool:
        """One more question; whether everything was found."""
        num_parts = num_found(case, spans)
        is_found = num_parts == len(case.parts)
        self.asked += 1
        self.first += num_found(case, spans[:1]) == len(case.parts)
        self.found += is_found
        self.parts += len(case.parts)
        self.parts_found += num_parts
        depth = self.by_depth[min(int(case.depth * NUM_DEPTHS), NUM_DEPTHS - 1)]
        depth[0] += 1
        depth[1] += is_found
        return is_found

    def as_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "first": self.first,
            "found": self.found,
            "interval": [round(end, 4) for end in wilson(self.found, self.asked)],
            "first_interval": [round(end, 4) for end in wilson(self.first, self.asked)],
            "parts": self.parts,
            "parts_found": self.parts_found,
            "by_depth": self.by_depth,
        }


class Tally:
    """Hits by group of cases and way of searching."""

    def __init__(self) -> None:
        self._hits: dict[str, dict[str, Hits]] = defaultdict(lambda: defaultdict(Hits))

    def note(self, case: Case, way: str, spans: Sequence[Span]) -> bool:
        """One more question; whether everything was found."""
        return self._hits[case.group][way].note(case, spans)

    def as_json(self) -> dict[str, Any]:
        return {
            group: {way: hits.as_json() for way, hits in ways.items()} for group, ways in sorted(self._hits.items())
        }
