"""What the searches returned, with all that tells an answer from a mere likeness: read once for one question."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from retrieval.asked_keys import Met
from retrieval.contents import Contents
from retrieval.errors import UnknownDocument
from retrieval.features import Candidate
from retrieval.passage import Span
from retrieval.passages import NearRow, Place
from retrieval.record import Record
from retrieval.shelf_files import Shelf
from retrieval.store import Store


def candidates(
    store: Store,
    contents: Contents,
    records: Sequence[Record],
    shelves: Sequence[Shelf],
    lexical: Sequence[tuple[int, int, float]],
    dense: Mapping[Place, NearRow],
    query: NDArray[np.float32] | None,
    met: Met,
    rare: Iterable[Sequence[Place]],
) -> list[Candidate]:
    """One candidate for each chunk of ``lexical`` and ``dense``, which are best first, and for each place of a weak key
    of ``met`` and of a rare word, in the order of their places.

    ``query`` is the vector of the question, None if nothing was searched by meaning.

    Raises:
        UnknownDocument: one of ``records`` was deleted meanwhile.
    """
    by_words = {(document, ordinal): (rank, score) for rank, (document, ordinal, score) in enumerate(lexical, start=1)}
    by_meaning = {place: rank for rank, place in enumerate(dense, start=1)}
    ordinals: dict[int, list[int]] = {}
    for document, ordinal in sorted({*by_words, *by_meaning, *met.weak, *chain.from_iterable(rare)}):
        ordinals.setdefault(document, []).append(ordinal)
    found = []
    for document, wanted in ordinals.items():
        record, shelf = records[document], shelves[document]
        rows = [shelf.rows_of(ordinal) for ordinal in wanted]
        numbers = np.array([row for chunk in rows for row in chunk], np.int64)
        texts = iter(store.texts(record.number, [Span(*span) for span in shelf.row_spans[numbers].tolist()]))
        products = None
        if query is not None and shelf.vectors is not None:
            products = shelf.vectors.products(query, numbers)
        headings = contents.chunks_at(record.number, wanted)
        if len(headings) < len(wanted):
            raise UnknownDocument(record.document.id)
        first = 0
        for ordinal, chunk in zip(wanted, rows, strict=True):
            rank, score = by_words.get((document, ordinal), (0, 0.0))
            found.append(
                Candidate(
                    place=(document, ordinal),
                    heading=headings[ordinal].heading,
                    rows=[next(texts) for _ in chunk],
                    products=None if products is None else products[first : first + len(chunk)],
                    lexical_score=score,
                    lexical_rank=rank,
                    dense_rank=by_meaning.get((document, ordinal), 0),
                    keys=met.rarities((document, ordinal)),
                )
            )
            first += len(chunk)
    return found
