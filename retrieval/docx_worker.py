"""Run by itself for retrieval/docx_text.py: one Word document to one JSON object on standard output."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from docx.opc.constants import RELATIONSHIP_TYPE
from docx.opc.exceptions import OpcError
from docx.opc.part import Part, PartFactory, XmlPart
from docx.oxml import parse_xml
from docx.oxml.ns import qn
from docx.package import Package
from docx.parts.document import DocumentPart
from lxml.etree import LxmlError
from lxml.etree import _Element as Element

from retrieval.docx_numbering import BULLET, Numbering, Role
from retrieval.reader_process import answer

# A tree takes some ten times its XML, and the process has 4 GiB; pictures are held, but not unpacked any further.
_MAX_XML_BYTES = 256 << 20
_MAX_BYTES = 1 << 30

_OFFICE = "application/vnd.ms-word."
_WORDS_KINDS = (
    "application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    _OFFICE + "document.macroEnabled.main+xml",
    _OFFICE + "template.macroEnabledTemplate.main+xml",
)

_ALTERNATIVES = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_FORMULA_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_TEXT = (qn("w:t"), _FORMULA_TEXT)
_DRAWN = tuple(map(qn, ("w:drawing", "w:pict", "w:object")))
_NOTES = {qn("w:footnoteReference"): "footnote", qn("w:endnoteReference"): "endnote"}
_SIGNS = {qn(tag): sign for tag, sign in (("w:tab", "\t"), ("w:ptab", "\t"), ("w:cr", "\n"), ("w:br", "\n"))}
_SIGNS[qn("w:noBreakHyphen")] = "-"
# Deleted or moved away; reading aids over characters; settings, where w:tab is no character.
_UNREAD = frozenset(map(qn, ("w:del", "w:moveFrom", "w:rt", "w:pPr", "w:sdtPr", "w:tblPr", "w:sectPr")))
_BLANKS = re.compile(r"[ \t\n]+")
_LINE_ENDS = re.compile(r"[ \t]*\n[ \t]*")
_MAX_COLUMNS = 63  # Word's own limit
# Clauses of contracts are often set in the style of a heading to be numbered: a heading is short, and no sentence.
_MAX_HEADING = 160
_SENTENCE = re.compile(r"(?:\S+\s+){5,}\S+[.;:,]")
# A cell with more text than this in several paragraphs is a page laid out by a table and not a value.
_MAX_CELL = 400


class TooLong(Exception):
    """There is more than is wanted; the text says what."""


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph or a table; ``opening`` stands before a heading, unless it is in a cell."""

    text: str
    opening: str = ""
    is_item: bool = False


def text_of(path: str, max_characters: int) -> dict[str, object]:
    """Return {"code": None, "text": text} or {"code": why not, "message": text or None}."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        if any(part.flag_bits & 1 for part in parts):
            return {"code": "encrypted"}
        # zipfile unpacks no more of a part than its directory says.
        for num_bytes, most in (
            (sum(part.file_size for part in parts if part.filename.endswith((".xml", ".rels"))), _MAX_XML_BYTES),
            (sum(part.file_size for part in parts), _MAX_BYTES),
        ):
            if num_bytes > most:
                raise TooLong(f"unpacks to {num_bytes} bytes, the limit is {most}")
        return {"code": None, "text": _Reader(path, max_characters).text()}
    except TooLong as error:
        return {"code": "too_long", "message": f"the Word document {error}; split it"}
    except zipfile.BadZipFile:
        with open(path, "rb") as opened:
            is_wrapped = opened.read(4) != b"PK\x03\x04"  # only what is encrypted comes here in another wrapping
        return {"code": "encrypted" if is_wrapped else "damaged"}
    except (OpcError, LxmlError, zlib.error, EOFError, LookupError, ValueError, NotImplementedError, RecursionError):
        return {"code": "damaged"}


class _Reader:
    """One pass over a document. It calls itself: trees are 256 deep at most, by lxml."""

    def __init__(self, path: str, max_characters: int) -> None:
        for kind in _WORDS_KINDS:
            PartFactory.part_type_for[kind] = DocumentPart
        package = Package.open(path)
        main = package.main_document_part
        if not isinstance(main, DocumentPart):
            raise ValueError(f"its main part is {main.content_type}")
        self._main = main
        self._numbering = Numbering(self._root(RELATIONSHIP_TYPE.STYLES), self._root(RELATIONSHIP_TYPE.NUMBERING))
        self._notes = {
            (kind, note.get(qn("w:id"), "")): note
            for kind, relation in (("footnote", RELATIONSHIP_TYPE.FOOTNOTES), ("endnote", RELATIONSHIP_TYPE.ENDNOTES))
            for note in _found(self._root(relation), f"w:{kind}")
        }
        self._room = max_characters
        self._max_characters = max_characters
        self._held_over = ""

    def text(self) -> str:
        """The whole text. Raises TooLong at the block that is too much."""
        headers, footers = (self._margins(kind) for kind in (RELATIONSHIP_TYPE.HEADER, RELATIONSHIP_TYPE.FOOTER))
        pieces: list[str] = []
        was_item = False
        body = self._main.element.find(qn("w:body"))
        inner = list(self._blocks(body)) if body is not None else []
        for block in [*headers, *inner, *footers]:
            if pieces:
                pieces.append("\n" if block.is_item and was_item else "\n\n")
            pieces += block.opening, block.text
            was_item = block.is_item
        return "".join(pieces)

    def _root(self, relation: str) -> Element | None:
        part = next(iter(self._parts(relation)), None)
        return None if part is None else _root(part)

    def _parts(self, relation: str) -> list[Part]:
        return [
            each.target_part for each in self._main.rels.values() if each.reltype == relation and not each.is_external
        ]

    def _margins(self, relation: str) -> list[_Block]:
        """What stands in the headers or footers, once: first pages and even pages often repeat the others'."""
        roots = [_root(part) for part in self._parts(relation)]
        return list(dict.fromkeys(block for root in roots for block in self._blocks(root)))

    def _blocks(self, container: Element) -> Iterator[_Block]:
        """The blocks of a body, a cell or a note, and whether each is an item of a list."""
        for child in _accepted(container):
            if child.tag == qn("w:p"):
                yield from self._paragraph(child)
            elif child.tag == qn("w:tbl"):
                yield from self._table(child)
        if self._held_over:
            yield _Block(self._held_over.strip())
            self._held_over = ""

    def _take(self, num_characters: int) -> None:
        self._room -= num_characters
        if self._room < 0:
            raise TooLong(f"has more than {self._max_characters} characters, which is the limit")

    def _paragraph(self, paragraph: Element) -> Iterator[_Block]:
        flow = _Flow()
        flow.read(paragraph)
        text = self._held_over + "".join(flow.pieces)
        self._held_over = ""
        properties = paragraph.find(qn("w:pPr"))
        if properties is not None and _found(properties.find(qn("w:rPr")), "w:del"):
            self._held_over = text  # its end was deleted: what it holds belongs to the next
            text = ""
        else:
            text = _LINE_ENDS.sub("\n", text).strip()
            role = self._numbering.role(paragraph)
            if text:
                block = _block(text, role)
                self._take(len(block.text))
                yield block
        for box in flow.boxes:
            yield from self._blocks(box)
        for note in flow.notes:
            if (found := self._notes.pop(note, None)) is not None:
                yield from self._blocks(found)

    def _table(self, table: Element) -> Iterator[_Block]:
        rows: list[str] = []
        above: dict[int, str] = {}
        for row in _accepted(table):
            if row.tag != qn("w:tr") or _found(row.find(qn("w:trPr")), "w:del"):
                continue
            cells, blocks = self._row(row, above)
            if blocks and rows:
                yield _Block("\n".join(rows))
                rows = []
            yield from blocks
            if any(cells):
                rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if rows:
            yield _Block("\n".join(rows))

    def _row(self, row: Element, above: dict[int, str]) -> tuple[list[str], list[_Block]]:
        """The cells of a row, one for each column; or, if they are no values, what they hold.

        A cell that spans rows stands in each of them, so that each can be read by itself; ``above`` carries it.
        """
        cells: list[str] = []
        blocks: list[_Block] = []
        is_layout = False
        for cell in _accepted(row):
            if cell.tag != qn("w:tc"):
                continue
            properties = cell.find(qn("w:tcPr"))
            inner = list(self._blocks(cell))
            merge = properties.find(qn("w:vMerge")) if properties is not None else None
            text = _BLANKS.sub(" ", " ".join(block.text for block in inner))
            if merge is not None and merge.get(qn("w:val"), "continue") == "continue":
                text = text or above.get(len(cells), "")
                self._take(len(text))
            above[len(cells)] = text if merge is not None else ""
            has_table = any(child.tag == qn("w:tbl") for child in _accepted(cell))
            is_layout |= has_table or (len(inner) > 1 and len(text) > _MAX_CELL)
            blocks.extend(inner)
            cells.append(text)
            cells.extend([""] * (_span(properties) - 1))
        if is_layout or len(cells) == 1:
            return [], blocks
        return cells, []


class _Flow:
    """What stands in a paragraph: its text, the notes it refers to, the boxes of text that are drawn at it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.notes: list[tuple[str, str]] = []
        self.boxes: list[Element] = []
        # Fields that are open, and whether what comes is their instruction, which may hold fields itself.
        self._instructs: list[bool] = []

    def read(self, element: Element) -> None:
        """Add what the element holds."""
        for child in element:
            tag = child.tag
            if not isinstance(tag, str) or tag in _UNREAD or (tag == qn("w:r") and _is_hidden(child)):
                continue
            if tag == _ALTERNATIVES + "AlternateContent":
                # The same drawing twice: as it is now written, and as it was of old.
                first = next(iter(child), None)
                if first is not None:
                    self.read(first)
            elif tag in _DRAWN:
                self.boxes.extend(_outermost(child, qn("w:txbxContent")))
            elif tag == qn("w:fldChar"):
                self._field(child.get(qn("w:fldCharType")))
            elif any(self._instructs):
                self.read(child)
            elif tag in _TEXT:
                self.pieces.append((child.text or "").replace("\n", " ").replace("\r", " "))
            elif tag in _SIGNS:
                self.pieces.append(_SIGNS[tag])
            elif tag in _NOTES:
                self.notes.append((_NOTES[tag], child.get(qn("w:id"), "")))
            else:
                self.read(child)

    def _field(self, edge: str | None) -> None:
        if edge == "begin":
            self._instructs.append(True)
        elif self._instructs and edge == "separate":
            self._instructs[-1] = False
        elif self._instructs and edge == "end":
            self._instructs.pop()


def _block(text: str, role: Role) -> _Block:
    marked = f"{role.mark} {text}" if role.mark else text
    line = _BLANKS.sub(" ", marked).removeprefix(f"{BULLET} ")
    if role.heading and len(line) <= _MAX_HEADING and not _SENTENCE.fullmatch(line):
        return _Block(line, "#" * min(role.heading, 6) + " ")
    return _Block(marked, is_item=role.is_item)


def _root(part: Part) -> Element:
    return part.element if isinstance(part, XmlPart) else parse_xml(part.blob)


def _outermost(element: Element, tag: str) -> Iterator[Element]:
    for child in element:
        if child.tag == tag:
            yield child
        else:
            yield from _outermost(child, tag)


def _accepted(container: Element) -> Iterator[Element]:
    """Its children, with those that stand in controls, in marks and in what was inserted."""
    for child in container:
        if child.tag in (qn("w:sdt"), qn("w:sdtContent"), qn("w:customXml"), qn("w:ins"), qn("w:moveTo")):
            yield from _accepted(child)
        elif child.tag not in _UNREAD:
            yield child


def _found(element: Element | None, tag: str) -> list[Element]:
    return [] if element is None else list(element.findall(qn(tag)))


def _is_hidden(run: Element) -> bool:
    switches = _found(run.find(qn("w:rPr")), "w:vanish")
    return any(switch.get(qn("w:val"), "1") not in ("0", "false", "off") for switch in switches)


def _span(properties: Element | None) -> int:
    spans = _found(properties, "w:gridSpan")
    written = spans[0].get(qn("w:val"), "1") if spans else "1"
    return min(max(int(written), 1), _MAX_COLUMNS) if written.isdecimal() else 1


if __name__ == "__main__":
    answer(text_of)
