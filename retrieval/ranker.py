"""Which chunk holds the answer, and whether any does: a small learned ranking over ``retrieval.features``.

The numbers stand in ``ranking.json`` beside this file; ``python -m training.ranking`` makes them anew. They were
learned with all-MiniLM-L6-v2, whose inner products another embedder does not share.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.features import NAMES

_PATH = Path(__file__).with_name("ranking.json")
# Chunks whose features the confidence looks at: as many as passages are usually given.
_TOP = 5

CONFIDENCE_NAMES = (
    "best_score",
    "first_to_second",
    "first_to_fifth",
    "dense_above",
    "joint_above",
    "dense_best",
    "dense_second",
    "row_joint",
    "coverage_row",
    "coverage_chunk",
    "lexical_absolute",
    "names_chunk",
    "names_under",
    "names_known",
    "has_names",
    "rarest",
    "rarest_name",
    "has_dense",
    "question_known",
    "question_words",
    "typed_row",
    "num_chunks",
)

_DENSE, _JOINT = NAMES.index("dense_best"), NAMES.index("row_joint")

Table = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layers:
    """One hidden layer: ``tanh((x - mean) / scale @ inner + bias) @ outer + offset``."""

    mean: Table
    scale: Table
    inner: Table
    bias: Table
    outer: Table
    offset: float

    @classmethod
    def of(cls, numbers: dict[str, list[float]]) -> Self:
        """Layers from their JSON form."""
        arrays = {name: np.array(value, np.float32) for name, value in numbers.items()}
        offset = float(arrays.pop("offset"))
        return cls(**arrays, offset=offset)

    def __call__(self, rows: Table) -> Table:
        """One number for each of ``rows`` [..., inputs]."""
        hidden = np.tanh((rows - self.mean) / self.scale @ self.inner + self.bias)
        scores: Table = hidden @ self.outer + np.float32(self.offset)
        return scores


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How sure one must be to say "found": ``least`` in texts of ``num_chunks`` chunks, in between by their logarithm,
    beyond both as at the nearer one."""

    num_chunks: tuple[float, ...]
    least: tuple[float, ...]

    def __call__(self, num_chunks: int) -> float:
        """The threshold for a text of so many chunks."""
        return float(np.interp(math.log(max(num_chunks, 1)), np.log(self.num_chunks), self.least))


class Ranker:
    """Orders candidates and says how sure it is. Never changes; any number of threads may use it."""

    def __init__(self, score: Layers, confidence: Layers, thresholds: Thresholds) -> None:
        self._score = score
        self._confidence = confidence
        self.thresholds = thresholds

    @classmethod
    @cache
    def load(cls) -> Self:
        """The ranking that comes with the program."""
        stored = json.loads(_PATH.read_text(encoding="utf-8"))
        assert (tuple(stored["features"]), tuple(stored["confidence_features"])) == (NAMES, CONFIDENCE_NAMES)
        return cls(Layers.of(stored["score"]), Layers.of(stored["confidence"]), Thresholds(**stored["thresholds"]))

    def scores(self, table: Table) -> Table:
        """A score [n] for each row of ``features``; only their differences within one question mean something."""
        return self._score(table)

    def confidence(self, table: Table, scores: Table, num_chunks: int) -> float:
        """The probability that one of the first five of ``table`` holds the answer, 0 without any."""
        if len(scores) == 0:
            return 0.0
        return 1.0 / (1.0 + math.exp(-float(self._confidence(confidence_features(table, scores, num_chunks)))))


def confidence_features(table: Table, scores: Table, num_chunks: int) -> Table:
    """What tells a question with an answer from one without: float32 [len(CONFIDENCE_NAMES)]; ``table`` has a row."""
    order = np.argsort(-scores, kind="stable")[:_TOP]
    top = table[order]
    ranked = scores[order]
    best = {name: float(top[:, column].max()) for column, name in enumerate(NAMES)}
    best |= {
        "best_score": float(ranked[0]),
        "first_to_second": float(ranked[0] - ranked[1]) if len(ranked) > 1 else 0.0,
        "first_to_fifth": float(ranked[0] - ranked[-1]),
        # How far what looks like the answer stands out of what else was returned: in a long text something is near.
        "dense_above": float(top[:, _DENSE].max() - np.median(table[:, _DENSE])),
        "joint_above": float(top[:, _JOINT].max() - np.median(table[:, _JOINT])),
        "num_chunks": math.log10(max(num_chunks, 1)),
    }
    return np.array([best[name] for name in CONFIDENCE_NAMES], np.float32)
