"""Segments of each tenant's documents: made from the store when many are asked together, kept current, never trusted.

Documents that are new or have changed since come in a segment of their own; segments of like size become one, so that
a document is laid out a few times at most. Of all this the store has the words of each document, counted, and its
vectors; nothing else of it is on the disk.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.index_memory import IndexMemory
from retrieval.laid_out import LaidOut, Numbers
from retrieval.record import Listed
from retrieval.segment import Segment
from retrieval.stored_pieces import StoredPieces

# So many documents or more are asked as one.
TOGETHER = 16
# A document of more rows has indexes of its own, which tell what of it a question needs without looking at all.
STACKED_ROWS = 1024
# A segment is joined with a newer one that has at least this share of its documents.
_ALIKE = 0.25
# What was replaced by newer contents may be so large a share of the documents of a segment.
_STALE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Stack:
    """The segments of one tenant, the oldest first. A document may be in several, in one at the newest revision."""

    segments: tuple[Segment, ...] = ()

    @property
    def num_bytes(self) -> int:
        """See ``Held.num_bytes``."""
        return sum(segment.num_bytes for segment in self.segments)

    @property
    def embedding_bytes(self) -> int:
        """See ``Held.embedding_bytes``."""
        return sum(segment.vectors.nbytes for segment in self.segments)


@dataclass(slots=True)
class _Making:
    """Who makes a tenant's stack, one at a time; and which of its documents were deleted since it was made."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    gone: set[int] = field(default_factory=set)


class Stacks:
    """Lays documents out and keeps them. What was handed out never changes and stays usable by whoever has it."""

    def __init__(self, stored: StoredPieces, memory: IndexMemory, dimension: int) -> None:
        self._stored = stored
        self._memory = memory
        self._dimension = dimension
        self._lock = threading.Lock()
        self._making: dict[str, _Making] = {}

    def takes(self, num_rows: Numbers) -> bool:
        """Whether documents of so many rows are asked as one: if they are many, and no more than may be held."""
        return len(num_rows) >= TOGETHER and 4 * self._dimension * int(num_rows.sum()) <= self._memory.max_bytes // 2

    def opened(self, tenant: str, records: Sequence[Listed], numbers: Numbers, revisions: Numbers) -> Stack:
        """The segments that have these documents of ``tenant``, of these ``numbers`` and ``revisions``, and perhaps
        others.

        Raises:
            UnknownDocument: one of them is being deleted.
        """
        with self._lock:
            making = self._making.setdefault(tenant, _Making())
        with making.lock:
            with self._lock:
                gone, making.gone = making.gone, set()
            kept = self._memory.get(_key(tenant), None, Stack) or Stack()
            segments = [_without(segment, gone) for segment in kept.segments]
            missing = np.ones(len(numbers), bool)
            for segment in segments:
                missing &= held_at(segment, numbers, revisions) < 0
            if missing.any():
                pieces = self._stored.pieces([records[place] for place in np.flatnonzero(missing).tolist()])
                segments = _joined([*segments, Segment(LaidOut.of(pieces, self._dimension))])
            stack = Stack(tuple(segment for segment in segments if len(segment)))
            if stack.segments != kept.segments:
                self._memory.keep(_key(tenant), None, stack)
        return stack

    def discard(self, tenant: str, number: int) -> None:
        """A document is deleted: the next question to its tenant's stack leaves nothing of it in memory."""
        with self._lock:
            if tenant in self._making:
                self._making[tenant].gone.add(number)


def held_at(segment: Segment, numbers: Numbers, revisions: Numbers) -> Numbers:
    """The place of each document, -1 for those that a segment does not have at these revisions."""
    places = segment.places_of(numbers)
    if not len(segment):
        return places
    return np.where((segment.revisions[places] == revisions).all(axis=1), places, -1)


def _without(segment: Segment, gone: set[int]) -> Segment:
    if not gone:
        return segment
    kept = ~np.isin(segment.numbers, np.fromiter(gone, np.int64, len(gone)))
    return segment if kept.all() else Segment(segment.laid_out().kept(kept))


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Segments, the newest last, those of like size as one; what is in a newer one as well goes where it is much."""
    seen = segments[-1].numbers
    alike = [segments[-1].laid_out()]
    num_alike, others = len(segments[-1]), list[Segment]()
    for segment in reversed(segments[:-1]):
        kept = ~np.isin(segment.numbers, seen)
        if not others and num_alike >= _ALIKE * len(segment):
            alike.append(segment.laid_out().kept(kept))
            num_alike += int(kept.sum())
        elif 1.0 - kept.mean() > _STALE_SHARE:
            others.append(Segment(segment.laid_out().kept(kept)))
        else:
            others.append(segment)
        seen = np.concatenate([seen, segment.numbers])
    newest = segments[-1] if len(alike) == 1 else Segment(LaidOut.end_to_end(alike))
    return [*reversed(others), newest]


def _key(tenant: str) -> tuple[str, str]:
    return ("stack", tenant)
