"""Pieces of a number of tokens that the passages of a text are to be, instead of those put together for a question.

A text is still searched by its own chunks and sentences, whatever its passages are to be: how it is cut changes what is
shown of a place, not what is found, and the same document can be cut in any number of ways at once.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from retrieval.database import Database
from retrieval.errors import UnknownDocument
from retrieval.passage import Cutting, Span
from retrieval.sentences import trim
from retrieval.store import alive


def pieces_of(text: str, cutting: Cutting, starts: Sequence[int], count: Callable[[str], int]) -> list[Span]:
    """``text`` in pieces that ascend: each has at most ``max_tokens`` tokens when ``count`` counts it by itself, and
    all but the first begin ``overlap_tokens`` tokens, and the rest of a word, before the end of the one before.

    ``starts`` is where each token of the text begins, ascending. Every non-blank character is in a piece; pieces begin
    and end between words, unless a word is longer than half a piece, and have no blanks at their ends.
    """
    borders = np.unique(np.asarray(starts, np.int64)).tolist()
    num_tokens = len(borders)
    places = [*borders, len(text)]
    if places[0] != 0:
        places[0] = 0
    pieces: list[Span] = []
    first, reached = 0, 0
    while reached < num_tokens:
        if not text[places[first] : places[first + 1]].strip():  # A piece begins with a word.
            first += 1
            reached = max(reached, first)
            continue
        last = first + cutting.max_tokens
        while True:
            # Not in the first half, and beyond the piece before: else nothing would be gained.
            least = max(first + cutting.max_tokens // 2, reached)
            last = num_tokens if last >= num_tokens else _between_words(text, places, least, last)
            piece = trim(text, Span(places[first], places[last]))
            excess = count(text[piece.start : piece.end]) - cutting.max_tokens
            if excess <= 0 or last - first == 1:
                break
            last = max(first + 1, last - excess)
        if last <= reached:  # No room for the overlap beside anything new.
            first = reached
            continue
        if not pieces or pieces[-1].end < piece.end:
            pieces.append(piece)
        reached = last
        if reached == num_tokens:
            break
        # A piece that had to be cut short may have less than the overlap.
        back = max(first + 1, last - cutting.overlap_tokens)
        first = _between_words(text, places, first, back) if cutting.overlap_tokens else last
    return pieces


def _between_words(text: str, places: Sequence[int], least: int, most: int) -> int:
    """The last token after the ``least``-th, up to the ``most``-th, that a word begins with; else ``most``."""
    for number in range(most, least, -1):
        place = places[number]
        if text[place].isspace() or text[place - 1].isspace():
            return number
    return most


class Cuttings:
    """The pieces of documents, kept beside their texts, and gone with them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def has(self, number: int, cutting: Cutting) -> bool:
        """Whether the document is cut so."""
        with self._database.read() as connection:
            return _row(connection, number, cutting) is not None

    def keep(self, number: int, cutting: Cutting, pieces: Sequence[Span]) -> None:
        """Keep the pieces; durable on return. Raises ``UnknownDocument`` where it was deleted meanwhile."""
        spans = np.array([(piece.start, piece.end) for piece in pieces], "<i4").tobytes()
        with self._database.write() as (connection, _):
            alive(connection, number)
            connection.execute(
                "INSERT OR REPLACE INTO pieces VALUES (?, ?, ?, ?)",
                (number, cutting.max_tokens, cutting.overlap_tokens, spans),
            )

    def pieces(self, number: int, cutting: Cutting) -> list[Span]:
        """All pieces, in reading order. Raises ``UnknownDocument`` where the document is not cut so."""
        with self._database.read() as connection:
            row = _row(connection, number, cutting)
        if row is None:
            raise UnknownDocument(f"number {number}")
        return [Span(*pair) for pair in np.frombuffer(row, "<i4").reshape(-1, 2).tolist()]


@dataclass(slots=True)
class Pieces:
    """The pieces that one question's places stand in, each document's read once."""

    cuttings: Cuttings
    _known: dict[tuple[int, Cutting], tuple[list[Span], list[int]]] = field(default_factory=dict)

    def around(self, number: int, cutting: Cutting, span: Span, core: Span | None = None) -> Span:
        """The piece with most of ``core``, of several that with most of ``span``, which is around it, and of these the
        one with the most around that. Without a core it is all of the span.

        Raises ``UnknownDocument`` where the document is not cut so.
        """
        key = (number, cutting)
        if key not in self._known:
            pieces = self.cuttings.pieces(number, cutting)
            self._known[key] = (pieces, [piece.end for piece in pieces])
        pieces, ends = self._known[key]
        best: Span | None = None
        best_fit = (0, 0, 0)
        for place in range(max(0, bisect_left(ends, span.start) - 1), len(pieces)):
            piece = pieces[place]
            if piece.start > span.end and best is not None:
                break
            centred = min(span.start - piece.start, piece.end - span.end)
            fit = (_shared(piece, core or span), _shared(piece, span), centred)
            if best is None or fit > best_fit:
                best, best_fit = piece, fit
        if best is None:
            raise UnknownDocument(f"number {number}")
        return best


def _shared(piece: Span, span: Span) -> int:
    """How many characters of a span stand in a piece; less than nought is how far it is away."""
    return min(piece.end, span.end) - max(piece.start, span.start)


def _row(connection: sqlite3.Connection, number: int, cutting: Cutting) -> bytes | None:
    row = connection.execute(
        "SELECT spans FROM pieces WHERE document = ? AND max_tokens = ? AND overlap_tokens = ?",
        (number, cutting.max_tokens, cutting.overlap_tokens),
    ).fetchone()
    return None if row is None else bytes(row[0])
