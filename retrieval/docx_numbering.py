"""Headings and the numbers of lists in a Word document: neither stands in its text, both follow from its styles."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from docx.oxml.ns import qn
from lxml.etree import _Element as Element

_LEVELS = 9
_OUTLINE_BODY = 9
_PLACE = re.compile(r"%([1-9])")
_HEADING = re.compile(r"heading ([1-9])")
_ROMAN = tuple(
    zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), "M CM D CD C XC L XL X IX V IV I".split(), strict=True)
)
# A letter is repeated for every turn of the alphabet, a Roman figure is as long as its value: nonsense ends here.
_MOST_SPELLED = 5000
_MAX_PATTERN = 64
BULLET = "-"


@dataclass(frozen=True, slots=True)
class Role:
    """What a paragraph is: ``heading`` its level, from 1, or 0; ``mark`` what stands before it, such as ``4.2``."""

    heading: int
    mark: str
    is_item: bool


@dataclass(slots=True)
class _Level:
    start: int = 1
    figures: str = "decimal"
    pattern: str = ""
    restarts_after: int | None = None
    is_legal: bool = False


@dataclass(slots=True)
class _List:
    """The levels of a list and how far it has counted; lists of one definition count together."""

    levels: dict[int, _Level]
    counts: dict[int, int] = field(default_factory=dict)
    style_levels: dict[str, int] = field(default_factory=dict)


class Numbering:
    """The roles of the paragraphs of a document, asked for in their order (ECMA-376 part 1, 17.3.1 and 17.9)."""

    def __init__(self, styles: Element | None, numbering: Element | None) -> None:
        """The roots of the two parts; a document may lack either."""
        self._styles: dict[str, Element] = {}
        self._list_styles: dict[str, Element | None] = {}
        self._default: str | None = None
        for style in _children(styles, "w:style"):
            if style.get(qn("w:type")) == "numbering":
                self._list_styles[style.get(qn("w:styleId"), "")] = style.find(qn("w:pPr"))
            elif style.get(qn("w:type")) == "paragraph":
                self._styles[style.get(qn("w:styleId"), "")] = style
                if style.get(qn("w:default")) in ("1", "true", "on"):
                    self._default = style.get(qn("w:styleId"))
        self._abstract = {one.get(qn("w:abstractNumId"), ""): one for one in _children(numbering, "w:abstractNum")}
        self._numbers = {one.get(qn("w:numId"), ""): one for one in _children(numbering, "w:num")}
        self._lists: dict[str, _List] = {}
        self._begun: set[str] = set()

    def role(self, paragraph: Element) -> Role:
        """What the paragraph is. Counts it if it is numbered."""
        own = paragraph.find(qn("w:pPr"))
        style_id = _value(own, "w:pStyle") or self._default
        chain = list(self._chain(style_id))
        heading = _outline(own)
        for style in chain:
            if heading is None:
                name = (_value(style, "w:name") or "").casefold()
                found = _HEADING.fullmatch(name)
                heading = int(found[1]) if found else 1 if name == "title" else _outline(style.find(qn("w:pPr")))
        mark = self._mark(own, chain)
        return Role(heading or 0, mark or "", mark is not None)

    def _chain(self, style_id: str | None) -> Iterator[Element]:
        seen: set[str] = set()
        while style_id is not None and style_id not in seen and style_id in self._styles:
            seen.add(style_id)
            yield self._styles[style_id]
            style_id = _value(self._styles[style_id], "w:basedOn")

    def _mark(self, own: Element | None, chain: list[Element]) -> str | None:
        number, level = _numbered(own)
        style_level: int | None = None
        for style in chain:
            if number is not None:
                break
            number, style_level = _numbered(style.find(qn("w:pPr")))
        if number is None or number == "0" or number not in self._numbers:  # 0 takes the style's number away
            return None
        counted = self._list(number)
        if level is None:
            named = (counted.style_levels.get(style.get(qn("w:styleId"), "")) for style in chain)
            level = next((one for one in named if one is not None), style_level or 0)
        return _counted(counted, min(max(level, 0), _LEVELS - 1))

    def _list(self, number: str) -> _List:
        element = self._numbers[number]
        abstract_id = _value(element, "w:abstractNumId") or ""
        # The definition may stand elsewhere, under the name of a style.
        for _ in range(_LEVELS):
            link = _value(self._abstract.get(abstract_id), "w:numStyleLink")
            linked, _ = _numbered(self._list_styles.get(link or ""))
            if linked is None or linked not in self._numbers:
                break
            abstract_id = _value(self._numbers[linked], "w:abstractNumId") or ""
        counted = self._lists.get(abstract_id)
        if counted is None:
            counted = self._lists[abstract_id] = _List({})
            _define(counted, self._abstract.get(abstract_id))
        if number not in self._begun:
            self._begun.add(number)
            for override in _children(element, "w:lvlOverride"):
                _define(counted, override)
                start, level = _whole(_value(override, "w:startOverride")), _whole(override.get(qn("w:ilvl")))
                if start is not None and level is not None:
                    counted.counts[level] = start - 1
        return counted


def _define(counted: _List, definition: Element | None) -> None:
    for element in _children(definition, "w:lvl"):
        number = _whole(element.get(qn("w:ilvl")))
        if number is None:
            continue
        start = _whole(_value(element, "w:start"))
        counted.levels[number] = _Level(
            0 if start is None else start,
            _value(element, "w:numFmt") or "decimal",
            (_value(element, "w:lvlText") or "")[:_MAX_PATTERN],
            _whole(_value(element, "w:lvlRestart")),
            _is_on(element.find(qn("w:isLgl"))),
        )
        if style := _value(element, "w:pStyle"):
            counted.style_levels.setdefault(style, number)


def _counted(counted: _List, level: int) -> str:
    own = counted.levels.get(level, _Level())
    counted.counts[level] = counted.counts.get(level, own.start - 1) + 1
    for deeper in [one for one in counted.counts if one > level]:
        after = counted.levels.get(deeper, _Level()).restarts_after
        if after is None or after > level:
            del counted.counts[deeper]
    if own.figures == "bullet":
        return BULLET

    def shown(place: re.Match[str]) -> str:
        at = int(place[1]) - 1
        its = counted.levels.get(at, _Level())
        # A level that was left out counts as begun.
        count = counted.counts.setdefault(at, its.start)
        return _figures(count, "decimal" if own.is_legal else its.figures)

    return "" if own.figures == "none" else _PLACE.sub(shown, own.pattern).strip()


def _figures(count: int, figures: str) -> str:
    if figures == "none":
        return ""
    if 0 < count < _MOST_SPELLED:
        if figures in ("upperLetter", "lowerLetter"):
            turns, letter = divmod(count - 1, 26)
            letters = chr(ord("A") + letter) * (turns + 1)
            return letters if figures == "upperLetter" else letters.lower()
        if figures in ("upperRoman", "lowerRoman"):
            roman = ""
            for value, sign in _ROMAN:
                times, count = divmod(count, value)
                roman += sign * times
            return roman if figures == "upperRoman" else roman.lower()
    return f"{count:02d}" if figures == "decimalZero" else str(count)


def _numbered(properties: Element | None) -> tuple[str | None, int | None]:
    found = properties.find(qn("w:numPr")) if properties is not None else None
    return _value(found, "w:numId"), _whole(_value(found, "w:ilvl"))


def _outline(properties: Element | None) -> int | None:
    level = _whole(_value(properties, "w:outlineLvl"))
    return None if level is None else level + 1 if level < _OUTLINE_BODY else 0


def _children(element: Element | None, tag: str) -> list[Element]:
    return [] if element is None else list(element.findall(qn(tag)))


def _value(element: Element | None, tag: str) -> str | None:
    child = element.find(qn(tag)) if element is not None else None
    return None if child is None else child.get(qn("w:val"))


def _whole(written: str | None) -> int | None:
    return int(written) if written is not None and re.fullmatch(r"-?[0-9]{1,9}", written) else None


def _is_on(switch: Element | None) -> bool:
    return switch is not None and switch.get(qn("w:val"), "1") not in ("0", "false", "off")
