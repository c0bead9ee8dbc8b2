"""A text to chunks: pieces between sentence borders that can be found and read on their own."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from retrieval.lines import LineKind, lines
from retrieval.passage import Chunk, Span, page_at
from retrieval.sentences import sentence_spans, trim

# Measured with one MiniLM vector per chunk at targets 250 / 400 / 600 / 900, share of questions whose answer stands in
# one of the first five chunks. SQuAD paragraphs, 350 questions: .85 / .88 / .86 / .88; Wikipedia paragraphs with
# questions of users, 300: .83 / .83 / .82 / .81; tables (TAT-QA, WikiTableQuestions), 200: .36 / .35 / .42 / .47; lone
# sentences hidden in two books and asked in other words, 48: .96 / .85 / .85, at 900 worse. The last is why
# vectors are made of sentences (retrieval/vector_rows.py); with those, targets 250 / 400 / 600 / 800 over four corpora
# give .86 / .92 / .92 / .93. Five chunks of 600 fit any prompt.
TARGET_CHARACTERS = 600
# What no border divides is cut here: long enough for any table row, short enough for a prompt.
HARD_LIMIT_CHARACTERS = 900

HEADING_SEPARATOR = " > "
_MAX_HEADING_CHARACTERS = 200
_CLAUSE_END = re.compile(r"[,;:、，；]\s*|\s+[-–—]\s+")
_BLANKS = re.compile(r"\s+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n|\r\n[^\S\r\n]*\r\n|\r[^\S\r]*\r")


def chunk(
    text: str,
    pages: Sequence[Span] = (),
    *,
    target: int = TARGET_CHARACTERS,
    limit: int = HARD_LIMIT_CHARACTERS,
) -> list[Chunk]:
    """Cut ``text`` into chunks of about ``target`` and never more than ``limit`` characters.

    Every non-blank character is in exactly one chunk; a chunk has no blanks at its ends; ``text[start:end]`` is
    its text (law 6). Headings open chunks and are named, with those above them, in ``heading``. Sentences,
    table rows and ``key: value`` lines are whole in one chunk unless longer than ``limit``; those are cut
    at a clause, else a blank, else between two characters that may stand apart. ``pages``, ascending spans,
    give a chunk the page (from 1) on which it starts.

    Raises ValueError unless 1 <= target <= limit.
    """
    if not 1 <= target <= limit:
        raise ValueError(f"target = {target}, limit = {limit}: expected 1 <= target <= limit")
    return [
        Chunk(
            span=piece.span,
            text=text[piece.span.start : piece.span.end],
            page=page_at(pages, piece.span.start),
            heading=piece.heading,
        )
        for piece in _pieces(text, target, limit)
    ]


@dataclass(slots=True)
class _Piece:
    """A chunk in the making. ``is_title`` while it holds nothing but headings."""

    span: Span
    heading: str
    is_title: bool


def _pieces(text: str, target: int, limit: int) -> Iterator[_Piece]:
    headings = _Headings.of(text)
    current: _Piece | None = None
    for sentence in sentence_spans(text):
        opens = headings.enter(sentence)
        for unit in _within_limit(text, sentence, limit):
            if current is not None and _joins(text, current, unit, opens, target, limit):
                is_title = current.is_title and opens
                current = _Piece(Span(current.span.start, unit.end), headings.path, is_title)
            else:
                if current is not None:
                    yield current
                current = _Piece(unit, headings.path, opens)
    if current is not None:
        yield current


def _joins(text: str, current: _Piece, unit: Span, opens: bool, target: int, limit: int) -> bool:
    size = unit.end - current.span.start
    if current.is_title:  # a title goes with what it is the title of
        return size <= limit
    if opens or size > target:
        return False
    # At half the target the end of a paragraph is a better border than filling up.
    gap = text[current.span.end : unit.start]
    return len(current.span) < target // 2 or _BLANK_LINE.search(gap) is None


@dataclass(slots=True)
class _Headings:
    """The headings of a text, and the path of those that are open at the place reached so far."""

    levels: dict[int, int]
    titles: dict[int, str]
    path: str = ""
    _open: list[tuple[int, str]] = field(default_factory=list)

    @staticmethod
    def of(text: str) -> "_Headings":
        levels: dict[int, int] = {}
        titles: dict[int, str] = {}
        for line in lines(text):
            if line.kind is LineKind.HEADING:
                span = trim(text, line.span)
                levels[span.start] = line.level
                title = _BLANKS.sub(" ", text[span.start : span.end].lstrip("#").rstrip("#")).strip()
                titles[span.start] = title[:_MAX_HEADING_CHARACTERS]
        return _Headings(levels, titles)

    def enter(self, sentence: Span) -> bool:
        """Take up the sentence; True if it is a heading, which closes those of its level and below."""
        level = self.levels.get(sentence.start)
        if level is None:
            return False
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, self.titles[sentence.start]))
        self.path = HEADING_SEPARATOR.join(title for _, title in self._open)
        return True


def _within_limit(text: str, unit: Span, limit: int) -> Iterator[Span]:
    while len(unit) > limit:
        cut = _cut(text, unit.start, unit.start + limit)
        yield trim(text, Span(unit.start, cut))
        unit = trim(text, Span(cut, unit.end))
    if len(unit):
        yield unit


def _cut(text: str, start: int, end: int) -> int:
    """The best border in the second half of ``text[start:end]``, else in all of it, else ``end``."""
    half = start + (end - start) // 2
    for pattern in (_CLAUSE_END, _BLANKS):
        last = 0
        for match in pattern.finditer(text, half, end):
            last = match.end()
        if last > half:
            return last
    for place in range(half, start, -1):
        if text[place].isspace():
            return place
    # Neither between a letter and its marks nor inside a joined emoji.
    cut = end
    while cut > half and (
        unicodedata.combining(text[cut]) or text[cut] in "\u200d\ufe0e\ufe0f" or text[cut - 1] == "\u200d"
    ):
        cut -= 1
    return cut if cut > half else end
