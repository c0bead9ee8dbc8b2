"""Words of any language as index terms: folded, identifiers whole beside their parts, no stop words in questions."""

import re
import unicodedata

MAX_WORD_CHARACTERS = 200

# Scripts that write vowels as marks, which are no "letters": the whole block counts as part of a word.
_MARKED = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
# Scripts without spaces between words. Thai, Lao, Burmese, Khmer; kana and Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PART = rf"(?:[^\W_]|[{_MARKED}{_UNSPACED}])+"
_WORD = re.compile(rf"{_PART}(?:[-._/:@+#&'’]{_PART})*")
_PARTS = re.compile(_PART)
# The same for text that is ASCII and in small letters, three times as fast.
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:[-._/:@+#&'][a-z0-9]+)*")
_JOINED = re.compile(r"[-._/:@+#&'](?<=[a-z0-9].)(?=[a-z0-9])")
_RUN = re.compile(f"[{_UNSPACED}]+")
_POSSESSIVE = re.compile("['’]s$")

# What English questions are made of, besides what they ask for.
STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being between both but by can could did do
    does doing done during each for from further had has have having he her here hers him his how i if in into is it
    its itself just like many may me might more most much must my no nor not of off on once only or other our out over
    own same shall she should so some such than that the their theirs them then there these they this those through
    to too under until up upon very was we were what when where which while who whom whose why will with would you
    your yours s t
    """.split()
)


def words(text: str) -> list[str]:
    """The words of ``text`` in order, without regard to case and compatibility forms.

    A word joined by signs (an identifier, a file name, an address) comes whole and then in parts. Runs of scripts
    that put no spaces between words come as pairs of neighbouring characters.
    """
    found: list[str] = []
    if text.isascii():
        text = text.lower()
        matches = _ASCII_WORD.findall(text)
        # Most sentences have no joined word, and none as long as a word may be.
        if len(text) <= MAX_WORD_CHARACTERS and _JOINED.search(text) is None:
            return matches
    else:
        matches = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    for word in matches:
        if word.isalnum() and word.isascii():
            found.append(word[:MAX_WORD_CHARACTERS])
            continue
        word = _POSSESSIVE.sub("", word)
        parts = _PARTS.findall(word)
        if len(parts) > 1:
            found.append(word[:MAX_WORD_CHARACTERS])
        for part in parts:
            run = None if part.isascii() else _RUN.search(part)
            if run is None:
                found.append(part[:MAX_WORD_CHARACTERS])
            else:
                found.extend(_pairs(part))
    return found


def content_words(question: str) -> list[str]:
    """The words of a question that say what it is about; all of them when there are no others."""
    every = words(question)
    return [word for word in every if word not in STOP_WORDS] or every


def fold_accents(word: str) -> str:
    """The word without accents, so that it is found however it was typed."""
    if word.isascii():
        return word
    return "".join(sign for sign in unicodedata.normalize("NFKD", word) if not unicodedata.combining(sign)) or word


def _pairs(part: str) -> list[str]:
    pairs: list[str] = []
    end = 0
    for run in _RUN.finditer(part):
        if run.start() > end:
            pairs.append(part[end : run.start()])
        signs = run.group()
        pairs += [signs[at : at + 2] for at in range(max(len(signs) - 1, 1))]
        end = run.end()
    if end < len(part):
        pairs.append(part[end:])
    return pairs
