"""Where people and things are reached: e-mail addresses, web addresses, telephone numbers; and what they fold to."""

import re

EMAIL = re.compile(
    r"(?<![\w.+-])[\w](?:[\w.+'-]{0,62}[\w+])?@[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.[^\W_](?:[\w-]{0,61}[^\W_])?){1,5}"
)
URL = re.compile(r"(?:(?:https?|ftp|sftp|ssh|git|s3)://|www\.)[^\s<>\"'`|\\^{}\[\]，。；”»]{2,400}")
# Groups of digits; those in brackets are whole.
PHONE = re.compile(
    r"(?<![\w+.,/)-])(?:\+?\d{1,5}+(?:\(\d{1,5}\)\d{0,8}+)?|\(\+?\d{1,5}\)\d{0,8}+)"
    r"(?:[ ./-]{1,2}(?:\(\d{1,5}\)\d{0,8}+|\d{1,8}+)){1,6}+(?![\w-])"
    r"|(?<![\w+])\+\d{7,15}(?![\w-])"
)
EMAIL_ANCHOR = re.compile("@")
URL_ANCHOR = re.compile(r"://|www\.")

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]{1,10}://)?(?:www\.)?", re.IGNORECASE)
_HOST_AND_PATH = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,6}[a-z]{2,24}(?::\d{1,5})?/\S{0,400}")
_INTERNATIONAL = re.compile(r"(?:\+|00)\d[\d\s()./-]{5,25}")
_GROUPED_BY_DOTS = re.compile(r"\d{2,5}(?:\.\d{2,4}){1,3}\.\d{4}|\(\d{2,5}\)[ .-]?\d{2,4}(?:[ .-]\d{2,5}){0,3}")
_TRUNK_PREFIX = re.compile(r"\(0\)")
_NOT_DIGITS = re.compile(r"\D+")
# Balanced ones belong to the address, as in an encyclopaedia's.
_CLOSING = {")": "(", "]": "["}


def contact_forms(raw: str) -> tuple[tuple[str, ...], bool]:
    """The canonical forms of ``raw``, in lower case, and whether there are no others; ((), False) if it is no contact.

    E-mail addresses are themselves; web addresses lose scheme, ``www.`` and the last slash; telephone numbers are
    ``+`` and their digits, then the digits as dialled inside the country.
    """
    if "@" in raw:
        address = raw.removeprefix("mailto:")
        return ((address,), True) if EMAIL.fullmatch(address) else ((), False)
    if "/" in raw or raw.startswith("www."):
        scheme = _SCHEME.match(raw)
        rest = raw[scheme.end() :] if scheme else raw
        if rest != raw and "." in rest:
            return ((rest.rstrip("/"),), True)
        return ((raw.rstrip("/"),), False) if _HOST_AND_PATH.fullmatch(raw) else ((), False)
    if _INTERNATIONAL.fullmatch(raw):
        return phone_forms(raw), False
    return ((_NOT_DIGITS.sub("", raw),), False) if _GROUPED_BY_DOTS.fullmatch(raw) else ((), False)


def phone_forms(raw: str) -> tuple[str, ...]:
    """``+4930123456`` and ``030123456`` for a possible international number; () for what cannot be dialled."""
    digits = international_digits(raw)
    country = country_code(digits)
    if country is None:
        return ()
    national = digits[len(country) :].lstrip("0") or digits[len(country) :]
    return (f"+{country}{national}", f"0{national}", national)


def country_code(digits: str) -> str | None:
    """The country's calling code that an international number begins with (ITU E.164); None if none does."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    return next((digits[:n] for n in (1, 2, 3) if int(digits[:n] or "0") in COUNTRY_CODE_TO_REGION_CODE), None)


def address_end(found: str) -> int:
    """Where a web address ends in ``found``: before the stops and the unpaired brackets of the sentence around it."""
    end = len(found)
    while end:
        last = found[end - 1]
        if last in ".,;:!?-" or (last in _CLOSING and found.count(last, 0, end) > found.count(_CLOSING[last], 0, end)):
            end -= 1
        else:
            break
    return end


def international_digits(raw: str) -> str:
    """The digits from the country's code on, without the trunk prefix ``(0)``."""
    digits = _NOT_DIGITS.sub("", _TRUNK_PREFIX.sub("", raw))
    return digits if raw.lstrip().startswith("+") else digits.removeprefix("00")
