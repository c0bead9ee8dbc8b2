"""How sure it is that a match is what its pattern is for: checksums and shapes. None refuses the match."""

import ipaddress
import re

from retrieval.dates import iso_dates
from retrieval.durations import duration_forms

_ORDINAL_OR_AGE = re.compile(r"\d{1,4}(?:st|nd|rd|th|s|am|pm|[a-z]?)(?:-[a-zA-Z]+)*|\d{1,4}(?:-[a-z]+)+", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}(?:[.,]\d{3})*(?:[.,]\d+)?|\d+[.,]\d+")
_YEARS_OR_TIME = re.compile(r"\d{4}[-/–]\d{2,4}|\d{1,2}[:.]\d{2}(?::\d{2})?(?:am|pm)?|\d{1,3}-\d{1,3}", re.IGNORECASE)
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
    if len(found) < 4 or _ORDINAL_OR_AGE.fullmatch(found):
        return None
    return 0.85 if any(char in "-_./:" for char in found) and num_digits > 2 else 0.7


def date_score(found: str) -> float | None:
    """It must be in the calendar; a small month without a year is a verb (he may 5 times, march 12 miles)."""
    readings = iso_dates(found)
    if not readings or (readings[0].startswith("--") and found[0].islower()):
        return None
    return 0.9


def duration_score(found: str) -> float | None:
    """It must be a number and its unit; ``one day`` is mostly some day."""
    if not duration_forms(found) or found.casefold() in ("one day", "one night"):
        return None
    return 0.82


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
    if not any(char.isalpha() for char in found) and "::" not in found:
        return None
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
