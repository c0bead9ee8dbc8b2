"""The text of a Word document (.docx), and whether a file is one.

A .docx is a zip of XML, and both can be made to take any amount of memory. Each file is therefore unpacked and read
in a process of its own (retrieval/docx_worker.py).
"""

import mmap
from pathlib import Path

from retrieval.errors import ParseFailed
from retrieval.reader_process import read_apart

ZIP = b"PK\x03\x04"
# What Office wrote before 2007, and what it wraps a document in that has a password (MS-OFFCRYPTO, 2.3).
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Also document2.xml and the like. Names of parts are never compressed.
_MAIN_PART = b"word/document"

_MESSAGES = {
    "encrypted": "the Word document asks for a password; send a copy without one",
    "damaged": "the Word document cannot be opened: its structure is damaged or cut off; open it in Word and save it "
    "again as .docx",
    "no_text": "the Word document holds no text; if it shows scanned pages, run them through text recognition (OCR)",
}


def is_word(path: Path) -> bool:
    """Whether the file, a zip or a wrapping of OLE, holds a Word document or one that is encrypted.

    It is looked through and not unpacked: whoever waits for this answer waits for no zip's directory.
    """
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_MAIN_PART if data[:4] == ZIP else _ENCRYPTED) >= 0


def read_docx(path: Path, *, max_characters: int) -> str:
    """Return what a reader sees, in the document's order, one block a line; paragraphs and tables stand apart.

    Headings become ``# `` to ``###### `` lines, list items lines with the number or letter that Word would show
    (``- `` for a bullet), table rows ``| a | b |`` lines (a bar inside a cell is written ``\\|``). Changes that
    are tracked count as accepted. Notes follow the block that refers to them; headers stand first, footers last,
    each once. Hidden text, comments and what pictures show are left out.

    Raises ParseFailed ``encrypted``, ``damaged``, ``no_text``, ``too_long`` or ``too_slow``.
    """
    answer = read_apart("retrieval.docx_worker", path, max_characters, "Word document", _MESSAGES)
    text: str = answer["text"]
    if not text:
        raise ParseFailed("no_text", _MESSAGES["no_text"])
    return text
