"""Which rows of a text may mean what a question asks, told from single words: what is compared by meaning first.

Each word piece of the question is met with the piece of a row that is most like it, by the vectors with which the
embedder begins to read; no text is read. Measured on sentences in books that share no word with their question: of
the rows of 64K tokens the quarter that is looked at holds the sentence for 87 %, where the 24 chunks that are best by
words hold it for 3 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# Added to the length of a row, so that one of two words is not the best for having no others.
_LENGTH_BASE = 8


@runtime_checkable
class Skims(Protocol):
    """An embedder whose word pieces have vectors of their own."""

    def word_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text, without borders."""

    def likeness(self, pieces: Sequence[int]) -> NDArray[np.float32]:
        """How like each of ``pieces`` is to every piece there is: cosines [len(pieces), pieces]."""

    def silent_pieces(self) -> NDArray[np.bool_]:
        """Which pieces say nothing of what a text is about: signs, and words that questions are made of."""


@dataclass(frozen=True, slots=True, eq=False)
class Skim:
    """The word pieces of the rows of a text, end to end; ``starts`` are where each row begins."""

    pieces: NDArray[np.uint16]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, embedder: Skims, rows: Sequence[str]) -> Self:
        """Of rows in their order; a row without any piece has one that is like nothing."""
        found = [pieces or [0] for pieces in embedder.word_pieces(rows)]
        lengths = np.array([len(pieces) for pieces in found], np.int64)
        flat = np.fromiter((piece for pieces in found for piece in pieces), np.uint16, int(lengths.sum()))
        return cls(flat, np.cumsum(lengths) - lengths)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_bytes(self) -> int:
        """Host memory of it."""
        return self.pieces.nbytes + self.starts.nbytes

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many pieces each row has."""
        return np.diff(self.starts, append=len(self.pieces))


def likely_rows(embedder: Skims, question: str, texts: Sequence[Skim], most: int) -> list[list[int]]:
    """Of each text its rows, in order, that are among the ``most`` likely ones of all."""
    silent = embedder.silent_pieces()
    counts = sum((np.bincount(text.pieces, minlength=len(silent)) for text in texts), np.zeros(len(silent), np.int64))
    num_rows = sum(map(len, texts))
    rarity = np.where(silent, 0.0, np.maximum(0.0, np.log((num_rows + 1) / (counts + 0.5)))).astype(np.float32)
    (asked,) = embedder.word_pieces([question])
    pieces = [piece for piece in dict.fromkeys(asked) if not silent[piece]] or asked
    if not pieces or not num_rows:
        return [[] for _ in texts]
    # Squared, so that one word that is meant counts for more than several that are a little like it.
    like = np.maximum(embedder.likeness(pieces), 0.0) ** 2 * (rarity > 0.0)
    scores = []
    for text in texts:
        score = np.zeros(len(text), np.float32)
        for row, weight in zip(like, rarity[pieces].tolist(), strict=True):
            score += np.float32(weight) * np.maximum.reduceat(row[text.pieces], text.starts)
        scores.append(score / np.log(text.lengths + _LENGTH_BASE))
    every = np.concatenate(scores)
    kept = np.zeros(num_rows, bool)
    # Equal ones in reading order.
    kept[np.argsort(-every, kind="stable")[:most]] = True
    borders = np.cumsum([len(text) for text in texts])[:-1]
    return [np.flatnonzero(own).tolist() for own in np.split(kept, borders)]
