"""Rows of tables, under their first cell; and their cells, under the row and the header of their column."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from retrieval.hits import Hit, Survey
from retrieval.lines import LineKind
from retrieval.pairs import MAX_KEY_REPEATS, MAX_VALUE_CHARACTERS
from retrieval.passage import FactKind, Span
from retrieval.sentences import trim

_MAX_HEADER_CHARACTERS = 60
_MAX_CELLS = 64
_RULE = re.compile(r"[\s|:+=-]+")
_DIGIT = re.compile(r"\d")
_UNIT_IN_BRACKETS = re.compile(r"\s*[(\[][^)\]]*[)\]]")
_BETWEEN_BARS = re.compile(r"[^|]+")
_BETWEEN_TABS = re.compile(r"[^\t]+|(?<=\t)(?=\t)")
# A field of a record is quoted, or has no comma.
_BETWEEN_COMMAS = re.compile(r'(?:(?<=,)|\A)(?:"(?:[^"]|""){0,400}"(?=,|\Z)|[^,]*)')


class RowRecogniser:
    """Table rows: the rest of the row under its first cell, and each cell under row and column header.

    A header is the first row of a table if a rule stands under it, or if it has no digit and the row after it has.
    """

    name = "row"
    kind = FactKind.KEY_VALUE

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits whose row names something: its first cell is seldom repeated."""
        text = survey.text
        for table in _tables(survey):
            rows = [(line, _cells(text, line)) for line in table]
            header = _header(text, rows)
            body = [(line, cells) for line, cells in rows if len(cells) > 1 and not _is_rule(text, line)]
            names = [_inner(text[cells[0].start : cells[0].end]) for _, cells in body]
            repeats = Counter(name.casefold() for name in names)
            for (line, cells), name in zip(body, names, strict=True):
                if not any(char.isalnum() for char in name) or repeats[name.casefold()] > MAX_KEY_REPEATS:
                    continue
                evidence = trim(text, line)
                score = 0.8 / repeats[name.casefold()] ** 0.5
                rest = [cell for cell in cells[1:] if len(cell)]
                if not rest or len(evidence) > MAX_VALUE_CHARACTERS:
                    continue
                key = trim(text, cells[0])
                yield Hit(Span(rest[0].start, rest[-1].end), score, key, evidence)
                if header and cells[0] != header[0][1]:
                    yield from self._of_cells(cells, name, header, score, evidence)

    def _of_cells(
        self, cells: Sequence[Span], name: str, header: Sequence[tuple[str, Span]], score: float, evidence: Span
    ) -> Iterator[Hit]:
        # With two columns the rest of the row is the cell.
        for cell, (column, _) in zip(cells[1:], header[1:], strict=False):
            if len(cell) and any(char.isalnum() for char in column):
                short = _UNIT_IN_BRACKETS.sub("", column)
                columns = dict.fromkeys([column, short] if short else [column])
                names = [form for each in columns for form in (f"{name} {each}", f"{each} {name}")]
                yield Hit(cell, score + 0.05, None, evidence, tuple(names))


def _tables(survey: Survey) -> Iterator[list[Span]]:
    """The lines of each table: rows that follow each other."""
    table: list[Span] = []
    for line in survey.lines:
        if line.kind is LineKind.ROW:
            table.append(line.span)
        elif table:
            if _is_table(survey.text, table):
                yield table
            table = []
    if table and _is_table(survey.text, table):
        yield table


def _is_table(text: str, table: Sequence[Span]) -> bool:
    """Commas without blanks stand in prose as well, before quotation marks: a record has others of its length beside
    it. Bars and tabs make a table of one row."""
    row = text[table[0].start : table[0].end]
    if "|" in row or "\t" in row:
        return True
    return len(table) > 1 and len(_cells(text, table[0])) == len(_cells(text, table[1]))


def _cells(text: str, line: Span) -> list[Span]:
    """The cells of a row without the blanks, and the quotes, around them; inner ones may be empty."""
    span = trim(text, line)
    row = text[span.start : span.end]
    if "|" in row:
        inner = row.strip("|")
        offset = span.start + len(row) - len(row.lstrip("|"))
        pattern = _BETWEEN_BARS
    elif "\t" in row:
        inner, offset, pattern = row, span.start, _BETWEEN_TABS
    else:
        inner, offset, pattern = row, span.start, _BETWEEN_COMMAS
    cells: list[Span] = []
    for match in pattern.finditer(inner):
        cell = trim(text, Span(offset + match.start(), offset + match.end()))
        if len(cell) > 1 and text[cell.start] == text[cell.end - 1] == '"':
            cell = Span(cell.start + 1, cell.end - 1)
        cells.append(cell)
        if len(cells) == _MAX_CELLS:
            break
    return cells


def _header(text: str, rows: Sequence[tuple[Span, list[Span]]]) -> list[tuple[str, Span]] | None:
    """The names of the columns with their places; None where a table has no header."""
    if len(rows) < 2 or len(rows[0][1]) < 2:
        return None
    first, second = rows[0], rows[1]
    names = [text[cell.start : cell.end] for cell in first[1]]
    if any(len(name) > _MAX_HEADER_CHARACTERS for name in names):
        return None
    line = text[first[0].start : first[0].end]
    if not _is_rule(text, second[0]) and (_DIGIT.search(line) or not _DIGIT.search(text, *_ends(second[0]))):
        return None
    return [(_inner(name), cell) for name, cell in zip(names, first[1], strict=True)]


def _ends(span: Span) -> tuple[int, int]:
    return span.start, span.end


def _is_rule(text: str, line: Span) -> bool:
    return _RULE.fullmatch(text, line.start, line.end) is not None


def _inner(cell: str) -> str:
    """Without the marks of emphasis around it."""
    return cell.strip("*_` ")
