"""From statement to statement: where the text gives one key as the value of another, what stands under that one.

``VAR RTQXA = VAR KLMPO`` answers nothing by itself; neither does "the seal is stored under BX-7731". Only statements
that link a known key to another one are followed, so a question whose first evidence holds its answer finds the same
passages as without.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from retrieval.contents import Contents
from retrieval.holdings import Holdings
from retrieval.keys import fold, query_keys
from retrieval.passage import Span
from retrieval.passages import KeyHit, Place
from retrieval.selection import Selection
from retrieval.sentences import sentence_spans
from retrieval.store import Store
from retrieval.words import words

MAX_HOPS = 4
# Chains end here, and a key that stands in more places than ``MAX_STATEMENTS`` is a word of the text, no pointer.
MAX_PLACES = 16
MAX_STATEMENTS = 6

# A code: signs of which some are digits, capitals alone, or joined by underscores.
_CODE = (
    r"(?:[A-Za-z]{0,12}[-_./]?(?=[\w./-]{0,40}\d)[\w]+(?:[-_./]\w+){0,8}"
    r"|[A-Z][A-Z0-9]{2,15}(?:[-_][A-Z0-9]+){0,6}|[A-Za-z]+(?:_[A-Za-z0-9]+){1,6})"
)
_NOUN = (
    r"(?:(?:the|a|an|value|values|of|variable|var|key|code|entry|record|file|folder|number|no\.?|item|id|identifier"
    r"|register|slot|box|safe)\s+){0,4}"
)
_IS = (
    r"(?:=|:=|->|=>|→|(?:is|are|was|were)\s+(?:now\s+)?(?:the\s+same\s+as|equal\s+to|identical\s+(?:to|with)|set\s+to"
    r"|assigned(?:\s+to)?|an?\s+(?:alias|copy|synonym)\s+(?:of|for)|(?:stored|kept|filed|listed|recorded|held|found|given"
    r"|described|registered)\s+(?:under|in|at|as|by)|superseded\s+by|replaced\s+by|known\s+as|called)|equals|see"
    r"|points?\s+to|refers?\s+to|redirects?\s+to|aliases|inherits\s+from|copies|takes)"
)
_LINK = re.compile(rf"(?<![\w-])({_CODE})[\"'”’]?\s*,?\s*(?i:{_IS}\s*{_NOUN})[\"'“‘]?({_CODE})(?![\w-])")


@dataclass(frozen=True, slots=True)
class Statement:
    """A stretch of a document that may link keys, and the chunk it begins in."""

    place: Place
    span: Span


class Trail:
    """Follows links through the documents of one question."""

    def __init__(self, store: Store, contents: Contents, records: Selection, holdings: Holdings) -> None:
        self._store = store
        self._contents = contents
        self._records = records
        self._holdings = holdings

    def follow(self, question: str, leading: Mapping[Place, KeyHit]) -> tuple[Place, ...]:
        """The places that what stands at ``leading`` leads to, nearest first; none that is leading itself."""
        if len(leading) > MAX_PLACES:
            return ()
        known = {form for key in query_keys(question) for form in key.folded}
        known |= {meeting.fact.key for hit in leading.values() for meeting in hit.meetings}
        statements = [
            Statement(place, evidence)
            for place, hit in leading.items()
            for evidence in sorted({meeting.fact.evidence for meeting in hit.meetings})
        ]
        seen = {(one.place[0], one.span) for one in statements}
        reached: dict[Place, None] = {}
        for _ in range(MAX_HOPS):
            named = [key for one in statements for key in self._linked(one, known)]
            statements = []
            for key in dict.fromkeys(named):
                known.update(fold(key))
                found = self._statements(key, seen)
                if len(found) > MAX_STATEMENTS:
                    continue
                statements += found
                seen.update((one.place[0], one.span) for one in found)
            for one in statements:
                if one.place not in leading and len(reached) < MAX_PLACES:
                    reached.setdefault(one.place)
            if not statements or len(reached) >= MAX_PLACES:
                break
        return tuple(reached)

    def _linked(self, one: Statement, known: set[str]) -> list[str]:
        """The keys that a statement links to one of ``known``, in either direction, and that are not known yet."""
        text = self._store.text(self._records[one.place[0]].number, one.span.start, one.span.end)
        found = []
        for match in _LINK.finditer(text):
            pair = match.groups()
            is_known = [not known.isdisjoint(fold(side)) for side in pair]
            if any(is_known) and not all(is_known):
                found.append(pair[is_known.index(False)])
        return found

    def _statements(self, key: str, seen: Collection[tuple[int, Span]]) -> list[Statement]:
        """The sentences and rows that hold ``key``, but for those ``seen``: those of facts under it, and those with the
        word as it is. Where there are more than ``MAX_STATEMENTS`` not all."""
        found: dict[Statement, None] = {}
        for one in chain(self._by_facts(key), self._by_words(key)):
            if (one.place[0], one.span) not in seen:
                found.setdefault(one)
            if len(found) > MAX_STATEMENTS:
                break
        return sorted(found, key=lambda one: (one.place, one.span))

    def _by_facts(self, key: str) -> Iterator[Statement]:
        for fact in self._contents.facts_by_key(self._records.numbers.tolist(), fold(key)):
            yield Statement((self._records.places[fact.document], fact.chunk), fact.evidence)

    def _by_words(self, key: str) -> Iterator[Statement]:
        form = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])", re.IGNORECASE)
        for word in words(key)[:1]:
            for document, ordinals in self._holdings.with_word(word, MAX_STATEMENTS + 1):
                number = self._records[document].number
                for ordinal, chunk in sorted(self._contents.chunks_at(number, ordinals).items()):
                    text = self._store.text(number, chunk.start, chunk.end)
                    for span in sentence_spans(text):
                        if form.search(text, span.start, span.end):
                            inside = Span(chunk.start + span.start, chunk.start + span.end)
                            yield Statement((document, ordinal), inside)
