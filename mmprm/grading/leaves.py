"""Compare two scalar answers by exact arithmetic, unit conversion, rounding, and numerical evaluation."""

from __future__ import annotations

import re
from fractions import Fraction

from mmprm.grading.atoms import Expression
from mmprm.grading.equality import equal
from mmprm.grading.evaluation import evaluate_expression
from mmprm.grading.expressions import UnreadableError, parse, uses
from mmprm.grading.expressions import symbols as free_symbols
from mmprm.grading.labels import compare_labels, compare_words
from mmprm.grading.numbers import is_decimal, is_rounding, looks_exact, number, rounds_to, worded_number
from mmprm.grading.operations import UndefinedError, Value
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome, SymbolTest
from mmprm.grading.reading import Leaf
from mmprm.grading.text import key
from mmprm.grading.units import DEGREE

_SIGN = re.compile(r"[=<>]|\\(?:leq|geq|neq|perp|parallel|sim|cong|approx|in)")
_BASED = re.compile(r"\(?(?P<digits>[0-9A-F]+)\)?_\s*\{?\s*(?:\\text\{)?\s*\(?(?P<base>\d+|[a-z]+)\)?\s*\}*")
_OUTSIDE = re.compile(r"\d\s*_|\\text|(?<![\d^_])\d+ \d")
"""Matches notation that Math-Verify misreads: it drops subscripts and text, and adds adjacent numbers."""
_BOUND = {r"\int", r"\sum", r"\prod", r"\lim", r"\iint", r"\oint"}
"""LaTeX commands that bind a variable. The variable's name does not matter in a comparison."""
_CROSS = re.compile(r"\\vec\s*\{?\w+\}?\s*\\times\s*\\vec")
"""Matches a cross product of vectors, which must not be evaluated as a product of numbers."""
_IDENTIFIER = re.compile(r"\\[a-zA-Z]+|[a-zA-Z]+|\d+|\S")


def same_leaf(gold: Leaf, given: Leaf, symbols: SymbolTest) -> Outcome:
    """Compare a gold answer and an answer that are both single values."""
    if gold.maybe or given.maybe:
        return _same_possible_units(gold, given, symbols)
    if is_sign(gold.text):
        return _same_sign(gold.text, given.text)
    if (based := _same_base(gold.text, given.text)) is not None:
        return based
    if gold.prose or not gold.text:
        return _same_words(gold, given)
    if given.prose or not given.text:
        return DIFFERENT if number(gold.text) is not None else UNDECIDED
    if is_sign(given.text):
        return DIFFERENT
    return _same_quantity(gold, given, symbols)


def is_sign(text: str) -> bool:
    """Return whether an answer is only a relation sign such as <, which some questions ask for."""
    return _SIGN.fullmatch(text) is not None


def _same_possible_units(gold: Leaf, given: Leaf, symbols: SymbolTest) -> Outcome:
    """Compare values that may have a unit, such as 3m: three meters, or three times m."""
    if gold.maybe and given.maybe:
        return same_leaf(Leaf(gold.text), Leaf(given.text), symbols)
    split = [Leaf(*leaf.maybe) if leaf.maybe else leaf for leaf in (gold, given)]
    outcome = same_leaf(*split, symbols)
    plain = gold if given.maybe else given
    if outcome is SAME and not plain.unit and not plain.prose:
        whole = same_leaf(Leaf(gold.text), Leaf(given.text), symbols)
        return whole if whole is SAME else UNDECIDED
    return outcome


def _same_sign(gold: str, given: str) -> Outcome:
    if _SIGN.fullmatch(given) or number(given) is not None:
        return SAME if gold == given else DIFFERENT
    return compare_labels(gold, given) or UNDECIDED


def _same_words(gold: Leaf, given: Leaf) -> Outcome:
    outcome = compare_labels(gold.text, given.text) or compare_words(gold.text, given.text)
    if outcome is UNDECIDED and not given.prose and given.text and not _mentions(gold.text, given.text):
        return DIFFERENT
    return outcome


def _mentions(prose: str, value: str) -> bool:
    return (len(value) > 1 and bool(re.search(rf"(?<![\w.]){re.escape(value)}(?![\w]|\.\d)", prose))) or (
        value.isdigit() and bool(re.search(rf"(?<![\w.]){value}(?![\w]|\.\d)", prose))
    )


def _same_base(gold: str, given: str) -> Outcome | None:
    """Compare numbers with an explicit base, such as 52_8, or return None if neither has one.

    52_8 equals 52_{eight}; a gold of 52_8 also accepts 52, because the question asks for that base.
    """
    one, other = _based(gold), _based(given)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return SAME if one == other else DIFFERENT
    if one is not None:
        return SAME if one[0] == given.strip("()") else DIFFERENT
    # A gold of 52 means that the question does not ask for a base, so an answer of 52_8 is a different number.
    return DIFFERENT if number(gold) is not None or other[0] != gold else UNDECIDED


def _based(text: str) -> tuple[str, int] | None:
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = int(match["base"]) if match["base"].isdigit() else worded_number(match["base"])
    if base is None or not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in match["digits"]):
        return None
    return match["digits"], int(base)


def _same_quantity(gold: Leaf, given: Leaf, symbols: SymbolTest) -> Outcome:
    one, other = gold.unit, given.unit
    if not one or not other:
        outcome = same_expression(gold.text, given.text, symbols)
        if (
            outcome is DIFFERENT
            and "degree" in (name for name, _ in one.dimension)
            and not other
            and r"\pi" in given.text
        ):
            return same_expression(rf"({gold.text})*\pi/180", given.text, symbols)
        if outcome is DIFFERENT and other == DEGREE and not one and re.search(r"\\pi|\\arc", gold.text):
            return same_expression(gold.text, rf"({given.text})*\pi/180", symbols)
        if gold.unit and given.text.endswith("%"):
            return DIFFERENT
        return outcome
    if one.dimension == other.dimension:
        if one.size == other.size:
            return same_expression(gold.text, given.text, symbols)
        return same_expression(_times(gold.text, Fraction(1)), _times(given.text, other.size / one.size), symbols)
    if one.known and other.known:
        return _same_angle(gold, given, symbols)
    return DIFFERENT if same_expression(gold.text, given.text, symbols) is DIFFERENT else UNDECIDED


def _same_angle(gold: Leaf, given: Leaf, symbols: SymbolTest) -> Outcome:
    dimensions = [leaf.unit.dimension for leaf in (gold, given)]
    if {name for dimension in dimensions for name, _ in dimension} != {"degree", "radian"}:
        return DIFFERENT
    texts = [
        f"({leaf.text})*\\pi/180" if leaf.unit.dimension == (("degree", 1),) else leaf.text for leaf in (gold, given)
    ]
    return same_expression(*texts, symbols)


def _times(text: str, factor: Fraction) -> str:
    value = number(text)
    product = value * factor if value is not None else None
    if product is not None:
        return rf"\frac{{{product.numerator}}}{{{product.denominator}}}"
    return rf"({text})*\frac{{{factor.numerator}}}{{{factor.denominator}}}"


def same_expression(gold: str, given: str, symbols: SymbolTest) -> Outcome:
    """Compare two values without units: numbers exactly, expressions by evaluation, and others by calling `symbols`."""
    outcome = _same_number(gold, given)
    if outcome is None and key(gold) == key(given):
        return SAME
    if bool(_CROSS.search(gold)) != bool(_CROSS.search(given)):
        return DIFFERENT
    if outcome is None:
        outcome = _same_node(*_with_arrows(gold, given))
    if outcome is None:
        if _is_other_name(gold, given):
            return DIFFERENT
        outcome = UNDECIDED if _OUTSIDE.search(gold + "|" + given) else symbols(gold, given)
    return outcome


def _with_arrows(gold: str, given: str) -> tuple[str, str]:
    r"""Rewrite AB as \vec{AB} in one text if only the other text has arrows."""
    if (r"\vec{" in gold) == (r"\vec{" in given):
        return gold, given
    return tuple(
        text if r"\vec{" in text else re.sub(r"(?<![A-Z\\])([A-Z]{2})(?![A-Za-z])", r"\\vec{\1}", text)
        for text in (gold, given)
    )


def _same_number(gold: str, given: str) -> Outcome | None:
    """Compare two plain numbers exactly, or return None if either is not a plain number."""
    gold_percent, given_percent = gold.endswith("%"), given.endswith("%")
    gold_value, given_value = number(gold.rstrip("% ")), number(given.rstrip("% "))
    if gold_value is None or given_value is None:
        return None
    if gold_percent != given_percent:
        rounded = gold_percent and is_decimal(gold.rstrip("% ")) and is_rounding(gold.rstrip("% "), given_value * 100)
        return SAME if rounded else _same_share(gold_value, given_value, gold_percent, "/" in given or "frac" in given)
    if gold_value == given_value:
        return SAME
    gold, given = gold.rstrip("% "), given.rstrip("% ")
    return SAME if _is_same_rounded(gold, gold_value, given, given_value) else DIFFERENT


def _same_share(gold: Fraction, given: Fraction, gold_percent: bool, fraction: bool) -> Outcome:
    """Compare a percentage with a number.

    A gold of 50% accepts 0.5, and also 50, which cannot be a fraction of one; a gold of 0.5% does not accept 0.5.
    """
    if gold_percent:
        return SAME if gold / 100 == given or (gold == given and abs(gold) > 1 and not fraction) else DIFFERENT
    return SAME if gold == given / 100 else DIFFERENT


def _is_same_rounded(gold: str, gold_value: Fraction, given: str, given_value: Fraction) -> bool:
    if is_decimal(gold):
        return is_rounding(gold, given_value) and (is_decimal(given) or not looks_exact(gold))
    return rounds_to(gold_value, given)


def _same_node(gold: str, given: str) -> Outcome | None:
    """Compare two expressions by evaluation, or return None if either cannot be parsed or evaluated."""
    try:
        one, other = parse(gold), parse(given)
    except UnreadableError:
        return None
    # Expression trees convert degrees to radians, but next to a symbol such as x, ° only names the unit.
    if uses(one, "degrees") and not uses(other, "degrees", "sin", "cos", "tan") and free_symbols(one):
        one = parse(gold.replace("°", ""))  # 180°-x is 180-x
    are_equal = equal(one, other)
    if are_equal:
        return SAME
    if are_equal is None:
        return UNDECIDED if uses(one, "ambiguous") or uses(other, "ambiguous") else None
    symbolic = free_symbols(one) or free_symbols(other)
    written = is_decimal(gold) or is_decimal(given)
    return SAME if written and not symbolic and _rounds(gold, given, one, other) else DIFFERENT


def _rounds(gold: str, given: str, one: Expression, other: Expression) -> bool:
    try:
        values = [_as_fraction(evaluate_expression(node, {})) for node in (one, other)]
    except (UndefinedError, ArithmeticError):
        return False
    return None not in values and _is_same_rounded(gold, values[0], given, values[1])


def _as_fraction(value: Value) -> Fraction | None:
    if isinstance(value, Fraction):
        return value
    if getattr(value, "imag", 0) != 0 or abs(value) > 10**30:
        return None
    return Fraction(int(value.real * 10**40), 10**40)  # 40 places are far more than an answer has


def approximates(decimal: str, exact: str) -> bool:
    """Return whether a decimal with at least two places is the expression rounded or truncated: 1.73 for sqrt(3)."""
    places = len(decimal.rstrip("% ").partition(".")[2]) + 2 * decimal.endswith("%")
    value = number(decimal.rstrip("% "))
    if value is not None and decimal.endswith("%"):
        value /= 100
    decimal = decimal.rstrip("% ")
    if value is None or not is_decimal(decimal) or places < 2:
        return False
    try:
        exact_value = _as_fraction(evaluate_expression(parse(exact), {}))
    except (UnreadableError, UndefinedError, ArithmeticError):
        return False
    if exact_value is None:
        return False
    # In units of the last place, rounding errs by at most a half; truncation by less than one, only toward zero.
    error = (abs(value) - abs(exact_value)) * 10**places
    return value * exact_value > 0 and -1 < error <= Fraction(1, 2)


def _is_other_name(gold: str, given: str) -> bool:
    """Return whether two formulas that cannot be evaluated differ only in names or numbers."""
    one, other = (_IDENTIFIER.findall(text) for text in (key(gold), key(given)))
    if len(one) != len(other) or not any(token.startswith("\\") for token in one) or _BOUND.intersection(one):
        return False
    differing = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    names = all((a.isalnum() and b.isalnum()) or {a, b} == {r"\forall", r"\exists"} for a, b in differing)
    return bool(differing) and names and len(differing) < len(one)
