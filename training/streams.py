"""Endless rows of documents, drawn from prose and readings in a mixture that follows the run's progress."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.rows import KINDS, Look
from training.shards import FULL, Document


@dataclass(frozen=True, slots=True)
class Step:
    """ids, documents, targets [B, T] int64 and weights [B, T] float: 0 where a document ends, since nothing follows."""

    ids: Tensor
    documents: Tensor
    targets: Tensor
    weights: Tensor
    looks: list[Look]


class Deck:
    """Documents in random order, each once before any comes again."""

    def __init__(self, documents: list[Document], longest: int, rng: np.random.Generator) -> None:
        self.documents, self.longest, self.rng = documents, longest, rng
        self.order: list[int] = []
        lengths = [min(len(document), longest) for document in documents]
        self.mean_tokens = sum(lengths) / max(1, len(lengths))

    def draw(self) -> Document:
        """The next document, or a random part of one that is longer than `longest`."""
        if not self.order:
            self.order = self.rng.permutation(len(self.documents)).tolist()
        document = self.documents[self.order.pop()]
        if len(document) <= self.longest or document.looks is not None:
            return document
        first = int(self.rng.integers(0, len(document) - self.longest + 1))
        return Document(document.ids[first : first + self.longest])


class Streams:
    """B rows of T tokens a step; what a row has not finished it goes on with in the next."""

    def __init__(
        self, decks: dict[str, Deck], rows: int, tokens: int, rng: np.random.Generator, device: torch.device
    ) -> None:
        self.decks = {kind: deck for kind, deck in decks.items() if deck.documents}
        if not self.decks:
            raise SystemExit("no shards of prose or readings are here: prepare them, or copy them beside the manifest")
        self.rows, self.tokens, self.rng, self.device = rows, tokens, rng, device
        self.current: list[tuple[Document, int, int]] = [(Document(np.zeros(0, dtype=np.int64)), 0, -1)] * rows

    def step(self, shares: dict[str, float]) -> Step:
        """`shares`: the part of the tokens that each kind of document is to have."""
        kinds = [kind for kind in self.decks if shares.get(kind, 0) > 0] or list(self.decks)
        odds = np.array([shares.get(kind, 1.0) / self.decks[kind].mean_tokens for kind in kinds])
        odds /= odds.sum()
        ids, documents, targets = (np.zeros((self.rows, self.tokens), dtype=np.int64) for _ in range(3))
        weights = np.zeros((self.rows, self.tokens), dtype=np.float32)
        looks: list[Look] = []
        for row in range(self.rows):
            column = 0
            document, at, number = self.current[row]
            while column < self.tokens:
                if at == len(document):
                    document, at, number = self.decks[kinds[self.rng.choice(len(kinds), p=odds)]].draw(), 0, number + 1
                size = min(self.tokens - column, len(document) - at)
                here = slice(column, column + size)
                ids[row, here], documents[row, here] = document.ids[at : at + size], number
                following = document.ids[at + 1 : at + size + 1]
                targets[row, column : column + len(following)] = following
                counted = FULL if document.weights is None else document.weights[at + 1 : at + size + 1]
                weights[row, column : column + len(following)] = np.asarray(counted, dtype=np.float32) / FULL
                looks += _looks(document, at, size, row, column)
                column, at = column + size, at + size
            self.current[row] = document, at, number
        arrays = [torch.from_numpy(array).to(self.device, non_blocking=True) for array in (ids, documents, targets)]
        return Step(*arrays, torch.from_numpy(weights).to(self.device, non_blocking=True), looks)


def _looks(document: Document, at: int, size: int, row: int, column: int) -> list[Look]:
    if document.looks is None:
        return []
    low, high = np.searchsorted(document.looks[:, 0], (at, at + size))
    return [
        Look(row, column + token - at, first, last, KINDS[kind], weight / FULL)
        for token, first, last, kind, weight in document.looks[low:high].tolist()
    ]
