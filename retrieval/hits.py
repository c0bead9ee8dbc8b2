"""What a recogniser is, what it finds, and what all of them share of one text."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from retrieval.lines import Line, lines
from retrieval.passage import FactKind, Span
from retrieval.register import Register
from retrieval.sentences import Sentences, sentence_spans

_WINDOW_MARGIN = 64
_REST_OF_WORD = re.compile(r"\S{0,400}")
_GLUE = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")

# Runs of digits with little between them: one window for each run.
DIGITS = re.compile(r"\d++(?:\D{1,40}\d++){0,200}+")


@dataclass(frozen=True, slots=True)
class Hit:
    """A place that a recogniser found.

    Its keys are those of the value; with ``key``, of what stands there instead; and of each of ``names``, also in
    their place. ``evidence`` is set where the line or pair is known; else it is the sentence.
    """

    value: Span
    score: float
    key: Span | None = None
    evidence: Span | None = None
    names: tuple[str, ...] = ()

    @property
    def stands_alone(self) -> bool:
        """Whether it is its own key: of such hits no two overlap."""
        return self.key is None and not self.names


class Survey:
    """A text, and what is looked up in it once for all recognisers."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._windows: dict[re.Pattern[str] | None, list[Span]] = {None: [Span(0, len(text))]}
        self._matches: dict[re.Pattern[str], list[Span]] = {}

    @cached_property
    def lines(self) -> list[Line]:
        """The lines with what they are."""
        return list(lines(self.text))

    @cached_property
    def sentences(self) -> Sentences:
        """The sentences, to be asked which one is around a place."""
        return Sentences(self.text, sentence_spans(self.text, self.lines))

    @cached_property
    def register(self) -> Register:
        """Where the text reads like a contract, a statute or a specification."""
        return Register(self.text)

    def windows(self, anchor: re.Pattern[str] | None) -> list[Span]:
        """The surroundings of all matches of ``anchor``, ascending and disjoint: 64 characters on either side and the
        rest of the word there. All of the text without an anchor."""
        if anchor not in self._windows:
            self._windows[anchor] = self._around(anchor) if anchor is not None else []
        return self._windows[anchor]

    def matches(self, pattern: re.Pattern[str]) -> list[Span]:
        """Every match of ``pattern``, for recognisers that begin alike."""
        if pattern not in self._matches:
            self._matches[pattern] = [Span(*match.span()) for match in pattern.finditer(self.text)]
        return self._matches[pattern]

    def _around(self, anchor: re.Pattern[str]) -> list[Span]:
        windows: list[Span] = []
        for found in anchor.finditer(self.text):
            start = max(0, found.start() - _WINDOW_MARGIN)
            if windows and start <= windows[-1].end:
                if found.end() + _WINDOW_MARGIN <= windows[-1].end:
                    continue
                start = windows.pop().start
            reach = _REST_OF_WORD.match(self.text, min(len(self.text), found.end() + _WINDOW_MARGIN))
            windows.append(Span(start, reach.end() if reach else found.end()))
        return windows


class Recogniser(Protocol):
    """Finds one kind of fact. ``find`` yields hits in any order; hits of one recogniser may overlap."""

    @property
    def name(self) -> str:
        """Stored with each fact as its source."""
        ...

    @property
    def kind(self) -> FactKind:
        """What the hits are."""
        ...

    def find(self, survey: Survey) -> Iterable[Hit]:
        """Look through the text of ``survey``."""
        ...


@dataclass(frozen=True, slots=True)
class PatternRecogniser:
    """Regular expressions, and a check of what they match: the score of a true hit, None for a false one.

    ``fits`` says whether what stands around a hit lets it be one: a piece of a number, or of another word, is none.
    Every match has a match of ``anchor`` in it or within 40 characters of either end: only the surroundings of those
    are searched, which in prose are a small part. Without an anchor all of the text is.
    """

    name: str
    kind: FactKind
    patterns: tuple[re.Pattern[str], ...]
    check: Callable[[str], float | None]
    anchor: re.Pattern[str] | None = DIGITS
    trim: Callable[[str], int] | None = None
    fits: Callable[[str, Span], bool] | None = None

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits pattern by pattern; none begins inside a word or a number."""
        text = survey.text
        for window in survey.windows(self.anchor):
            for pattern in self.patterns:
                for match in pattern.finditer(text, window.start, window.end):
                    start, end = match.span()
                    if start and text[start - 1] in _GLUE and text[start] in _GLUE:
                        continue
                    found = match[0]
                    end = start + (self.trim(found) if self.trim else _without_stop(found))
                    score = self.check(found[: end - start]) if end > start else None
                    if score is not None and (self.fits is None or self.fits(text, Span(start, end))):
                        yield Hit(Span(start, end), score)


def _without_stop(found: str) -> int:
    """Full stops and the like at the end belong to the sentence."""
    end = len(found)
    while end > 1 and found[end - 1] in ".,;:!?/-":
        end -= 1
    return end
