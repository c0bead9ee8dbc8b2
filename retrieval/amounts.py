"""Amounts as people write them: numbers with a currency, a percent sign or a unit."""

import re
from decimal import Decimal

# Numbers grouped in threes by , . ' or a blank, or not grouped; at most one decimal sign.
NUMBER = (
    r"(?:\d{1,3}(?:[,.'’ \u00a0\u202f]\d{3})+(?:[.,]\d{1,6})?(?![\d]|[,.]\d)|\d{1,15}(?:[.,]\d{1,15})?(?![\d]|[,.]\d))"
)
_SIGN = r"[-+−]?"
_MINUS = "[-−]"
_CURRENCIES = {
    "usd": "$ us$ usd dollar dollars",
    "eur": "€ eur euro euros",
    "gbp": "£ gbp sterling pound pounds",
    "jpy": "¥ jpy yen 円",
    "cny": "cny rmb yuan 元",
    "inr": "₹ inr rupee rupees",
    "chf": "chf franken francs franc",
    "rub": "₽ rub rouble roubles ruble rubles",
    "krw": "₩ krw won",
    "cad": "cad c$ ca$",
    "aud": "aud a$ au$",
    "nzd": "nzd nz$",
    "hkd": "hkd hk$",
    "sgd": "sgd s$",
    "brl": "brl r$",
    "": "sek nok dkk pln czk huf mxn zar try crown crowns shilling shillings cent cents",
}
_CURRENCY_OF = {name: code or name.rstrip("s") for code, names in _CURRENCIES.items() for name in names.split()}
_UNITS = {
    "%": "% percent pct ％",
    "‰": "‰",
    "bp": "bps bp",
    "km": "km kilometre kilometres kilometer kilometers",
    "m": "m metre metres meter meters",
    "μm": "µm μm um micrometre micrometres micrometer micrometers",
    "cm": "cm centimetre centimetres centimeter centimeters",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "mile": "mile miles mi",
    "foot": "foot feet ft",
    "inch": "inch inches",
    "kg": "kg kilogram kilograms kilo kilos",
    "g": "g gram grams gramme grammes",
    "mg": "mg milligram milligrams",
    "t": "t tonne tonnes ton tons",
    "lb": "lb lbs",
    "oz": "oz ounce ounces",
    "l": "l litre litres liter liters",
    "ml": "ml millilitre millilitres milliliter milliliters",
    "km2": "km2 km² sqkm",
    "m3": "m3 m³",
    "m2": "m2 m² sqm",
    "foot2": "sqft",
    "cm3": "cm3 cm³",
    "cm2": "cm2 cm²",
    "yard": "yard yards",
    "gallon": "gallon gallons",
    "pint": "pint pints",
    "acre": "acre acres",
    "ha": "ha hectare hectares",
    "°c": "°c ℃",
    "°f": "°f ℉",
    "degree": "degree degrees °",
    "kw": "kw kilowatt kilowatts",
    "mw": "mw megawatt megawatts",
    "gw": "gw gigawatt gigawatts",
    "kwh": "kwh",
    "w": "w watt watts",
    "v": "v volt volts",
    "hz": "hz",
    "khz": "khz",
    "mhz": "mhz megahertz",
    "ghz": "ghz",
    "bit": "bit bits",
    "byte": "byte bytes",
    "pixel": "pixel pixels px",
    "dpi": "dpi",
    "fps": "fps",
    "mah": "mah",
    "ma": "milliampere milliamperes",
    "ppm": "ppm",
    "ppb": "ppb",
    "kb": "kb kilobyte kilobytes",
    "mb": "mb megabyte megabytes",
    "gb": "gb gigabyte gigabytes",
    "tb": "tb terabyte terabytes",
    "kib": "kib",
    "mib": "mib",
    "gib": "gib",
    "tib": "tib",
    "mbit/s": "mbit/s mbps",
    "gbit/s": "gbit/s gbps",
    "km/h": "km/h kph kmh",
    "m/s": "m/s",
    "kn": "knot knots",
    "joule": "joule joules",
    "kj": "kj",
    "kcal": "kcal",
    "calorie": "calorie calories",
    "μg": "µg μg mcg microgram micrograms",
    "mmol": "mmol",
    "iu": "iu",
    "bar": "bar",
    "pa": "pa pascal pascals",
    "kpa": "kpa",
    "mpa": "mpa",
    "psi": "psi",
    "mmhg": "mmhg",
    "hpa": "hpa",
    "nm": "nm",
    "rpm": "rpm",
    "db": "db",
    "ampere": "ampere amperes amps",
    "mph": "mph",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_UNIT_OF["per cent"] = "%"
# What "square" and "cubic" make of a length is read again under the name that it gets.
_UNIT_OF |= {f"{unit}{power}": f"{unit}{power}" for unit in "cm mm mile foot inch yard".split() for power in "23"}
_POWERS = {"thousand": 3, "k": 3, "million": 6, "mn": 6, "m": 6, "billion": 9, "bn": 9, "b": 9, "trillion": 12}

_POWER_OF = {"square": "2", "sq": "2", "cubic": "3", "cu": "3", "nautical": "nautical ", "short": "short "}
_POWER_OF |= {"metric": "", "long": "long "}
_PER_OF = {"sec": "s", "second": "s", "minute": "min", "hr": "h", "hour": "h", "d": "day", "yr": "year", "km²": "km2"}
_PER_OF |= {"m²": "m2", "m³": "m3", "cm²": "cm2", "cm³": "cm3", "tonne": "t", "ton": "t"}
_CODES_THAT_ARE_WORDS = frozenset("WON TRY CAD NOK".split())

_MAX_AMOUNT_CHARACTERS = 60
_DIGIT = re.compile(r"\d")


def _any_of(names: list[str]) -> str:
    """An alternation, longest first; a name that ends in a letter ends a word."""
    ordered = sorted(names, key=len, reverse=True)
    return "(?:" + "|".join(re.escape(name) + (r"(?!\w)" if name[-1].isalnum() else "") for name in ordered) + ")"


_POWER = r"(?:[ \u00a0-]?(?P<power>[Tt]housand|[MmBb]illion|[Tt]rillion|bn|mn|[kKmMbB])(?!\w))?"
_SYMBOLS = "".join(name for name in _CURRENCY_OF if len(name) == 1)
_DOLLARS = "|".join(
    re.escape(form) for name in _CURRENCY_OF if name[-1] == "$" for form in (name.upper(), name) if name[:-1]
)
_CODES = "|".join(
    spelling for name in _CURRENCY_OF if len(name) == 3 and name.isalpha() for spelling in (name.upper(), name)
)
# What a unit is counted by: mg/dl, kg/m³, $/month.
_PER = (
    r"(?:/(?:ms|s|sec|second|min|minute|h|hr|hour|d|day|week|month|yr|year|kg|g|mg|dl|ml|l|mmol|mol|ha|km2|km²|km|m2|m²|m3|"
    r"m³|cm2|cm²|cm3|cm³|m|ton|tonne|lb|kwh|mwh|person|user|capita|seat|head|item|piece|page)(?!\w))?"
)
_AREA = r"(?:(?:square|sq\.?|cubic|cu\.?|nautical|short|metric|long) )?"
# A sign after a number belongs to the number after it if it touches that.
_SUFFIXES = [name for name in (*_CURRENCY_OF, *_UNIT_OF) if name == "$" or name[-1] != "$"]
_SUFFIX = rf"{_AREA}{_any_of(_SUFFIXES)}(?<!\$(?=\d)){_PER}"

AMOUNT_FORMS = (
    re.compile(
        rf"(?P<sign>(?<![\w)\]]){_MINUS})?(?P<unit>{_DOLLARS}|[{_SYMBOLS}]|{_CODES})\s?(?P<number>{_SIGN}{NUMBER}){_POWER}"
    ),
    re.compile(
        rf"(?<![\w.,])(?P<number>{_SIGN}{NUMBER}){_POWER}(?:[ \u00a0\u202f-]?)(?P<unit>{_SUFFIX})",
        re.IGNORECASE,
    ),
)
_BARE = re.compile(rf"(?P<number>{_SIGN}{NUMBER})")


def amount_forms(raw: str) -> tuple[str, ...]:
    """The canonical forms of ``raw``, an amount or number and nothing else, most exact first; () if it is none.

    ``$1,234.50``: ``1234.5 usd``, then ``1234.5``. Numbers of fewer than three digits have no form without their
    unit: too many things would share it. ``1.234`` may be 1.234 and 1234; the likelier reading stands first.
    """
    if len(raw) > _MAX_AMOUNT_CHARACTERS or _DIGIT.search(raw) is None:
        return ()
    for form in (*AMOUNT_FORMS, _BARE):
        match = form.fullmatch(raw)
        if match is not None:
            break
    else:
        return ()
    groups = match.groupdict()
    unit = _canonical_unit((groups.get("unit") or "").casefold())
    power = _POWERS[groups["power"].casefold()] if groups.get("power") else 0
    number = groups["number"] or ""
    if groups.get("sign") and number[0].isdigit():
        number = f"-{number}"
    numbers = [_canonical(reading.scaleb(power)) for reading in _readings(number)]
    with_unit = [f"{number} {unit}" for number in numbers] if unit else []
    bare = [number for number in numbers if sum(char.isdigit() for char in number) >= 3]
    return (*with_unit, *bare)


def amount_score(found: str) -> float | None:
    """A unit of one letter is one in its own case; small words that are codes of currencies stay words."""
    prefixed, counted = (form.fullmatch(found) for form in AMOUNT_FORMS)
    match = prefixed or counted
    if match is None:
        return None
    unit = match["unit"]
    if unit.islower() and unit.upper() in _CODES_THAT_ARE_WORDS:
        return None
    if len(unit) == 1 and unit.isalpha():
        if unit not in "gmtlLVW":
            return None
        # 4L is a mark, 4 L and 1.5L are volumes.
        if unit == "L" and match["number"].isdigit() and not found[-2].isspace():
            return None
    return 0.8


def _canonical_unit(written: str) -> str:
    """The unit's one name; "" for none."""
    name, _, per = written.partition("/")
    if written in _UNIT_OF:
        return _UNIT_OF[written]
    power = ""
    first, _, rest = name.partition(" ")
    if first.rstrip(".") in _POWER_OF and rest:
        power, name = _POWER_OF[first.rstrip(".")], rest
    unit = _CURRENCY_OF.get(name) or _UNIT_OF.get(name) or ""
    unit = f"{unit}{power}" if unit and power.isdigit() else f"{power}{unit}" if unit else ""
    return f"{unit}/{_PER_OF.get(per, per)}" if unit and per else unit


def _readings(number: str) -> list[Decimal]:
    digits = re.sub(r"['’\s]", "", number.replace("−", "-"))
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and point >= 0:
        decimal_sign = "," if comma > point else "."
        grouped = digits.replace("." if decimal_sign == "," else ",", "")
        return [Decimal(grouped.replace(",", "."))] if grouped.count(decimal_sign) == 1 else []
    separator = "," if comma >= 0 else "."
    plain = Decimal(digits.replace(separator, ""))
    if digits.count(separator) != 1:
        return [plain]
    as_fraction = Decimal(digits.replace(",", "."))
    before, after = digits.lstrip("+-").split(separator)
    if len(after) != 3 or len(before) > 3 or before == "0":
        return [as_fraction]
    return [plain, as_fraction] if separator == "," else [as_fraction, plain]


def _canonical(value: Decimal) -> str:
    text = f"{value:f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
