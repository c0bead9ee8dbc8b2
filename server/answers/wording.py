"""A text as the words that quotes are compared by: where each stands, and which of them say something."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Joined to a word when they stand between two word characters: 12,345.67, A-1234.5/x, it's, a@b.org.
JOINERS = frozenset("-.,:/@_'’+#&·‑")

# Two of these side by side say nothing about where an answer came from.
FUNCTION_WORDS = frozenset(
    """a about after all also am an and any are as at be because been before being but by can could did do does for
    from had has have he her him his how i if in into is it its may me more most my no nor not of on one only or other
    our out over shall she should so some such than that the their them then there these they this those to under up
    us was we were what when where which while who whom whose will with would yes you your""".split()
)


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or one character of punctuation; whether white space stands before it; whether a quote may end at it."""

    text: str
    start: int
    end: int
    spaced: bool
    is_word: bool
    may_border: bool


def says_something(words: Sequence[Word]) -> bool:
    """Two content words, or one that has a digit or a capital letter and is no function word."""
    content = [word.text for word in words if word.is_word and word.text.lower() not in FUNCTION_WORDS]
    if any(any(c.isdigit() for c in text) or (text[0].isupper() and len(text) > 1) for text in content):
        return True
    # In scripts without spaces every character is a word here, and about two make one.
    return sum(0.5 if _is_unspaced(text[0]) else 1 for text in content) >= 2


class Wording:
    """The words of a text that arrives in pieces."""

    def __init__(self) -> None:
        self._text = ""
        self._place = 0
        self._spaced = False

    def add(self, text: str, is_last: bool = False) -> list[Word]:
        """The words that no further text can change, with ``text`` added; all that are left if it ``is_last``."""
        self._text += text
        found: list[Word] = []
        while self._place < len(self._text):
            start = self._place
            if self._text[start].isspace():
                self._place, self._spaced = start + 1, True
                continue
            end = _word_end(self._text, start)
            if not is_last and not _is_certain(self._text, end):
                break
            is_word = _is_letter(self._text[start])
            may_border = is_word or _is_unit_sign(self._text[start])
            found.append(Word(self._text[start:end], start, end, self._spaced, is_word, may_border))
            self._place, self._spaced = end, False
        return found


def words(text: str) -> list[Word]:
    """All words of a text."""
    return Wording().add(text, is_last=True)


def _is_certain(text: str, end: int) -> bool:
    """Whether a word that ends here will still do so when the text goes on: a joiner waits for what it joins."""
    return end < len(text) and (text[end] not in JOINERS or end + 1 < len(text))


def _word_end(text: str, start: int) -> int:
    """End of the word or the single character of punctuation at ``start``; marks stay with their letter."""
    end = start + 1
    if not _is_letter(text[start]) or _is_unspaced(text[start]):
        while end < len(text) and _is_mark(text[end]):
            end += 1
        return end
    while end < len(text):
        if (_is_letter(text[end]) and not _is_unspaced(text[end])) or _is_mark(text[end]):
            end += 1
        elif text[end] in JOINERS and end + 1 < len(text) and _is_letter(text[end + 1]):
            end += 2
        else:
            break
    return end


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def _is_unit_sign(character: str) -> bool:
    """Signs that belong to a number: currencies, per cent, degrees, paragraphs."""
    return character in "%‰°§" or unicodedata.category(character) == "Sc"


def _is_mark(character: str) -> bool:
    """Combining marks, and the joiner that emoji and some scripts put between two characters of one."""
    return character > "\u02ff" and (unicodedata.category(character)[0] == "M" or character in "\u200c\u200d")


def _is_unspaced(character: str) -> bool:
    """Kana, Chinese characters, Thai to Khmer: written without spaces between words."""
    return (
        "\u3040" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or "\uf900" <= character <= "\ufaff"
        or "\U00020000" <= character <= "\U0003ffff"
        or "\u0e00" <= character <= "\u0eff"
        or "\u1780" <= character <= "\u17ff"
    )
