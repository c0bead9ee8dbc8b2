"""From ranked chunks to passages: neighbours joined, keys first, each with its evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retrieval.contents import Contents, StoredChunk, StoredFact
from retrieval.passage import Passage, Span
from retrieval.store import Record, Store
from retrieval.words import words

# Neighbours are joined up to this length, so that a passage stays small against a model's window.
MAX_PASSAGE_CHARACTERS = 1600
# Only chunks this far up the ranking, in passages, may lengthen a passage.
JOIN_DEPTH = 2

# A chunk: which of the asked documents, and its ordinal there.
Place = tuple[int, int]


@dataclass(slots=True)
class KeyHit:
    """A chunk that keys of the question led to. ``form`` is the least folded form that did; 0 is as written."""

    form: int
    keys: set[str] = field(default_factory=set)
    evidence: set[Span] = field(default_factory=set)

    def note(self, fact: StoredFact) -> None:
        """One more fact of the chunk."""
        self.form = min(self.form, fact.form)
        self.keys.add(fact.key)
        self.evidence.add(fact.evidence)


def compose(
    store: Store,
    contents: Contents,
    records: Sequence[Record],
    key_hits: Mapping[Place, KeyHit],
    scores: Mapping[Place, float],
    finders: Mapping[Place, tuple[str, ...]],
    question_words: Sequence[str],
    max_passages: int,
) -> tuple[Passage, ...]:
    """At most ``max_passages`` passages, best first.

    Chunks that a key led to come before all others: those with more keys of the question first, then those where
    the key stands as it was written. The others follow by ``scores``; equal ones in reading order.
    """

    def rank(place: Place) -> tuple[bool, int, int, float, Place]:
        hit = key_hits.get(place)
        if hit is None:
            return (True, 0, 0, -scores[place], place)
        return (False, -len(hit.keys), hit.form, -scores.get(place, 0.0), place)

    order = sorted({*scores, *key_hits}, key=rank)[: max(max_passages * JOIN_DEPTH, 1)]
    chunks = _chunks(contents, records, order)
    passages = []
    for group in _join(order, chunks, max_passages):
        document = group[0][0]
        record = records[document]
        start = min(chunks[place].start for place in group)
        end = max(chunks[place].end for place in group)
        text = store.text(record.number, start, end)
        hits = [key_hits[place] for place in group if place in key_hits]
        found_by = {finder for place in group for finder in finders.get(place, ())} | ({"key"} if hits else set())
        score = max(scores.get(place, 0.0) for place in group)
        passages.append(
            Passage(
                document_id=record.document.id,
                document_name=record.document.name,
                span=Span(start, end),
                text=text,
                page=chunks[min(group)].page,
                # In the order of the passages: key hits above one half, the others below.
                score=(1.0 + score) / 2 if hits else score / 2,
                found_by=tuple(name for name in ("key", "lexical", "dense") if name in found_by),
                evidence=_evidence(hits, text, start, question_words),
            )
        )
    return tuple(passages)


def _chunks(contents: Contents, records: Sequence[Record], places: Sequence[Place]) -> dict[Place, StoredChunk]:
    wanted: dict[int, list[int]] = {}
    for document, ordinal in places:
        wanted.setdefault(document, []).append(ordinal)
    return {
        (document, ordinal): chunk
        for document, ordinals in wanted.items()
        for ordinal, chunk in contents.chunks_at(records[document].number, ordinals).items()
    }


def _join(order: Sequence[Place], chunks: Mapping[Place, StoredChunk], max_passages: int) -> list[list[Place]]:
    groups: list[list[Place]] = []
    for place in order:
        if place not in chunks:
            continue
        for group in groups:
            if _fits(place, group, chunks):
                group.append(place)
                break
        else:
            if len(groups) < max_passages:
                groups.append([place])
    return groups


def _fits(place: Place, group: Sequence[Place], chunks: Mapping[Place, StoredChunk]) -> bool:
    ordinals = [ordinal for document, ordinal in group if document == place[0]]
    if not ordinals or not min(ordinals) - 1 <= place[1] <= max(ordinals) + 1:
        return False
    spans = [chunks[member] for member in (*group, place)]
    return max(chunk.end for chunk in spans) - min(chunk.start for chunk in spans) <= MAX_PASSAGE_CHARACTERS


def _evidence(hits: Sequence[KeyHit], text: str, offset: int, question_words: Sequence[str]) -> Span | None:
    """The sentence or row under the keys that shares most words with the question; the first of equal ones."""
    best: tuple[int, Span] | None = None
    asked = set(question_words)
    for span in sorted({span for hit in hits for span in hit.evidence}):
        shared = len(asked.intersection(words(text[max(span.start - offset, 0) : span.end - offset])))
        if best is None or shared > best[0]:
            best = (shared, span)
    return best[1] if best else None
