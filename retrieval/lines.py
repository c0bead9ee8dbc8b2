"""What each line of a text is: prose, heading, table row, ``key: value``, list item, code, blank."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from retrieval.passage import Span


class LineKind(StrEnum):
    """The part a line plays in the layout."""

    BLANK = "blank"
    HEADING = "heading"
    ROW = "row"
    KEY_VALUE = "key_value"
    ITEM = "item"
    CODE = "code"
    PROSE = "prose"


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its line end. ``level`` is the depth of a heading (1 on top), else 0.

    ``key`` and ``value`` are set for KEY_VALUE lines only, without the blanks around them.
    """

    span: Span
    kind: LineKind
    level: int = 0
    key: Span | None = None
    value: Span | None = None


# A line without end is one "line": patterns below look at this many characters of it at most.
_MAX_LOOK = 400
_MAX_HEADING = 100
_LINE = re.compile(r"[^\n\r\x0b\x0c\u0085\u2028\u2029]*(?:\r\n|[\n\r\x0b\x0c\u0085\u2028\u2029]|\Z)")
_MARKDOWN_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+\S")
_CHAPTER = re.compile(
    r"\s*(BOOK|PART|VOLUME|ACT|Book|Part|Volume|Act|CHAPTER|Chapter|SECTION|Section|SCENE|Scene|ARTICLE|Article|"
    r"APPENDIX|Appendix|ANNEX|Annex)\s+(?:[IVXLCDM]+|\d+|[A-Z]|THE\s\w+|[A-Z][a-z]+)\b[.:]?(?=\s|\Z)(?!.*[,;]\s*\Z)"
)
_NUMBERED_TITLE = re.compile(r"\s*(\d{1,2}(?:\.\d{1,2}){0,4})\.?\s+[A-Z][^.!?;:|]{1,80}\Z")
_ROW = re.compile(r"\s*\|.*\|\s*\Z|[^|\t\n]*\t[^\t\n]*\t")
_ITEM = re.compile(r"\s{0,12}(?:[-*+•‣◦–]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])\s+\S")
_FENCE = re.compile(r"\s{0,3}(?:```|~~~)")
# A key is at most six words; a colon followed by a blank, so that times and addresses are none.
_KEY_VALUE = re.compile(
    r"(?:\s{0,12}(?:[-*+•]\s+)?(?:\*\*|__)?)"
    r"(?P<key>[^\W_][\w()#/&'’.°%-]{0,39}(?:[ \u00a0_][\w()#/&'’.°%-]{1,30}){0,5})"
    r"(?:\*\*|__)?\s{0,8}[:：=]\s{0,2}(?:\*\*|__)?(?:(?<=[:=]\s)|(?<=[：])|(?<=[:=]\s\s)|(?<=\*))\s{0,30}"
    r"(?P<value>\S.*?)\s*\Z"
)
_SENTENCE_END = re.compile(r"[.!?…。！？:;\"”’)\]]\s*\Z")
_MAX_VALUE = 240
_RUNS_ON = re.compile(r"\.\s+[A-Z]")


def lines(text: str) -> Iterator[Line]:
    """Yield the lines of ``text`` in order; their spans cover it without gap or overlap."""
    fenced = False
    # Hard-wrapped prose may have a colon early in a line; only where a line can begin anew is it a key.
    may_begin = True
    for match in _LINE.finditer(text):
        start, end = match.span()
        if start == end:
            continue
        look = text[start : min(end, start + _MAX_LOOK)].rstrip("\n\r\x0b\x0c\u0085\u2028\u2029")
        if _FENCE.match(look):
            fenced = not fenced
            yield Line(Span(start, end), LineKind.CODE)
            continue
        line = Line(Span(start, end), LineKind.CODE) if fenced and look.strip() else None
        line = line or _line(look, start, end, may_begin)
        yield line
        may_begin = line.kind is not LineKind.PROSE or len(look) < 50 or _SENTENCE_END.search(look[-8:]) is not None


def _line(look: str, start: int, end: int, may_begin: bool) -> Line:
    span = Span(start, end)
    stripped = look.strip()
    if not stripped:
        return Line(span, LineKind.BLANK)
    if level := _heading_level(look, stripped, may_begin):
        return Line(span, LineKind.HEADING, level)
    if _ROW.match(look) or _is_record(look):
        return Line(span, LineKind.ROW)
    if may_begin and len(look) < _MAX_LOOK:
        found = _KEY_VALUE.match(look)
        if found and _is_pair(found["key"], found["value"]):
            key, value = found.span("key"), found.span("value")
            return Line(
                span,
                LineKind.KEY_VALUE,
                key=Span(start + key[0], start + key[1]),
                value=Span(start + value[0], start + value[1]),
            )
    if _ITEM.match(look):
        return Line(span, LineKind.ITEM)
    return Line(span, LineKind.PROSE)


def _heading_level(look: str, stripped: str, may_begin: bool) -> int:
    markdown = _MARKDOWN_HEADING.match(look)
    if markdown:
        # Longer ones are whole paragraphs whose line ends were lost.
        return len(markdown[1]) if len(stripped) <= 2 * _MAX_HEADING else 0
    if not may_begin or len(stripped) > _MAX_HEADING:
        return 0
    chapter = _CHAPTER.match(look)
    if chapter:
        return 1 if chapter[1].lower() in ("book", "part", "volume", "act") else 2
    numbered = _NUMBERED_TITLE.match(look)
    if numbered:
        return 2 + numbered[1].count(".") if len(stripped.split()) <= 10 else 0
    return 3 if _is_shouted(stripped) else 0


def _is_pair(key: str, value: str) -> bool:
    """Whether this is a key with its value and not a sentence that has a colon."""
    if len(value) > _MAX_VALUE or value.startswith("//") or _RUNS_ON.search(key):
        return False
    return value[-1] not in ".!?" or any(char.isdigit() for char in value) or " " not in value


def _is_record(look: str) -> bool:
    """A line of comma-separated values: several commas, none of them as prose or a long number sets it."""
    num_commas = look.count(",")
    if num_commas < 2 or ", " in look or len(look) > 40 * (num_commas + 1):
        return False
    return len(re.findall(r",(?!\d{3}\b)", look)) > 1


def _is_shouted(stripped: str) -> bool:
    """ALL CAPS, as titles are set in plain text; a lone code or a single letter is no title."""
    if stripped[-1] in ",;|" or not stripped.isupper() or any(char in stripped for char in ":=|"):
        return False
    words = re.findall(r"[^\W\d_]+", stripped)
    return sum(len(word) for word in words) >= 4 and sum(char.isdigit() for char in stripped) <= 4
