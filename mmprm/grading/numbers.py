"""Parse numbers in digits or words exactly, and decide whether one number is a rounding of another."""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_DIGITS = 400
MAX_POWER = 400
"""Maximum power of ten in scientific notation."""

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3}| \d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_SCIENTIFIC = re.compile(
    r"(?P<mantissa>[+-]?(?:\d+(?:\.\d*)?|\.\d+))"
    r"(?:\s*[eE]\s*(?P<e>[+-]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<b>[+-]?\s*\d+)\s*\}|(?P<p>[+-]?\d+)))"
)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_ELLIPSIS = re.compile(r"([+-]?)(\d*)\.(\d{0,40}?)(\d{1,40}?)\4{1,40}\s*(?:\.{3}|\\(?:ldots|dots|cdots)|…)")
_FRACTION = re.compile(r"([+-]?)\s*(?:\\frac\{\s*([+-]?\d+)\s*\}\{\s*([+-]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}|([+-]?)(\d+)\s+(\d+)\s*/\s*(\d+)")

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_WORDS = {name: value for value, name in enumerate(_ONES)} | {name: 10 * i for i, name in enumerate(_TENS, start=2)}
_MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD_NUMBER = re.compile(
    r"(?:minus |negative )?(?:" + "|".join([*_WORDS, *_MULTIPLES, *_PARTS]) + r"|a|an|and|s|[- ])+", re.IGNORECASE
)


def number(text: str) -> Fraction | None:
    """Parse an integer, decimal, fraction or mixed number, or return None for any other text.

    A decimal may have thousands separators, repeat, or be in scientific notation.
    """
    text = text.strip()
    text = text[1:-1].strip() if re.fullmatch(r"\{[^{}]*\}", text) else text
    text = re.sub(r"(?<=^[-+])\s+", "", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _DECIMAL.fullmatch(text):
        return Fraction(text.rstrip(".")) if len(text) < _MAX_DIGITS else None
    if not text or text[-1] not in "0123456789}.… s)":
        return None
    if match := _SCIENTIFIC.fullmatch(text):
        power = int((match["e"] or match["b"] or match["p"]).replace(" ", ""))
        return Fraction(match["mantissa"]) * Fraction(10) ** power if abs(power) <= MAX_POWER else None
    if match := _REPEATING.fullmatch(text) or (text[-1] in ".s…" and _ELLIPSIS.fullmatch(text)):
        return _repeating(*match.groups())
    if match := _FRACTION.fullmatch(text):
        top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
        return (-1 if match[1] == "-" else 1) * Fraction(top, bottom) if bottom else None
    if match := _MIXED.fullmatch(text):
        return _mixed(*(group for group in match.groups() if group is not None))
    return None


def _repeating(sign: str, whole: str, fixed: str, cycle: str) -> Fraction:
    value = Fraction(int(whole + fixed + cycle) - int(whole + fixed or 0), 10 ** len(fixed) * (10 ** len(cycle) - 1))
    return -value if sign == "-" else value


def _mixed(sign: str, whole: str, top: str, bottom: str) -> Fraction | None:
    if not int(bottom) or int(top) >= int(bottom):
        return None
    value = int(whole) + Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def worded_number(text: str) -> Fraction | None:
    """Parse a number in English words, such as zero, twenty-one, half, three quarters, or one and a half."""
    text = text.strip().lower()
    if text.startswith("-") or not _WORD_NUMBER.fullmatch(text):
        return None
    words = [word for word in re.split(r"[\s-]+", text) if word]
    if not words:
        return None
    negative = words[0] in ("minus", "negative")
    value = _worded(words[1:] if negative else words)
    return -value if value is not None and negative else value


def _worded(words: list[str]) -> Fraction | None:
    if "and" in words and words[-1].removesuffix("s") in _PARTS:
        middle = words.index("and")
        whole, part = _worded(words[:middle]), _worded(words[middle + 1 :])
        return None if whole is None or part is None else whole + part
    last = words[-1] if words[-1] in _PARTS else words[-1].removesuffix("s")
    if last in _PARTS:
        count = words[:-1]
        top = Fraction(1) if count in ([], ["a"], ["an"]) else _cardinal(count)
        return None if top is None else top / _PARTS[last]
    return _cardinal([word for word in words if word != "and"])


def _cardinal(words: list[str]) -> Fraction | None:
    total, group = 0, 0
    for i, word in enumerate(words):
        if word in _WORDS:
            if (
                i
                and words[i - 1] in _WORDS
                and not (_WORDS[words[i - 1]] >= 20 > _WORDS[word] > 0 and _WORDS[word] < 10)
            ):
                return None
            group += _WORDS[word]
        elif word in ("a", "an") and i == 0 and len(words) > 1:
            group = 1
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in _MULTIPLES:
            total, group = total + (group or 1) * _MULTIPLES[word], 0
        else:
            return None
    return Fraction(total + group) if words else None


def is_decimal(text: str) -> bool:
    """Return whether a number is written with decimal places, so that its precision may be limited."""
    return _decimal_places(text) is not None


def rounds_to(exact: Fraction, written: str) -> bool:
    """Return whether `written`, a decimal with at least four places, is `exact` rounded or truncated to as many
    places."""
    places = _decimal_places(written)
    if places is None or places < 4:
        return False
    error = (number(written.strip()) - exact) * Fraction(10) ** places
    cut = -1 < error <= 0 if exact > 0 else 0 <= error < 1
    return cut or abs(error) <= Fraction(1, 2)


def is_rounding(written: str, exact: Fraction) -> bool:
    """Return whether `written` equals `exact` rounded to as many decimal places as `written` has.

    A decimal gold needs at least two digits.

    A gold that looks exact, such as 8.5, accepts further digits (8.54), but not values that round up to it (8.46). A
    gold without decimal places, such as 1.2e5, needs at least three digits.
    """
    places, value = _decimal_places(written), number(written.strip())
    digits = re.sub(r"\D", "", re.split(r"[eE\\*x]", written.strip())[0]).lstrip("0")
    if places is None or value is None or len(digits) < (2 if places > 0 else 3):
        return False
    error = (abs(exact) - abs(value)) * Fraction(10) ** places
    if exact * value <= 0 or abs(error) > Fraction(1, 2):
        return False
    return not looks_exact(written) or 0 <= error < Fraction(1, 2)


def looks_exact(written: str) -> bool:
    """Return whether a decimal is a multiple of a quarter, which is rarely the result of rounding."""
    value = number(written.strip())
    return value is not None and (value * 4).denominator == 1


def _decimal_places(text: str) -> int | None:
    """Return the number of decimal places, 2 for 1.25 and -4 for 1.2e5, or None if the text is not a decimal number."""
    text = text.strip().replace(",", "")
    match = _SCIENTIFIC.fullmatch(text)
    mantissa = match["mantissa"] if match else text
    if not re.fullmatch(r"[+-]?\d*\.\d+", mantissa):
        return None
    power = int((match["e"] or match["b"] or match["p"]).replace(" ", "")) if match else 0
    return len(mantissa.partition(".")[2]) - power


def sexagesimal(text: str) -> Fraction | None:
    r"""Convert an angle such as 67° 30' 15'' to degrees, or return None for any other text."""
    match = re.fullmatch(r"(-?)(\d+)\s*°\s*(\d+(?:\.\d+)?)\s*'(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\"))?", text.strip())
    if match is None:
        return None
    value = Fraction(match[2]) + Fraction(match[3]) / 60 + Fraction(match[4] or 0) / 3600
    return -value if match[1] else value
