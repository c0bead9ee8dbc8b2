"""What of the documents asked a question may be answered from: parts of their texts, and kinds of facts.

A part is cut out before anything is ranked. Its chunks are searched as if the document had no others: words are as rare
as they are in it, rows are compared among its own, keys lead to its facts alone, and passages end where it ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.contents import Contents
from retrieval.lexical_index import LexicalPart
from retrieval.passage import FactKind, Span
from retrieval.record import Listed
from retrieval.shelf_files import Shelf
from retrieval.store import Store


@dataclass(frozen=True, slots=True)
class Scope:
    """``parts`` holds, by its id, for each document that is not searched as a whole the spans that are: ascending,
    disjoint, none empty. ``kinds`` are those of the facts that keys may lead to, None for all."""

    parts: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    kinds: frozenset[FactKind] | None = None

    def contents(self, contents: Contents, records: Sequence[Listed]) -> Contents:
        """Of ``contents`` what is in the scope."""
        inside = (record for record in records if record.id in self.parts) if self.parts else ()
        parts = {record.number: self.parts[record.id] for record in inside}
        return contents.within(parts, self.kinds) if parts or self.kinds is not None else contents

    def shelf(self, shelf: Shelf, record: Listed, store: Store, contents: Contents) -> Shelf:
        """Of ``shelf`` what is in the scope; ``contents`` are those of the scope."""
        spans = self.parts.get(record.id)
        if spans is None:
            return shelf
        assert not isinstance(shelf.lexical, LexicalPart), "a part of a part"
        rows, whole = rows_in(shelf.row_spans, spans)
        num_inside = np.bincount(shelf.chunk_of[rows], minlength=len(shelf.lexical))
        num_whole = np.bincount(shelf.chunk_of[rows[whole]], minlength=len(shelf.lexical))
        num_rows = np.bincount(shelf.chunk_of, minlength=len(shelf.lexical))
        ordinals = np.flatnonzero(num_inside)
        # The index has the words of whole chunks; of these few only a part may speak.
        cut = contents.chunks_at(record.number, np.flatnonzero((num_inside > 0) & (num_whole < num_rows)).tolist())
        texts = store.texts(record.number, [Span(chunk.start, chunk.end) for chunk in cut.values()])
        lexical = LexicalPart(shelf.lexical, ordinals.tolist(), dict(zip(cut, texts, strict=True)))
        return replace(shelf, lexical=lexical, rows=rows)


def rows_in(row_spans: NDArray[np.int32], spans: Sequence[Span]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The rows that reach into one of ``spans``, ascending, and which of these lie wholly in it.

    ``row_spans`` [rows, 2] and ``spans`` each ascend and are disjoint.
    """
    starts, ends = (np.array([getattr(span, side) for span in spans], np.int64) for side in ("start", "end"))
    first = np.searchsorted(ends, row_spans[:, 0], side="right")
    there = np.minimum(first, len(spans) - 1)
    rows = np.flatnonzero((first < len(spans)) & (starts[there] < row_spans[:, 1]))
    whole = (starts[there[rows]] <= row_spans[rows, 0]) & (row_spans[rows, 1] <= ends[there[rows]])
    return rows, whole


def merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same places as ascending spans that neither meet nor overlap."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return tuple(joined)
