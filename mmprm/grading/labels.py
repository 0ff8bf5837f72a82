"""Compare prose answers: by label if the gold answer belongs to a closed set of labels, otherwise by their words.

A set is a row of labels; synonyms of one label are joined by `|`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome

LABEL_SETS = [
    tuple(tuple(label.split("|")) for label in row.split(", "))
    for row in (
        "yes|是|对|正确, no|不是|否|错|错误|不对|不正确",
        "correct|right, incorrect|wrong",
        "true, false",
        "odd, even, neither",
        "increasing|increases|increase|增大, decreasing|decreases|decrease|减小, constant|unchanged|不变",
        "positive, negative, zero",
        "acute, right, obtuse, straight, reflex",
        "equilateral, isosceles, scalene",
        "rhombus|菱形, square|正方形, rectangle|矩形|长方形, "
        "parallelogram|平行四边形, trapezoid|trapezium|梯形, kite, triangle|三角形, "
        "circle|圆, pentagon, hexagon, octagon, ellipse|oval, "
        "parabola, hyperbola, cube, sphere, cone, cylinder, prism, pyramid",
        "equal|equals|same|the same|equal to|=|相等, unequal|different|not equal|\\neq|不相等, "
        "greater|larger|more|greater than|more than|bigger|>|大于, "
        "less|smaller|fewer|less than|smaller than|fewer than|<|小于",
        "parallel|平行, perpendicular|垂直, intersecting|相交, skew",
        "north|北, south|南, east|东, west|西, northeast|东北, northwest|西北, southeast|东南, southwest|西南",
        "left, right, up, down",
        "clockwise, counterclockwise|anticlockwise|counter-clockwise",
        "prime, composite",
        "rational, irrational",
        "possible, impossible, certain",
        "convergent|converges, divergent|diverges",
        "linear, quadratic, cubic, exponential, logarithmic",
        "inside, outside, on",
        "maximum|max, minimum|min",
        "solid, liquid, gas",
        "red, blue, green, yellow, orange, purple|violet, black, white, brown, "
        "gray|grey, pink, cyan, magenta, gold, silver",
        "monday, tuesday, wednesday, thursday, friday, saturday, sunday",
        "january, february, march, april, may, june, july, august, september, october, november, december",
        "spring, summer, autumn|fall, winter",
        "rubber, metal",
        "small, large, medium",
        "sufficient, necessary, sufficient and necessary|necessary and sufficient, neither",
    )
]
_WORD = re.compile(r"(?<![\\a-z])[a-z]{2,}(?!\()|[\u3040-\u9fff]")
_ARTICLES = re.compile(r"^(?:(?:it|this|that|they|he|she) (?:is|are)|it's|there (?:is|are))\s+|^(?:a|an|the)\s+")
_SEPARATORS = re.compile(r"[\s,;.:!?/()\"'、，。；]+")
_NEGATORS = ("not", "isn't", "aren't", "non", "no", "never", "不", "neither", "nor")
_LEAD = re.compile(r"(?:final )?answers?\s*(?:is|:)?\s*")
_REFUSALS = re.compile(
    r"(?:i )?(?:cannot|can't|can not|don't|do not|could not|unable|not sure|unsure|unknown|unclear|undetermined|nothing"
    r"|not enough|insufficient|because|let's|let (?:us|me)|maybe|none\b|(?:i have )?no idea"
    r"|all (?:of|(?:the )?(?:options|choices|answers))|neither\b|both\b|any of|impossible to|it depends|n/a\b|hmm)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Return whether a text gives no answer, as in "cannot be determined", "not sure" or "none of these"."""
    return bool(_REFUSALS.match(_LEAD.sub("", plain_words(text))))


def plain_words(text: str) -> str:
    """Lower-case a text and strip markup, leading articles and surrounding punctuation."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).casefold()
    text = " ".join(text.split()).strip(" .,;:!?\"'*")
    previous = ""
    while previous != text:
        previous, text = text, _ARTICLES.sub("", text)
    return text


def skeleton(text: str) -> str:
    """Return the words and signs of a multi-part answer without the separators between its parts."""
    return " ".join(part for part in _SEPARATORS.split(plain_words(text.replace("\n", " "))) if part and part != "and")


def compare_labels(gold: str, answer: str, own_sets: Sequence[Sequence[str]] = ()) -> Outcome | None:
    """Compare an answer in words with a gold label, or return None if no label set contains the gold answer.

    `own_sets` are user-defined sets of labels without synonyms.
    """
    gold_text, answer_text = plain_words(gold), plain_words(answer)
    own = [tuple((plain_words(label),) for label in labels) for labels in own_sets]
    sets = [labels for labels in (*own, *LABEL_SETS) if _index(gold_text, labels) is not None]
    if not sets:
        return None
    outcomes = [_compare_in(labels, gold_text, answer_text, closed=labels in own) for labels in sets]
    if own and sets[0] in own:
        return outcomes[0]
    return next((wanted for wanted in (SAME, DIFFERENT) if wanted in outcomes), UNDECIDED)


def compare_words(gold: str, answer: str) -> Outcome:
    """Compare prose answers that are not known labels, including sentences that state or deny the gold answer."""
    gold_text, answer_text = plain_words(gold), plain_words(answer)
    if gold_text == answer_text or skeleton(gold) == skeleton(answer):
        return SAME
    words = gold_text.split()
    if len(words) <= 3:
        if answer_text in {f"{word} {gold_text}" for word in _NEGATORS} | {
            f"{p}{gold_text}" for p in ("un", "in", "im", "non-", "non")
        }:
            return DIFFERENT
        if re.fullmatch(
            rf"(?:[\w\s'{{}}\\]+ )?(?:is|are|was|were|be) (?:an? |the )?{re.escape(gold_text)}", answer_text
        ):
            return DIFFERENT if _denied(gold_text, answer_text) else SAME
        if is_refusal(answer) or _are_names(gold, answer):
            return DIFFERENT
    if sorted(skeleton(gold).split()) == sorted(skeleton(answer).split()) and re.search(r"[\n;,]", gold):
        return DIFFERENT  # the same parts in a different order
    return UNDECIDED


def _are_names(gold: str, answer: str) -> bool:
    """Return whether the gold answer and the answer are two different single-word proper names."""
    names = [re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip(" .") for text in (gold, answer)]
    return all(re.fullmatch(r"[A-Z][a-z]+", name) for name in names) and names[0] != names[1]


def _index(text: str, labels: Iterable[Sequence[str]]) -> int | None:
    return next((i for i, synonyms in enumerate(labels) if text in synonyms), None)


def _compare_in(labels: Sequence[Sequence[str]], gold: str, answer: str, closed: bool) -> Outcome:
    wanted = _index(gold, labels)
    exact = _index(answer, labels)
    if exact is not None:
        return SAME if exact == wanted else DIFFERENT
    named = {i for i, synonyms in enumerate(labels) for label in synonyms if _mentions(answer, label)}
    denied = {i for i in named if any(_denied(label, answer) for label in labels[i])}
    if named == {wanted} and not denied:
        if re.search(r"\d|[%=+(]", answer):
            return UNDECIDED
        binary = len(labels) == 2
        if binary and re.match(rf"(?:{'|'.join(map(re.escape, labels[wanted]))})\b", answer):
            return SAME
        return SAME if not binary or len(answer.split()) <= 8 else UNDECIDED
    if wanted in denied or (named and wanted not in named) or (wanted in named and len(named) > 1):
        return DIFFERENT
    if is_refusal(answer) or closed or (len(labels) == 2 and len(answer.split()) <= 3):
        return DIFFERENT
    flipped = {f"{prefix}{gold}" for prefix in ("un", "in", "im", "ir", "non-", "non")}
    return DIFFERENT if answer in flipped or not _WORD.search(answer) else UNDECIDED


def _mentions(text: str, label: str) -> bool:
    if not re.fullmatch(r"[a-z][a-z' -]*", label):
        return bool(re.search(r"[\u3040-\u9fff]", label)) and label in text
    return re.search(rf"(?<![\w-]){re.escape(label)}(?!\w)", text) is not None


def _denied(label: str, text: str) -> bool:
    negators = "|".join(map(re.escape, _NEGATORS))
    if not label.isascii():
        return re.search(rf"[不非没未]是?{re.escape(label)}", text) is not None
    return (
        re.search(rf"(?:\b(?:{negators})\b|n't)\s+(?:an? |the |really |quite )?{re.escape(label)}(?!\w)", text)
        is not None
    )
