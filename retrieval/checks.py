"""How sure it is that a match is what its pattern is for: checksums and shapes. None refuses the match."""

import ipaddress
import re

from retrieval.dates import iso_dates
from retrieval.durations import duration_forms
from retrieval.passage import Span

_ORDINAL_OR_AGE = re.compile(
    r"\d{1,4}(?:st|nd|rd|th|s|am|pm|[a-z]?)(?:-[a-zA-Z]+)*|\d{1,6}(?:[.,]\d+)*(?-i:-[a-z]{2,})+", re.IGNORECASE
)
_NUMBER = re.compile(r"\d{1,3}(?:[.,]\d{3})*(?:[.,]\d+)?|\d+[.,]\d+")
_YEARS_OR_TIME = re.compile(
    r"\d{4}[-/–]\d{2,4}|(?:\d{1,2}[:.]\d{2}(?::\d{2})?(?:am|pm)?-?){1,2}|\d{1,3}-\d{1,3}|"
    r"\d{1,3}:\d{1,3}(?:-\d{1,3})?",
    re.IGNORECASE,
)
# What is joined of a word and a small number: deaths/1 (,000), border:0, b.1937; and headings without a blank, 2.TERM.
_WORD_AND_NUMBER = re.compile(r"[A-Z]?[a-z]+[/:.]{1,2}[a-z]?\d{1,4}|\d{1,4}[/:][a-z]+|\d{1,3}\.[A-Z][A-Za-z]+")
# A number with its unit: 13.5m, 15-27m, 97.7FM, 50mSv/year; a version has two points or ends with a digit.
_NUMBER_WITH_UNIT = re.compile(
    r"\d{1,6}(?:[.,]\d+[A-Za-zµμ]{1,5}|-\d{1,3}[a-zµμ]{1,3}|[A-Za-zµμ]{1,5}(?=/))(?:/[a-zA-Z]{1,8})?"
)
# Neither are ordinals, times of day, powers of ten, and telephone numbers that touch what they are called.
_ORDINAL_OR_TIME = re.compile(
    r"(?:[a-z]+-)?\d{1,2}(?:st|nd|rd|th)|(?:\d{1,2}[:.]\d{2}(?:[ap]m)?-?){1,2}[ap]m|(?-i:[a-z]{1,3}/\d{1,4}[a-z]{1,3})|"
    r"\d+(?:\.\d+)?e[-+]?\d{1,3}|(?:tel|tele?phone|phone|fax|mobile|cell|ph)[:.].*",
    re.IGNORECASE,
)
_SPAN_OF_YEARS = re.compile(
    r"(?:(?:mid|early|late|pre|post|circa)-)?[12]\d{3}s?(?:[-/–](?:[12]\d)?\d{2}s?)?", re.IGNORECASE
)
# Ranges of signs side by side, as patterns have them: [a-zA-Z0-9].
_RANGES_OF_SIGNS = re.compile(r"(?:[aA]-[zZfF])(?:[aA]-[zZ]|0-9)|0-9[aA]-[zZfF]")
_THOUSANDS_AFTER = re.compile(r",\d{3}(?!\d)")
_THOUSANDS = re.compile(r"(?<=\d,)\d{3}(?!\d)")
_SHORT_SLICE = re.compile(r"::\w{1,3}|\w{1,3}::|:{1,3}\w{0,3}")
_ISBN_CUE = re.compile(r"ISBN[^\n]{0,24}\Z")
_CAPITALS_AROUND = re.compile(r"(?:\A|[^\w])[A-Z]{4,}(?:[^\w]|\Z)")
_SMALL_MONTH = re.compile(r"(?:may|mar|march|mars)\b")
_ORDINAL_SECOND = re.compile(r"[^\W\d]+ty[ -]second", re.IGNORECASE)
_DEGREES_BEFORE = re.compile(r"\d[ °]\Z")
_DECADE = re.compile(r"[1-9]?[1-9]0s")
_BEFORE_DECADE = re.compile(r"(?:\b(?:the|his|her|their|my|our|your|early|late|mid|in)[ -]|['’])\Z", re.IGNORECASE)
_FRACTION = re.compile(r"\d{1,2}/\d{1,3}")
_UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


def code_score(found: str) -> float | None:
    """Codes have a digit and a letter, or many digits."""
    num_digits = sum(char.isdigit() for char in found)
    if _UUID.fullmatch(found):
        return 0.99
    if _is_ipv4(found):
        return 0.95
    has_letter = any(char.isalpha() for char in found)
    if not has_letter:
        if _NUMBER.fullmatch(found) and not found.isdigit():
            return None
        if _YEARS_OR_TIME.fullmatch(found) or _FRACTION.fullmatch(found):
            return None
        return 0.6 if num_digits >= 5 else None
    if len(found) < 4 or _ORDINAL_OR_AGE.fullmatch(found) or _WORD_AND_NUMBER.fullmatch(found):
        return None
    if _NUMBER_WITH_UNIT.fullmatch(found) or _ORDINAL_OR_TIME.fullmatch(found) or "×" in found:
        return None
    if _SPAN_OF_YEARS.fullmatch(found) or _RANGES_OF_SIGNS.search(found):
        return None
    if ".." in found:
        return None
    return 0.85 if any(char in "-_./:" for char in found) and num_digits > 2 else 0.7


def amount_fits(text: str, span: Span) -> bool:
    """Degrees and minutes are a place: neither is the one an angle, nor the west watts."""
    if text[span.end - 1] == "°":
        return not text[span.end : span.end + 1].isdigit()
    if text[span.end - 2 : span.end] != " W":
        return True
    return _DEGREES_BEFORE.search(text, max(0, span.start - 4), span.start) is None


def code_fits(text: str, span: Span) -> bool:
    """No code begins or ends within a number that is grouped by commas."""
    return _THOUSANDS_AFTER.match(text, span.end) is None and _THOUSANDS.match(text, span.start) is None


def capitals_score(found: str) -> float | None:
    """Joined by hyphens, capitals are a code if they are short; words are set in capitals in titles."""
    if "_" in found:
        return 0.4
    return 0.4 if all(len(part) <= 4 for part in found.split("-")) else None


def capitals_fit(text: str, span: Span) -> bool:
    """In a line of capitals they are words."""
    if "_" in text[span.start : span.end]:
        return True
    low = max(0, span.start - 24)
    line = max(text.rfind("\n", low, span.start) + 1, low)
    end = text.find("\n", span.end, span.end + 24)
    after = text[span.end : end if end >= 0 else span.end + 24]
    return _CAPITALS_AROUND.search(text[line : span.start]) is None and _CAPITALS_AROUND.search(after) is None


def email_score(found: str) -> float | None:
    """The last part of the host's name is letters (RFC 3696): package@1.2.3 is a version."""
    top = found.rpartition(".")[2]
    return 0.95 if (top.isalpha() and len(top) > 1) or top.startswith("xn--") else None


def date_score(found: str) -> float | None:
    """It must be in the calendar; a small month without a year is a verb (he may 5 times, items 4 and 5 may)."""
    readings = iso_dates(found)
    if not readings or (readings[0].startswith("--") and (found[0].islower() or _SMALL_MONTH.search(found))):
        return None
    if len(readings[0]) == len("2024-03") and _SMALL_MONTH.match(found):
        return None
    return 0.9


def duration_score(found: str) -> float | None:
    """It must be a number and its unit; ``one day`` is mostly some day, the twenty-second an ordinal."""
    if not duration_forms(found) or found.casefold() in ("one day", "one night"):
        return None
    return None if _ORDINAL_SECOND.fullmatch(found) else 0.82


def duration_fits(text: str, span: Span) -> bool:
    """The 80s are no seconds."""
    if not 3 <= len(span) <= 4 or _DECADE.fullmatch(text, span.start, span.end) is None:
        return True
    return _BEFORE_DECADE.search(text, max(0, span.start - 6), span.start) is None


def isbn_score(found: str) -> float | None:
    """The check digit of ISBN-10 or ISBN-13 must be right."""
    digits = found.replace("-", "").replace(" ", "").upper()
    if len(digits) == 10:
        total = sum((10 - place) * (10 if char == "X" else int(char)) for place, char in enumerate(digits))
        return 0.95 if total % 11 == 0 else None
    if len(digits) == 13 and digits.isdigit():
        total = sum(int(char) * (3 if place % 2 else 1) for place, char in enumerate(digits))
        return 0.95 if total % 10 == 0 else None
    return None


def isbn_fits(text: str, span: Span) -> bool:
    """One in eleven numbers of ten digits has the right check digit by chance: those must be called ISBN."""
    written = text[span.start : span.end]
    if sum(char.isalnum() for char in written) == 13:
        return written.startswith(("978", "979"))
    return _ISBN_CUE.search(text, max(0, span.start - 32), span.start) is not None


def iban_score(found: str) -> float | None:
    """The check digits of ISO 13616 must be right."""
    account = found.replace(" ", "")
    if not 15 <= len(account) <= 34:
        return None
    moved = account[4:] + account[:4]
    return 0.99 if int("".join(str(int(char, 36)) for char in moved)) % 97 == 1 else None


def network_score(found: str) -> float | None:
    """An IPv6 address or network, or a MAC address; times of day are neither."""
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", found):
        return 0.95
    if (not any(char.isalpha() for char in found) and "::" not in found) or _SHORT_SLICE.fullmatch(found):
        return 0.95 if found == "::1" else None
    try:
        ipaddress.ip_network(found, strict=False)
    except ValueError:
        return None
    return 0.95


def _is_ipv4(found: str) -> bool:
    if found.count(".") != 3:
        return False
    try:
        ipaddress.IPv4Interface(found)
    except ValueError:
        return False
    return True
