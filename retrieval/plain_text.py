"""Bytes of a text file to its characters, and the judgement that bytes are no text at all."""

import codecs
import re

from charset_normalizer import from_bytes

from retrieval.errors import ParseFailed

# The encodings that files without any mark are met in. Rare ones only add wrong guesses on short files.
_ENCODINGS = (
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 koi8_r iso8859_2 "
    "shift_jis cp932 euc_jp gb18030 big5 euc_kr cp949 mac_roman"
).split()
_SAMPLE_BYTES = 1 << 18
_MAX_CHAOS = 0.2
_MAX_CONTROL_RATIO = 0.01
# UTF-32 first: its little-endian mark begins with the one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Tab, line feed, vertical tab, form feed, carriage return and escape (terminal logs) stand in texts.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)


def binary_reason(head: bytes) -> str | None:
    """Say why these first bytes cannot begin a text file, or return None."""
    if _marked_encoding(head) not in (None, "utf-8"):
        return None
    if b"\x00" in head:
        return "it contains zero bytes (UTF-16 is read if it begins with a byte order mark)"
    num_controls = len(_CONTROL.findall(head))
    if num_controls > _MAX_CONTROL_RATIO * len(head):
        return f"{num_controls} of its first {len(head)} bytes are control characters"
    return None


def decode(data: bytes, *, html: bool = False) -> str:
    """Return the text of the file: every character as it came, line ends too, but for a byte order mark.

    In this order: the byte order mark if there is one (it says how to read the text and is not part of it:
    offset 0 is the character after it); UTF-8; with ``html`` the charset the page declares; else
    charset-normalizer on the first 256 KiB, accepted if its measure of mess is at most 0.2 and the whole
    file decodes strictly. Where it recognises no language, a file with few bytes above ASCII is Windows-1252.

    Raises ParseFailed ``undecodable``. The text never holds lone surrogates or zero characters.
    """
    marked = _marked_encoding(data)
    for encoding in (marked,) if marked else _unmarked_candidates(data, html=html):
        text = _decoded(data, encoding)
        if text is not None:
            break
    else:
        says = f"its byte order mark says {marked}, which it is not" if marked else "no encoding was recognised"
        raise ParseFailed("undecodable", f"the file is not readable as text: {says}; save it as UTF-8")
    if "\x00" in text:
        place = text.index("\x00")
        raise ParseFailed("undecodable", f"character {place} is a zero character, so this is not a text file")
    return text


def _marked_encoding(data: bytes) -> str | None:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    return None


def _unmarked_candidates(data: bytes, *, html: bool) -> list[str]:
    candidates = ["utf-8"]
    if _decoded(data, "utf-8") is not None:
        return candidates
    declared = _META_CHARSET.search(data[:4096]) if html else None
    if declared:
        candidates.append(declared[1].decode("ascii"))
    candidates.extend(_guessed(data))
    return candidates


def _guessed(data: bytes) -> list[str]:
    sample = data[:_SAMPLE_BYTES]
    best = from_bytes(sample, cp_isolation=_ENCODINGS, threshold=_MAX_CHAOS, enable_fallback=False).best()
    num_high = sum(byte >= 0x80 for byte in sample)
    few_high = num_high <= 0.3 * len(sample)
    if best is None:
        return ["cp1252"] if few_high else []
    if best.coherence == 0.0 and few_high:
        return ["cp1252", best.encoding]
    return [best.encoding]


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
    # Only the mark is taken off; "utf-8-sig" and the like would also hide which offset 0 is meant.
    return text[1:] if text.startswith("\ufeff") else text
