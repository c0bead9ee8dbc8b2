"""What the searches returned, with all that tells an answer from a mere likeness: read once for one question."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from retrieval.asked_keys import Met
from retrieval.errors import UnknownDocument
from retrieval.features import Candidate
from retrieval.holdings import Holdings
from retrieval.passage import Span
from retrieval.passages import NearRow, Place
from retrieval.record import Listed
from retrieval.store import Store


def candidates(
    store: Store,
    records: Sequence[Listed],
    holdings: Holdings,
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
    rows = {
        document: [holdings.rows_of((document, ordinal)) for ordinal in wanted] for document, wanted in ordinals.items()
    }
    numbers = {document: [row for chunk in own for row in chunk] for document, own in rows.items()}
    spans = {document: holdings.row_spans(document, own) for document, own in numbers.items()}
    stored = _row_spans(store, {records[each].number: numbers[each] for each, own in spans.items() if own is None})
    texts = store.texts_of(
        {records[each].number: stored[records[each].number] if own is None else own for each, own in spans.items()}
    )
    headings = _headings(store, {records[document].number: wanted for document, wanted in ordinals.items()})
    found = []
    for document, wanted in ordinals.items():
        record = records[document]
        if len(headings[record.number]) < len(wanted) or len(texts[record.number]) < len(numbers[document]):
            raise UnknownDocument(record.id)
        own_texts = iter(texts[record.number])
        products = holdings.products(document, query, np.array(numbers[document], np.int64))
        first = 0
        for ordinal, chunk in zip(wanted, rows[document], strict=True):
            rank, score = by_words.get((document, ordinal), (0, 0.0))
            found.append(
                Candidate(
                    place=(document, ordinal),
                    heading=headings[record.number][ordinal],
                    rows=[next(own_texts) for _ in chunk],
                    products=None if products is None else products[first : first + len(chunk)],
                    lexical_score=score,
                    lexical_rank=rank,
                    dense_rank=by_meaning.get((document, ordinal), 0),
                    keys=met.rarities((document, ordinal)),
                )
            )
            first += len(chunk)
    return found


def _row_spans(store: Store, wanted: Mapping[int, Sequence[int]]) -> dict[int, list[Span]]:
    """Where rows of documents, by their numbers, stand; each document's ascend."""
    with store.database.read() as connection:
        return {
            number: [
                Span(start, end)
                for start, end in connection.execute(
                    'SELECT start, "end" FROM vector_rows '
                    "WHERE document = ? AND row IN (SELECT value FROM json_each(?)) ORDER BY row",
                    (number, json.dumps(rows)),
                )
            ]
            for number, rows in wanted.items()
        }


def _headings(store: Store, wanted: Mapping[int, Sequence[int]]) -> dict[int, dict[int, str]]:
    """What is above chunks of documents, by their numbers."""
    with store.database.read() as connection:
        return {
            number: dict(
                connection.execute(
                    "SELECT ordinal, heading FROM chunks "
                    "WHERE document = ? AND ordinal IN (SELECT value FROM json_each(?))",
                    (number, json.dumps(ordinals)),
                ).fetchall()
            )
            for number, ordinals in wanted.items()
        }
