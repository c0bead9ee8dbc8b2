"""The text of a PDF, page by page.

PDFium is not thread-safe, and a damaged file may crash it or keep it busy. Each file is therefore read in a
process of its own (retrieval/pdf_worker.py).
"""

import re
from pathlib import Path

from retrieval.errors import ParseFailed
from retrieval.passage import Span
from retrieval.reader_process import read_apart

# PDFium writes U+FFFE for a hyphen between letters at the end of a line, and takes the line end away.
_SOFT_HYPHEN = re.compile(r"(\w*)\ufffe(\w*)")
_BROKEN_CODE = re.compile(r"(?<=[^\W_][-\u2010\u2011])\n(?=[^\s\d]*\d)")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\ufffe\uffff]")

_MESSAGES = {
    "encrypted": "the pdf asks for a password; send a copy without one",
    "damaged": "the pdf cannot be opened: its structure is damaged or cut off; send the whole file again",
    "no_text": "the pdf has pages but no text, so it is probably a scan; run it through text recognition (OCR) first",
}


def read_pdf(path: Path, *, max_characters: int) -> tuple[str, tuple[Span, ...]]:
    """Return the text, pages joined by one line feed, and the span of each page, from the first on without gaps.

    Lines end with a line feed. What a line break hid is put together again where that is safe, and never
    otherwise: a lower-case word that PDFium reports as hyphenated loses the hyphen, unless the document writes
    the word with it elsewhere; a code (a hyphen, then a word with a digit) keeps every hyphen and loses the line end.
    Surrogate pairs are joined, lone ones become U+FFFD.

    Raises ParseFailed ``encrypted``, ``damaged``, ``no_text``, ``too_long`` or ``too_slow``.
    """
    answer = read_apart("retrieval.pdf_worker", path, max_characters, "pdf", _MESSAGES)
    raw_pages = [_characters(page) for page in answer["pages"]]
    compounds = set(re.findall(r"[a-z]+-[a-z]+", "\n".join(raw_pages)))
    pages: list[Span] = []
    pieces: list[str] = []
    start = 0
    for number, raw in enumerate(raw_pages, start=1):
        page = _rejoined(raw, compounds)
        if number < len(raw_pages):
            page += "\n"
        pieces.append(page)
        pages.append(Span(start, start + len(page)))
        start += len(page)
    text = "".join(pieces)
    if not text or text.isspace():
        raise ParseFailed("no_text", _MESSAGES["no_text"])
    return text, tuple(pages)


def _characters(page: str) -> str:
    whole = page.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\r\n", "\n").replace("\r", "\n")


def _rejoined(page: str, compounds: set[str]) -> str:
    def joined(match: re.Match[str]) -> str:
        left, right = match[1], match[2]
        hyphenated = f"{left}-{right}"
        is_word = left.isalpha() and right.isalpha() and right.islower() and not left.isupper()
        return left + right if is_word and hyphenated.lower() not in compounds else hyphenated

    page = _SOFT_HYPHEN.sub(joined, page)
    return _NOT_TEXT.sub("", _BROKEN_CODE.sub("", page))
