"""Where a quotation may begin and end: the borders of words, by character. No torch.

A word is a run of letters, digits, marks and underscores, with what joins such runs into one
name or amount: ``A-1234.5/x``, ``foo_bar``, ``12,345.67``, ``$1,234.50``, ``me@x.org``,
``2024-01-02``, ``50%``. Punctuation that ends a sentence is not part of the word before it.
Scripts written without spaces have a border at every character.
"""

import unicodedata
from collections.abc import Iterator

JOINERS = frozenset("-./@'\u2019:&+\\#~=\u2013\u2011\u00b0$\u20ac\u00a3")
PREFIXES = frozenset("$\u20ac\u00a3\u00a5\u20b9#@\u00a7")
SIGNS = frozenset("-+\u2212\u00b1")
SUFFIXES = frozenset("%\u2030\u00b0\u20ac$\u00a3\u00a5+#")
OPENING = frozenset("([{\"'\u201c\u201e\u2018\u201a\u00ab\u00bf\u00a1")
CLOSING = frozenset(".!?\u2026)]}\"'\u201d\u2019\u00bb\u3002")
GLUE = frozenset("\u200d\u200c\ufe0e\ufe0f")


class WordBorders:
    """The positions of ``text`` at which a quotation may begin or end.

    It begins at a word, or at opening punctuation directly before one; it ends after a word, or
    after closing punctuation directly behind one. ``starts`` and ``ends`` [len(text) + 1].
    """

    def __init__(self, text: str) -> None:
        self.starts = bytearray(len(text) + 1)
        self.ends = bytearray(len(text) + 1)
        found = list(words(text))
        ceilings = [*(start for start, _ in found[1:]), len(text)]
        for (start, end), ceiling in zip(found, ceilings, strict=False):
            self.starts[start] = self.ends[end] = 1
            while start > 0 and text[start - 1] in OPENING:
                start -= 1
                self.starts[start] = 1
            while end < ceiling and text[end] in CLOSING:
                end = _after_marks(text, end + 1)
                self.ends[end] = 1


def words(text: str) -> Iterator[tuple[int, int]]:
    """Half-open ranges of the words of ``text``, in order, not overlapping."""
    place = 0
    while place < len(text):
        start = place
        if not _is_core(text[place]):
            place = _after_prefix(text, place)
            if place == start:
                place += 1
                continue
        if _stands_alone(text[place]):
            place = _after_marks(text, place + 1)
            yield start, place
            continue
        place = _after_joined_runs(text, place)
        while place < len(text) and text[place] in SUFFIXES:
            place += 1
        place = _after_marks(text, place)
        yield start, place


def _after_prefix(text: str, place: int) -> int:
    """Place of the word's first letter or digit when a sign or currency stands before it, else ``place``."""
    end = place
    while end < len(text) and end - place < 3 and (text[end] in PREFIXES or text[end] in SIGNS):
        end += 1
    if text[end : end + 1] == "." and text[end + 1 : end + 2].isdigit():
        return end + 1
    if end == place or end == len(text) or not _is_core(text[end]) or _stands_alone(text[end]):
        return place
    if not text[end].isdigit() and any(character in SIGNS for character in text[place:end]):
        return place
    return end


def _after_joined_runs(text: str, place: int) -> int:
    place = _after_run(text, place)
    while place < len(text):
        if text.startswith("://", place):
            after = place + 3
        elif text[place] in JOINERS or (text[place] == "," and text[place - 1].isdigit()):
            after = place + 1
            if text[place] == "," and not text[after : after + 1].isdigit():
                return place
        else:
            return place
        if after >= len(text) or not _is_core(text[after]) or _stands_alone(text[after]):
            return place
        place = _after_run(text, after)
    return place


def _after_run(text: str, place: int) -> int:
    while place < len(text) and _is_core(text[place]) and not _stands_alone(text[place]):
        place = _after_marks(text, place + 1)
    return place


def _after_marks(text: str, place: int) -> int:
    while place < len(text) and _belongs_to_previous(text[place]):
        place += 1
    return place


def _is_core(character: str) -> bool:
    return character.isalnum() or character == "_"


def _belongs_to_previous(character: str) -> bool:
    """Whether the character is a mark or joiner, never to be cut from the one before it."""
    return character in GLUE or (not character.isascii() and unicodedata.category(character)[0] == "M")


def _stands_alone(character: str) -> bool:
    """Whether the script has no spaces between words: Han, kana, Thai, Lao, Khmer, Myanmar."""
    code = ord(character)
    return code >= 0x0E00 and (
        0x4E00 <= code <= 0x9FFF
        or 0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x3FFFF
        or code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )
