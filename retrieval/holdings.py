"""The indexes of the documents of one question, opened: some by themselves, many as one, all searched alike."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.asked_documents import AskedDocuments, first_of
from retrieval.lexical_index import LexicalHits, LexicalQuery, search_lexical
from retrieval.passage import Span
from retrieval.passages import NearRow, Place
from retrieval.shelf_files import Shelf
from retrieval.stack_view import StackView

# Candidates each search contributes.
DEPTH = 50
# Sentences looked at for each of them.
ROWS_PER_CHUNK = 4


class Holdings:
    """Documents are told by their places among those asked: of ``shelves`` each has its own, the others stand in the
    ``stack``. ``num_dense`` of them have vectors."""

    def __init__(
        self, shelves: Mapping[int, Shelf], stack: StackView | None = None, num_stacked_dense: int = 0
    ) -> None:
        self._shelves = shelves
        self._stack = stack
        self._lexical = {place: shelf.lexical for place, shelf in shelves.items()}
        self.num_dense = num_stacked_dense + sum(shelf.vectors is not None for shelf in shelves.values())
        self.num_chunks = sum(map(len, self._lexical.values())) + (0 if stack is None else len(stack))

    def search_words(self, query: LexicalQuery, k: int, asked: AskedDocuments | None = None) -> LexicalHits:
        """The ``k`` best chunks by their words, as ``search_lexical`` has them."""
        return search_lexical(self._lexical, query, k, asked, self._stack)

    def nearest(self, query: NDArray[np.float32] | None, asked: AskedDocuments | None = None) -> dict[Place, NearRow]:
        """The chunks nearest to the question, nearest first, and those of each document ``asked``, each with its
        nearest row. None without a ``query``."""
        if query is None:
            return {}
        asked = asked or AskedDocuments()
        nearest: dict[Place, NearRow] = {}
        for document, shelf in self._shelves.items():
            if shelf.vectors is not None:
                # A chunk is as near as its nearest sentence; sentences come nearest first.
                for row, score in shelf.vectors.search(query, DEPTH * ROWS_PER_CHUNK, shelf.rows):
                    nearest.setdefault((document, int(shelf.chunk_of[row])), NearRow(row, score))
        if self._stack is not None:
            nearest.update(self._stack.nearest(query, DEPTH, asked.shares))
        places = sorted(nearest, key=lambda place: (-nearest[place].score, place))
        return {place: nearest[place] for place in first_of(places, DEPTH, asked, lambda at: at[0])}

    def rows_of(self, place: Place) -> Sequence[int]:
        """The rows of a chunk that get a vector."""
        document, ordinal = place
        if document in self._shelves:
            return self._shelves[document].rows_of(ordinal)
        assert self._stack is not None, "nobody has the document"
        return self._stack.rows_of(document, ordinal)

    def row_spans(self, document: int, rows: Sequence[int]) -> list[Span] | None:
        """Where rows of a document stand, None where the store has to be asked."""
        if document not in self._shelves:
            return None
        return [Span(*span) for span in self._shelves[document].row_spans[np.array(rows, np.int64)].tolist()]

    def products(
        self, document: int, query: NDArray[np.float32] | None, rows: NDArray[np.int64]
    ) -> NDArray[np.float32] | None:
        """The inner products of ``query`` with rows of a document; None without a query, or where vectors do not stand
        yet."""
        if query is None:
            return None
        if document in self._shelves:
            vectors = self._shelves[document].vectors
            return None if vectors is None else vectors.products(query, rows)
        assert self._stack is not None, "nobody has the document"
        return self._stack.products(document, query, rows)

    def with_word(self, word: str, most: int) -> Iterator[tuple[int, Sequence[int]]]:
        """By document, in reading order, the chunks with a word as it is written; ``most`` of each document, those that
        say it most."""
        query = LexicalQuery(exact=(word,), stemmed=())
        for document, index in self._lexical.items():
            yield document, sorted(ordinal for ordinal, _ in index.search(query, most, {}))
        if self._stack is not None:
            yield from self._stack.with_word(word, most)
