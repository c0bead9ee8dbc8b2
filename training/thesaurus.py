"""Other words for a word: its nearest among those that people ask with, by the embedder's own measure."""

import random
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from retrieval.embedder import Embedder
from retrieval.lexical_index import stems
from retrieval.words import STOP_WORDS, words

# A word counts as one from so many uses on; inflections, which begin alike, are no other words.
MIN_USES = 5
MAX_WORDS = 12_000
MIN_LIKENESS = 0.5
NUM_NEAREST = 12
LIKE_BEGINNING = 4


class Thesaurus:
    """Words with their vectors, and nothing but words in small letters."""

    def __init__(self, embedder: Embedder, texts: Iterable[str]) -> None:
        uses = Counter(word for text in texts for word in words(text) if word.isalpha() and word.isascii())
        chosen = [word for word, count in uses.most_common(MAX_WORDS) if count >= MIN_USES and word not in STOP_WORDS]
        self._words = [word for word in chosen if len(word) > 2]
        self._stems = stems(self._words)
        self._vectors = embedder.embed_passages(self._words)
        self._row_of = {word: row for row, word in enumerate(self._words)}

    def other(self, word: str, avoided: Collection[str], draw: random.Random) -> str | None:
        """One of the three nearest to ``word`` whose stem is none of ``avoided``; None where nothing is near."""
        row = self._row_of.get(word.lower())
        if row is None:
            return None
        likeness = self._vectors @ self._vectors[row]
        near = [
            self._words[other]
            for other in np.argsort(-likeness, kind="stable")[:NUM_NEAREST]
            if likeness[other] >= MIN_LIKENESS
            and self._stems[other] not in avoided
            and self._words[other][:LIKE_BEGINNING] != word.lower()[:LIKE_BEGINNING]
        ]
        return draw.choice(near[:3]) if near else None
