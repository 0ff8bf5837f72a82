"""Exact reading of plain numbers, and of the units that follow them."""

from __future__ import annotations

import re
from fractions import Fraction

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|dot)\s*\{?(\d+)\}?")
_FRACTION = re.compile(r"([+-]?)\s*(?:\\frac\{\s*([+-]?\d+)\s*\}\{\s*([+-]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}|([+-]?)(\d+)\s+(\d+)\s*/\s*(\d+)")

_LONG_UNIT_NAMES = (
    "mm|cm|dm|km|kg|mg|ml|mL|min|hr|ft|yd|mi|rad|kW|kWh|Hz|pm|am|met(?:er|re)|(?:centi|milli|kilo|deci)met(?:er|re)"
    "|inche?|foot|feet|yard|mile|degree|hour|minute|second|day|week|month|year|gram|kilogram|tonne|ton|lit(?:er|re)"
    "|dollar|cent|yuan|unit|percent|piece"
)
_SHORT_UNIT_NAMES = "m|s|g|h|t|L|N|J|W|A|V|in|C|F|K"
"""These could as well be variables: units only after a plain number and a space."""
_POWER = r"(?:\s*\^?\s*\{?\s*[-+]?[23]\s*\}?)?"
_LONG = r"(?:square |cubic |sq\.? |cu\.? )?(?:" + _LONG_UNIT_NAMES + r")s?" + _POWER
_SHORT = r"(?:" + _SHORT_UNIT_NAMES + r")" + _POWER
_TEXT_UNIT = re.compile(r"(?P<body>.*?[\d})\]a-zA-Z!])\s*(?P<unit>\\text\{[^{}]*[a-zA-Z][^{}]*\}" + _POWER + r")")
_LONG_UNIT = re.compile(
    rf"(?P<body>.*?(?:[\d}})]\s*|\s))(?P<unit>°\s*[CF]?|{_LONG}(?:\s*(?:/|per )\s*(?:{_LONG}|{_SHORT}))?)"
)
_SHORT_UNIT = re.compile(rf"(?P<body>.*?[\d}})])\s(?P<unit>{_SHORT}(?:\s*(?:/|per )\s*(?:{_LONG}|{_SHORT}))?)")
_WORDS_UNIT = re.compile(r"(?P<body>.*?\d[^a-zA-Z]*?)\s(?P<unit>[a-z]{3,}(?: [a-z]{2,}){0,2})")
_SYNONYMS = {
    "meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm",
    "kilometer": "km", "kilometre": "km", "decimeter": "dm", "decimetre": "dm", "inch": "in", "inche": "in",
    "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "degree": "°", "hour": "h", "hr": "h", "minute": "min",
    "second": "s", "gram": "g", "kilogram": "kg", "liter": "l", "litre": "l", "dollar": "¤", "unit": "",
}  # fmt: skip


def number(text: str) -> Fraction | None:
    """The value of an integer, decimal, repeating decimal, fraction or mixed number; None for anything else."""
    text = text.strip()
    text = text[1:-1].strip() if re.fullmatch(r"\{[^{}]*\}", text) else text
    text = re.sub(r"(?<=^[-+])\s+", "", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip(".")) if len(text) < 400 else None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, cycle = match.groups()
        value = Fraction(
            int(whole + fixed + cycle) - int(whole + fixed or 0), 10 ** len(fixed) * (10 ** len(cycle) - 1)
        )
        return -value if sign == "-" else value
    if match := _FRACTION.fullmatch(text):
        top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
        return (-1 if match[1] == "-" else 1) * Fraction(top, bottom) if bottom else None
    if match := _MIXED.fullmatch(text):
        sign, whole, top, bottom = (group for group in match.groups() if group is not None)
        if int(bottom) and int(top) < int(bottom):
            value = int(whole) + Fraction(int(top), int(bottom))
            return -value if sign == "-" else value
    return None


def is_decimal(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d*\.\d+", text.strip()))


def rounds_to(exact: Fraction | float, written: str) -> bool:
    """Whether `written` is `exact` rounded, or cut, to the (at least four) decimal places that it shows."""
    places = len(written.strip().partition(".")[2])
    if places < 4 or not is_decimal(written):
        return False
    error = (Fraction(written.strip()) - Fraction(exact)) * 10**places
    cut = -1 < error <= 0 if exact > 0 else 0 <= error < 1
    return cut or abs(error) <= Fraction(1, 2)


def split_unit(text: str) -> tuple[str, str]:
    """(`2\\sqrt{3}`, `cm2`) from `2\\sqrt{3} \\text{ cm}^2`; the unit in one spelling, empty when there is none."""
    if match := re.fullmatch(r"([-+]?)\s*[¤¥€£]\s*(.+)", text):
        return match[1] + match[2].strip(), "¤"
    for pattern in (_TEXT_UNIT, _LONG_UNIT, _SHORT_UNIT, _WORDS_UNIT):
        match = pattern.fullmatch(text)
        if match and re.search(r"\d|\\pi|\\sqrt|[a-z]", match["body"]):
            body = match["body"].strip()
            if pattern in (_SHORT_UNIT, _WORDS_UNIT) and number(body) is None:
                continue
            return body, _one_spelling(match["unit"])
    return text, ""


def _one_spelling(unit: str) -> str:
    unit = re.sub(r"\\text|[{}^.]", "", unit).strip().lower()
    power = "2" if re.match(r"sq(uare)? ?", unit) else "3" if re.match(r"cu(bic)? ?", unit) else ""
    unit = re.sub(r"^(?:square|cubic|sq|cu) ?", "", unit)
    parts = []
    for part in re.split(r"\s*(?:/|\bper\b)\s*", unit):
        name, digits = re.fullmatch(r"(.*?)\s*([-+]?\d*)", part).groups()
        singular = name[:-1] if len(name) > 3 and name.endswith("s") else name
        parts.append(_SYNONYMS.get(singular, singular) + digits)
    spelled = "/".join(parts) + power
    return "" if spelled in ("2", "3") else spelled
