"""What in a text must be recalled exactly: identifiers, amounts, dates, keys with their values.

A recogniser is anything with a name, a kind and a ``find``; ``RECOGNISERS`` is the registry. Patterns carry a
score, and a validator may raise, lower or refuse it (the manner of Presidio's recognisers). Every pattern is
linear: it begins at a place where no match can have begun before, and repeats are bounded or possessive.
"""

import bisect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from retrieval.amounts import AMOUNT_FORMS
from retrieval.checks import code_score, date_score, iban_score, isbn_score, network_score, phone_score
from retrieval.dates import DATE_FORMS
from retrieval.keys import MAX_KEY_CHARACTERS, fold
from retrieval.lines import LineKind, lines
from retrieval.passage import Fact, FactKind, Span
from retrieval.sentences import sentence_spans, trim

# A key that comes back more often than this is a label (speakers, "Note:"), not a key.
_MAX_KEY_REPEATS = 8
_MAX_VALUE_CHARACTERS = 400
# Evidence is what an answer quotes: of a "sentence" longer than this, only the clause is.
_MAX_EVIDENCE_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Hit:
    """A place that a recogniser found. ``key`` is where its key stands if it is not the value itself.

    ``evidence`` is set where the line or pair is known; else it is the sentence.
    """

    value: Span
    score: float
    key: Span | None = None
    evidence: Span | None = None


class Recogniser(Protocol):
    """Finds one kind of fact. ``find`` yields hits in reading order; hits of one recogniser may overlap."""

    @property
    def name(self) -> str:
        """Stored with each fact as its source."""
        ...

    @property
    def kind(self) -> FactKind:
        """What the hits are."""
        ...

    def find(self, text: str, windows: Sequence[Span]) -> Iterable[Hit]:
        """Look through ``text``; ``windows`` are the surroundings of its digits, ascending and disjoint."""
        ...


@dataclass(frozen=True, slots=True)
class PatternRecogniser:
    """Regular expressions, and a check of what they match: the score of a true hit, None for a false one.

    Matches of a pattern with ``digits`` hold one within 40 characters of either end: only the surroundings of
    digits are searched, which in prose is a small part.
    """

    name: str
    kind: FactKind
    patterns: tuple[re.Pattern[str], ...]
    check: Callable[[str], float | None]
    digits: bool = True

    def find(self, text: str, windows: Sequence[Span]) -> Iterator[Hit]:
        """Hits pattern by pattern; none begins inside a word or a number."""
        for window in windows if self.digits else (Span(0, len(text)),):
            for pattern in self.patterns:
                for match in pattern.finditer(text, window.start, window.end):
                    start, end = match.span()
                    if start and text[start - 1] in _GLUE and text[start] in _GLUE:
                        continue
                    score = self.check(match[0])
                    if score is not None:
                        yield Hit(Span(start, end), score)


class KeyValueRecogniser:
    """``key: value`` lines, table rows (the first cell is the key) and quoted pairs (``"key": "value"``)."""

    name = "key_value"
    kind = FactKind.KEY_VALUE

    def find(self, text: str, windows: Sequence[Span]) -> Iterator[Hit]:  # noqa: ARG002  rows need no digits
        """Hits whose key names something: it is short and seldom repeated."""
        found = list(self._pairs(text))
        repeats = Counter(text[key.start : key.end].casefold() for key, _, _ in found)
        for key, value, evidence in found:
            count = repeats[text[key.start : key.end].casefold()]
            if count <= _MAX_KEY_REPEATS and len(value) <= _MAX_VALUE_CHARACTERS:
                yield Hit(value, 0.8 / count**0.5, key, trim(text, evidence))

    def _pairs(self, text: str) -> Iterator[tuple[Span, Span, Span]]:
        for line in lines(text):
            if line.kind is LineKind.KEY_VALUE and line.key is not None and line.value is not None:
                yield line.key, line.value, line.span
            elif line.kind is LineKind.ROW and len(line.span) <= _MAX_VALUE_CHARACTERS:
                cells = list(_CELL.finditer(text, line.span.start, line.span.end))
                if len(cells) > 1 and any(char.isalnum() for char in cells[0][0]):
                    value = Span(cells[1].start(), cells[-1].end())
                    yield Span(*cells[0].span()), value, line.span
        for match in _QUOTED_PAIR.finditer(text):
            value = Span(*match.span(2 if match[2] is not None else 3))
            yield Span(*match.span(1)), value, Span(*match.span())


_CELL = re.compile(r"[^\s|,;](?:[^|\t\n\r]{0,300}?[^\s|])??(?=\s{0,40}(?:[|\t]|\Z|[\r\n]))")
_QUOTED_PAIR = re.compile(r'"([^"\n]{2,120})"\s{0,4}[:=]\s{0,4}(?:"([^"\n]{1,400})"|([-+]?\d[\w.+-]{0,40}))')

_WINDOW_MARGIN = 48
_DIGITS = re.compile(r"\d++(?:\D{1,40}\d++){0,200}+")
_REST_OF_WORD = re.compile(r"\S{0,200}")
_GLUE = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_WORDY = "0-9A-Za-z\u00c0-\u024f\uff10-\uff19\uff21-\uff3a\uff41-\uff5a_"
_CODE = re.compile(
    rf"(?<![{_WORDY}./:@+&-])(?=[{_WORDY}])(?:[^\W\d]|[_./:@+&-]){{0,40}}+\d"
    rf"(?:[{_WORDY}]|[./:@+&-](?=[{_WORDY}])){{0,160}}+"
)
_CAPITALS = re.compile(r"(?<![\w-])[A-Z]{2,12}(?:[-_][A-Z0-9]{2,12}){1,6}(?![\w-])")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'`|\\^{}\[\]，。；]{2,400}")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}+@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?:/\d{1,3})?(?![\w:])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_ISBN = re.compile(r"(?<![\w-])(?:97[89][- ]?)?\d(?:[- ]?\d){8}[- ]?[\dXx](?![\w-])")
_PHONE = re.compile(
    r"(?<![\w+.,/)-])(?:\+?\d{1,5}+|\(\d{2,5}\))(?:[ ./-]{1,2}\(?\d{1,8}+\)?(?:\d{1,8}+)?){1,6}+(?![\w-])"
)

RECOGNISERS: tuple[Recogniser, ...] = (
    PatternRecogniser("date", FactKind.DATE, DATE_FORMS, date_score),
    PatternRecogniser("amount", FactKind.AMOUNT, AMOUNT_FORMS, lambda _: 0.8),
    PatternRecogniser("url", FactKind.IDENTIFIER, (_URL,), lambda _: 0.95, digits=False),
    PatternRecogniser("email", FactKind.IDENTIFIER, (_EMAIL,), lambda _: 0.95, digits=False),
    PatternRecogniser("network", FactKind.IDENTIFIER, (_IPV6,), network_score),
    PatternRecogniser("iban", FactKind.IDENTIFIER, (_IBAN,), iban_score),
    PatternRecogniser("isbn", FactKind.IDENTIFIER, (_ISBN,), isbn_score),
    PatternRecogniser("phone", FactKind.IDENTIFIER, (_PHONE,), phone_score),
    PatternRecogniser("code", FactKind.IDENTIFIER, (_CODE,), code_score),
    PatternRecogniser("capitals", FactKind.IDENTIFIER, (_CAPITALS,), lambda _: 0.4, digits=False),
    KeyValueRecogniser(),
)


def recognise(text: str, recognisers: Sequence[Recogniser] = RECOGNISERS) -> list[Fact]:
    """Return the facts of ``text`` in reading order.

    Of hits that overlap the best scored, then the longest, stays; values that stand under a key are kept beside what
    is recognised inside them. ``keys`` are those of the value, or of its key for KEY_VALUE; ``evidence`` is the
    row, pair, line or sentence around it.
    """
    under_key: list[tuple[Hit, Recogniser]] = []
    standing: list[tuple[Hit, Recogniser]] = []
    windows = _digit_windows(text)
    for recogniser in recognisers:
        for hit in recogniser.find(text, windows):
            trimmed = hit if hit.key else _without_stop(text, hit)
            (under_key if hit.key else standing).append((trimmed, recogniser))
    chosen = _without_overlaps(standing) + _once_each(under_key)
    chosen.sort(key=lambda found: (found[0].value.start, found[0].value.end))
    sentences = _Sentences(text)
    return [_fact(text, hit, recogniser, sentences) for hit, recogniser in chosen]


def _digit_windows(text: str) -> list[Span]:
    windows: list[Span] = []
    for digits in _DIGITS.finditer(text):
        start = max(0, digits.start() - _WINDOW_MARGIN)
        if windows and start <= windows[-1].end:
            start = windows.pop().start
        reach = _REST_OF_WORD.match(text, min(len(text), digits.end() + _WINDOW_MARGIN))
        windows.append(Span(start, reach.end() if reach else digits.end()))
    return windows


def _fact(text: str, hit: Hit, recogniser: Recogniser, sentences: "_Sentences") -> Fact:
    named = hit.key or hit.value
    return Fact(
        kind=recogniser.kind,
        span=hit.value,
        text=text[hit.value.start : hit.value.end],
        keys=fold(text[named.start : min(named.end, named.start + MAX_KEY_CHARACTERS)]),
        evidence=hit.evidence or sentences.around(hit.value),
        source=recogniser.name,
        score=round(hit.score, 3),
    )


def _without_stop(text: str, hit: Hit) -> Hit:
    """Full stops and the like at the end belong to the sentence."""
    end = hit.value.end
    while end > hit.value.start + 1 and text[end - 1] in ".,;:!?/-":
        end -= 1
    return hit if end == hit.value.end else Hit(Span(hit.value.start, end), hit.score)


def _without_overlaps(hits: list[tuple[Hit, Recogniser]]) -> list[tuple[Hit, Recogniser]]:
    kept: list[tuple[Hit, Recogniser]] = []
    for found in sorted(hits, key=lambda found: (found[0].value.start, -found[0].value.end)):
        if kept and found[0].value.start < kept[-1][0].value.end:
            if _worth(found[0]) > _worth(kept[-1][0]):
                kept[-1] = found
        else:
            kept.append(found)
    return kept


def _worth(hit: Hit) -> tuple[float, int]:
    return hit.score, len(hit.value)


def _once_each(hits: list[tuple[Hit, Recogniser]]) -> list[tuple[Hit, Recogniser]]:
    """A quoted pair may also be the line it stands on."""
    return list({(hit.value, hit.key): (hit, recogniser) for hit, recogniser in hits}.values())


class _Sentences:
    """The sentence around a span."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._spans = sentence_spans(text)
        self._starts = [span.start for span in self._spans]

    def around(self, span: Span) -> Span:
        first = max(0, bisect.bisect_right(self._starts, span.start) - 1)
        last = max(first, bisect.bisect_left(self._starts, span.end) - 1)
        whole = Span(self._spans[first].start, max(span.end, self._spans[last].end))
        return whole if len(whole) <= _MAX_EVIDENCE_CHARACTERS else self._clause(whole, span)

    def _clause(self, whole: Span, span: Span) -> Span:
        margin = _MAX_EVIDENCE_CHARACTERS // 2
        low, high = max(whole.start, span.start - margin), min(whole.end, span.end + margin)
        start = max(low, *(self._text.rfind(border, low, span.start) + 1 for border in _CLAUSE_BORDERS))
        after = _CLAUSE_BORDER.search(self._text, span.end, high)
        return trim(self._text, Span(start, after.start() if after else high))


_CLAUSE_BORDERS = ",;{}|\n"
_CLAUSE_BORDER = re.compile(f"[{_CLAUSE_BORDERS}]")
