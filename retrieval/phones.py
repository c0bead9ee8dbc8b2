"""Telephone numbers: digits in groups are many things, so a number must be one of its country or be called one.

The library phonenumbers knows the plans of all countries (ITU E.164 and national). What it cannot know is whether
digits in a text are meant to be dialled: a number without a country's code counts only where it is written as its
country writes it, or where a word like "telephone" stands before it.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from retrieval.contacts import PHONE, international_digits
from retrieval.hits import DIGITS, Hit, Survey
from retrieval.passage import FactKind, Span

_MIN_DIGITS = 6
_MAX_DIGITS = 15
_NORTH_AMERICAN = re.compile(r"(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}")
# Where a number dialled inside the country begins with 0 and has fixed groups.
_TRUNK_REGIONS = ("GB", "FR", "AU", "CH", "BE", "NL", "JP", "IT", "IE", "NZ", "ZA", "SE")
_YEARS = re.compile(r"(?:[12]\d{3}[ /.-]{1,2})+(?:[12]\d{3}|\d{2})")
_CHAPTERS = re.compile(r"\d{1,2}\.\d{1,2}[ /-]")
_GROUPS = re.compile(r"\d+")
_CALLED_SO = re.compile(
    r"\b(?:tel|tele?phones?|telefon|t[ée]l[ée]phone|t[ée]l[ée]fono|tel[ée]fax|phones?|fax|facsimile|mobile|cellphone|"
    r"hotline|help ?line|landline|toll[ -]free|pager|whatsapp)\b[^\n.!?;]{0,40}\Z"
    r"|\b(?:call(?! (?:up)?on\b)|dial|ring|text|cell)\b:?[^\n.!?;]{0,28}\Z|\b(?:tel|ph|mob|t[ée]l)\.[^\n!?;]{0,30}\Z",
    re.IGNORECASE,
)
_NEAR_CHARACTERS = 56


class PhoneRecogniser:
    """Telephone numbers, international and national."""

    name = "phone"
    kind = FactKind.IDENTIFIER

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits in reading order."""
        text = survey.text
        for window in survey.windows(DIGITS):
            for match in PHONE.finditer(text, window.start, window.end):
                score = _score(text, match[0], match.start())
                if score is not None:
                    yield Hit(Span(*match.span()), score)


def _score(text: str, found: str, start: int) -> float | None:
    num_digits = sum(char.isdigit() for char in found)
    if not _MIN_DIGITS <= num_digits <= _MAX_DIGITS or _YEARS.fullmatch(found):
        return None
    if found.startswith(("+", "(+", "00")):
        likely = _international(international_digits(found.replace("(+", "+")))
        if likely is not None:
            return likely
    elif num_digits >= 10:
        if _NORTH_AMERICAN.fullmatch(found) and _is_valid(found, "US"):
            return 0.65 if " " in found and "(" not in found else 0.8
        if found[0] == "0" or found[:2] == "(0":
            groups = tuple(_GROUPS.findall(found))
            if any(_national_groups(found, region) == groups for region in _TRUNK_REGIONS):
                return 0.65
    if found.startswith(("+", "(+")) or _CHAPTERS.match(found) or ("." in found and num_digits < 7):
        return None  # no such country; or the number of a chapter
    return 0.7 if _CALLED_SO.search(text, max(0, start - _NEAR_CHARACTERS), start) else None


@lru_cache(maxsize=4096)
def _international(digits: str) -> float | None:
    from phonenumbers import NumberParseException, is_possible_number, is_valid_number, parse

    try:
        number = parse("+" + digits)
    except NumberParseException:
        return None
    if is_valid_number(number):
        return 0.9
    return 0.7 if is_possible_number(number) else None


@lru_cache(maxsize=4096)
def _is_valid(found: str, region: str) -> bool:
    from phonenumbers import NumberParseException, is_valid_number, parse

    try:
        return bool(is_valid_number(parse(found, region)))
    except NumberParseException:
        return False


@lru_cache(maxsize=4096)
def _national_groups(found: str, region: str) -> tuple[str, ...]:
    """The groups of digits in which the country writes this number; () if it has no such number."""
    from phonenumbers import NumberParseException, PhoneNumberFormat, format_number, is_valid_number, parse

    try:
        number = parse(found, region)
    except NumberParseException:
        return ()
    if not is_valid_number(number):
        return ()
    return tuple(_GROUPS.findall(format_number(number, PhoneNumberFormat.NATIONAL)))
