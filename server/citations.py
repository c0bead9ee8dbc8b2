"""Which parts of an answer stand verbatim in which source: the citations of a reply.

They come from comparing the answer with the text that was in the prompt, never from marks the model
is hoped to make. Words are compared as they are; only the kind of white space between them may differ
(a source breaks its lines), so ``quote`` is always ``document[start:end]``.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval.passage import Passage

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
class Source:
    """A passage as it stands in the prompt, by its number there."""

    number: int
    passage: Passage


@dataclass(frozen=True, slots=True)
class Citation:
    """``quote == document[start:end]``, and it is ``answer[answer_start:answer_end]`` up to white space."""

    source: int
    document: str
    start: int
    end: int
    quote: str
    page: int | None
    answer_start: int
    answer_end: int


def cite(answer: str, sources: Sequence[Source]) -> list[Citation]:
    """The maximal matches between word borders, in the order of the answer, none overlapping another.

    A match counts when it has two content words, or a number, an identifier or a name. Among equally
    long matches the source of the best rank wins, and in it the first place.
    """
    words = _words(answer)
    texts = [_Text(source, _words(source.passage.text)) for source in sources]
    citations: list[Citation] = []
    place = 0
    while place < len(words):
        match = _longest(words, place, texts)
        if match is None or not _says_something(words[match.first : match.last + 1]):
            place += 1
            continue
        citations.append(_citation(words, match))
        place = match.last + 1
    return citations


@dataclass(frozen=True, slots=True)
class _Word:
    """A word, or one character of punctuation; whether white space stands before it; whether a quote may end at it."""

    text: str
    start: int
    end: int
    spaced: bool
    is_word: bool
    may_border: bool


class _Text:
    """A source's words, and where each of them stands."""

    def __init__(self, source: Source, words: list[_Word]) -> None:
        self.source = source
        self.words = words
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(words):
            self.places[word.text].append(place)


@dataclass(frozen=True, slots=True)
class _Match:
    """Words ``first..last`` of the answer equal those of ``text`` from ``at`` on."""

    text: _Text
    at: int
    first: int
    last: int


def _longest(words: Sequence[_Word], first: int, texts: Sequence[_Text]) -> _Match | None:
    """The longest match that begins with ``words[first]`` and neither begins nor ends with a comma or the like."""
    if not words[first].may_border:
        return None
    best: _Match | None = None
    for text in texts:
        for at in text.places.get(words[first].text, ()):
            last = first
            while _same(words, last + 1, text.words, at + last + 1 - first):
                last += 1
            while not words[last].may_border:
                last -= 1
            if best is None or last > best.last:
                best = _Match(text, at, first, last)
    return best


def _same(words: Sequence[_Word], place: int, others: Sequence[_Word], at: int) -> bool:
    if place >= len(words) or at >= len(others):
        return False
    return words[place].text == others[at].text and words[place].spaced == others[at].spaced


def _citation(words: Sequence[_Word], match: _Match) -> Citation:
    passage = match.text.source.passage
    start = match.text.words[match.at].start
    end = match.text.words[match.at + match.last - match.first].end
    return Citation(
        source=match.text.source.number,
        document=passage.document_id,
        start=passage.span.start + start,
        end=passage.span.start + end,
        quote=passage.text[start:end],
        page=passage.page,
        answer_start=words[match.first].start,
        answer_end=words[match.last].end,
    )


def _says_something(words: Sequence[_Word]) -> bool:
    """Two content words, or one that has a digit or a capital letter and is no function word."""
    content = [word.text for word in words if word.is_word and word.text.lower() not in FUNCTION_WORDS]
    if any(any(c.isdigit() for c in text) or (text[0].isupper() and len(text) > 1) for text in content):
        return True
    # In scripts without spaces every character is a word here, and about two make one.
    return sum(0.5 if _is_unspaced(text[0]) else 1 for text in content) >= 2


def _words(text: str) -> list[_Word]:
    return list(_scan(text))


def _scan(text: str) -> Iterator[_Word]:
    place, spaced = 0, False
    while place < len(text):
        if text[place].isspace():
            place, spaced = place + 1, True
            continue
        end = _word_end(text, place)
        is_word = _is_letter(text[place])
        yield _Word(text[place:end], place, end, spaced, is_word, is_word or _is_unit_sign(text[place]))
        place, spaced = end, False


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
