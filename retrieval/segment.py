"""The indexes of many documents as one: searched at once, with the results of one document at a time.

Documents of a store are mostly short. To ask each by itself costs a tenth of a millisecond, most of it Python; here a
word of the question is one slice of an array, and all vectors are one matrix. Scores are those of
``retrieval.counted_index`` and ``retrieval.faiss_index``, the specification.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.counted_index import K1, B, rounded_length
from retrieval.laid_out import LaidOut, Numbers, starts
from retrieval.lexical_index import Term
from retrieval.word_counts import FIELDS, hash_of

# Less than any inner product of unit vectors.
NOWHERE = np.float32(-2.0)
_FIELD_PLACES = {field: place for place, field in enumerate(FIELDS)}


class Segment:
    """Some documents. Never changes; any number of threads may search it.

    Documents are told by their places, chunks and vectors are numbered through.
    """

    def __init__(self, laid_out: LaidOut) -> None:
        self.numbers, self.revisions = laid_out.numbers, laid_out.revisions
        self.num_vectors = laid_out.num_vectors
        self._by_number = np.argsort(laid_out.numbers)
        self.first_chunk = starts(laid_out.num_chunks)
        self.first_row = starts(laid_out.num_rows)
        self.document_of = np.repeat(np.arange(len(laid_out.numbers), dtype=np.int32), laid_out.num_chunks)
        self._lengths = laid_out.lengths
        self._norms = _norms(laid_out.lengths, self.document_of, laid_out.num_chunks)
        order = np.argsort(laid_out.terms)
        terms = laid_out.terms[order]
        firsts = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1]])) if len(terms) else np.empty(0, int)
        self._terms = terms[firsts]
        self._first_posting = np.append(firsts, len(terms))
        self._chunks = laid_out.chunks[order]
        self._counts = laid_out.counts[order]
        self._bits = laid_out.bits[order]
        self.vectors = np.ascontiguousarray(laid_out.vectors)
        self.first_vector = starts(laid_out.num_vectors)
        # Chunks that have vectors, and where theirs begin.
        self.vector_chunks = np.flatnonzero(laid_out.num_vectors[self.document_of] > 0)
        own = self.document_of[self.vector_chunks]
        in_document = self.first_row[self.vector_chunks] - self.first_row[self.first_chunk[own]]
        self._vector_starts = self.first_vector[own] + in_document

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def num_bytes(self) -> int:
        """Host memory of all arrays."""
        return sum(each.nbytes for each in vars(self).values() if isinstance(each, np.ndarray))

    def laid_out(self) -> LaidOut:
        """What it was made of, the postings in another order."""
        return LaidOut(
            numbers=self.numbers,
            revisions=self.revisions,
            num_chunks=np.diff(self.first_chunk),
            num_vectors=self.num_vectors,
            num_rows=np.diff(self.first_row),
            lengths=self._lengths,
            terms=np.repeat(self._terms, np.diff(self._first_posting)),
            chunks=self._chunks,
            counts=self._counts,
            bits=self._bits,
            vectors=self.vectors,
        )

    def places_of(self, numbers: Numbers) -> Numbers:
        """The place of each of these documents, -1 for those it does not have."""
        if not len(self):
            return np.full(len(numbers), -1, np.int64)
        at = np.minimum(np.searchsorted(self.numbers, numbers, sorter=self._by_number), len(self) - 1)
        places: Numbers = self._by_number[at]
        return np.where(self.numbers[places] == numbers, places, -1)

    def postings(self, term: Term) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        """The chunks that a word stands in, and how often."""
        field, word = term
        wanted = np.uint64(hash_of(word))
        at = int(np.searchsorted(self._terms, wanted))
        if at == len(self._terms) or self._terms[at] != wanted:
            return self._chunks[:0], self._counts[:0]
        own = slice(int(self._first_posting[at]), int(self._first_posting[at + 1]))
        there = (self._bits[own] & FIELDS[field]) != 0
        return self._chunks[own][there], self._counts[own][there]

    def weigh(
        self, found: Mapping[Term, tuple[NDArray[np.int32], NDArray[np.uint16]]], weights: Mapping[Term, float]
    ) -> NDArray[np.float64]:
        """The score by BM25 of every chunk, from the ``postings`` of each word and what it weighs."""
        scores = np.zeros(len(self.document_of))
        for term, (chunks, counts) in found.items():
            norms = self._norms[_FIELD_PLACES[term[0]], chunks]
            scores[chunks] += weights[term] * (1.0 + K1) * counts / (counts + norms)
        return scores

    def nearness(self, query: NDArray[np.float32], asked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The inner product of ``query`` with each vector of the documents ``asked`` [documents], else ``NOWHERE``.

        Each row is compared by itself, as FAISS does: equal rows are equally near, wherever they stand.
        """
        products = np.full(len(self.vectors), NOWHERE, np.float32)
        row = np.ascontiguousarray(query)
        for first, last in _runs(asked & (self.num_vectors > 0)):
            start, end = int(self.first_vector[first]), int(self.first_vector[last])
            mine, rows = products[start:end], self.vectors[start:end]
            # The stubs of FAISS leave this function out.
            compare: Any = faiss.fvec_inner_products_ny  # type: ignore[attr-defined]
            compare(faiss.swig_ptr(mine), faiss.swig_ptr(row), faiss.swig_ptr(rows), rows.shape[1], len(rows))
        return products

    def nearest_by_chunk(self, products: NDArray[np.float32]) -> NDArray[np.float32]:
        """The best of ``nearness`` for each of ``vector_chunks``."""
        if not len(products):
            return products
        best: NDArray[np.float32] = np.maximum.reduceat(products, self._vector_starts)
        return best

    def vectors_of(self, place: int) -> NDArray[np.float32] | None:
        """The vectors of a document, None where they do not stand."""
        rows = self.vectors[self.first_vector[place] : self.first_vector[place + 1]]
        return rows if len(rows) else None

    def rows_of(self, place: int, ordinal: int) -> range:
        """The rows of a chunk, counted in its document."""
        chunk = int(self.first_chunk[place]) + ordinal
        before = int(self.first_row[self.first_chunk[place]])
        return range(int(self.first_row[chunk]) - before, int(self.first_row[chunk + 1]) - before)


def _norms(lengths: NDArray[np.uint32], document_of: NDArray[np.int32], num_chunks: Numbers) -> NDArray[np.float64]:
    """What BM25 adds to the count of a word, [fields, chunks]: longer than is usual in the document counts for less."""
    kinds, where = np.unique(lengths, return_inverse=True)
    rounded = np.array([rounded_length(int(kind)) for kind in kinds], np.float64)[where].reshape(lengths.shape)
    sums = [np.bincount(document_of, own, len(num_chunks)) for own in lengths.T]
    means = (np.stack(sums, axis=-1) / np.maximum(num_chunks, 1)[:, np.newaxis])[document_of]
    norms = K1 * (1.0 - B + B * rounded / np.where(means > 0, means, 1.0))
    return np.ascontiguousarray(np.where(means > 0, norms, 0.0).T)


def _runs(wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where ``wanted`` is true without a gap: first place, and one beyond the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
