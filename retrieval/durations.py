"""Durations as people write them: ``30 days``, ``thirty (30) days``, ``2h 30m``, ``P3M``; and what they fold to."""

import re
from decimal import Decimal

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: number for number, word in enumerate(_SMALL)} | {
    word: 20 + 10 * number for number, word in enumerate(_TENS)
}
_POWERS = {"hundred": 100, "thousand": 1000}

_UNITS = {
    "nanosecond": "ns",
    # The sign of micro and the letter that it folds to.
    "microsecond": "µs μs",
    "millisecond": "ms",
    "second": "sec secs s",
    "minute": "min mins",
    "hour": "hr hrs h",
    "day": "",
    "night": "",
    "week": "",
    "fortnight": "",
    "month": "",
    "year": "yr yrs",
    "decade": "",
    "century": "",
}
_CENTURIES = "centuries"
_FULL_NAMES = {spelling: unit for unit in _UNITS for spelling in (unit, unit + "s", unit + "s'", unit + "s’")}
_FULL_NAMES[_CENTURIES] = "century"
_UNIT_OF = _FULL_NAMES | {short: unit for unit, names in _UNITS.items() for short in names.split()}
# Counted in another way than the clock does: thirty business days are not thirty days. Calendar days are.
_WAYS = "business|working|banking|trading|calendar|consecutive"
_SAME_WAYS = ("calendar", "consecutive")

MAX_DURATION_CHARACTERS = 100


def _in_three_cases(words: list[str]) -> str:
    """Spelled out, for a search without regard to case is several times slower."""
    return "|".join(sorted({s for w in words for s in (w, w.capitalize(), w.upper())}, key=lambda s: (-len(s), s)))


_NUMBER_WORD = f"(?:{_in_three_cases([*_SMALL, *_TENS, *_POWERS])})"
_BLANK = r"(?:[ \u00a0\u202f]|\r?\n)"
_JOINED = rf"(?:{_BLANK}|-)"
_UNIT = rf"(?:{_in_three_cases([*_UNITS, _CENTURIES])})(?:[sS]['’]?)?"
_SHORT_UNIT = "(?:" + "|".join(sorted((s for names in _UNITS.values() for s in names.split()), key=len)[::-1]) + ")"
_END = r"(?![\w]|-old)"
_WAY = rf"(?:(?P<way>{_WAYS}){_BLANK})?"
_DIGITS = r"\d{1,12}(?:,\d{3})*(?:\.\d{1,6})?"
_SPELLED = rf"{_NUMBER_WORD}(?:{_JOINED}(?:and{_BLANK})?{_NUMBER_WORD}){{0,6}}"

SPELLED_DURATION = re.compile(
    rf"(?<![\w-])(?P<words>{_SPELLED})(?:{_BLANK}?\({_BLANK}?(?P<digits>{_DIGITS}){_BLANK}?\))?"
    rf"{_JOINED}{_WAY}(?P<unit>{_UNIT}){_END}"
)
COUNTED_DURATION = re.compile(
    rf"(?<![\w.,$€£-])(?P<digits>{_DIGITS})(?:(?<!\d{{4}}){_JOINED}?(?P<short>{_SHORT_UNIT})|{_JOINED}?{_WAY}(?P<unit>{_UNIT})){_END}"
)
ISO_DURATION = re.compile(
    r"(?<![\w-])P(?=\d|T\d)(?P<year>\d{1,4}Y)?(?P<month>\d{1,4}M)?(?P<week>\d{1,4}W)?(?P<day>\d{1,5}D)?"
    r"(?:T(?P<hour>\d{1,5}H)?(?P<minute>\d{1,5}M)?(?P<second>\d{1,6}(?:\.\d{1,6})?S)?)?(?![\w])"
)
# Parts by their letters, the largest first: here an m is no metre.
LETTERED_DURATION = re.compile(
    r"(?<![\w.,:-])(?:(?P<hour>\d{1,4}) ?h ?(?P<minute>\d{1,2})(?: ?m(?:in)?(?: ?(?P<second>\d{1,2}) ?s(?:ec)?)?)?|"
    r"(?P<only_minute>\d{1,4}) ?m(?:in)? ?(?P<after>\d{1,2}) ?s(?:ec)?)(?!\w)"
)
# What a spelled duration has in it, and little else has: only its surroundings are searched.
UNIT_NAME = re.compile(rf"(?:{_in_three_cases([unit for unit in _UNITS if not unit.endswith('osecond')])}|centur)")
_FORMS = (SPELLED_DURATION, COUNTED_DURATION)
_BETWEEN = re.compile(rf"(?:,?{_BLANK}and{_BLANK}|,{_BLANK}|{_BLANK})")


def duration_forms(raw: str) -> tuple[str, ...]:
    """The canonical forms of ``raw``, a duration and nothing else, most exact first; () if it is none.

    ``thirty (30) days``: ``30 day``. Parts stay as they are, largest first as they were written: ``1 year 6 month``
    for ``P1Y6M`` and for ``one year and six months``; nothing is converted, for a month is not thirty days. Where word
    and digits differ, both are forms. Three digits and more also have a form without unit.
    """
    if len(raw) > MAX_DURATION_CHARACTERS:
        return ()
    iso = ISO_DURATION.fullmatch(raw.upper()) if raw[:1] in ("P", "p") else None
    if iso is not None:
        parts = [f"{_plain(found[:-1])} {unit}" for unit, found in iso.groupdict().items() if found]
        return (" ".join(parts),)
    lettered = LETTERED_DURATION.fullmatch(raw)
    if lettered is not None:
        units = (unit.removeprefix("only_").replace("after", "second") for unit in lettered.groupdict())
        parts = [f"{int(found)} {unit}" for unit, found in zip(units, lettered.groups(), strict=True) if found]
        return (" ".join(parts),)
    forms: list[str] = [""]
    position = 0
    numbers: list[str] = []
    while position < len(raw):
        match = next((found for form in _FORMS if (found := form.match(raw, position))), None)
        if match is None:
            return ()
        read = _read(match)
        if not read:
            return ()
        forms = [f"{form} {part}".strip() for form in forms for part in read][:4]
        numbers.append(read[0].partition(" ")[0])
        position = match.end()
        between = _BETWEEN.match(raw, position)
        if between is not None and between.end() < len(raw):
            position = between.end()
    bare = numbers if len(numbers) == 1 and sum(char.isdigit() for char in numbers[0]) >= 3 else []
    return tuple(dict.fromkeys([*forms, *bare]))


def spelled_number(words: str) -> int | None:
    """The value of a number in words below a million (``one hundred and twenty-five``); None if it makes none."""
    total = current = 0
    last: int | None = None
    for word in re.split(r"[\s-]+", words.casefold()):
        if word == "and":
            continue
        if word in _POWERS:
            power = _POWERS[word]
            if last is None or current >= power:
                return None
            if power == 1000:
                total, current = total + current * power, 0
            else:
                current *= power
            last = power
            continue
        value = _VALUES[word]
        # After twenty comes a digit; after a hundred or a thousand, anything smaller.
        if last is not None and not (last in (100, 1000) or (20 <= last < 100 and 0 < value < 10)):
            return None
        current += value
        last = value
    return total + current


def _read(match: re.Match[str]) -> list[str]:
    groups = match.groupdict()
    unit = _UNIT_OF.get((groups.get("unit") or groups.get("short") or "").casefold())
    if unit is None:
        return []
    numbers = [_plain(groups["digits"])] if groups.get("digits") else []
    if groups.get("words"):
        value = spelled_number(groups["words"] or "")
        if value is None:
            return []
        numbers = list(dict.fromkeys([*numbers, str(value)]))
    way = (groups.get("way") or "").casefold()
    ways = [""] if not way else [f"{way} "] + ([""] if way in _SAME_WAYS else [])
    return [f"{number} {how}{unit}" for how in ways for number in numbers]


def _plain(digits: str | None) -> str:
    text = f"{Decimal((digits or '0').replace(',', '')):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
