"""The lexical index of a short text: its words counted, in memory. The specification of ``LexicalIndex``.

Scores are those of tantivy to the rounding of single precision, its rounded lengths included, so that a text is
searched alike whichever index it has. Libraries for BM25 in memory keep exact lengths, and so rank otherwise.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest

from retrieval.lexical_index import EXACT, HEADING, STEMMED, LexicalQuery, Run, Term, rarity, stems
from retrieval.words import words

# The parameters of BM25 in tantivy (src/query/bm25.rs). Its lengths (src/fieldnorm/code.rs) are exact up to 40 words
# and then keep the four highest bits of what is beyond 24.
K1 = 1.2
B = 0.75
_FREE_LENGTHS = 24
_LENGTH_BITS = 4

# (ordinal, how often) of each chunk that a word stands in, in reading order.
Postings = tuple[tuple[int, int], ...]


class CountedIndex:
    """Made from the text in less time than it takes to open files, as long as the text is short."""

    def __init__(self, chunks: Iterable[tuple[str, str]]) -> None:
        """Of the (text, heading) of each chunk, in order."""
        counts: dict[str, dict[str, list[tuple[int, int]]]] = {
            field: defaultdict(list) for field in (STEMMED, HEADING, EXACT)
        }
        lengths: dict[str, list[int]] = {field: [] for field in counts}
        for ordinal, (text, heading) in enumerate(chunks):
            exact = words(text)
            for field, own in ((STEMMED, stems(exact)), (HEADING, stems(words(heading))), (EXACT, exact)):
                lengths[field].append(len(own))
                for word, count in Counter(own).items():
                    counts[field][word].append((ordinal, count))
        self._num_chunks = len(lengths[EXACT])
        self._norms = {field: _norms(own) for field, own in lengths.items()}
        # Most words are their own stems, and most stand once in one chunk: what is equal is held once.
        texts: dict[str, str] = {}
        places: dict[Postings, Postings] = {}
        self._postings: dict[str, dict[str, Postings]] = {
            field: {
                texts.setdefault(word, word): places.setdefault(tuple(found), tuple(found))
                for word, found in own.items()
            }
            for field, own in counts.items()
        }
        held = (*texts, *places, *(place for each in places for place in each), *self._postings.values())
        self._num_bytes = sum(map(sys.getsizeof, held))

    def __len__(self) -> int:
        return self._num_chunks

    @property
    def num_bytes(self) -> int:
        """See ``LexicalIndex.num_bytes``."""
        return self._num_bytes

    def frequency(self, term: Term, among: Sequence[Run] | None = None) -> int:
        """See ``LexicalIndex.frequency``."""
        return len(self._places(term, among))

    def search(
        self, query: LexicalQuery, k: int, boosts: Mapping[Term, float], among: Sequence[Run] | None = None
    ) -> list[tuple[int, float]]:
        """See ``LexicalIndex.search``."""
        scores: dict[int, float] = defaultdict(float)
        for term, weight in query.terms():
            weight *= boosts.get(term, 1.0) * rarity(len(self), self.frequency(term)) * (1.0 + K1)
            norms = self._norms[term[0]]
            for ordinal, count in self._places(term, among):
                scores[ordinal] += weight * count / (count + norms[ordinal])
        return nsmallest(k, scores.items(), key=lambda hit: (-hit[1], hit[0]))

    def _places(self, term: Term, among: Sequence[Run] | None) -> Postings:
        field, word = term
        places = self._postings[field].get(word, ())
        if among is None:
            return places
        return tuple(place for place in places if any(first <= place[0] <= last for first, last in among))


def _norms(lengths: Sequence[int]) -> list[float]:
    """What BM25 adds to the count of a word, chunk by chunk: more in longer ones."""
    mean = sum(lengths) / max(1, len(lengths))
    return [K1 * (1.0 - B + B * rounded_length(length) / mean) if mean else 0.0 for length in lengths]


def rounded_length(length: int) -> int:
    """The length that tantivy keeps, in one byte, of a field of so many words."""
    beyond = length - _FREE_LENGTHS
    lost_bits = max(0, beyond.bit_length() - _LENGTH_BITS) if beyond > 0 else 0
    return length if lost_bits == 0 else _FREE_LENGTHS + (beyond >> lost_bits << lost_bits)
