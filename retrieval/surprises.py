"""What surprised whoever read a document: facts that are found stretch by stretch, after the recognised ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.errors import UnknownDocument
from retrieval.fact_book import count_facts
from retrieval.keys import MAX_KEY_CHARACTERS, fold
from retrieval.passage import FactKind, Span
from retrieval.sentences import Sentences, sentence_spans
from retrieval.store import Store, alive

SURPRISE_SOURCE = "reading"
# Around what is told together, for the sentences at its ends.
_CONTEXT = 1000


@dataclass(frozen=True, slots=True)
class Surprise:
    """A stretch of a text, and the bits it told more than others of its length."""

    span: Span
    bits: float


class Surprises:
    """The facts of kind ``surprising``, whose score is in bits. Changes are durable when a method returns.

    They come in the order of the text, and how far they were told is kept with them, so that none is told twice
    however often a reading is taken up again. A document has ``max_facts`` facts but for its pins: the surprising ones
    take the room that the recognised ones leave, the most surprising first, and what had to go is counted as dropped.
    """

    def __init__(self, store: Store, max_facts: int) -> None:
        self._store = store
        self._max_facts = max_facts

    def num_told(self, document_id: str) -> int:
        """Up to which token of the document its surprises were told. Raises ``UnknownDocument``."""
        with self._store.database.read() as connection:
            row = connection.execute(
                "SELECT told_tokens FROM documents WHERE id = ? AND stage != 'deleting'", (document_id,)
            ).fetchone()
        if row is None:
            raise UnknownDocument(document_id)
        return int(row[0])

    def tell(self, document_id: str, first: int, last: int, found: Sequence[Surprise]) -> bool:
        """What was found among the tokens ``first`` to ``last`` of a document; False, and nothing is done, where they
        do not follow on what was told before. Raises ``UnknownDocument``."""
        number = self._store.record(document_id).number
        facts = self._facts(number, sorted(found, key=lambda each: each.span))
        with self._store.database.write() as (connection, _):
            alive(connection, number)
            told = connection.execute(
                "UPDATE documents SET told_tokens = ? WHERE number = ? AND told_tokens = ?", (last, number, first)
            )
            if not told.rowcount:
                return False
            (place,) = connection.execute(
                "SELECT coalesce(max(fact), -1) + 1 FROM facts WHERE document = ?", (number,)
            ).fetchone()
            connection.executemany(
                "INSERT INTO facts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    (
                        number,
                        fact,
                        FactKind.SURPRISING.value,
                        each.span.start,
                        each.span.end,
                        evidence.start,
                        evidence.end,
                        SURPRISE_SOURCE,
                        each.bits,
                    )
                    for fact, (each, evidence, _) in enumerate(facts, start=place)
                ),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO fact_keys VALUES (?, ?, ?, ?)",
                (
                    (number, key, form, fact)
                    for fact, (_, _, keys) in enumerate(facts, start=place)
                    for form, key in enumerate(keys)
                ),
            )
            excess = connection.execute(
                "SELECT fact FROM facts WHERE document = ?1 AND kind = ?2 ORDER BY score DESC, start "
                "LIMIT -1 OFFSET max(0, ?3 - (SELECT count(*) FROM facts "
                "WHERE document = ?1 AND kind != ?2 AND pin IS NULL))",
                (number, FactKind.SURPRISING.value, self._max_facts),
            ).fetchall()
            for table in ("facts", "fact_keys"):
                connection.executemany(
                    f"DELETE FROM {table} WHERE document = ? AND fact = ?", ((number, fact) for (fact,) in excess)
                )
            if excess:
                connection.execute(
                    "INSERT INTO dropped_facts VALUES (?, ?, ?) "
                    "ON CONFLICT (document, kind) DO UPDATE SET count = count + excluded.count",
                    (number, FactKind.SURPRISING.value, len(excess)),
                )
            count_facts(connection, number)
        return True

    def _facts(self, number: int, found: Sequence[Surprise]) -> list[tuple[Surprise, Span, tuple[str, ...]]]:
        """Each with its evidence and its keys; without those that hold no letter and no digit."""
        if not found:
            return []
        low = max(0, found[0].span.start - _CONTEXT)
        text = self._store.text(number, low, max(each.span.end for each in found) + _CONTEXT)
        sentences = Sentences(text, sentence_spans(text))
        facts = []
        for each in found:
            inside = Span(each.span.start - low, each.span.end - low)
            if keys := fold(text[inside.start : min(inside.end, inside.start + MAX_KEY_CHARACTERS)]):
                around = sentences.around(inside)
                facts.append((each, Span(low + around.start, low + around.end), keys))
        return facts
