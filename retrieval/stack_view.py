"""What of a stack one question asks: some of its documents, searched as if there were no others."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.laid_out import Numbers
from retrieval.lexical_index import EXACT, Term
from retrieval.passages import NearRow, Place
from retrieval.segment import Segment
from retrieval.stacks import Stack, held_at
from retrieval.vector_index import check_query

Postings = tuple[NDArray[np.int32], NDArray[np.uint16]]


class _Part(NamedTuple):
    """A segment, and which place among those asked each of its documents and of its chunks has, -1 for none."""

    segment: Segment
    place_of: Numbers
    place_of_chunk: Numbers


class StackView:
    """Documents are told by their places among those asked. For one question, on one thread."""

    def __init__(self, stack: Stack, numbers: Numbers, revisions: Numbers, places: Numbers) -> None:
        """Of documents at these revisions, which ``stack`` has, and which have these places, none twice."""
        self._parts: list[_Part] = []
        self._where: dict[int, tuple[Segment, int]] = {}
        for segment in stack.segments:
            at = held_at(segment, numbers, revisions)
            place_of = np.full(len(segment), -1, np.int64)
            place_of[at[at >= 0]] = places[at >= 0]
            if (at >= 0).any():
                self._parts.append(_Part(segment, place_of, place_of[segment.document_of]))
        self._postings: dict[Term, list[Postings]] = {}
        self._num_chunks = sum(int((part.place_of_chunk >= 0).sum()) for part in self._parts)

    def __len__(self) -> int:
        return self._num_chunks

    def frequency(self, term: Term) -> int:
        """In how many chunks a word stands."""
        return sum(len(chunks) for chunks, _ in self._found(term))

    def search(
        self, weights: Mapping[Term, float], k: int, shares: Collection[int] = ()
    ) -> list[tuple[int, int, float]]:
        """See ``Together.search``."""
        found = {term: self._found(term) for term in weights}
        hits = []
        for number, part in enumerate(self._parts):
            scores = part.segment.weigh({term: each[number] for term, each in found.items()}, weights)
            chunks = np.flatnonzero(scores)
            hits.append((part, chunks, scores[chunks]))
        return [
            (place, ordinal, score)
            for part, chunks, scores in _best(hits, k, shares)
            for (place, ordinal), score in zip(_places(part, chunks), scores.tolist(), strict=True)
        ]

    def nearest(self, query: NDArray[np.float32], k: int, shares: Collection[int] = ()) -> list[tuple[Place, NearRow]]:
        """At least the ``k`` chunks nearest to ``query``, and all of the documents in ``shares``, each with its nearest
        row, in any order; of documents whose vectors stand."""
        hits, products = [], {}
        for part in self._parts:
            segment = part.segment
            check_query(query, segment.vectors.shape[1])
            products[id(segment)] = segment.nearness(query, part.place_of >= 0)
            best = segment.nearest_by_chunk(products[id(segment)])
            asked = part.place_of_chunk[segment.vector_chunks] >= 0
            hits.append((part, segment.vector_chunks[asked], best[asked]))
        found = []
        for part, chunks, scores in _best(hits, k, shares):
            for (place, ordinal), score in zip(_places(part, chunks), scores.tolist(), strict=True):
                document = self._at(place)[1]
                rows = part.segment.rows_of(document, ordinal)
                first = int(part.segment.first_vector[document])
                own = products[id(part.segment)][first + rows.start : first + rows.stop]
                found.append(((place, ordinal), NearRow(rows.start + int(own.argmax()), score)))
        return found

    def with_word(self, word: str, most: int) -> Iterator[tuple[int, list[int]]]:
        """The chunks with a word as it is written, ``most`` of each document, those that say it most; by document, each
        in reading order."""
        by_document: dict[int, list[tuple[float, int]]] = {}
        for place, ordinal, score in self.search({(EXACT, word): 1.0}, self._num_chunks):
            by_document.setdefault(place, []).append((-score, ordinal))
        for place, hits in sorted(by_document.items()):
            yield place, sorted(ordinal for _, ordinal in sorted(hits)[:most])

    def rows_of(self, place: int, ordinal: int) -> range:
        """The rows of a chunk."""
        segment, document = self._at(place)
        return segment.rows_of(document, ordinal)

    def products(self, place: int, query: NDArray[np.float32], rows: Numbers) -> NDArray[np.float32] | None:
        """The inner products of ``query`` with rows of a document, None where its vectors do not stand."""
        segment, document = self._at(place)
        if not segment.num_vectors[document]:
            return None
        found: NDArray[np.float32] = segment.vectors[int(segment.first_vector[document]) + rows] @ query
        return found

    def _at(self, place: int) -> tuple[Segment, int]:
        """Where the document of a place stands."""
        if place not in self._where:
            for part in self._parts:
                for document in np.flatnonzero(part.place_of == place).tolist():
                    self._where[place] = (part.segment, document)
        return self._where[place]

    def _found(self, term: Term) -> list[Postings]:
        if term not in self._postings:
            found = []
            for part in self._parts:
                chunks, counts = part.segment.postings(term)
                asked = part.place_of_chunk[chunks] >= 0
                found.append((chunks[asked], counts[asked]))
            self._postings[term] = found
        return self._postings[term]


def _places(part: _Part, chunks: Numbers) -> list[Place]:
    segment = part.segment
    ordinals = chunks - segment.first_chunk[segment.document_of[chunks]]
    return list(zip(part.place_of_chunk[chunks].tolist(), ordinals.tolist(), strict=True))


def _best(
    hits: list[tuple[_Part, Numbers, NDArray[np.float64]]] | list[tuple[_Part, Numbers, NDArray[np.float32]]],
    k: int,
    shares: Collection[int],
) -> Iterator[tuple[_Part, Numbers, NDArray[np.float64] | NDArray[np.float32]]]:
    """Of (part, chunks, scores) the best ``k``, with those that are as good as the last, and what is in ``shares``."""
    every = np.concatenate([scores for _, _, scores in hits]) if hits else np.empty(0)
    least = np.partition(every, len(every) - k)[len(every) - k] if k < len(every) else -np.inf
    for part, chunks, scores in hits:
        kept = scores >= least
        if shares:
            kept |= np.isin(part.place_of_chunk[chunks], list(shares))
        yield part, chunks[kept], scores[kept]
