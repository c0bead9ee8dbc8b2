"""From ranked chunks to passages: neighbours joined, keys first, each with its evidence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from retrieval.asked_documents import AskedDocuments, in_turn
from retrieval.contents import Contents, StoredChunk
from retrieval.cutting import Pieces
from retrieval.duplicates import collapsed
from retrieval.errors import UnknownDocument
from retrieval.key_lookup import StoredFact
from retrieval.passage import Cutting, Nearest, Passage, Span, page_at
from retrieval.record import Listed
from retrieval.store import Store
from retrieval.values import Asked, Reader
from retrieval.words import words

# Neighbours are joined up to this length, so that a passage stays small against a model's window.
MAX_PASSAGE_CHARACTERS = 1600
# Only chunks this far up the ranking, in passages, may lengthen a passage.
JOIN_DEPTH = 2

# A chunk: which of the asked documents, and its ordinal there.
Place = tuple[int, int]


@dataclass(slots=True)
class KeyHit:
    """A chunk that keys of the question stand in.

    ``forms`` says for each key of the question how far it had to be folded to meet the text (0: as written);
    ``meetings`` where it met which fact. Only where it ``is_leading`` does the chunk come before what no key led to.
    """

    forms: dict[int, int] = field(default_factory=dict)
    meetings: list["Meeting"] = field(default_factory=list)
    is_leading: bool = True

    def copy(self) -> "KeyHit":
        """The same hit, to note more in."""
        return KeyHit(dict(self.forms), list(self.meetings), self.is_leading)

    def note(self, key: int, form: int, fact: StoredFact) -> None:
        """One more meeting of a key and the text."""
        self.forms[key] = min(form, self.forms.get(key, form))
        self.meetings.append(Meeting(key, form, fact))

    @property
    def is_pinned(self) -> bool:
        """Whether a user pinned what stands here under a key asked for."""
        return any(meeting.fact.is_pinned for meeting in self.meetings)


class Meeting(NamedTuple):
    """A key of the question, by its number, and a fact that stands under it; ``form`` as in ``KeyHit``."""

    key: int
    form: int
    fact: StoredFact


class NearRow(NamedTuple):
    """A row of a document's vectors, and its inner product with the question."""

    row: int
    score: float


@dataclass(frozen=True, slots=True)
class Rankings:
    """What each search found: chunks by key, what these lead on to (``hops``, nearest first), and the rankings by words
    and by meaning, best first.

    ``scores``, from 0 to 1, say how likely the answer stands in a chunk beside others. ``found`` is False when nothing
    of it has to do with the question; ``reason`` says which searches were made, ``asked`` which documents have a share.
    """

    keys: Mapping[Place, KeyHit]
    hops: Sequence[Place]
    lexical: Sequence[Place]
    dense: Mapping[Place, NearRow]
    scores: Mapping[Place, float]
    question: str
    question_words: Sequence[str]
    found: bool
    confidence: float
    reason: str
    num_facts: int
    num_chunks: int
    seconds: Mapping[str, float]
    asked: AskedDocuments = field(default_factory=AskedDocuments)

    @property
    def num_leading(self) -> int:
        """Chunks that come first because keys led there."""
        return sum(hit.is_leading for hit in self.keys.values())


@dataclass(slots=True)
class Group:
    """Chunks that make one passage: neighbours, or with ``piece`` those that stand in it, as ``cutting`` has it."""

    places: list[Place]
    cutting: Cutting | None = None
    piece: Span | None = None


def compose(
    store: Store,
    contents: Contents,
    records: Sequence[Listed],
    rankings: Rankings,
    max_passages: int,
    cuttings: Mapping[str, Sequence[Cutting | None]] | None = None,
    pieces: Pieces | None = None,
) -> tuple[Passage, ...]:
    """At most ``max_passages`` passages, best first; those that say the same as a better one are told in it.

    Chunks that a key led to come before all others: those that a user pinned under it first, then those with more
    keys of the question, then those where the keys stand as they were asked; then those that these lead on to. The
    others follow by their score; equal ones in reading order. But where documents have a share each, the best of every
    one comes before the second best of any. ``cuttings`` says of documents, by their ids, how they are cut: their
    passages are whole ``pieces``.
    """
    found = _passages(store, contents, records, rankings, max_passages, cuttings or {}, pieces)
    return collapsed(found, max_passages)


def _passages(
    store: Store,
    contents: Contents,
    records: Sequence[Listed],
    rankings: Rankings,
    max_passages: int,
    cuttings: Mapping[str, Sequence[Cutting | None]],
    pieces: Pieces | None,
) -> Iterator[Passage]:
    scores, asked = rankings.scores, Asked(rankings.question)
    # Where a key leads is asked of as much as what is named: nothing named comes before it.
    led = {document for (document, _), hit in rankings.keys.items() if hit.is_leading}
    asked_for = replace(rankings.asked, shares=rankings.asked.shares | led) if rankings.asked.shares else rankings.asked
    each, shares = asked_for.most(max_passages), asked_for.shares
    order = in_turn(_order(rankings.keys, rankings.hops, scores), each, shares, lambda place: place[0])
    # Whatever stands in a piece belongs to it.
    most = max_passages * JOIN_DEPTH
    order = [place for n, place in enumerate(order) if n < most or records[place[0]].id in cuttings]
    chunks = _chunks(contents, records, order)
    for group in _join(order, chunks, rankings, records, cuttings, pieces):
        places = group.places
        record = records[places[0][0]]
        start = min(chunks[place].start for place in places)
        end = max(chunks[place].end for place in places)
        page = chunks[min(places)].page
        hits = [rankings.keys[place] for place in places if place in rankings.keys]
        is_led = any(hit.is_leading for hit in hits)
        hits = [hit for hit in hits if hit.is_leading or not is_led]
        evidence = _evidence(store, record, hits, rankings.question_words)
        values = Reader(store, contents, record, asked).values(hits)
        nearest = _nearest(contents, record, places, rankings.dense)
        if group.piece is None:
            if evidence is not None:
                # A sentence that was too long for one chunk: what may be quoted must stand in the passage.
                start, end = min(start, evidence.start), max(end, evidence.end)
            for value in values:
                start, end = min(start, value.span.start), max(end, value.span.end)
        else:
            shown = contents.shown(record.number, group.piece, Span(start, end))
            start, end, page = shown.start, shown.end, page_at(store.pages(record.number), shown.start)
            evidence = _inside(evidence, shown)
            values = tuple(value for value in values if _inside(value.span, shown) == value.span)
            if nearest is not None:
                inside = _inside(nearest.span, shown)
                nearest = None if inside is None else replace(nearest, span=inside)
        score = max(scores.get(place, 0.0) for place in places)
        is_hop = any(place in rankings.hops for place in places)
        yield Passage(
            document_id=record.id,
            document_name=record.name,
            span=Span(start, end),
            text=store.text(record.number, start, end),
            page=page,
            # In the order of the passages: where keys led above one half, what that led on to at it, others below.
            score=(1.0 + score) / 2 if is_led else 0.5 if is_hop else score / 2,
            found_by=_finders(places, rankings),
            evidence=evidence,
            nearest=nearest,
            values=values,
            is_named=places[0][0] in rankings.asked.named,
            cutting=group.cutting,
        )


def _inside(span: Span | None, piece: Span) -> Span | None:
    """What of ``span`` stands in the piece, if anything does."""
    if span is None or span.end <= piece.start or piece.end <= span.start:
        return None
    return Span(max(span.start, piece.start), min(span.end, piece.end))


def _nearest(
    contents: Contents, record: Listed, group: Sequence[Place], dense: Mapping[Place, NearRow]
) -> Nearest | None:
    near = max((dense[place] for place in group if place in dense), key=lambda row: row.score, default=None)
    if near is None:
        return None
    rows = contents.vector_rows(record.number, near.row, 1)
    if not rows:
        raise UnknownDocument(record.id)  # deleted since it was searched
    return Nearest(rows[0].span, near.score)


def _order(keys: Mapping[Place, KeyHit], hops: Sequence[Place], scores: Mapping[Place, float]) -> list[Place]:
    hop_of = {place: hop for hop, place in enumerate(hops)}

    def rank(place: Place) -> tuple[int, int, int, float, Place]:
        hit, score = keys.get(place), scores.get(place, 0.0)
        if hit is not None and hit.is_leading:
            return (0 if hit.is_pinned else 1, -len(hit.forms), sum(hit.forms.values()), -score, place)
        return (2, hop_of[place], 0, -score, place) if place in hop_of else (3, 0, 0, -score, place)

    return sorted({*scores, *keys, *hops}, key=rank)


def _finders(group: Sequence[Place], rankings: Rankings) -> tuple[str, ...]:
    found = {"key": rankings.keys, "hop": rankings.hops, "lexical": rankings.lexical, "dense": rankings.dense}
    return tuple(name for name, places in found.items() if any(place in places for place in group))


def _chunks(contents: Contents, records: Sequence[Listed], places: Sequence[Place]) -> dict[Place, StoredChunk]:
    wanted: dict[int, list[int]] = {}
    for document, ordinal in places:
        wanted.setdefault(document, []).append(ordinal)
    return {
        (document, ordinal): chunk
        for document, ordinals in wanted.items()
        for ordinal, chunk in contents.chunks_at(records[document].number, ordinals).items()
    }


def _join(
    order: Sequence[Place],
    chunks: Mapping[Place, StoredChunk],
    rankings: Rankings,
    records: Sequence[Listed],
    cuttings: Mapping[str, Sequence[Cutting | None]],
    pieces: Pieces | None,
) -> list[Group]:
    groups: list[Group] = []
    for place in order:
        if place not in chunks:
            continue
        record = records[place[0]]
        for cutting in cuttings.get(record.id, (None,)):
            piece = None
            if cutting is not None:
                assert pieces is not None, "a document is cut, and nobody knows where"
                piece = pieces.around(record.number, cutting, *_focus(place, chunks[place], rankings.keys))
            group = next((group for group in groups if _belongs(place, group, chunks, rankings, cutting, piece)), None)
            if group is not None:
                group.places.append(place)
            else:
                groups.append(Group([place], cutting, piece))
    return groups


def _focus(place: Place, chunk: StoredChunk, keys: Mapping[Place, KeyHit]) -> tuple[Span, Span | None]:
    """What of a chunk should not be cut off, and what of it least of all: the sentence or row that keys led to, and
    what stands there; else as much of the chunk as can be."""
    if place in keys and keys[place].is_leading:
        first = min(keys[place].meetings, key=lambda meeting: (meeting.form, meeting.fact.evidence)).fact
        return first.evidence, first.span
    return Span(chunk.start, chunk.end), None


def _belongs(
    place: Place,
    group: Group,
    chunks: Mapping[Place, StoredChunk],
    rankings: Rankings,
    cutting: Cutting | None,
    piece: Span | None,
) -> bool:
    if (cutting, piece) != (group.cutting, group.piece):
        return False
    if piece is not None:
        return place[0] == group.places[0][0]
    # A key hit opens a passage of its own: a passage has one evidence, and no hit may hide another.
    is_led = place in rankings.keys and rankings.keys[place].is_leading
    return not is_led and _fits(place, group.places, chunks)


def _fits(place: Place, group: Sequence[Place], chunks: Mapping[Place, StoredChunk]) -> bool:
    ordinals = [ordinal for document, ordinal in group if document == place[0]]
    if not ordinals or not min(ordinals) - 1 <= place[1] <= max(ordinals) + 1:
        return False
    spans = [chunks[member] for member in (*group, place)]
    return max(chunk.end for chunk in spans) - min(chunk.start for chunk in spans) <= MAX_PASSAGE_CHARACTERS


def _evidence(store: Store, record: Listed, hits: Sequence[KeyHit], question_words: Sequence[str]) -> Span | None:
    """The sentence or row under the keys that shares most words with the question; the first of equal ones."""
    met = [meeting.fact for hit in hits for meeting in hit.meetings]
    spans = sorted({fact.evidence for fact in [fact for fact in met if fact.is_pinned] or met})
    if len(spans) < 2:
        return spans[0] if spans else None
    asked = set(question_words)
    offset = spans[0].start
    text = store.text(record.number, offset, max(span.end for span in spans))

    def num_shared(span: Span) -> int:
        return len(asked.intersection(words(text[span.start - offset : span.end - offset])))

    return max(spans, key=lambda span: (num_shared(span), -span.start, -span.end))
