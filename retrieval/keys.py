"""Keys: the forms under which an exact thing is stored, and those a question may ask for it by."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from retrieval.amounts import AMOUNT_FORMS, amount_forms
from retrieval.contacts import EMAIL, PHONE, URL, address_end, contact_forms
from retrieval.dates import DATE_FORMS, iso_dates
from retrieval.durations import COUNTED_DURATION, ISO_DURATION, SPELLED_DURATION, duration_forms
from retrieval.words import STOP_WORDS

MAX_KEY_CHARACTERS = 200


class KeyShape(Enum):
    """What a piece of a question looks like: who quotes or writes a code means exactly that, a year may stand anywhere.

    VALUE is a date, a duration, an amount, a year or a plain number of up to four digits.
    """

    QUOTED = "quoted"
    ADDRESS = "address"
    CODE = "code"
    VALUE = "value"
    PHRASE = "phrase"


@dataclass(frozen=True, slots=True)
class QueryKey:
    """A piece of a question that may be a key: as written, and ``folded`` as ``fold`` gives it."""

    raw: str
    folded: tuple[str, ...]
    shape: KeyShape = KeyShape.PHRASE


_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_QUOTES = {ord("’"): "'", ord("‘"): "'", ord("“"): '"', ord("”"): '"', ord("\u00ad"): None, ord("\u200b"): None}
_PLAIN = {**_DASHES, **_QUOTES}
_EDGES = " \t\r\n.,;:!?\"'“”‘’«»()[]{}<>*_`|#-"
_EDGES_BUT_DASH = _EDGES.replace("-", "")
_BLANKS = re.compile(r"\s+")
_SEPARATORS = re.compile(r"[^\w.]|_")
_CODE_LIKE = re.compile(r"(?<![a-z][a-z])[a-z]\d")
_AREA_OR_VOLUME = re.compile(r"[-+\d][\d.,' ]*[^\d/]*/?[ckm]?m[23](?:/\w+)?")


def fold(raw: str) -> tuple[str, ...]:
    """Return the forms of ``raw``, most exact first, without repetition; () if nothing of it is a letter or digit.

    1. as written; 2. without regard to case, width, kind of dash and quote, and edges; then for a date its ISO
    forms, for a duration, an amount, a telephone number
    or an address its canonical forms, for anything else the form without separators but dots,
    and, where there are letters, without dots too. Two things are the same key, the more exactly the earlier the
    form they share: ``INV-2024-000123`` and ``inv2024 000123`` share the third.
    """
    written = _BLANKS.sub(" ", raw).strip()[:MAX_KEY_CHARACTERS]
    plain = written if written.isascii() else unicodedata.normalize("NFKC", written).translate(_PLAIN)
    plain = _BLANKS.sub(" ", plain.casefold()).strip(_EDGES_BUT_DASH)
    bare = plain.strip(_EDGES)
    dotted = _SEPARATORS.sub("", bare)
    without_dots = dotted.replace(".", "")
    if not without_dots:
        return ()
    forms = [written, plain, bare]
    contact, is_alone = contact_forms(bare if "(" not in plain and "+" not in plain else plain)
    forms.extend(contact)
    # A letter right before a digit stands in no date or amount: most codes are spared the forms of both.
    typed: tuple[str, ...] = ()
    if not is_alone and (not _CODE_LIKE.search(bare) or _AREA_OR_VOLUME.fullmatch(bare)):
        typed = iso_dates(bare) or duration_forms(bare) or amount_forms(plain) or amount_forms(bare)
    elif not is_alone and (bare[0] == "p" or "h" in bare or "m" in bare):
        typed = duration_forms(bare)  # P1Y6M, 2h30m
    if is_alone:
        pass  # An address without its signs is another's.
    elif typed:
        forms.extend(typed)
    elif without_dots.isdigit():
        forms.append(dotted)
    else:
        forms += [dotted, without_dots]
    return tuple(dict.fromkeys(forms))


_QUOTED = re.compile(r"[\"“«`]([^\"“”«»`\n]{2,120})[\"”»`]|(?<!\w)['‘]([^'‘’\n]{2,120})['’](?!\w)")
_TOKEN = re.compile(r"[^\s,;!?\"“”«»()\[\]{}<>|]+")
_WORD = re.compile(r"[^\W_][\w'’.&/#%-]*")
_POSSESSIVE = re.compile(r"['’]s$")
# Years and their spans, decades, ordinals.
_PLAIN_NUMBER = re.compile(r"\d{1,4}(?:st|nd|rd|th|s|['’]s)?|[12]\d{3}[-/]\d{2,4}", re.IGNORECASE)
# "US 2010", "2018 2019", "$5 000": words, years or the thousands of an amount side by side, not the pieces of one code.
_NO_CODE = re.compile(r"(?:[A-Z]+|[12]\d{3})(?: [12]\d{3})+|\D?\d{1,3}(?: \d{3})+")
_NAMED = re.compile(
    r"(?:(?:what|who)(?:'s|’s|\s+is|\s+was|\s+are|\s+were)|give me|tell me|show me|find|state|name)\s+"
    r"(?:the|its|their|his|her|our|my)\s+"
    r"([^\W\d_][\w-]{2,40})(?=\s*(?:\?|$|of\b|for\b|in\b|on\b|here\b))",
    re.IGNORECASE,
)
_MAX_PHRASE_WORDS = 5
_MAX_SPREAD_WORDS = 9
_MAX_QUESTION_CHARACTERS = 4000


def pin_keys(text: str, key: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a pin of ``text`` is found by: its ``key`` and its own text, most exact first; and, without a key, the
    phrases of two to five words of its first 200 characters that a question may use."""
    own = dict.fromkeys([*(fold(key) if key is not None else ()), *fold(text)])
    phrases: list[str] = []
    if key is None:
        for phrase in _phrases(unicodedata.normalize("NFKC", text[:MAX_KEY_CHARACTERS]).translate(_DASHES)):
            phrases += fold(phrase)
    return tuple(own), tuple(phrase for phrase in dict.fromkeys(phrases) if phrase not in own)


def query_keys(question: str) -> tuple[QueryKey, ...]:
    """Return what in ``question`` may be a key, likeliest first: quoted text, codes, dates, amounts, phrases.

    Codes written in parts (``INV 2024 000123``) are also given as one. Phrases, for ``key: value`` lines, are two
    to five neighbouring words that begin and end with a content word; a single word is a phrase only where the question
    names it (``what is the deadline?``, ``who is the Supplier?``). Only the first 4000 characters of a question are
    looked at.
    """
    question = unicodedata.normalize("NFKC", question[:_MAX_QUESTION_CHARACTERS]).translate(_DASHES)
    keys: dict[tuple[str, ...], QueryKey] = {}
    for raw, shape in _candidates(question):
        folded = fold(raw)
        if folded and folded not in keys:
            keys[folded] = QueryKey(raw, folded, shape)
    return tuple(keys.values())


def _candidates(question: str) -> Iterator[tuple[str, KeyShape]]:
    for match in _QUOTED.finditer(question):
        yield match[1] or match[2], KeyShape.QUOTED
    for match in URL.finditer(question):
        yield match[0][: address_end(match[0])], KeyShape.ADDRESS
    for shape, forms in (
        (KeyShape.ADDRESS, (EMAIL, PHONE)),
        (KeyShape.VALUE, (*DATE_FORMS, SPELLED_DURATION, COUNTED_DURATION, ISO_DURATION, *AMOUNT_FORMS)),
    ):
        for form in forms:
            for match in form.finditer(question):
                yield match[0], shape
    tokens = [token.strip(".:'’") for token in _TOKEN.findall(question)]
    for token in tokens:
        if _is_code(token):
            yield _POSSESSIVE.sub("", token), KeyShape.VALUE if _PLAIN_NUMBER.fullmatch(token) else KeyShape.CODE
    for run in _split_codes(tokens):
        yield run, KeyShape.PHRASE if _NO_CODE.fullmatch(run) else KeyShape.CODE
    for match in _NAMED.finditer(question):
        yield match[1], KeyShape.PHRASE
    for phrase in _phrases(question):
        yield phrase, KeyShape.PHRASE


def _is_code(token: str) -> bool:
    num_digits = sum(char.isdigit() for char in token)
    if num_digits == 0:
        return len(token) > 3 and re.fullmatch(r"[A-Z]+(?:[-_/][A-Z]+)+", token) is not None
    return len(token) >= 4 or (len(token) == 3 and num_digits < 3)


def _split_codes(tokens: list[str]) -> Iterator[str]:
    """Runs of two to six pieces of which all but the first have a digit, and the same with a capital letter after."""
    for first in range(len(tokens)):
        starts = tokens[first].isupper() or any(char.isdigit() for char in tokens[first])
        if not starts or len(tokens[first]) > 12:
            continue
        last = first + 1
        while last < len(tokens) and last - first < 6 and any(char.isdigit() for char in tokens[last]):
            last += 1
            yield " ".join(tokens[first:last])
        if last < len(tokens) and len(tokens[last]) == 1 and tokens[last].isupper():
            yield " ".join(tokens[first : last + 1])


def _phrases(question: str) -> Iterator[str]:
    words = [_POSSESSIVE.sub("", word.rstrip(".'’-/")) for word in _WORD.findall(question)]
    is_edge = [word.casefold() not in STOP_WORDS for word in words]
    for length in range(min(_MAX_PHRASE_WORDS, len(words)), 1, -1):
        for first in range(len(words) - length + 1):
            if is_edge[first] and is_edge[first + length - 1]:
                yield " ".join(words[first : first + length])
    yield from _dense_phrases(words, is_edge)


def _dense_phrases(words: list[str], is_content: list[bool]) -> Iterator[str]:
    """``price brass valve`` for ``price of the brass valve``: cells and duties stand under words without small ones
    between."""
    for first in range(len(words)):
        if not is_content[first]:
            continue
        chosen = [first]
        skipped = False
        for place in range(first + 1, min(len(words), first + _MAX_SPREAD_WORDS)):
            if not is_content[place]:
                skipped = True
                continue
            chosen.append(place)
            if len(chosen) > _MAX_PHRASE_WORDS:
                break
            if skipped:
                yield " ".join(words[each] for each in chosen)
