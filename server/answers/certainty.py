"""Which values under the keys of a question count, and whether they are the answer.

A value is looked up and not guessed: among places where the key stands equally exactly none is preferred, so if they
say different things, all of it is the answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.passage import Standing, Value
from server.answers.citations import Source
from server.answers.given import is_given

ASKING = re.compile(r"\b(?:whom|whose|who|when|where|why|how (?:much|many|long|old|far|often)|how|what|which)\b", re.I)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A piece that a verbatim answer may quote: ``document[start : start + len(text)]`` of a source."""

    source: Source
    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Values:
    """What stands under the keys asked for, each text once. ``is_certain``: this, all of it, is the answer.

    ``is_whole`` is False where an answer may be a part of one. ``num_places`` is where the keys stand so exactly,
    ``num_folded`` where they stand in another writing, which does not count then.
    """

    pieces: tuple[Evidence, ...] = ()
    is_certain: bool = False
    is_whole: bool = False
    num_places: int = 0
    num_folded: int = 0

    @property
    def note(self) -> str | None:
        """For the bill, where there is more than one place to tell of."""
        told = []
        if self.num_places > 1:
            different = f"{len(self.pieces)} different values" if len(self.pieces) > 1 else "the same value"
            told.append(f"the key stands in {self.num_places} places with {different}")
        if self.num_folded:
            more = "1 place" if self.num_folded == 1 else f"{self.num_folded} places"
            told.append(f"in another writing it stands in {more}, which do not count")
        return "; ".join(told) or None


Found = tuple[Source, Value]


def values_of(sources: Sequence[Source], question: str) -> Values:
    """What counts among the values of ``sources``: the most exact places of the keys that ask.

    Pins count first, then what the text itself puts under a key, unless only a sentence about the key has all the
    question's words; of a sentence only what can be what is asked, where it has all of them. Where the question names
    documents that say something, other documents do not count.
    """
    found = [(source, value) for source in sources for value in source.passage.values if _is_shown(source, value)]
    found = _in_named_documents(found)
    found = _standing(_longest_keys(found), question)
    found = _asking_keys(found)
    counted = [
        (source, value)
        for source, value in found
        if value.is_raw or not any(other.is_raw and other.key == value.key for _, other in found)
    ]
    if not counted:
        return Values()
    places: dict[tuple[str, int, str], set[str]] = {}
    pieces: dict[str, Evidence] = {}
    for source, value in counted:
        text = _text(source, value)
        pieces.setdefault(text, Evidence(source, value.span.start, text))
        places.setdefault((source.passage.document_id, value.evidence.start, value.key), set()).add(text)
    is_whole = all(value.is_whole for _, value in counted)
    # Two facts of one sentence are not both the answer; two places of one key are.
    is_certain = is_whole and all(len(texts) == 1 for texts in places.values())
    folded = {(s.passage.document_id, v.span) for s, v in found} - {(s.passage.document_id, v.span) for s, v in counted}
    return Values(tuple(pieces.values()), is_certain, is_whole, len(places), len(folded))


def may_answer(question: str, value: str) -> bool:
    """Whether another fact of the key's sentence can be what is asked for, by the question's first asking word."""
    asked = ASKING.search(question)
    kind = asked[0].casefold() if asked else ""
    has_digit = any(character.isdigit() for character in value)
    if kind in ("who", "whom", "whose"):
        return not has_digit
    if kind == "when" or kind.startswith("how "):
        return has_digit
    # Places, reasons and ways are no facts of a sentence: they are its other words.
    return kind not in ("where", "why", "how")


def _in_named_documents(found: Sequence[Found]) -> list[Found]:
    """Where the question names documents, what stands in those, and what the request brings along."""
    named = [each for each in found if each[0].passage.is_named]
    return [each for each in found if each in named or is_given(each[0].passage)] if named else [*found]


def _longest_keys(found: Sequence[Found]) -> list[Found]:
    """Without what stands under a part of another key that was met: "seal MSKU-1" says more than "MSKU-1"."""
    padded = {value.key: f" {' '.join(value.key.casefold().split())} " for _, value in found}
    kept = {key for key, own in padded.items() if not any(own != other and own in other for other in padded.values())}
    return [(source, value) for source, value in found if value.key in kept]


def _standing(found: Sequence[Found], question: str) -> list[Found]:
    pinned = [each for each in found if each[1].standing is Standing.PINNED]
    if pinned:
        return pinned
    named = [each for each in found if each[1].standing is Standing.NAMED]
    beside = [
        (source, value)
        for source, value in found
        if value.standing is Standing.BESIDE and value.is_asked and may_answer(question, _text(source, value))
    ]
    if beside and not any(value.is_asked for _, value in named):
        return beside
    return named


def _asking_keys(found: Sequence[Found]) -> list[Found]:
    """Every code that is asked for; of phrases the likeliest."""
    codes = {value.key for _, value in found if any(char.isdigit() for char in value.key)}
    first = min((value.rank for _, value in found), default=0)
    return [each for each in found if (each[1].key in codes if codes else each[1].rank == first)]


def _is_shown(source: Source, value: Value) -> bool:
    span = source.passage.span
    return span.start <= value.span.start < value.span.end <= span.end


def _text(source: Source, value: Value) -> str:
    offset = source.passage.span.start
    return source.passage.text[value.span.start - offset : value.span.end - offset]
