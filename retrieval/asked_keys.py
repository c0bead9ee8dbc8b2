"""The keys of a question met with the facts of a text: which lead to a place, and which only speak for one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from retrieval.contents import Contents
from retrieval.key_lookup import StoredFact
from retrieval.keys import KeyShape, QueryKey, query_keys
from retrieval.passage import FactKind, Span
from retrieval.passages import KeyHit, Place
from retrieval.record import Listed
from retrieval.words import STOP_WORDS, words

# Somebody who quotes, or writes a code or an address, means exactly that.
EXACT_SHAPES = frozenset({KeyShape.QUOTED, KeyShape.ADDRESS, KeyShape.CODE})
# What stands in more places than these says nothing about any of them, unless it is an exact key.
MAX_WEAK_PLACES = 3
# A phrase leads to the value of a ``key: value`` line or a table row, or to what a term means, when it makes up this
# share of the question's content words: "What is the deadline?" asks for nothing else.
WHOLE = 0.99


@dataclass(frozen=True, slots=True)
class Met:
    """Where the keys of a question stand.

    Places of ``leading`` come before all others. Those of ``weak`` (years, dates, amounts, phrases) are candidates;
    ``num_places`` says for each key of the question, by its number, in how many places it stands.
    """

    leading: Mapping[Place, KeyHit]
    weak: Mapping[Place, KeyHit]
    num_places: Mapping[int, int]
    num_facts: int

    def rarities(self, place: Place) -> tuple[float, ...]:
        """For each weak key at ``place``, one divided by the number of its places."""
        hit = self.weak.get(place)
        return tuple(1.0 / self.num_places[key] for key in hit.forms) if hit else ()


def meet(contents: Contents, question: str, records: Sequence[Listed], shares: Collection[int] = ()) -> Met:
    """Look every key of ``question`` up in the facts of ``records``, of which those in ``shares`` are asked each by
    itself."""
    keys = query_keys(question)
    # Each form of each key asked, with its place in the key: a fact found by early forms of both is nearest.
    forms: dict[str, list[tuple[int, int]]] = {}
    for number, key in enumerate(keys):
        for form, folded in enumerate(key.folded):
            forms.setdefault(folded, []).append((number, form))
    if not forms:
        return Met({}, {}, {}, 0)
    documents = {record.number: document for document, record in enumerate(records)}
    facts = contents.facts_by_key(list(documents), list(forms))
    spans: dict[int, set[tuple[int, Span]]] = {}
    for fact in facts:
        for number, _ in forms[fact.key]:
            spans.setdefault(number, set()).add((fact.document, fact.span))
    for number in _parts_of_codes(keys, list(spans)):
        del spans[number]
    asked = [word for word in words(question) if word not in STOP_WORDS]
    leading: dict[Place, KeyHit] = {}
    weak: dict[Place, KeyHit] = {}
    for fact in facts:
        place = (documents[fact.document], fact.chunk)
        for number, form in forms[fact.key]:
            if number not in spans:
                continue
            if leads(keys[number], fact, asked):
                leading.setdefault(place, KeyHit()).note(number, form + fact.form, fact)
            elif _num_places(spans[number], fact.document if place[0] in shares else None) <= MAX_WEAK_PLACES:
                weak.setdefault(place, KeyHit()).note(number, form + fact.form, fact)
    used = {
        (meeting.fact.document, meeting.fact.span)
        for hit in (*leading.values(), *weak.values())
        for meeting in hit.meetings
    }
    return Met(leading, weak, {number: len(there) for number, there in spans.items()}, len(used))


def leads(key: QueryKey, fact: StoredFact, asked: Sequence[str]) -> bool:
    """Whether the places of ``fact`` come first for who asks by ``key``; ``asked`` are the question's content words."""
    if key.shape in EXACT_SHAPES or fact.kind in (FactKind.IDENTIFIER, FactKind.PIN):
        return True
    return fact.kind in (FactKind.KEY_VALUE, FactKind.TERM) and share(key, asked) >= WHOLE


def _parts_of_codes(keys: Sequence[QueryKey], met: Sequence[int]) -> Sequence[int]:
    """Those of the keys ``met`` that are only pieces of another one: who asks for ``INV 2024 007151``, which stands
    somewhere, does not ask for 7151 feet."""
    codes = {keys[number].raw for number in met if keys[number].shape is KeyShape.CODE}

    def is_part(raw: str) -> bool:
        return any(f" {raw} " in f" {code} " for code in codes - {raw})

    return [number for number in met if is_part(keys[number].raw)]


def _num_places(there: Collection[tuple[int, Span]], document: int | None) -> int:
    """How many of the places there are; of one ``document`` if it is given."""
    return len(there) if document is None else sum(1 for number, _ in there if number == document)


def share(key: QueryKey, asked: Sequence[str]) -> float:
    """Which share of the content words ``asked`` a key is made of."""
    own = set(words(key.raw))
    return sum(word in own for word in asked) / max(len(asked), 1)
