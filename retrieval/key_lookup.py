"""The facts under keys, looked up in the store: of a few documents in each, of many by the key."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.fact_book import PHRASE_FORM
from retrieval.passage import KINDS_THAT_DO_NOT_LEAD, FactKind, Span

# Of more documents a key is looked up once for all, not in each. Measured: 0.2 microseconds for a form of a key and a
# document, where there are up to fifty forms of those in a question.
MANY_DOCUMENTS = 64

_DETAILS = (
    "(SELECT c.ordinal FROM chunks c WHERE c.document = f.document AND c.start <= f.start "
    'ORDER BY c.start DESC LIMIT 1) AS chunk, {key}, f.kind, f.start, f."end", f.evidence_start, f.evidence_end '
)
_LEADS = "chunk IS NOT NULL AND f.kind NOT IN (SELECT value FROM json_each({kinds})) "


@dataclass(frozen=True, slots=True)
class StoredFact:
    """A fact that a key led to, and the chunk it begins in. ``form`` 0 is the key as written, more is folded more.

    ``number`` is its place among the facts of its document.
    """

    document: int
    number: int
    chunk: int
    key: str
    form: int
    kind: str
    span: Span
    evidence: Span

    @property
    def is_pinned(self) -> bool:
        """Whether a user pinned it, and it was met by its key or its whole text."""
        return self.kind == FactKind.PIN and self.form < PHRASE_FORM


def facts_under(connection: sqlite3.Connection, numbers: Sequence[int], keys: Sequence[str]) -> list[StoredFact]:
    """Every fact of these documents that stands under one of ``keys``, in the order of documents and reading."""
    if len(numbers) > MANY_DOCUMENTS:
        return _in_many(connection, numbers, keys)
    return _in_each(connection, numbers, keys)


def _in_each(connection: sqlite3.Connection, numbers: Sequence[int], keys: Sequence[str]) -> list[StoredFact]:
    rows = connection.execute(
        "SELECT k.document, k.fact, "
        + _DETAILS.format(key="k.key, k.form")
        + "FROM json_each(?1) d CROSS JOIN json_each(?2) q "
        "CROSS JOIN fact_keys k ON k.document = d.value AND k.key = q.value "
        "JOIN facts f ON f.document = k.document AND f.fact = k.fact WHERE "
        + _LEADS.format(kinds="?3")
        + "ORDER BY d.key, f.start, k.form",
        (json.dumps(list(numbers)), json.dumps(list(keys)), json.dumps(KINDS_THAT_DO_NOT_LEAD)),
    ).fetchall()
    return [_fact(*row) for row in rows]


def _in_many(connection: sqlite3.Connection, numbers: Sequence[int], keys: Sequence[str]) -> list[StoredFact]:
    places = {number: place for place, number in enumerate(numbers)}
    met = connection.execute(
        "SELECT k.document, k.fact, k.key, k.form FROM json_each(?) q CROSS JOIN fact_keys k ON k.key = q.value",
        (json.dumps(list(keys)),),
    )
    # As few documents have a key, these few are looked into; those of others are passed over here.
    asked = [row for row in met if row[0] in places]
    rows = connection.execute(
        "SELECT f.document, f.fact, "
        + _DETAILS.format(key="json_extract(w.value, '$[2]'), json_extract(w.value, '$[3]')")
        + "FROM json_each(?1) w CROSS JOIN facts f "
        "ON f.document = json_extract(w.value, '$[0]') AND f.fact = json_extract(w.value, '$[1]') WHERE "
        + _LEADS.format(kinds="?2"),
        (json.dumps(asked), json.dumps(KINDS_THAT_DO_NOT_LEAD)),
    ).fetchall()
    return sorted((_fact(*row) for row in rows), key=lambda fact: (places[fact.document], fact.span.start, fact.form))


def _fact(
    document: int,
    number: int,
    chunk: int,
    key: str,
    form: int,
    kind: str,
    start: int,
    end: int,
    evidence_start: int,
    evidence_end: int,
) -> StoredFact:
    return StoredFact(document, number, chunk, key, form, kind, Span(start, end), Span(evidence_start, evidence_end))
