"""Words of a document's chunks by BM25: what an index of them can do, and how several are searched as one.

An index for each document makes three things simple and exact: only the documents asked are searched, no word of
another tenant sways a score, and deleting a document leaves none of its words in a shared dictionary. What the
documents of one question have in common, how rare a word is among all of them, is put right at query time.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import NamedTuple, Protocol, Self

import tantivy

from retrieval.asked_documents import AskedDocuments, first_of
from retrieval.words import content_words, fold_accents, words

# Measured: stems alone 84.2 %, words alone 82.5 %, both 84.6 % found among the first five.
STEMMED_WEIGHT = 1.0
EXACT_WEIGHT = 0.4
HEADING_WEIGHT = 0.3

STEMMED, EXACT, HEADING = "stemmed", "exact", "heading"

# A field and a word in it.
Term = tuple[str, str]
# The first and the last of some ordinals that follow each other.
Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LexicalQuery:
    """The words of a question as the index holds them. No character of a question has a meaning as syntax."""

    exact: tuple[str, ...]
    stemmed: tuple[str, ...]

    @classmethod
    def of(cls, question: str) -> Self:
        """The content words of ``question``, each once, in order; all its words if it has no others."""
        exact = tuple(dict.fromkeys(content_words(question)))
        return cls(exact, tuple(dict.fromkeys(stems(exact))))

    def terms(self) -> list[tuple[Term, float]]:
        """What is looked for, with how much it weighs."""
        return [
            *(((STEMMED, word), STEMMED_WEIGHT) for word in self.stemmed),
            *(((HEADING, word), HEADING_WEIGHT) for word in self.stemmed),
            *(((EXACT, word), EXACT_WEIGHT) for word in self.exact),
        ]


class LexicalIndex(Protocol):
    """The words of one document, chunk by chunk. Never changes; any number of threads may search it."""

    def __len__(self) -> int:
        """Chunks held."""

    @property
    def num_bytes(self) -> int:
        """Host memory the index holds, mapped files included."""

    def frequency(self, term: Term, among: Sequence[Run] | None = None) -> int:
        """In how many chunks a word stands; with ``among`` in how many of these."""

    def search(
        self, query: LexicalQuery, k: int, boosts: Mapping[Term, float], among: Sequence[Run] | None = None
    ) -> list[tuple[int, float]]:
        """The ``k`` best (ordinal, score) by BM25, of those ``among`` if given, best first, equal ones in reading
        order. ``boosts`` multiply what a word weighs."""


class LexicalPart:
    """Some chunks of a document, searched as if it had no others."""

    def __init__(self, whole: LexicalIndex, ordinals: Sequence[int], cut: Mapping[int, str]) -> None:
        """``ordinals`` ascend. ``cut`` has the texts of those chunks of which only that much is in the part."""
        self._whole = whole
        self._num_chunks = len(ordinals)
        self._cut = {ordinal: _words_by_field(text) for ordinal, text in cut.items()}
        self._runs = list(_runs(ordinals))
        self._whole_runs = list(_runs([number for number in ordinals if number not in cut]))

    def __len__(self) -> int:
        return self._num_chunks

    @property
    def num_bytes(self) -> int:
        """See ``LexicalIndex.num_bytes``."""
        return self._whole.num_bytes

    def frequency(self, term: Term) -> int:
        """See ``LexicalIndex.frequency``."""
        field, word = term
        # What is above a chunk is above each piece of it.
        whole = self._whole.frequency(term, self._runs if field == HEADING else self._whole_runs)
        return whole + sum(word in pieces.get(field, ()) for pieces in self._cut.values())

    def search(self, query: LexicalQuery, k: int, boosts: Mapping[Term, float]) -> list[tuple[int, float]]:
        """See ``LexicalIndex.search``."""
        # The index weighs by how rare a word is in the whole document.
        own = {
            term: boosts.get(term, 1.0)
            * rarity(len(self), self.frequency(term))
            / rarity(len(self._whole), self._whole.frequency(term))
            for term, _ in query.terms()
        }
        hits = self._whole.search(query, k + len(self._cut), own, self._runs)
        return [hit for hit in hits if hit[0] not in self._cut or self._speaks(hit[0], query)][:k]

    def _speaks(self, ordinal: int, query: LexicalQuery) -> bool:
        there = self._cut[ordinal]
        return not (there[EXACT].isdisjoint(query.exact) and there[STEMMED].isdisjoint(query.stemmed))


Searchable = LexicalIndex | LexicalPart


class Together(Protocol):
    """The words of many documents, which are told by their numbers among those asked."""

    def __len__(self) -> int:
        """Chunks held."""

    def frequency(self, term: Term) -> int:
        """In how many chunks a word stands."""

    def search(self, weights: Mapping[Term, float], k: int, shares: Collection[int]) -> list[tuple[int, int, float]]:
        """At least the ``k`` best (document, ordinal, score) by BM25, and all of the documents in ``shares``, in any
        order; ``weights`` say what each word weighs, its rarity included."""


class LexicalHits(NamedTuple):
    """``hits`` are (index, ordinal, score), best first. ``rarities`` says of each stem of the query how much it weighs
    among all chunks searched, ``known`` which stems stand in any of them; what stands in none weighs ``unknown``."""

    hits: list[tuple[int, int, float]]
    rarities: dict[str, float]
    known: frozenset[str]
    unknown: float

    @property
    def rarest_first(self) -> list[str]:
        """The known stems, those of fewest chunks first."""
        return sorted(self.known, key=lambda stem: (-self.rarities[stem], stem))


def search_lexical(
    indexes: Sequence[Searchable] | Mapping[int, Searchable],
    query: LexicalQuery,
    k: int,
    asked: AskedDocuments | None = None,
    together: Together | None = None,
) -> LexicalHits:
    """The ``k`` best chunks over several documents as if they were one, and the best of each that is ``asked``.

    BM25 weighs a word by how rare it is; each index knows only its own chunks. The weight is corrected to the
    rarity among all of ``indexes``, so that scores of different documents compare. Where only some documents have an
    index of their own, ``indexes`` are by document, and the others stand ``together``.
    """
    asked = asked or AskedDocuments()
    own = indexes if isinstance(indexes, Mapping) else dict(enumerate(indexes))
    terms = [term for term, _ in query.terms()]
    frequencies = {number: {term: index.frequency(term) for term in terms} for number, index in own.items()}
    num_chunks = sum(map(len, own.values())) + (0 if together is None else len(together))
    totals = {term: sum(counts[term] for counts in frequencies.values()) for term in terms}
    if together is not None:
        totals = {term: count + together.frequency(term) for term, count in totals.items()}
    known = frozenset(word for word in query.stemmed if totals[STEMMED, word] or totals[HEADING, word])
    rarities = {word: rarity(num_chunks, totals[STEMMED, word]) for word in query.stemmed}
    found = []
    for number, counts in frequencies.items():
        if not any(counts.values()):
            continue
        index = own[number]
        boosts = {term: rarity(num_chunks, totals[term]) / rarity(len(index), count) for term, count in counts.items()}
        found += [(number, ordinal, score) for ordinal, score in index.search(query, k, boosts)]
    if together is not None:
        weights = {term: weight * rarity(num_chunks, totals[term]) for term, weight in query.terms() if totals[term]}
        found += together.search(weights, k, asked.shares)
    found.sort(key=lambda hit: (-hit[2], hit[0], hit[1]))
    found = first_of(found, k, asked, lambda hit: hit[0])
    return LexicalHits(found, rarities, known, rarity(num_chunks, 0))


def stems(tokens: Sequence[str]) -> list[str]:
    """The stem of each word, in order; words are as ``words`` gives them, so none holds a blank."""
    return list(stemmer().analyze(" ".join(fold_accents(token) for token in tokens)))


@cache
def stemmer() -> tantivy.TextAnalyzer:
    """Stems words between blanks."""
    tokens = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    return tokens.filter(tantivy.Filter.stemmer("english")).build()


def rarity(num_chunks: int, frequency: int) -> float:
    """What a word weighs that stands in so many of all chunks: the Robertson-Sparck Jones weight as tantivy has it."""
    return math.log(1.0 + (num_chunks - frequency + 0.5) / (frequency + 0.5))


def _runs(numbers: Sequence[int]) -> Iterator[Run]:
    """Ascending numbers, cut where one is left out."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        together = [number for _, number in run]
        yield together[0], together[-1]


def _words_by_field(text: str) -> dict[str, frozenset[str]]:
    exact = frozenset(words(text))
    return {EXACT: exact, STEMMED: frozenset(stems(sorted(exact)))}
