"""Parse units with their dimension and size: 100 cm equals 1 m, but not 100 m.

A unit missing from the tables (apples) keeps its name: it may be omitted, but its relation to other units is unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]
"""Base dimensions with exponents, sorted by name. An unknown unit name is a separate dimension."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Represents a unit of measurement.

    `size` is in terms of the base units of the dimension; `known` is false if a factor is missing from the tables.
    """

    dimension: Dimension = ()
    size: Fraction = Fraction(1)
    known: bool = True

    def __bool__(self) -> bool:
        return bool(self.dimension)


NO_UNIT = Unit()
DEGREE = Unit((("degree", 1),))
_CURRENCIES = {"¤": "dollar", "$": "dollar", "¥": "yuan", "€": "euro", "£": "pound", "₹": "rupee"}

# name: (size, dimension). SI symbols accept prefixes; the names in _PLAIN do not.
_METRIC = {
    "m": (1, "L"),
    "g": (Fraction(1, 1000), "M"),
    "s": (1, "T"),
    "L": (Fraction(1, 1000), "L3"),
    "l": (Fraction(1, 1000), "L3"),
    "N": (1, "L M T-2"),
    "J": (1, "L2 M T-2"),
    "W": (1, "L2 M T-3"),
    "Pa": (1, "L-1 M T-2"),
    "Hz": (1, "T-1"),
    "A": (1, "I"),
    "C": (1, "I T"),
    "V": (1, "I-1 L2 M T-3"),
    "Ω": (1, "I-2 L2 M T-3"),
    "F": (1, "I2 L-2 M-1 T4"),
    "T": (1, "I-1 M T-2"),
    "Wb": (1, "I-1 L2 M T-2"),
    "H": (1, "I-2 L2 M T-2"),
    "mol": (1, "mole"),
    "K": (1, "K"),
    "eV": (Fraction("1.602176634e-19"), "L2 M T-2"),
    "cal": (Fraction("4.184"), "L2 M T-2"),
    "Wh": (3600, "L2 M T-2"),
}
_PREFIXES = {
    "": 0, "n": -9, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9, "T": 12, "p": -12,
}  # fmt: skip
_PLAIN = {
    "t": (1000, "M"),
    "min": (60, "T"),
    "h": (3600, "T"),
    "day": (86400, "T"),
    "week": (604800, "T"),
    "month": (1, "month"),
    "year": (12, "month"),
    "in": (Fraction("0.0254"), "L"),
    "ft": (Fraction("0.3048"), "L"),
    "yd": (Fraction("0.9144"), "L"),
    "mi": (Fraction("1609.344"), "L"),
    "lb": (Fraction("0.45359237"), "M"),
    "oz": (Fraction("0.028349523125"), "M"),
    "gal": (Fraction("0.003785411784"), "L3"),
    "kn": (Fraction(1852, 3600), "L T-1"),
    "nmi": (1852, "L"),
    "ha": (10000, "L2"),
    "°": (1, "degree"),
    "rad": (1, "radian"),
    "°C": (1, "celsius"),
    "°F": (1, "fahrenheit"),
    "dollar": (1, "dollar"),
    "cent": (Fraction(1, 100), "dollar"),
    "yuan": (1, "yuan"),
    "jiao": (Fraction(1, 10), "yuan"),
    "euro": (1, "euro"),
    "pound": (1, "pound"),
    "rupee": (1, "rupee"),
    "bit": (1, "bit"),
    "byte": (8, "bit"),
}
_NAMES = {
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "dm": "decimeter decimetre 分米",
    "cm": "centimeter centimetre 厘米",
    "mm": "millimeter millimetre 毫米",
    "μm": "micrometer micron 微米",
    "nm": "nanometer nanometre 纳米",
    "g": "gram 克",
    "kg": "kilogram kilo kgs 千克 公斤",
    "mg": "milligram 毫克",
    "t": "ton tonne 吨",
    "s": "second sec 秒",
    "min": "minute mins 分钟",
    "h": "hour hr hrs 小时 时",
    "day": "天 日",
    "week": "周 星期",
    "month": "月 个月",
    "year": "yr 年",
    "L": "liter litre 升",
    "mL": "milliliter millilitre 毫升",
    "N": "newton 牛顿 牛",
    "J": "joule 焦耳 焦",
    "kJ": "kilojoule",
    "W": "watt 瓦特 瓦",
    "kW": "kilowatt 千瓦",
    "Pa": "pascal 帕",
    "kPa": "千帕",
    "Hz": "hertz 赫兹",
    "A": "ampere amp 安培 安",
    "V": "volt 伏特 伏",
    "Ω": "ohm 欧姆 欧",
    "C": "coulomb 库仑",
    "F": "farad",
    "T": "tesla",
    "K": "kelvin 开尔文",
    "mol": "mole 摩尔",
    "in": "inch inche 英寸",
    "ft": "foot feet 英尺",
    "yd": "yard",
    "mi": "mile 英里",
    "nmi": "海里",
    "lb": "lbs",
    "oz": "ounce",
    "gal": "gallon",
    "kn": "knot",
    "ha": "hectare 公顷",
    "°": "degree deg 度",
    "rad": "radian 弧度",
    "°C": "摄氏度 ℃",
    "°F": "℉",
    "dollar": "usd bucks 美元",
    "cent": "美分",
    "yuan": "cny rmb 元 块 人民币",
    "jiao": "角",
    "euro": "eur 欧元",
    "pound": "gbp 英镑",
    "eV": "electronvolt",
}
_SYNONYMS = {name: symbol for symbol, names in _NAMES.items() for name in names.split()}
_QUOTIENTS = {"kmph": "km/h", "kph": "km/h", "mph": "mi/h", "mps": "m/s"}
_COUNTERS = frozenset(
    [
        *"个只人条本名次种支张件棵头辆双组位",
        "块钱",
        "object",
        "objects",
        "unit",
        "units",
        "piece",
        "pieces",
        "item",
        "items",
    ]
)
"""Counter words such as `pieces`, which have no dimension."""


def _dimension(text: str) -> dict[str, int]:
    powers: dict[str, int] = {}
    for part in text.split():
        name, digits = re.fullmatch(r"([a-zA-Z]+?)(-?\d*)", part).groups()
        powers[name] = int(digits or 1)
    return powers


def _tabled() -> dict[str, tuple[Fraction, dict[str, int]]]:
    table = {
        prefix + name: (Fraction(size) * Fraction(10) ** power, _dimension(dimension))
        for name, (size, dimension) in _METRIC.items()
        for prefix, power in _PREFIXES.items()
    }
    return table | {name: (Fraction(size), _dimension(dimension)) for name, (size, dimension) in _PLAIN.items()}


_TABLE = _tabled()
_AMBIGUOUS = {"pm", "cd", "Ts", "as", "dA", "dT"}
"""Symbols with an SI prefix that are more often a word or a product than a unit."""


def _lookup(name: str) -> tuple[Fraction, dict[str, int]] | None:
    name = _SYNONYMS.get(name, name)
    if name in _TABLE and name not in _AMBIGUOUS:
        return _TABLE[name]
    lower = name.lower()
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        form = _SYNONYMS.get(form, form)
        if form in _TABLE and len(lower) > 1 and form not in _AMBIGUOUS:
            return _TABLE[form]
    return None


_MAX_LENGTH = 100
"""Maximum length of a unit in characters."""
_PER = re.compile(r"\s*(?:/|\bper\b|\bp\.|每)\s*")
_FACTOR = re.compile(
    r"(?P<power>square|cubic|sq\.?|cu\.?|平方|立方)?\s*(?P<name>°\s?[CF]|[^\W\d_]+|°|[$¥€£¤₹])"
    r"(?:\s*\^\s*\{?\s*(?P<exponent>-?\d)\s*\}?|(?P<bare>[23]|-[123])(?!\d))?(?P<after>\s+squared|\s+cubed)?"
)
_NOISE = re.compile(r"\\(?:text|mathrm|rm|unit|cdot|times)(?![a-zA-Z])|[{}.·*]|\\[,; ]|\\(?=\s)")
_SQUARE = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3, "squared": 2, "cubed": 3}


def read_unit(text: str) -> Unit | None:
    """Parse a text that consists only of a unit, or return None for any other text."""
    if len(text) > _MAX_LENGTH:
        return None
    text = re.sub(r"\^\s*\{\s*([-+]?\s*\d)\s*\}", r"^\1", text.strip())
    text = re.sub(
        r"\\(?:mu|Omega)(?![a-zA-Z])\s*(?:\\text\{\s*)?", lambda match: "μ" if "mu" in match[0] else "Ω", text
    )
    text = _NOISE.sub(" ", text.replace("µ", "μ")).strip(" ()")
    text = re.sub(r"\b(?:kmph|kph|mph|mps)\b", lambda match: _QUOTIENTS[match[0]], text)
    text = re.sub(r"\bms(?=\^?-[12])", "m s", text)  # meters per second, not 1/milliseconds
    text = re.sub(r"°\s+([CF])\b", r"°\1", re.sub(r"\bdegrees? (?=Celsius)", "°C ", text))
    text = re.sub(r"(?:°C )?\bCelsius\b", "°C", re.sub(r"(?:degrees? )?\bFahrenheit\b", "°F", text))
    numerator, *denominators = _PER.split(text)
    unit = _product(numerator, 1) if numerator.strip() else NO_UNIT
    for part in denominators:
        below = _product(part, -1)
        unit = _times(unit, below) if unit is not None and below is not None else None
    return unit


def _product(text: str, sign: int) -> Unit | None:
    unit, position = NO_UNIT, 0
    text = text.strip()
    while position < len(text):
        match = _FACTOR.match(text, position)
        if match is None:
            return None
        factor = _factor(match, sign)
        unit = _times(unit, factor)
        position = match.end()
        position += len(text[position:]) - len(text[position:].lstrip())
    return unit


def _factor(match: re.Match[str], sign: int) -> Unit:
    power = sign * int(
        match["exponent"] or match["bare"] or _SQUARE.get((match["power"] or match["after"] or "").strip(" ."), 1)
    )
    name = _CURRENCIES.get(match["name"], match["name"].replace(" ", ""))
    if name in _COUNTERS:
        return NO_UNIT
    found = _lookup(name)
    if found is None:
        singular = name.lower().removesuffix("s")
        return Unit(((singular, power),), known=False)
    size, powers = found
    return Unit(tuple(sorted((base, exponent * power) for base, exponent in powers.items())), size**power)


def _times(one: Unit, other: Unit) -> Unit:
    powers = dict(one.dimension)
    for name, exponent in other.dimension:
        powers[name] = powers.get(name, 0) + exponent
    dimension = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
    return Unit(dimension, one.size * other.size, one.known and other.known)
