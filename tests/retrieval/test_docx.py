"""Word documents: what a reader sees, in order; what is no Word document; files made to do harm."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import pytest
from docx.document import Document
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.docx_worker import text_of
from retrieval.errors import ParseFailed, UnsupportedMediaType
from retrieval.parsers import DOCX, parse, supported_media_type

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)


def saved(document: Document) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def changed(data: bytes, **parts: Callable[[bytes], bytes | None]) -> bytes:
    """The file with parts, named by what their names hold, rewritten or (None) left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content: bytes | None = old.read(name)
            for held, change in parts.items():
                if held in name.split("/")[-1]:
                    content = change(content or b"")
            if content is not None:
                new.writestr(name, content)
    return buffer.getvalue()


def read(tmp_path: Path, made: Document | bytes, max_characters: int = 100_000) -> str:
    """The text as the worker makes it, here in this process."""
    path = tmp_path / "file.docx"
    path.write_bytes(made if isinstance(made, bytes) else saved(made))
    answer = text_of(str(path), max_characters)
    assert answer["code"] is None, answer
    return str(answer["text"])


def code(tmp_path: Path, data: bytes, max_characters: int = 100_000) -> object:
    path = tmp_path / "file.docx"
    path.write_bytes(data)
    return text_of(str(path), max_characters)["code"]


def insert(document: Document, inner: str) -> None:
    """A paragraph or another block of the body, as WordprocessingML."""
    body = document.element.body
    namespaces = nsdecls("w", "r") + (
        ' xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
        ' xmlns:v="urn:schemas-microsoft-com:vml"'
    )
    for block in parse_xml(f"<w:body {namespaces}>{inner}</w:body>"):
        body.insert(len(body) - 1, block)


def test_headings_lists_tables_links_and_margins_stand_in_order(tmp_path: Path) -> None:
    document = docx.Document()
    document.sections[0].header.paragraphs[0].text = "Contract No. 2024-118"
    document.sections[0].footer.paragraphs[0].text = "Confidential"
    document.add_heading("Supply Agreement", 0)
    document.add_heading("Price", 1)
    document.add_paragraph("Buyer: ACME plc").add_run().add_picture(io.BytesIO(PIXEL))
    table = document.add_table(rows=0, cols=2)
    for row in (("Item", "Price|€"), ("Valve", "47"), ("Pump", "")):
        for cell, text in zip(table.add_row().cells, row, strict=True):
            cell.text = text
    for text in ("steel", "brass"):
        document.add_paragraph(text, style="List Bullet")
    for text in ("first", "second"):
        document.add_paragraph(text, style="List Number")
    document.add_heading("Sources", 2)
    insert(
        document,
        '<w:p><w:r><w:t xml:space="preserve">See</w:t></w:r><w:r><w:t xml:space="preserve"> </w:t></w:r>'
        "<w:hyperlink><w:r><w:t>the list</w:t></w:r></w:hyperlink><w:r><w:br/><w:t>and</w:t><w:tab/><w:t>more</w:t>"
        "</w:r></w:p>",
    )
    assert read(tmp_path, document) == (
        "Contract No. 2024-118\n\n# Supply Agreement\n\n# Price\n\nBuyer: ACME plc\n\n"
        "| Item | Price\\|€ |\n| Valve | 47 |\n| Pump |  |\n\n"
        "- steel\n- brass\n1. first\n2. second\n\n## Sources\n\nSee the list\nand\tmore\n\nConfidential"
    )


def test_tracked_changes_count_as_accepted_and_controls_and_fields_show_what_they_hold(tmp_path: Path) -> None:
    document = docx.Document()
    insert(
        document,
        """
        <w:p><w:r><w:t xml:space="preserve">Notice is </w:t></w:r><w:del><w:r><w:delText>30</w:delText></w:r></w:del>
          <w:ins><w:r><w:t>60</w:t></w:r></w:ins><w:r><w:t xml:space="preserve"> days.</w:t></w:r>
          <w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r></w:p>
        <w:p><w:pPr><w:rPr><w:del/></w:rPr></w:pPr><w:r><w:t xml:space="preserve">One </w:t></w:r></w:p>
        <w:p><w:r><w:t>paragraph.</w:t></w:r><w:moveFrom><w:r><w:t>gone</w:t></w:r></w:moveFrom></w:p>
        <w:sdt><w:sdtContent><w:p><w:r><w:t xml:space="preserve">Signed: </w:t></w:r>
          <w:sdt><w:sdtContent><w:r><w:t>yes</w:t></w:r></w:sdtContent></w:sdt></w:p></w:sdtContent></w:sdt>
        <w:p><w:r><w:fldChar w:fldCharType="begin"/><w:instrText>IF a</w:instrText>
          <w:fldChar w:fldCharType="begin"/><w:instrText>MERGEFIELD b</w:instrText><w:fldChar w:fldCharType="separate"/>
          <w:t>inner</w:t><w:fldChar w:fldCharType="end"/><w:fldChar w:fldCharType="separate"/><w:t>Total 5</w:t>
          <w:fldChar w:fldCharType="end"/></w:r></w:p>
        <w:tbl><w:tr><w:trPr><w:del/></w:trPr><w:tc><w:p><w:r><w:t>no</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
        <w:p><mc:AlternateContent><mc:Choice Requires="x"><w:r><w:pict><v:a><w:txbxContent><w:p><w:r>
          <w:t>In a box.</w:t></w:r></w:p></w:txbxContent></v:a></w:pict></w:r></mc:Choice>
          <mc:Fallback><w:r><w:t>twice</w:t></w:r>
          </mc:Fallback></mc:AlternateContent><w:r><w:t>At a box.</w:t></w:r></w:p>""",
    )
    assert read(tmp_path, document) == (
        "Notice is 60 days.\n\nOne paragraph.\n\nSigned: yes\n\nTotal 5\n\nAt a box.\n\nIn a box."
    )


def test_clauses_get_the_numbers_that_word_shows(tmp_path: Path) -> None:
    def level(number: int, figures: str, pattern: str) -> str:
        return (
            f'<w:lvl w:ilvl="{number}"><w:start w:val="1"/><w:numFmt w:val="{figures}"/>'
            f'<w:lvlText w:val="{pattern}"/></w:lvl>'
        )

    document = docx.Document()
    numbering = document.part.numbering_part.element
    levels = level(0, "decimal", "%1.") + level(1, "decimal", "%1.%2") + level(2, "lowerRoman", "(%3)")
    numbering.insert(0, parse_xml(f'<w:abstractNum {nsdecls("w")} w:abstractNumId="90">{levels}</w:abstractNum>'))
    for number, inner in (
        (90, ""),
        (91, '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="12"/></w:lvlOverride>'),
    ):
        numbering.append(
            parse_xml(f'<w:num {nsdecls("w")} w:numId="{number}"><w:abstractNumId w:val="90"/>{inner}</w:num>')
        )

    def clause(text: str, depth: int, number: int = 90, style: str | None = None) -> None:
        paragraph = document.add_paragraph(text, style=style)
        paragraph.paragraph_format.element.get_or_add_pPr().append(
            parse_xml(f'<w:numPr {nsdecls("w")}><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>')
        )

    clause("Term", 0, style="Heading 1")
    clause("It begins on signing.", 1)
    clause("It ends after a year, unless it is renewed.", 1, style="Heading 2")
    for _ in range(4):
        clause("by notice", 2)
    clause("Price", 0, style="Heading 1")
    clause("as agreed", 2)
    clause("No number", 0, number=0)
    clause("Far on", 0, number=91)
    assert read(tmp_path, document) == (
        "# 1. Term\n\n1.1 It begins on signing.\n1.2 It ends after a year, unless it is renewed.\n(i) by notice\n"
        "(ii) by notice\n(iii) by notice\n(iv) by notice\n\n# 2. Price\n\n(i) as agreed\n\nNo number\n\n12. Far on"
    )


def test_merged_cells_stand_in_their_columns_and_pages_laid_out_by_a_table_are_blocks(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(rows=3, cols=3)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c{number}"
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(1, 0).merge(table.cell(2, 0)).text = "high"
    document.add_paragraph("between")
    layout = document.add_table(rows=1, cols=2)
    inner = layout.cell(0, 0).add_table(rows=1, cols=2)
    inner.cell(0, 0).text, inner.cell(0, 1).text = "a", "b"
    layout.cell(0, 1).text = "beside"
    assert read(tmp_path, document) == (
        "| wide |  | c2 |\n| high | c4 | c5 |\n| high | c7 | c8 |\n\nbetween\n\n| a | b |\n\nbeside"
    )


def test_notes_follow_what_refers_to_them(tmp_path: Path) -> None:
    document = docx.Document()
    insert(document, '<w:p><w:r><w:t>Prices rise.</w:t><w:footnoteReference w:id="2"/></w:r></w:p>')
    document.add_paragraph("Next.")
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    note = (
        f'<w:footnotes {nsdecls("w")}><w:footnote w:id="0"><w:p><w:r><w:t>separator</w:t></w:r></w:p></w:footnote>'
        '<w:footnote w:id="2"><w:p><w:r><w:footnoteRef/><w:t xml:space="preserve"> By 3 % a year.</w:t></w:r></w:p>'
        "</w:footnote></w:footnotes>"
    )
    part = docx.opc.part.Part(
        docx.opc.packuri.PackURI("/word/footnotes.xml"), kind, note.encode(), document.part.package
    )
    document.part.relate_to(part, relation)
    assert read(tmp_path, document) == "Prices rise.\n\nBy 3 % a year.\n\nNext."


# What XML can hold, but for blanks at the ends of lines, which are layout.
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"), exclude_characters="\ufffe\uffff"))
PARAGRAPHS = st.lists(st.lists(WORDS.filter(bool), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=8)


@settings(max_examples=15, deadline=None)
@given(paragraphs=PARAGRAPHS, style=st.sampled_from(["Normal", "List Bullet", "Heading 2", "Quote"]))
def test_every_paragraph_stands_in_the_text_in_order(tmp_path_factory, paragraphs: list[str], style: str) -> None:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph, style=style)
    text = read(tmp_path_factory.getbasetemp(), document)
    at = 0
    for paragraph in paragraphs:
        at = text.index(paragraph, at) + len(paragraph)


def test_only_a_zip_with_a_word_document_in_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def kind(name: str, declared: str | None, data: bytes) -> str:
        path.write_bytes(data)
        return supported_media_type(name, declared, data[:8192], path)

    word = saved(docx.Document())
    assert {kind(name, None, word) for name in ("a.docx", "a.zip", "a.txt", "a.pdf", "a")} == {DOCX}
    assert kind("locked.docx", None, OLE + bytes(600) + "EncryptedPackage".encode("utf-16-le")) == DOCX
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("notes.txt", "some notes")
    for name, declared, data in (
        ("notes.zip", "application/zip", plain.getvalue()),
        ("notes.docx", DOCX, plain.getvalue()),
        ("bare.docx", None, changed(word, **{"document.xml": lambda _: None})),
        ("old.docx", DOCX, OLE + bytes(600)),
    ):
        with pytest.raises(UnsupportedMediaType, match=name):
            kind(name, declared, data)


def test_broken_files_have_codes(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Some words that can be read.")
    whole = saved(document)
    assert code(tmp_path, whole[: len(whole) // 2]) == "damaged"
    place = whole.index(b"word/document.xml") + 200
    assert code(tmp_path, whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]) == "damaged"
    assert code(tmp_path, changed(whole, **{"document.xml": lambda xml: xml[:-30]})) == "damaged"
    assert code(tmp_path, changed(whole, **{"document.xml": lambda _: None})) == "damaged"
    assert code(tmp_path, OLE + bytes(600) + "EncryptedPackage".encode("utf-16-le")) == "encrypted"
    assert code(tmp_path, whole, max_characters=20) == "too_long"
    locked = bytearray(whole)
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    assert code(tmp_path, bytes(locked)) == "encrypted"


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Small.")
    bomb = changed(saved(document), **{"settings.xml": lambda _: b" " * (1 << 20)})
    # What the directory says of the size is what counts, and zipfile unpacks no more than that.
    place = bomb.rindex(b"word/settings.xml") - 46 + 24
    said = (1 << 20).to_bytes(4, "little")
    assert bomb[place : place + 4] == said
    huge = bomb[:place] + (300 << 20).to_bytes(4, "little") + bomb[place + 4 :]
    assert code(tmp_path, huge) == "too_long"
    lying = bomb[:place] + (100).to_bytes(4, "little") + bomb[place + 4 :]
    assert code(tmp_path, lying) == "damaged"


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Small.")
    secret = tmp_path / "secret.txt"
    secret.write_text("told")

    def with_entities(*values: str) -> bytes:
        declared = "".join(f"<!ENTITY e{number} {value}>" for number, value in enumerate(values))
        declared = f"<!DOCTYPE d [{declared}]><w:document"
        return changed(
            saved(document),
            **{
                "document.xml": lambda xml: xml.replace(b"<w:document", declared.encode()).replace(
                    b"Small.", f"Small.&e{len(values) - 1};".encode()
                )
            },
        )

    assert read(tmp_path, with_entities('"boom"')) == "Small."
    assert read(tmp_path, with_entities(f'SYSTEM "{secret.as_uri()}"')) == "Small."
    # libxml2 refuses by itself what would grow out of measure.
    assert code(tmp_path, with_entities('"boom"', *(f'"{f"&e{n};" * 20}"' for n in range(11)))) == "damaged"


def test_it_is_read_in_a_process_of_its_own_and_its_failures_are_told(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    document = docx.Document()
    path.write_bytes(saved(document))
    with pytest.raises(ParseFailed) as empty:
        parse(path, DOCX, max_characters=1000)
    assert empty.value.code == "no_text"
    document.add_paragraph("Größe: 47 €")
    path.write_bytes(saved(document))
    parsed = parse(path, DOCX, max_characters=1000)
    assert (parsed.text, parsed.pages, parsed.media_type) == ("Größe: 47 €", (), DOCX)
    with pytest.raises(ParseFailed, match="more than 5 characters, which is the limit; split it"):
        parse(path, DOCX, max_characters=5)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ParseFailed, match="save it again") as broken:
        parse(path, DOCX, max_characters=1000)
    assert broken.value.code == "damaged"


def test_what_nests_or_repeats_without_measure_ends(tmp_path: Path) -> None:
    def of(inner: str) -> bytes:
        document = docx.Document()
        insert(document, inner)
        return saved(document)

    word = "<w:r><w:t>x</w:t></w:r>"
    for depth, expected in ((120, None), (1000, "damaged")):
        opened, closed = b"<w:sdt><w:sdtContent>" * depth, b"</w:sdtContent></w:sdt>" * depth
        deep = changed(
            of("<w:p/>"), **{"document.xml": lambda xml, a=opened, b=closed: xml.replace(b"<w:p/>", a + b"<w:p/>" + b)}
        )
        assert code(tmp_path, deep) == expected
    # Each box but once, not once for every box around it.
    box = ("<w:r><w:pict><w:txbxContent><w:p>", "</w:p></w:txbxContent></w:pict></w:r>")
    assert read(tmp_path, of("<w:p>" + box[0] * 30 + word + box[1] * 30 + "</w:p>")) == "x"
    merged = '<w:tc><w:tcPr><w:vMerge w:val="{}"/></w:tcPr><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc><w:tc/>'
    rows = (
        "<w:tr>"
        + merged.format("restart", "y" * 500)
        + "</w:tr>"
        + f"<w:tr>{merged.format('continue', '')}</w:tr>" * 300
    )
    assert code(tmp_path, of(f"<w:tbl>{rows}</w:tbl>")) == "too_long"
