"""Which text shares twelve words in a row with an evaluation set.

Words are lower-case runs of letters and digits; a run of twelve is one 64-bit number (a polynomial over the words'
hashes, wrapping), so that a corpus is checked by array operations. Two different runs meet by chance once in about
10^12 comparisons of this size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from training.corpus import records

LENGTH = 12
WORD = re.compile(r"[^\W_]+")
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def evaluation_texts(data: Path) -> Iterator[str]:
    """Every text that a figure is taken on: contexts and questions of qa_eval, and the books of the haystack."""
    seen: set[str] = set()
    for record in records(data / "qa_eval.jsonl.xz"):
        if record["context"] not in seen:
            seen.add(record["context"])
            yield record["context"]
        yield record["question"]
    for book in sorted((data / "haystack").glob("*.txt")):
        yield book.read_text(encoding="utf-8")


class Words:
    """Hashes of words, remembered."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> np.ndarray:
        """[words] uint64."""
        known = self.known
        found = []
        for word in WORD.findall(text.lower()):
            number = known.get(word)
            if number is None:
                number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
                known[word] = number
            found.append(number)
        return np.array(found, dtype=np.uint64)


def runs(words: np.ndarray) -> np.ndarray:
    """[words - 11] uint64: one number for each twelve words in a row; empty when there are fewer."""
    count = len(words) - LENGTH + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(LENGTH):
        total = total * FACTOR + words[place : place + count]
    return total


class Evaluation:
    """The runs of all evaluation texts; `in` says whether a text shares one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.words = Words()
        collected = [runs(self.words(text)) for text in texts]
        self.runs = np.unique(np.concatenate(collected)) if collected else np.zeros(0, dtype=np.uint64)

    def __contains__(self, text: str) -> bool:
        return self._has(runs(self.words(text)))

    def clean(self, text: str) -> tuple[str, int]:
        """The text without the paragraphs (lines) that share a run, and how many those were.

        A run across a line end counts for both lines.
        """
        lines = text.split("\n")
        counts = [self.words(line) for line in lines]
        words = np.concatenate(counts) if counts else np.zeros(0, dtype=np.uint64)
        hit = self._hits(runs(words))
        if not hit.any():
            return text, 0
        owner = np.repeat(np.arange(len(lines)), [len(count) for count in counts])
        at = np.flatnonzero(hit)
        dropped = set(owner[np.unique(at[:, None] + np.arange(LENGTH))].tolist())
        return "\n".join(line for number, line in enumerate(lines) if number not in dropped), len(dropped)

    def _hits(self, found: np.ndarray) -> np.ndarray:
        if not len(self.runs):
            return np.zeros(len(found), dtype=bool)
        at = np.searchsorted(self.runs, found).clip(max=len(self.runs) - 1)
        return self.runs[at] == found

    def _has(self, found: np.ndarray) -> bool:
        return bool(self._hits(found).any())
