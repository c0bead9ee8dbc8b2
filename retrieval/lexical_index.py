"""Words of a document's chunks by BM25: one tantivy index for each document.

An index of its own makes three things simple and exact: only the documents asked are searched, no word of another
tenant sways a score, and deleting a document leaves none of its words in a shared dictionary. What the documents
of one question have in common, how rare a word is among all of them, is put right at query time.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Self

import tantivy

from retrieval.asked_documents import AskedDocuments, first_of
from retrieval.words import content_words, fold_accents, words

# tantivy's writer wants at least 15 MB; the postings of a text need less than four times its size.
MIN_HEAP_BYTES = 15_000_000
MAX_HEAP_BYTES = 512_000_000
# Measured: stems alone 84.2 %, words alone 82.5 %, both 84.6 % found among the first five.
STEMMED_WEIGHT = 1.0
EXACT_WEIGHT = 0.4
HEADING_WEIGHT = 0.3

_STEMMED, _EXACT, _HEADING, _CHUNK = "stemmed", "exact", "heading", "chunk"
_UNSIGNED = tantivy.FieldType.Unsigned


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


class LexicalIndex:
    """The words of one document. Never changes once built; any number of threads may search it."""

    def __init__(self, index: tantivy.Index) -> None:
        self._schema = index.schema
        self._searcher = index.searcher()

    @classmethod
    def build(cls, directory: Path | None, chunks: Iterable[tuple[str, str]], num_characters: int) -> Self:
        """Index (text, heading) of each chunk, in order, into the empty ``directory`` (None: in memory)."""
        index = _with_tokenizers(tantivy.Index(_schema(), path=str(directory) if directory else None))
        heap_bytes = min(max(4 * num_characters, MIN_HEAP_BYTES), MAX_HEAP_BYTES)
        # One thread writes one segment, in order: the index is the same each time it is built.
        writer = index.writer(heap_size=heap_bytes, num_threads=1)
        for ordinal, (text, heading) in enumerate(chunks):
            tokens = words(text)
            document = tantivy.Document()
            document.add_text(_EXACT, " ".join(tokens))
            document.add_text(_STEMMED, " ".join(fold_accents(token) for token in tokens))
            document.add_text(_HEADING, " ".join(fold_accents(token) for token in words(heading)))
            document.add_unsigned(_CHUNK, ordinal)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        return cls(index)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The index that was built in ``directory``, whose files must have been verified."""
        return cls(_with_tokenizers(tantivy.Index.open(str(directory))))

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def frequencies(self, query: LexicalQuery) -> dict[tuple[str, str], int]:
        """In how many chunks each word of ``query`` stands, by (field, word)."""
        return {(field, word): int(self._searcher.doc_freq(field, word)) for field, word, _ in _terms(query)}

    def search(self, query: LexicalQuery, k: int, boosts: Mapping[tuple[str, str], float]) -> list[tuple[int, float]]:
        """The ``k`` best (ordinal, score) by BM25, best first, equal ones in reading order."""
        clauses = [
            (
                tantivy.Occur.Should,
                tantivy.Query.boost_query(self._term(field, word), weight * boosts.get((field, word), 1.0)),
            )
            for field, word, weight in _terms(query)
        ]
        if not clauses:
            return []
        hits = self._searcher.search(self._limited(tantivy.Query.boolean_query(clauses)), k, count=False).hits
        ordinals = self._searcher.fast_field_values(_CHUNK, [address for _, address in hits])
        found = [(int(ordinal or 0), float(score)) for ordinal, (score, _) in zip(ordinals, hits, strict=True)]
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def _term(self, field: str, word: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, word, index_option="freq")

    def _limited(self, query: tantivy.Query) -> tantivy.Query:
        """What ``query`` finds among the chunks that are searched."""
        return query


class LexicalPart(LexicalIndex):
    """Some chunks of a document, searched as if it had no others."""

    def __init__(self, whole: LexicalIndex, ordinals: Sequence[int], cut: Mapping[int, str]) -> None:
        """``ordinals`` ascend. ``cut`` has the texts of those chunks of which only that much is in the part."""
        self._whole, self._schema, self._searcher = whole, whole._schema, whole._searcher
        self._num_chunks = len(ordinals)
        self._cut = {ordinal: _words_by_field(text) for ordinal, text in cut.items()}
        self._ranges = [(run[0], run[-1]) for run in _runs(ordinals)]
        self._whole_ranges = [(run[0], run[-1]) for run in _runs([number for number in ordinals if number not in cut])]

    def __len__(self) -> int:
        return self._num_chunks

    def frequencies(self, query: LexicalQuery) -> dict[tuple[str, str], int]:
        """See ``LexicalIndex.frequencies``."""
        return {(field, word): self._frequency(field, word) for field, word, _ in _terms(query)}

    def search(self, query: LexicalQuery, k: int, boosts: Mapping[tuple[str, str], float]) -> list[tuple[int, float]]:
        """See ``LexicalIndex.search``."""
        if not self._ranges:
            return []
        # The index weighs by how rare a word is in the whole document.
        everywhere = self._whole.frequencies(query)
        own = {
            term: boosts.get(term, 1.0) * _rarity(len(self), here) / _rarity(len(self._whole), everywhere[term])
            for term, here in self.frequencies(query).items()
        }
        hits = super().search(query, k + len(self._cut), own)
        return [hit for hit in hits if hit[0] not in self._cut or self._speaks(hit[0], query)][:k]

    def _frequency(self, field: str, word: str) -> int:
        # What is above a chunk is above each piece of it.
        ranges = self._ranges if field == _HEADING else self._whole_ranges
        query = self._within(ranges, self._term(field, word))
        # The stubs of tantivy leave the number out.
        whole = int(self._searcher.search(query, 1, count=True).count)  # type: ignore[attr-defined]
        return whole + sum(word in pieces.get(field, ()) for pieces in self._cut.values())

    def _speaks(self, ordinal: int, query: LexicalQuery) -> bool:
        there = self._cut[ordinal]
        return not (there[_EXACT].isdisjoint(query.exact) and there[_STEMMED].isdisjoint(query.stemmed))

    def _limited(self, query: tantivy.Query) -> tantivy.Query:
        return self._within(self._ranges, query)

    def _within(self, ranges: Sequence[tuple[int, int]], query: tantivy.Query) -> tantivy.Query:
        places = [
            (tantivy.Occur.Should, tantivy.Query.range_query(self._schema, _CHUNK, _UNSIGNED, first, last))
            for first, last in ranges
        ]
        # Where a chunk stands adds nothing to its score.
        inside = tantivy.Query.const_score_query(tantivy.Query.boolean_query(places), 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, inside)])


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
    indexes: Sequence[LexicalIndex], query: LexicalQuery, k: int, asked: AskedDocuments | None = None
) -> LexicalHits:
    """The ``k`` best chunks over several documents as if they were one, and the best of each that is ``asked``.

    BM25 weighs a word by how rare it is; each index knows only its own chunks. The weight is corrected to the
    rarity among all of ``indexes``, so that scores of different documents compare.
    """
    frequencies = [index.frequencies(query) for index in indexes]
    num_chunks = sum(len(index) for index in indexes)
    totals = {term: sum(counts[term] for counts in frequencies) for term in (frequencies[0] if frequencies else ())}
    known = frozenset(word for word in query.stemmed if totals.get((_STEMMED, word)) or totals.get((_HEADING, word)))
    rarities = {word: _rarity(num_chunks, totals.get((_STEMMED, word), 0)) for word in query.stemmed}
    found = []
    for number, (index, counts) in enumerate(zip(indexes, frequencies, strict=True)):
        boosts = {
            term: _rarity(num_chunks, totals[term]) / _rarity(len(index), count) for term, count in counts.items()
        }
        found += [(number, ordinal, score) for ordinal, score in index.search(query, k, boosts)]
    found.sort(key=lambda hit: (-hit[2], hit[0], hit[1]))
    found = first_of(found, k, asked or AskedDocuments(), lambda hit: hit[0])
    return LexicalHits(found, rarities, known, _rarity(num_chunks, 0))


def stems(tokens: Sequence[str]) -> list[str]:
    """The stem of each word, in order; words are as ``words`` gives them, so none holds a blank."""
    return list(_stemmer().analyze(" ".join(fold_accents(token) for token in tokens)))


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Ascending numbers, cut where one is left out."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]


def _words_by_field(text: str) -> dict[str, frozenset[str]]:
    exact = frozenset(words(text))
    return {_EXACT: exact, _STEMMED: frozenset(stems(sorted(exact)))}


def _rarity(num_chunks: int, frequency: int) -> float:
    # Robertson-Sparck Jones weight as tantivy's BM25 has it.
    return math.log(1.0 + (num_chunks - frequency + 0.5) / (frequency + 0.5))


def _terms(query: LexicalQuery) -> list[tuple[str, str, float]]:
    return [
        *((_STEMMED, word, STEMMED_WEIGHT) for word in query.stemmed),
        *((_HEADING, word, HEADING_WEIGHT) for word in query.stemmed),
        *((_EXACT, word, EXACT_WEIGHT) for word in query.exact),
    ]


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(_STEMMED, stored=False, tokenizer_name="stemmed", index_option="freq")
    builder.add_text_field(_HEADING, stored=False, tokenizer_name="stemmed", index_option="freq")
    builder.add_text_field(_EXACT, stored=False, tokenizer_name="exact", index_option="freq")
    builder.add_unsigned_field(_CHUNK, stored=False, indexed=False, fast=True)
    return builder.build()


@cache
def _stemmer() -> tantivy.TextAnalyzer:
    tokens = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    return tokens.filter(tantivy.Filter.stemmer("english")).build()


def _with_tokenizers(index: tantivy.Index) -> tantivy.Index:
    index.register_tokenizer("exact", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
    index.register_tokenizer("stemmed", _stemmer())
    return index
