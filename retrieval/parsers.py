"""The door for files: which kinds are read here, and a file to its text."""

import mimetypes
from dataclasses import dataclass
from pathlib import Path

from retrieval.docx_text import OLE, ZIP, is_word, read_docx
from retrieval.errors import ParseFailed, UnsupportedMediaType
from retrieval.html_text import readable_text
from retrieval.passage import Span
from retrieval.pdf_text import read_pdf
from retrieval.plain_text import binary_reason, decode

PLAIN, MARKDOWN, HTML, PDF = "text/plain", "text/markdown", "text/html", "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
READABLE = (PLAIN, MARKDOWN, HTML, PDF, DOCX)

_BY_SUFFIX = {
    ".txt": PLAIN,
    ".text": PLAIN,
    ".log": PLAIN,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".htm": HTML,
    ".html": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
}
_BY_DECLARATION = {PLAIN: PLAIN, MARKDOWN: MARKDOWN, "text/x-markdown": MARKDOWN, HTML: HTML}
_BY_DECLARATION["application/xhtml+xml"] = HTML
# Files whose bytes are text but whose text is markup that no parser here undoes.
_UNREADABLE_TEXT = ((b"{\\rtf", "RTF"), (b"%!PS", "PostScript"))
_REMEDY = "send .txt, .md, .html, .pdf or .docx"


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The text that is stored and cited. ``pages`` are consecutive spans of it, or () where there are none."""

    text: str
    pages: tuple[Span, ...]
    media_type: str


def supported_media_type(name: str, declared: str | None, head: bytes, path: Path | None = None) -> str:
    """Decide how the file will be read, from its name, declared type and first bytes (at least 1 KiB if it has them).

    The bytes decide between pdf, Word, text and neither; among texts the name decides, then the declaration; any
    other text, source code and tables included, is read as plain text. Which zip is a Word document is seen only in
    the whole file at ``path``; of one that has not come yet, any zip may be one.

    Raises UnsupportedMediaType before anything is stored.
    """
    suffix = Path(name).suffix.lower()
    declared = (declared or "").partition(";")[0].strip().lower()
    is_called_word = suffix == ".docx" or (declared == DOCX and suffix not in _BY_SUFFIX)
    # With a password it is wrapped in what other programs wrap their files in as well; there its name counts.
    is_wrapped = head.startswith(ZIP) or (head.startswith(OLE) and is_called_word)
    if is_wrapped and (path is None or is_word(path)):
        return DOCX
    if b"%PDF-" in head[:1024]:
        return PDF
    if suffix == ".pdf" or (declared == PDF and suffix not in _BY_SUFFIX):
        raise UnsupportedMediaType(f"{name!r} is called a pdf but its bytes are not one (no %PDF- near the start)")
    if is_called_word:
        raise UnsupportedMediaType(
            f"{name!r} is called a Word document (.docx) but its bytes are not one; save it in Word as .docx"
        )
    for magic, kind in _UNREADABLE_TEXT:
        if head.startswith(magic):
            raise UnsupportedMediaType(f"{name!r} is {kind}, which is not read here; {_REMEDY}")
    reason = binary_reason(head)
    if reason is not None:
        guess = mimetypes.guess_type(name)[0] or declared or "unknown type"
        raise UnsupportedMediaType(f"{name!r} ({guess}) is not text: {reason}; {_REMEDY}")
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    return _BY_DECLARATION.get(declared, PLAIN)


def parse(path: Path, media_type: str, *, max_characters: int) -> ParsedDocument:
    """Read the file as ``media_type`` (one of READABLE).

    Plain text and markdown are stored as the file has them, line ends included, without a byte order mark.

    Raises ParseFailed with code ``encrypted``, ``damaged``, ``no_text``, ``too_long``, ``undecodable`` or
    ``too_slow``; UnsupportedMediaType for a ``media_type`` not in READABLE.
    """
    if media_type not in READABLE:
        raise UnsupportedMediaType(f"media type {media_type!r} is not read here; expected one of {', '.join(READABLE)}")
    pages: tuple[Span, ...] = ()
    if media_type == PDF:
        text, pages = read_pdf(path, max_characters=max_characters)
    elif media_type == DOCX:
        text = read_docx(path, max_characters=max_characters)
    else:
        text = decode(path.read_bytes(), html=media_type == HTML)
        if media_type == HTML:
            text = readable_text(text)
    if len(text) > max_characters:
        raise ParseFailed("too_long", f"the text has {len(text)} characters, the limit is {max_characters}; split it")
    if not text or text.isspace():
        raise ParseFailed("no_text", "the file holds no text: every character of it is blank")
    return ParsedDocument(text=text, pages=pages, media_type=media_type)
