"""The facts of one document, listed; and the pins, which are facts because somebody said so."""

import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retrieval.database import Database
from retrieval.errors import FactNotPinned, UnknownFact
from retrieval.keys import pin_keys
from retrieval.occurrences import occurrences
from retrieval.passage import Fact, FactKind, Span
from retrieval.store import alive, read_text

PIN_SOURCE = "user"
_PIN_SCORE = 1.0
# Forms from here on are words of a pin, not what it was pinned under.
PHRASE_FORM = 100
_MOST_PLACES = 1000
_COLUMNS = 'f.fact, f.pin, f.kind, f.start, f."end", f.evidence_start, f.evidence_end, f.source, f.score, p.key'


@dataclass(frozen=True, slots=True)
class ListedFact:
    """A fact as its owner sees it. ``id`` of a pin holds as long as the pin, others until the document is indexed
    anew. ``keys`` are the forms it is found under, ``key`` the one its user named."""

    id: str
    kind: FactKind
    span: Span
    evidence: Span
    keys: tuple[str, ...]
    key: str | None
    source: str
    score: float


def within_budget(facts: Sequence[Fact], most: int) -> tuple[list[Fact], dict[str, int]]:
    """At most ``most`` of ``facts``, in their order: the best scored, of equal ones the first; and how many of each
    kind were left out."""
    ranked = sorted(range(len(facts)), key=lambda place: (-facts[place].score, place))
    kept = sorted(ranked[:most])
    return [facts[place] for place in kept], dict(Counter(facts[place].kind.value for place in ranked[most:]))


class FactBook:
    """Facts by document number. Changes are durable when a method returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pin(self, number: int, span: Span, text: str, evidence: Span, key: str | None) -> tuple[str, bool]:
        """Keep ``span``, which says ``text``, as a fact. Returns its id, and whether it is new: the same span under
        the same key is the pin there is.

        Raises:
            UnknownDocument: it was deleted meanwhile.
        """
        with self._database.write() as (connection, _):
            alive(connection, number)
            known = connection.execute(
                'SELECT id FROM pins WHERE document = ? AND start = ? AND "end" = ? AND key IS ?',
                (number, span.start, span.end, key),
            ).fetchone()
            if known:
                return str(known[0]), False
            pin = (f"pin_{uuid.uuid4().hex}", number, span.start, span.end, evidence.start, evidence.end, text, key)
            connection.execute("INSERT INTO pins VALUES (?, ?, ?, ?, ?, ?, ?, ?)", pin)
            _place(connection, number, pin[0], span, evidence, text, key)
            count_facts(connection, number)
            return pin[0], True

    def unpin(self, number: int, fact_id: str) -> None:
        """Forget a pin.

        Raises:
            UnknownFact: the document has no such fact.
            FactNotPinned: it was recognised in the text, so that there is nothing to take back.
        """
        found = self.get(number, fact_id)
        if found.source != PIN_SOURCE:
            raise FactNotPinned(fact_id, found.source)
        with self._database.write() as (connection, _):
            alive(connection, number)
            connection.execute("DELETE FROM pins WHERE document = ? AND id = ?", (number, fact_id))
            row = connection.execute(
                "SELECT fact FROM facts WHERE document = ? AND pin = ?", (number, fact_id)
            ).fetchone()
            if row is not None:
                connection.execute("DELETE FROM fact_keys WHERE document = ? AND fact = ?", (number, row[0]))
                connection.execute("DELETE FROM facts WHERE document = ? AND fact = ?", (number, row[0]))
            count_facts(connection, number)

    def get(self, number: int, fact_id: str) -> ListedFact:
        """One fact of a document. Raises ``UnknownFact``."""
        with self._database.read() as connection:
            column, value = _named(fact_id)
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM facts f LEFT JOIN pins p ON p.id = f.pin WHERE f.document = ? AND {column}",
                (number, value),
            ).fetchone()
            if row is None:
                raise UnknownFact(fact_id)
            return _listed(connection, number, row)

    def page(
        self, number: int, limit: int, after: str | None, kind: str | None, source: str | None, keys: Iterable[str]
    ) -> list[ListedFact]:
        """``limit`` facts in reading order from the one after ``after`` on: of a kind, from a source, or under one of
        ``keys``, which are folded forms, where that is given. Raises ``UnknownFact`` for ``after``."""
        wanted = tuple(keys)
        conditions, values = ["f.document = ?"], [number]
        filters: list[object] = []
        if kind is not None:
            conditions.append("f.kind = ?")
            filters.append(kind)
        if source is not None:
            conditions.append("f.source = ?")
            filters.append(source)
        if wanted:
            marks = ", ".join("?" * len(wanted))
            conditions.append(f"f.fact IN (SELECT fact FROM fact_keys WHERE document = ? AND key IN ({marks}))")
            filters += [number, *wanted]
        with self._database.read() as connection:
            if after is not None:
                column, value = _named(after)
                start = connection.execute(
                    f"SELECT f.start, f.fact FROM facts f WHERE f.document = ? AND {column}", (number, value)
                ).fetchone()
                if start is None:
                    raise UnknownFact(after)
                conditions.append("(f.start, f.fact) > (?, ?)")
                filters += start
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM facts f LEFT JOIN pins p ON p.id = f.pin WHERE {' AND '.join(conditions)} "
                "ORDER BY f.start, f.fact LIMIT ?",
                (*values, *filters, limit),
            ).fetchall()
            return [_listed(connection, number, row) for row in rows]

    def dropped(self, number: int) -> Mapping[str, int]:
        """How many facts of each kind the document has beyond its budget."""
        with self._database.read() as connection:
            return dict(
                connection.execute(
                    "SELECT kind, count FROM dropped_facts WHERE document = ? ORDER BY kind", (number,)
                ).fetchall()
            )


def insert_facts(
    connection: sqlite3.Connection, number: int, first: int, facts: Sequence[Fact], dropped: Mapping[str, int]
) -> None:
    """Enter recognised facts, numbered from ``first`` on, with their keys."""
    connection.executemany(
        "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            (
                number,
                index,
                fact.kind.value,
                fact.span.start,
                fact.span.end,
                fact.evidence.start,
                fact.evidence.end,
                fact.source,
                fact.score,
            )
            for index, fact in enumerate(facts, start=first)
        ),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO fact_keys VALUES (?, ?, ?, ?)",
        (
            (number, key, form, index)
            for index, fact in enumerate(facts, start=first)
            for form, key in enumerate(fact.keys)
        ),
    )
    connection.executemany(
        "INSERT INTO dropped_facts VALUES (?, ?, ?)", ((number, kind, count) for kind, count in dropped.items())
    )


def place_pins(connection: sqlite3.Connection, number: int) -> None:
    """Enter the pins of a document among its facts, which were made anew.

    Where its text has become another one, a pin moves to the nearest place that says the same; one whose text stands
    nowhere is kept, and is no fact until it does.
    """
    pins = connection.execute(
        'SELECT id, start, "end", evidence_start, evidence_end, text, key FROM pins WHERE document = ?', (number,)
    ).fetchall()
    whole: str | None = None
    for pin, start, end, evidence_start, evidence_end, text, key in pins:
        span, evidence = Span(start, end), Span(evidence_start, evidence_end)
        if read_text(connection, number, start, end) != text:
            whole = read_text(connection, number) if whole is None else whole
            same = [found for found in occurrences(whole, text, _MOST_PLACES) if whole[found.start : found.end] == text]
            if not same:
                continue
            span = evidence = min(same, key=lambda found: abs(found.start - start))
            connection.execute(
                'UPDATE pins SET start = ?, "end" = ?, evidence_start = ?, evidence_end = ? WHERE id = ?',
                (span.start, span.end, evidence.start, evidence.end, pin),
            )
        _place(connection, number, pin, span, evidence, text, key)


def count_facts(connection: sqlite3.Connection, number: int) -> None:
    """Note how many facts a document has."""
    connection.execute(
        "UPDATE documents SET num_facts = (SELECT count(*) FROM facts WHERE document = ?1) WHERE number = ?1", (number,)
    )


def _place(
    connection: sqlite3.Connection, number: int, pin: str, span: Span, evidence: Span, text: str, key: str | None
) -> None:
    (fact,) = connection.execute(
        "SELECT coalesce(max(fact), -1) + 1 FROM facts WHERE document = ?", (number,)
    ).fetchone()
    connection.execute(
        "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            fact,
            FactKind.PIN.value,
            span.start,
            span.end,
            evidence.start,
            evidence.end,
            PIN_SOURCE,
            _PIN_SCORE,
            pin,
        ),
    )
    own, phrases = pin_keys(text, key)
    connection.executemany(
        "INSERT OR IGNORE INTO fact_keys VALUES (?, ?, ?, ?)",
        [(number, folded, form, fact) for form, folded in enumerate(own)]
        + [(number, folded, form, fact) for form, folded in enumerate(phrases, start=PHRASE_FORM)],
    )


def _named(fact_id: str) -> tuple[str, object]:
    """The condition that an id is."""
    if fact_id.startswith("fact_") and fact_id[5:].isascii() and fact_id[5:].isdigit() and len(fact_id) < 20:
        return "f.pin IS NULL AND f.fact = ?", int(fact_id[5:])
    return "f.pin = ?", fact_id


def _listed(connection: sqlite3.Connection, number: int, row: tuple[object, ...]) -> ListedFact:
    fact, pin, kind, start, end, evidence_start, evidence_end, source, score, key = row
    keys = connection.execute(
        "SELECT key FROM fact_keys WHERE document = ? AND fact = ? ORDER BY form", (number, fact)
    ).fetchall()
    return ListedFact(
        id=str(pin) if pin is not None else f"fact_{fact}",
        kind=FactKind(str(kind)),
        span=Span(int(str(start)), int(str(end))),
        evidence=Span(int(str(evidence_start)), int(str(evidence_end))),
        keys=tuple(each[0] for each in keys),
        key=None if key is None else str(key),
        source=str(source),
        score=float(str(score)),
    )
