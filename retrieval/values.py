"""What a text says under the keys of a question: how exactly each key was met, and what stands there.

Nothing is chosen here among places: two values under equally exact keys are both told.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval.contents import Contents
from retrieval.key_lookup import StoredFact
from retrieval.keys import QueryKey, fold, query_keys
from retrieval.lexical_index import stems
from retrieval.passage import FactKind, Span, Standing, Value
from retrieval.record import Listed
from retrieval.store import Store
from retrieval.words import content_words, words

if TYPE_CHECKING:
    from retrieval.passages import KeyHit

# Of a sentence with a key only these can be what is asked for: its clauses and terms are not its values.
BESIDE_KINDS = frozenset(
    kind.value
    for kind in (
        FactKind.IDENTIFIER,
        FactKind.AMOUNT,
        FactKind.DATE,
        FactKind.DURATION,
        FactKind.ORGANISATION,
        FactKind.PERSON,
        FactKind.PIN,
    )
)
# A question says where to look with these, not what for.
ASIDE = frozenset(
    """according article context document documents excerpt exact exactly file find following give given list listed
    mention mentioned name named page paragraph passage passages please provided quote report say says section show
    state stated tell text above below value key""".split()
)
# Who asks for a term with no other words than these asks what it means.
_DEFINING = frozenset(stems("called define defined defines definition mean meaning means meant term".split()))
# What no recogniser knows, as 4256-0340, may be a value all the same: a word with a digit in it.
_NUMBERED = re.compile(r"(?<![\w.,:/+-])[^\W_](?:[\w.,:/+-]*\w)?(?![\w])")
_BETWEEN_CELLS = re.compile(r"[|\t]")


class Asked:
    """A question as its keys and the words beside them."""

    def __init__(self, question: str) -> None:
        self.keys = query_keys(question)
        self.words = tuple(dict.fromkeys(content_words(question)))

    def beside(self, key: QueryKey) -> frozenset[str]:
        """The stems of the content words that are no part of ``key`` and do not merely say where to look."""
        own = set(words(key.raw))
        return frozenset(stems([word for word in self.words if word not in own and word not in ASIDE]))


class Reader:
    """Values of one document's key hits."""

    def __init__(self, store: Store, contents: Contents, record: Listed, asked: Asked) -> None:
        self._store = store
        self._contents = contents
        self._record = record
        self._asked = asked

    def values(self, hits: Sequence["KeyHit"]) -> tuple[Value, ...]:
        """What stands under the keys that led to ``hits``, in reading order, each place once under each key."""
        met: dict[tuple[int, int], tuple[StoredFact, bool]] = {}
        for hit in hits:
            for meeting in hit.meetings:
                place = (meeting.key, meeting.fact.number)
                is_raw = meeting.form == 0 or self._is_named_raw(meeting.fact, self._asked.keys[meeting.key])
                known = met.get(place)
                met[place] = (known[0] if known else meeting.fact, is_raw or bool(known and known[1]))
        found: list[Value] = []
        for number in sorted({number for number, _ in met}):
            mine = [(fact, is_raw) for (key, _), (fact, is_raw) in met.items() if key == number]
            found += self._under(number, mine)
        found.sort(key=lambda value: (value.span, value.rank))
        return tuple(dict.fromkeys(found))

    def _under(self, number: int, met: Sequence[tuple[StoredFact, bool]]) -> list[Value]:
        """The values under one key of the question."""
        key = self._asked.keys[number]
        found: list[Value] = []
        named: set[Span] = set()
        for fact, is_raw in met:
            if fact.kind == FactKind.KEY_VALUE:
                named.add(fact.evidence)
                for span, is_whole in self._cells(fact, key):
                    found.append(self._value(number, span, fact.evidence, is_raw, Standing.NAMED, is_whole))
            elif fact.kind == FactKind.TERM and self._asked.beside(key) <= _DEFINING:
                named.add(fact.evidence)
                found.append(self._value(number, fact.span, fact.evidence, is_raw, Standing.NAMED))
            elif fact.is_pinned and fact.key not in fold(self._text(fact.span)):
                named.add(fact.evidence)
                found.append(self._value(number, fact.span, fact.evidence, is_raw, Standing.PINNED))
        for evidence in sorted({fact.evidence for fact, _ in met} - named):
            here = [(fact, is_raw) for fact, is_raw in met if fact.evidence == evidence]
            is_raw = any(is_raw for _, is_raw in here)
            for span in self._beside(evidence, [fact.span for fact, _ in here]):
                found.append(self._value(number, span, evidence, is_raw, Standing.BESIDE))
        return found

    def _value(
        self, number: int, span: Span, evidence: Span, is_raw: bool, standing: Standing, is_whole: bool = True
    ) -> Value:
        key = self._asked.keys[number]
        around = Span(min(evidence.start, span.start), max(evidence.end, span.end))
        is_asked = self._asked.beside(key) <= frozenset(stems(words(self._text(around))))
        return Value(span, around, key.raw, number, is_raw, standing, is_asked, is_whole)

    def _beside(self, evidence: Span, keys: Sequence[Span]) -> list[Span]:
        """The other facts of a sentence, the longest of those that overlap; else its words with digits."""
        kept: list[Span] = []
        facts = [span for kind, span in self._contents.facts_in(self._record.number, evidence) if kind in BESIDE_KINDS]
        for span in sorted(facts, key=lambda span: (-len(span), span)):
            if not any(_overlap(span, other) for other in [*keys, *kept]):
                kept.append(span)
        if not kept:
            own = {word for key in keys for word in words(self._text(key))}  # another mention of a key is no value
            for match in _NUMBERED.finditer(self._text(evidence)):
                span = Span(evidence.start + match.start(), evidence.start + match.end())
                if any(char.isdigit() for char in match[0]) and not own.issuperset(words(match[0])):
                    kept.append(span)
        return sorted(kept)

    def _cells(self, fact: StoredFact, key: QueryKey) -> list[tuple[Span, bool]]:
        """The value of a pair or cell; of a row with several cells those whose column the question names, else the
        rest of the row, of which an answer may be a part. Each with whether it is one value."""
        if not self._is_several(fact):
            return [(fact.span, True)]
        asked = frozenset(stems(self._asked.words))
        own = frozenset(stems(words(self._text(Span(fact.evidence.start, fact.span.start)))))
        cells: list[tuple[Span, bool]] = []
        for span, name in self._contents.keys_in(self._record.number, fact.span, FactKind.KEY_VALUE):
            column = frozenset(stems(words(name))) - own
            if span != fact.span and column and column <= asked - frozenset(stems(words(key.raw))):
                cells.append((span, True))
        return list(dict.fromkeys(cells)) or [(fact.span, False)]

    def _is_several(self, fact: StoredFact) -> bool:
        value = self._text(fact.span)
        if _BETWEEN_CELLS.search(value):
            return True
        before = self._text(Span(fact.evidence.start, fact.span.start)).rstrip(' "')
        return before.endswith(",") and "," in value

    def _is_named_raw(self, fact: StoredFact, key: QueryKey) -> bool:
        """Whether a cell stands under ``key`` as it is written: it has several names, and forms of each."""
        codes = [word for word in key.raw.split() if any(char.isdigit() for char in word)]
        if fact.kind != FactKind.KEY_VALUE or fact.key != key.folded[0] or " " not in key.raw or not codes:
            return False
        row = self._text(fact.evidence)
        return all(code in row for code in codes)

    def _text(self, span: Span) -> str:
        return self._store.text(self._record.number, span.start, span.end)


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end
