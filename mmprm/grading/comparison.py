"""Compare an answer with the gold answer: strip surrounding words, then compare structure and values."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmprm.grading.labels import compare_labels, skeleton
from mmprm.grading.leaves import approximates, is_sign
from mmprm.grading.numbers import number
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome, SymbolTest, any_of
from mmprm.grading.reading import (
    Compound,
    Leaf,
    Reading,
    has_prose,
    read_answer,
    run_together,
    serial_reading,
    spaced_reading,
)
from mmprm.grading.structure import is_plain, same_structure
from mmprm.grading.text import clean, is_prose, key
from mmprm.grading.wording import alternatives, condition, core, denies, excludes, stated_values

_OPTION = re.compile(r"(?:\\text\s*\{\s*)?(?:\([A-J]\)|[A-J][.):](?!\d+\b))\s*\}?\s*(.*[^\s,;)].*)")
_BRACKETED_DECIMAL = re.compile(
    r"(?P<exact>.+?)\s*\(\s*(?:or|\\approx|=|i\.e\.)?\s*(?P<decimal>\d*\.\d+\s*%?|\d+\s*%)\s*\)"
)
_DOMAIN = re.compile(r"(?P<body>[^<>,]*?)\s*,\s*(?P<domain>[a-zA-Z]\s*(?:<|>|\\leq|\\geq|\\neq)\s*-?[\w.]+)")


def compare(gold: str, answer: str, symbols: SymbolTest, labels: Sequence[Sequence[str]] = ()) -> Outcome:
    """Compare an answer with the gold answer. `symbols` is called only if text, structure and evaluation are
    inconclusive.

    `labels` are closed sets of words: if the gold is in one, every other answer is incorrect.
    """
    if key(gold) == key(answer):
        return SAME
    return any_of(_compare_one(each, answer, symbols, labels) for each in alternatives(gold))


def _compare_one(gold: str, answer: str, symbols: SymbolTest, labels: Sequence[Sequence[str]]) -> Outcome:
    if is_sign(clean(gold)) and is_sign(sign := _core(answer)[0]):
        return SAME if sign == clean(gold) else DIFFERENT
    if is_sign(clean(gold)) and isinstance(relation := read_answer(_line(answer)), Compound):
        return DIFFERENT if clean(gold) == "=" and relation.marks != ("=",) else UNDECIDED
    if (outcome := compare_labels(_line(gold), _line(answer), labels)) is not None:
        return outcome
    if run_together(gold, answer):
        return SAME
    gold_text, gold_remark = _core(gold)
    gold_reading = read_answer(gold_text)
    answer_text, answer_remark = _without_domain(gold_reading, *_core(without_decimal(without_option(answer))))
    given = read_answer(answer_text)
    readings = [each for each in (gold_reading, serial_reading(gold), spaced_reading(gold)) if each]
    outcomes = [_same_or_stated(reading, gold_text, given, answer_text, symbols) for reading in readings]
    # The alternative readings of a gold can only accept an answer; if none does, the usual reading decides.
    outcome = SAME if SAME in outcomes else outcomes[0]
    conditions = condition(gold_remark), condition(answer_remark)
    if outcome is SAME and all(conditions) and conditions[0] != conditions[1]:
        return UNDECIDED
    return outcome


def without_option(answer: str) -> str:
    """Strip the option letter from an answer: "(A) 30" becomes 30. Used if the gold answer is not a letter."""
    match = _OPTION.fullmatch(clean(answer)) if "\n" not in answer.strip() else None
    return match[1] if match else answer


def without_decimal(answer: str) -> str:
    r"""Drop a parenthesized decimal that repeats the value before it: "6\pi (18.85)" becomes 6\pi."""
    match = _BRACKETED_DECIMAL.fullmatch(clean(answer)) if "\n" not in answer.strip() else None
    if match is None:
        return answer
    exact, decimal = number(match["exact"]), number(match["decimal"].rstrip("% "))
    again = approximates(match["decimal"], match["exact"]) or (exact is not None and exact == decimal)
    return match["exact"] if again else answer


def _without_domain(gold: Reading, text: str, remark: str) -> tuple[str, str]:
    """Move a trailing domain such as x > 0 from the answer to the remark (the note after it).

    Nothing is moved if there already is a remark, or if the gold answer lists several answers.
    """
    match = _DOMAIN.fullmatch(text)
    if match is None or remark or (isinstance(gold, Compound) and gold.kind in ("blanks", "list")):
        return text, remark
    return match["body"], match["domain"]


def _line(text: str) -> str:
    return " ".join(clean(line) for line in text.strip().splitlines())


def _core(text: str) -> tuple[str, str]:
    """Strip the words around an answer; return (answer, remark), where the remark may be empty.

    Each line is a separate answer, unless the first line introduces the second.
    """
    lines = [clean(line) for line in text.strip().splitlines() if clean(line)]
    raw = [line for line in text.strip().splitlines() if clean(line)]
    if len(lines) < 2 or r"\begin" in text:
        return core(" ".join(lines))
    if re.search(r"[:：]\s*$", raw[0]) and len(lines) == 2 and is_prose(lines[0]):
        return core(lines[1])
    return "\n".join(lines), ""


def _same_or_stated(gold: Reading, gold_text: str, given: Reading, text: str, symbols: SymbolTest) -> Outcome:
    outcome = same_structure(gold, given, symbols)
    if outcome is not SAME and isinstance(given, Leaf) and given.prose and not has_prose(gold):
        return _same_as_stated(gold, text, symbols)
    if has_prose(gold) and outcome is UNDECIDED:
        if skeleton(gold_text) == skeleton(text):
            return SAME
        if isinstance(gold, Leaf):
            return _gold_sentence(gold, given, symbols)
    return outcome


def _same_as_stated(gold: Reading, sentence: str, symbols: SymbolTest) -> Outcome:
    """Compare the gold answer with the value that an answer in prose states.

    An answer that mentions several values, or negates one, is never SAME.
    """
    values = stated_values(sentence)
    outcomes = [same_structure(gold, read_answer(value), symbols) for value in values]
    said_in_words = isinstance(gold, Compound) and gold.kind in ("relation", "brackets", "union")  # "greater than 3"
    otherwise = DIFFERENT if is_plain(gold) and not said_in_words else UNDECIDED
    if len(set(values)) == 1 and not denies(sentence):
        bare = isinstance(read_answer(values[0]), Leaf)
        return otherwise if outcomes[0] is DIFFERENT and bare else outcomes[0]
    if SAME in outcomes or UNDECIDED in outcomes:
        return DIFFERENT if len(values) == 1 and excludes(sentence) and not said_in_words else UNDECIDED
    return otherwise


def _gold_sentence(gold: Leaf, given: Reading, symbols: SymbolTest) -> Outcome:
    """Compare an answer with the value that the last sentence of a gold answer in prose states."""
    if isinstance(given, Leaf) and given.prose:
        return UNDECIDED
    sentence = re.split(r"(?<=[a-z\d])[.;]\s+|\\therefore|[∴]", gold.text)[-1]
    values = stated_values(sentence)
    outcomes = [same_structure(read_answer(value), given, symbols) for value in values]
    if len(set(values)) == 1:
        return outcomes[0]
    # A gold that mentions several values may mean any of them, so only an answer with none of them is incorrect.
    may_match = SAME in outcomes or UNDECIDED in outcomes
    return DIFFERENT if isinstance(given, Leaf) and not may_match else UNDECIDED
