import io
from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from retrieval.errors import ParseFailed, UnsupportedMediaType
from retrieval.parsers import DOCX, HTML, MARKDOWN, PDF, PLAIN, parse, supported_media_type


def text_of(tmp_path: Path, data: bytes, media_type: str = PLAIN, max_characters: int = 100_000) -> str:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return parse(path, media_type, max_characters=max_characters).text


def failure_code(tmp_path: Path, data: bytes, media_type: str = PLAIN, max_characters: int = 100_000) -> str:
    with pytest.raises(ParseFailed) as caught:
        text_of(tmp_path, data, media_type, max_characters)
    return caught.value.code


def pdf(*pages: list[str], encryption: StandardEncryption | None = None) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, encrypt=encryption)
    for page in pages:
        for number, line in enumerate(page):
            canvas.drawString(72, 800 - 14 * number, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "declared", "head", "expected"),
    [
        ("book.txt", None, b"Once upon a time", PLAIN),
        ("BOOK.TXT", "application/octet-stream", b"", PLAIN),
        ("notes.md", "text/plain", b"# Notes", MARKDOWN),
        ("page.html", None, b"<p>hi", HTML),
        ("page", "text/html; charset=utf-8", b"<p>hi", HTML),
        ("main.py", "text/x-python", b"import os\n", PLAIN),
        ("paper.txt", "text/plain", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", PDF),
        ("letter.docx", None, b"PK\x03\x04\x14\x00\x06\x00", DOCX),
        ("letter.docx", None, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), DOCX),
        ("utf16.txt", None, "\ufeffhello".encode("utf-16-le"), PLAIN),
        ("colours.log", None, b"\x1b[31mred\x1b[0m\n", PLAIN),
    ],
)
def test_kind_is_decided_from_bytes_then_name_then_declaration(name, declared, head, expected):
    assert supported_media_type(name, declared, head) == expected


@pytest.mark.parametrize(
    ("name", "declared", "head"),
    [
        ("setup.txt", "text/plain", b"MZ\x90\x00\x03\x00\x00\x00\x04"),
        ("letter.docx", None, b"Dear all"),
        ("letter", DOCX, b"\x00\x01\x02"),
        ("letter.doc", "application/msword", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)),
        ("photo.png", "image/png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
        ("dense.bin", None, b"\x01\x02\x03\x04abc" * 50),
        ("paper.pdf", "application/pdf", b"not a pdf at all"),
        ("letter.rtf", None, b"{\\rtf1\\ansi Hello}"),
        ("utf16_without_mark.txt", None, "hello".encode("utf-16-le")),
    ],
)
def test_what_no_parser_reads_is_refused_with_its_name(name, declared, head):
    with pytest.raises(UnsupportedMediaType, match=name):
        supported_media_type(name, declared, head)


def test_text_is_the_file_with_its_line_ends(tmp_path):
    assert text_of(tmp_path, "a\r\nb\rc\n\u2028d\t é\n".encode()) == "a\r\nb\rc\n\u2028d\t é\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_and_is_not_text(tmp_path, encoding):
    assert text_of(tmp_path, "Zürich 東京\r\n".encode(encoding)) == "Zürich 東京\r\n"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Das Mädchen trägt größere Schuhe als ihr Bruder – für 5 €."),
        ("cp1252", "café déjà vu"),
        ("cp1251", "Привет, мир. Это простой текст на русском языке, довольно короткий."),
        ("cp932", "これは日本語のテキストです。文字コードはシフトJISです。" * 3),
    ],
)
def test_unmarked_encodings_are_recognised(tmp_path, encoding, text):
    assert text_of(tmp_path, text.encode(encoding)) == text


def test_zero_characters_after_the_head_are_not_text(tmp_path):
    assert failure_code(tmp_path, b"a" * 9000 + b"\x00") == "undecodable"


def test_broken_utf16_is_undecodable(tmp_path):
    assert failure_code(tmp_path, b"\xff\xfe\x00\xd8a\x00") == "undecodable"


def test_blank_and_too_long_files_fail_with_their_codes(tmp_path):
    assert failure_code(tmp_path, b" \n\t ") == "no_text"
    assert failure_code(tmp_path, b"") == "no_text"
    assert failure_code(tmp_path, b"abcdef", max_characters=5) == "too_long"


def test_html_is_read_as_blocks_rows_and_headings(tmp_path):
    markup = """<html><head><title>T &amp; Co</title><style>p{}</style></head><body><h1>Caf&eacute;</h1>
    <p>One <b>bold</b>,\n wrapped.<br>Next</p><script>evil()</script><ul><li>a<li>b</ul>
    <table><tr><th>Item<th>Price|€</tr><tr><td>Valve<td><p>47</p></tr></table><pre>  x = 1\n    y</pre><p hidden>no"""
    assert text_of(tmp_path, markup.encode(), HTML) == (
        "# T & Co\n\n# Café\n\nOne bold, wrapped.\nNext\n\n- a\n- b\n\n"
        "| Item | Price\\|€ |\n| Valve | 47 |\n\n  x = 1\n    y"
    )


def test_html_declares_its_charset(tmp_path):
    assert text_of(tmp_path, '<meta charset="koi8-r"><p>Мир и труд'.encode("koi8-r"), HTML) == "Мир и труд"


def test_deeply_nested_html_has_a_reading(tmp_path):
    assert text_of(tmp_path, b"<table><tr><td>" * 2000 + b"deep", HTML).strip("| \n") == "deep"
    assert text_of(tmp_path, b"<div>" * 3000 + b"deep", HTML) == "deep"


def test_pdf_pages_are_consecutive_spans(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(pdf(["First page.", "Line two."], ["Second page: $1,234.50"], []))
    parsed = parse(path, PDF, max_characters=1000)
    assert parsed.text == "First page.\nLine two.\nSecond page: $1,234.50\n"
    assert [parsed.text[page.start : page.end] for page in parsed.pages] == [
        "First page.\nLine two.\n",
        "Second page: $1,234.50\n",
        "",
    ]


def test_pdf_line_breaks_are_undone_in_words_and_codes_only_where_safe(tmp_path):
    lines = ["See INV-2024-", "000123 and an exam-", "ple, a well-", "known one. The well-known Dash -", "15 items"]
    assert text_of(tmp_path, pdf(lines), PDF) == (
        "See INV-2024-000123 and an example, a well-known one. The well-known Dash -\n15 items"
    )


def test_pdf_failures_have_codes(tmp_path):
    page = pdf(["Readable text here."])
    assert (
        failure_code(tmp_path, pdf(["x"], encryption=StandardEncryption("secret", ownerPassword="o")), PDF)
        == "encrypted"
    )
    assert text_of(tmp_path, pdf(["open"], encryption=StandardEncryption("", ownerPassword="o")), PDF) == "open"
    assert failure_code(tmp_path, page[: len(page) // 2], PDF) == "damaged"
    assert failure_code(tmp_path, b"%PDF-1.4 nothing else", PDF) == "damaged"
    assert failure_code(tmp_path, pdf([], []), PDF) == "no_text"
    assert failure_code(tmp_path, page, PDF, max_characters=5) == "too_long"
