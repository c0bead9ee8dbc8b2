"""What was found in the documents: chunks, facts under their keys, embeddings. Truth, like the store itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.database import Database
from retrieval.fact_book import count_facts, insert_facts, place_pins
from retrieval.key_lookup import StoredFact, facts_under
from retrieval.passage import Chunk, Fact, FactKind, Span
from retrieval.recognisers import RECOGNISERS_REVISION
from retrieval.store import alive
from retrieval.vector_rows import VectorRow


class StoredChunk(NamedTuple):
    """Where a chunk stands. ``ordinal`` counts the chunks of its document from 0, in reading order."""

    ordinal: int
    start: int
    end: int
    page: int | None
    heading: str


class Contents:
    """Chunks, facts and embeddings by document number. Changes are durable when a method returns."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._parts: Mapping[int, Sequence[Span]] = {}
        self._kinds: frozenset[FactKind] | None = None

    def within(self, parts: Mapping[int, Sequence[Span]], kinds: frozenset[FactKind] | None) -> Self:
        """The same contents to be read in part: of the documents in ``parts`` what ``chunks_at``, ``vector_rows`` and
        ``facts_by_key`` find is cut to their spans, which ascend and are disjoint; facts are those of ``kinds``."""
        part = type(self)(self._database)
        part._parts, part._kinds = parts, kinds
        return part

    def write_index(
        self,
        number: int,
        chunks: Sequence[Chunk],
        rows: Sequence[VectorRow],
        facts: Sequence[Fact],
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Keep what was found in a document in place of what it had, and stamp it with the revision. Pins stay.

        ``dropped`` says how many facts of each kind were beyond the budget.

        Raises:
            UnknownDocument: it was deleted meanwhile.
        """
        with self._database.write() as (connection, revision):
            alive(connection, number)
            for table in ("chunks", "vector_rows", "word_counts", "facts", "fact_keys", "embeddings", "dropped_facts"):
                connection.execute(f"DELETE FROM {table} WHERE document = ?", (number,))
            connection.executemany(
                "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (number, ordinal, chunk.span.start, chunk.span.end, chunk.page, chunk.heading)
                    for ordinal, chunk in enumerate(chunks)
                ),
            )
            connection.executemany(
                "INSERT INTO vector_rows VALUES (?, ?, ?, ?, ?)",
                ((number, index, row.chunk, row.span.start, row.span.end) for index, row in enumerate(rows)),
            )
            insert_facts(connection, number, 0, facts, dropped or {})
            connection.execute(
                "UPDATE documents SET num_rows = ?, chunks_revision = ?, recognisers = ? WHERE number = ?",
                (len(rows), revision, RECOGNISERS_REVISION, number),
            )
            # What surprised its reader is gone as well, and is to be found anew.
            connection.execute(
                "UPDATE documents SET told_tokens = 0, "
                "reading = CASE reading WHEN 'done' THEN 'wanted' ELSE reading END "
                "WHERE number = ? AND told_tokens > 0",
                (number,),
            )
            place_pins(connection, number)
            count_facts(connection, number)

    def renew_facts(self, number: int, facts: Sequence[Fact], dropped: Mapping[str, int]) -> None:
        """Keep ``facts`` in place of what was recognised before. Pins stay, under the keys they
        have now, and so does what surprised whoever read it; a document whose vectors stand is ready again.

        Raises:
            UnknownDocument: it was deleted meanwhile.
        """
        with self._database.write() as (connection, _):
            alive(connection, number)
            recognised = "document = ?1 AND kind != ?2"
            values = (number, FactKind.SURPRISING.value)
            connection.execute(
                f"DELETE FROM fact_keys WHERE document = ?1 AND fact IN (SELECT fact FROM facts WHERE {recognised})",
                values,
            )
            connection.execute(f"DELETE FROM facts WHERE {recognised}", values)
            connection.execute("DELETE FROM dropped_facts WHERE document = ?1 AND kind != ?2", values)
            (first,) = connection.execute(
                "SELECT coalesce(max(fact), -1) + 1 FROM facts WHERE document = ?", (number,)
            ).fetchone()
            insert_facts(connection, number, first, facts, dropped)
            connection.execute(
                "UPDATE documents SET recognisers = ?, "
                "stage = CASE WHEN vectors_revision IS NOT NULL THEN 'ready' ELSE stage END WHERE number = ?",
                (RECOGNISERS_REVISION, number),
            )
            place_pins(connection, number)
            count_facts(connection, number)

    def num_surprising(self, number: int) -> int:
        """How many facts of the document come from a reading."""
        with self._database.read() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM facts WHERE document = ? AND kind = ?", (number, FactKind.SURPRISING.value)
            ).fetchone()
        return int(count)

    def open_for_questions(self, number: int, fingerprint: str) -> None:
        """The document can be asked; its vectors, by the embedder ``fingerprint``, are what is left to do."""
        with self._database.write() as (connection, _):
            alive(connection, number)
            connection.execute(
                "UPDATE documents SET stage = 'dense', answerable = 1, fingerprint = ?, done = 0, total = num_rows "
                "WHERE number = ?",
                (fingerprint, number),
            )

    def chunks(self, number: int) -> list[StoredChunk]:
        """All chunks of a document in reading order."""
        with self._database.read() as connection:
            rows = connection.execute(
                'SELECT ordinal, start, "end", page, heading FROM chunks WHERE document = ? ORDER BY ordinal', (number,)
            ).fetchall()
        return [StoredChunk(*row) for row in rows]

    def first_headings(self, numbers: Sequence[int]) -> dict[int, str]:
        """The titles above the first chunk of each of these documents that has one."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT document, heading FROM chunks "
                "WHERE ordinal = 0 AND document IN (SELECT value FROM json_each(?))",
                (json.dumps(list(numbers)),),
            ).fetchall()
        return dict(rows)

    def chunks_at(self, number: int, ordinals: Sequence[int]) -> dict[int, StoredChunk]:
        """The chunks with these ordinals."""
        with self._database.read() as connection:
            rows = connection.execute(
                'SELECT ordinal, start, "end", page, heading FROM chunks '
                "WHERE document = ? AND ordinal IN (SELECT value FROM json_each(?))",
                (number, json.dumps([int(ordinal) for ordinal in ordinals])),
            ).fetchall()
        found = {row[0]: StoredChunk(*row) for row in rows}
        cut_chunks = {ordinal: self._cut(number, chunk) for ordinal, chunk in found.items()}
        return {ordinal: chunk for ordinal, chunk in cut_chunks.items() if chunk is not None}

    def vector_rows(self, number: int, first: int = 0, count: int = -1) -> list[VectorRow]:
        """``count`` rows of a document that get a vector (all when negative), in reading order, from ``first`` on."""
        with self._database.read() as connection:
            rows = connection.execute(
                'SELECT chunk, start, "end" FROM vector_rows WHERE document = ? AND row >= ? ORDER BY row LIMIT ?',
                (number, first, count),
            ).fetchall()
        found = [VectorRow(chunk, Span(start, end)) for chunk, start, end in rows]
        spans = self._parts.get(number)
        return found if spans is None else [row._replace(span=cut(row.span, spans) or row.span) for row in found]

    def num_embeddings(self, number: int, fingerprint: str) -> int:
        """How many rows of the document have a vector; they are the first ones, for they come in order."""
        with self._database.read() as connection:
            (count,) = connection.execute(
                "SELECT count(*) FROM embeddings WHERE document = ? AND fingerprint = ?", (number, fingerprint)
            ).fetchone()
        return int(count)

    def add_embeddings(self, number: int, fingerprint: str, first: int, vectors: NDArray[np.float32]) -> None:
        """Keep the vectors [n, dimension] of the rows ``first`` to ``first + n``, at half precision.

        Raises:
            UnknownDocument: it was deleted meanwhile.
        """
        with self._database.write() as (connection, _):
            alive(connection, number)
            connection.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?)",
                (
                    (number, fingerprint, first + row, vector.tobytes())
                    for row, vector in enumerate(vectors.astype("<f2"))
                ),
            )
            connection.execute("UPDATE documents SET done = ? WHERE number = ?", (first + len(vectors), number))

    def finish_embeddings(self, number: int) -> None:
        """All vectors stand: stamp them with the revision; the document is ready."""
        with self._database.write() as (connection, revision):
            alive(connection, number)
            connection.execute(
                "UPDATE documents SET stage = 'ready', vectors_revision = ?, done = total WHERE number = ?",
                (revision, number),
            )

    def embeddings(self, number: int, fingerprint: str, dimension: int) -> NDArray[np.float32]:
        """The vectors [rows, dimension] of a document in reading order, of unit length."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT vector FROM embeddings WHERE document = ? AND fingerprint = ? ORDER BY row",
                (number, fingerprint),
            ).fetchall()
        return unit_rows([row[0] for row in rows], dimension)

    def facts_by_key(self, numbers: Sequence[int], keys: Sequence[str]) -> list[StoredFact]:
        """Every fact of these documents that stands under one of ``keys``, in reading order."""
        with self._database.read() as connection:
            found = facts_under(connection, numbers, keys)
        if self._kinds is not None:
            found = [fact for fact in found if fact.kind in self._kinds]
        return [inside for fact in found if (inside := self._inside(fact)) is not None] if self._parts else found

    def facts_in(self, number: int, span: Span) -> list[tuple[str, Span]]:
        """Kind and span of the facts that stand whole in ``span`` of a document, in reading order."""
        with self._database.read() as connection:
            rows = connection.execute(
                'SELECT kind, start, "end" FROM facts WHERE document = ? AND start BETWEEN ? AND ? '
                'AND "end" <= ? ORDER BY start, "end"',
                (number, span.start, span.end, span.end),
            ).fetchall()
        return [(kind, Span(start, end)) for kind, start, end in rows]

    def keys_in(self, number: int, span: Span, kind: str) -> list[tuple[Span, str]]:
        """The facts of a kind that stand whole in ``span`` of a document, with each form of each key they have."""
        with self._database.read() as connection:
            rows = connection.execute(
                'SELECT f.start, f."end", k.key FROM facts f '
                "JOIN fact_keys k ON k.document = f.document AND k.fact = f.fact "
                'WHERE f.document = ? AND f.start BETWEEN ? AND ? AND f."end" <= ? AND f.kind = ? '
                'ORDER BY f.start, f."end", k.form',
                (number, span.start, span.end, span.end, kind),
            ).fetchall()
        return [(Span(start, end), key) for start, end, key in rows]

    def shown(self, number: int, piece: Span, place: Span) -> Span:
        """What of ``piece`` is in the part that ``place``, which is in it, stands in."""
        for part in self._parts.get(number, ()):
            if part.start < place.end and place.start < part.end:
                return Span(max(piece.start, part.start), min(piece.end, part.end))
        return piece

    def _cut(self, number: int, chunk: StoredChunk) -> StoredChunk | None:
        """What of a chunk is in the part, if any is."""
        span = cut(Span(chunk.start, chunk.end), self._parts.get(number))
        if span is None:
            return None
        if span.start == chunk.start:
            return chunk._replace(end=span.end)
        page = chunk.page
        if page is not None:
            with self._database.read() as connection:
                (page,) = connection.execute(
                    "SELECT max(page) FROM pages WHERE document = ? AND start <= ?", (number, span.start)
                ).fetchone()
        return chunk._replace(start=span.start, end=span.end, page=page)

    def _inside(self, fact: StoredFact) -> StoredFact | None:
        """A fact that stands whole in the part, with the evidence that does."""
        spans = self._parts.get(fact.document)
        if spans is None:
            return fact
        around = next((span for span in spans if span.start <= fact.span.start and fact.span.end <= span.end), None)
        return None if around is None else replace(fact, evidence=cut(fact.evidence, (around,)) or fact.span)

    def totals(self) -> tuple[int, int]:
        """How many vectors and how many facts the store holds."""
        with self._database.read() as connection:
            (vectors, facts) = connection.execute(
                "SELECT sum(num_vectors), sum(num_facts) FROM tallies WHERE stage != 'deleting'"
            ).fetchone()
        return int(vectors), int(facts)


def unit_rows(stored: Sequence[bytes], dimension: int) -> NDArray[np.float32]:
    """Vectors [rows, dimension] as they are kept, at half precision, brought to unit length."""
    vectors = np.frombuffer(b"".join(stored), dtype="<f2").reshape(len(stored), dimension).astype(np.float32)
    # Half precision moves the length by up to 2^-11; searches compare by inner product.
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(norms, np.finfo(np.float32).tiny)
    return vectors


def cut(span: Span, spans: Sequence[Span] | None) -> Span | None:
    """``span`` from where the first of ``spans``, which ascend, meets it to where the last does; None where none does.
    Without ``spans`` all of it."""
    if spans is None:
        return span
    met = [other for other in spans if other.start < span.end and span.start < other.end]
    return Span(max(span.start, met[0].start), min(span.end, met[-1].end)) if met else None
