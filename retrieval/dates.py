"""Dates as people write them: where they stand, and their ISO form."""

import re
from datetime import date

_MONTH_NAMES = (
    "january jan januar janvier enero gennaio janeiro",
    "february feb februar février febrero febbraio fevereiro",
    "march mar märz mars marzo março",
    "april apr avril abril aprile",
    "may mai mayo maggio maio",
    "june jun juni juin junio giugno junho",
    "july jul juli juillet julio luglio julho",
    "august aug août agosto",
    "september sept sep septembre septiembre settembre setembro",
    "october oct oktober okt octobre octubre ottobre outubro",
    "november nov novembre noviembre novembro",
    "december dec dezember dez décembre diciembre dicembre dezembro",
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES, start=1) for name in names.split()}
# Spelled out in three cases: without the flag for it, the search jumps to letters that can begin a month.
_SPELLINGS = {spelling for name in _MONTHS for spelling in (name, name.capitalize(), name.upper())}
_MONTH = "(?:" + "|".join(sorted(_SPELLINGS, key=lambda name: (-len(name), name))) + r")\b\.?"
_MAX_DATE_CHARACTERS = 40
_DIGIT = re.compile(r"\d")
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_YEAR = r"(?:1\d|20|21)\d\d"
_BEFORE = r"(?<![\w./-])"
_AFTER = r"(?![\w/]|[-.]\w)"
_OF = r"\s{1,3}(?:(?:of|de)\s{1,3})?"

# Each form names its groups y, m (number or name), d; `a` and `b` stand where the order cannot be known.
DATE_FORMS = (
    re.compile(rf"{_BEFORE}(?P<y>{_YEAR})(?P<s>[-/.])(?P<m>0?[1-9]|1[0-2])(?P=s)(?P<d>{_DAY})(?=T\d\d|{_AFTER})"),
    re.compile(
        rf"{_BEFORE}(?P<d>{_DAY})(?:st|nd|rd|th|\.|er)?(?:-|{_OF})(?P<m>{_MONTH})"
        rf"(?:(?:,?\s{{1,3}}|-|{_OF})(?P<y>{_YEAR}))?{_AFTER}"
    ),
    re.compile(
        rf"(?P<m>{_MONTH})(?:\s{{1,3}}(?P<d>{_DAY})(?:st|nd|rd|th)?(?:(?:\s?,\s{{0,3}}|\s{{1,3}})(?P<y>{_YEAR}))?{_AFTER}|"
        rf"(?:,?\s{{1,3}}|-)(?:of\s)?(?P<y2>{_YEAR}){_AFTER})"
    ),
    re.compile(rf"{_BEFORE}(?P<a>\d\d?)(?P<s>[./-])(?P<b>\d\d?)(?P=s)(?P<y>{_YEAR}){_AFTER}"),
    re.compile(rf"{_BEFORE}(?P<y>{_YEAR})-(?P<m>{_MONTH})-(?P<d>{_DAY}){_AFTER}"),
    re.compile(rf"(?P<y>{_YEAR})\s?年\s?(?P<m>1[0-2]|0?[1-9])\s?月\s?(?P<d>{_DAY})\s?日"),
)


def iso_dates(raw: str) -> tuple[str, ...]:
    """The ISO forms that ``raw``, a date and nothing else, may stand for; () if it is none.

    ``2024-03-05`` with day, month and year; ``2024-03`` without a day; ``--03-05`` without a year (ISO 8601:2000).
    05/03/2024 may be both 2024-03-05 and 2024-05-03, the day first standing first.
    """
    if len(raw) > _MAX_DATE_CHARACTERS or _DIGIT.search(raw) is None:
        return ()
    for form in DATE_FORMS:
        match = form.fullmatch(raw)
        if match is not None:
            return tuple(dict.fromkeys(_readings(match.groupdict())))
    return ()


def _readings(groups: dict[str, str | None]) -> list[str]:
    year = groups.get("y") or groups.get("y2")
    first, second = groups.get("a"), groups.get("b")
    if first and second and year:
        orders = ((int(second), int(first)), (int(first), int(second)))
        return [iso for month, day in orders if (iso := _iso(int(year), month, day))]
    name = groups.get("m") or ""
    month = int(name) if name.isdigit() else _MONTHS[name.rstrip(".").casefold()]
    day = groups.get("d")
    if year and day:
        iso = _iso(int(year), month, int(day))
        return [iso] if iso else []
    if year:
        return [f"{year}-{month:02d}"]
    return [f"--{month:02d}-{int(day or 0):02d}"]


def _iso(year: int, month: int, day: int) -> str | None:
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return None
