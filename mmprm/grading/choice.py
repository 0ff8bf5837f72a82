"""Decide which options of a multiple-choice problem an answer selects, by letter or by text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmprm.grading.labels import is_refusal, plain_words
from mmprm.grading.outcome import DIFFERENT, SAME, UNDECIDED, Outcome
from mmprm.grading.text import clean, is_prose, key
from mmprm.grading.wording import denies

_LETTERS = "ABCDEFGHIJ"
_MAX_WORDS = 12
"""Maximum number of words in a sentence that selects an option. Longer sentences may only mention one."""

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_GOLD = re.compile(r"\(?[A-J]\)?|\([A-J]\)")
_GOLD_WITH_TEXT = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(([A-J])\)\s*|([A-J])\s*[.):]\s*|(?<=[a-z:]\s)([A-J])$)(?P<text>.*)",
    re.DOTALL | re.I,
)
_JOINT = r"(?:[\s,;/&+.()]|\band\b|\bor\b|[和或及与])*"
_ONLY_LETTERS = re.compile(rf"\(?[A-J]\)?(?:{_JOINT}\(?[A-J]\)?)*\.?")
_ANNOUNCED = re.compile(
    rf"(?:\b(?:answer|option|choice|choose|select|pick)s?\b|答案|(?<!不)选[项择]?)\s*(?:is|are|:|是|为)?\s*(?:option|choice)?\s*"
    rf"\(?(?P<letters>[A-J](?:(?!\s*[;.]\s*\(?[A-J]\)?\s+(?:is|was|has)\b){_JOINT}\(?[A-J]\b)*)\)?(?![a-zA-Z\d_'])(?!\s*[+*/^%=])",
    re.IGNORECASE,
)
_LEADING = re.compile(
    r"(?:\((?P<in>[A-J])\)|(?P<out>[A-J])\s*[.):]|(?P<bare>[A-J]))\s*(?:-+\s+)?(?P<text>.*)", re.DOTALL
)
_STANDING = re.compile(r"\(([A-J])\)|(?<![\w\\'^{])([B-HJ]|A(?!\s+(?!is\b)[a-z]))(?![\w'^_{(])")
_NO_CHOICE = ""
"""Extra entry in the set of letters for an answer that discusses several options without selecting one."""
_JUDGED = re.compile(
    r"^\W*(?:is |are |seems? )?(?:\b(?:wrong|false|incorrect|no|not|true|yes)\b|是?错|不)", re.IGNORECASE
)
_DENIED = re.compile(
    r"\b(?:not|neither|nor|except|rather than|instead of|(?:anything|everything|all) but|without)\s+(?:option\s+)?"
    r"\(?([A-J])\)?"
    r"(?:\s+nor\s+\(?([A-J])\)?)?(?![\w'])",
    re.IGNORECASE,
)
_DENIED_CHINESE = re.compile(r"不[是选]\s*\(?([A-J])")
_ALSO = re.compile(r"\(?(?<![\w\\])([A-J])\)?\s+(?:is|are|seems?|would be|could be)\s+(?:also|equally|too[\s.]*$)")
_REFUTED = re.compile(r"\(?(?<![\w\\])([A-J])\)?\s+(?:is|are|was|seems?)(?:n't)?\s+(?:not|wrong|incorrect|false)\b")
_MATH = re.compile(r"[\d\\$(\[{<>=+¤£€¥-]")

_INLINE = re.compile(r"(?:^|[\n;,])\s*\(?([A-J])\s*[.:)、]\s*(.*?)(?=[\n;,]\s*\(?[A-J]\s*[.:)、]|\Z)", re.DOTALL)


def inline_choices(text: str) -> tuple[str, ...]:
    """Return the texts of choices A, B, … listed in `text`, one per line or separated by semicolons or commas.

    If A occurs several times, the list starts at the last one. Returns () unless it has at least two choices, in order.
    """
    found = _INLINE.findall(text)
    letters = "".join(letter for letter, _ in found)
    start = max(0, letters.rfind("A"))  # letters before the last A may name points
    found, letters = found[start:], letters[start:]
    complete = len(found) > 1 and _LETTERS.startswith(letters)
    return tuple(choice.strip().rstrip(";") for _, choice in found) if complete else ()


def is_letter(gold: str) -> bool:
    r"""Return whether a gold answer is a bare option letter: B, (B), B. or \text{(B)}."""
    return _GOLD.fullmatch(_plain(gold)) is not None


def gold_letters(gold: str) -> frozenset[str]:
    """Return the option letters in a gold answer, such as B in "B. 5 cm" or A, B and D in ABD, or an empty set."""
    text = _plain(gold)
    if _GOLD.fullmatch(text) or (_ONLY_LETTERS.fullmatch(text) and not re.search(r"[A-J]{2}", text)):
        return frozenset(re.findall(r"[A-J]", text))
    if re.fullmatch(r"A?B?C?D?E?F?G?", text):
        return frozenset(text)
    if match := _GOLD_WITH_TEXT.fullmatch(text):
        named = match[1] or match[2] or match[3]
        return frozenset([named]) if named.isupper() else frozenset()
    return frozenset()


def gold_text(gold: str) -> str:
    """Return the text of the option in a gold answer: `5 cm` for "B. 5 cm", or "" for a bare letter."""
    match = _GOLD_WITH_TEXT.fullmatch(_plain(gold))
    return match["text"].strip() if match else ""


def letter(answer: str) -> str | None:
    """Return the only option letter that an answer names, or None if it names no letter or several."""
    named = letters(answer)
    return next(iter(named)) if len(named) == 1 else None


def letters(answer: str) -> frozenset[str]:
    """Return the option letters that an answer chooses, as in `B`, `(B) 5 cm`, `A, C` or "the answer is B"."""
    text = _plain(answer)
    if re.fullmatch(r"\(?[a-j]\)|[a-j][.:]?|\([a-j]\)|option [a-j]", text):
        return frozenset(re.findall(r"[a-j](?!\w)", text)[-1].upper())
    if _ONLY_LETTERS.fullmatch(text):
        return frozenset(re.findall(r"[A-J]", text))
    if small := re.fullmatch(r"(?:the )?(?:answer|option|choice)\s*(?:is|:)\s*\(?([a-j])\)?\.?", text, re.IGNORECASE):
        return frozenset(small[1].upper())
    if small := re.match(r"\(?([a-j])\)\s", text):
        text = f"({small[1].upper()}) {text[small.end() :]}"
    denied = {named for match in _DENIED.finditer(text) for named in match.groups() if named}
    denied |= {match[1] for pattern in (_REFUTED, _DENIED_CHINESE) for match in pattern.finditer(text)}
    announced = [named for match in _ANNOUNCED.finditer(text) for named in re.findall(r"[A-J]", match["letters"])]
    announced = [named for named in announced if named not in denied]
    if announced:
        return frozenset(announced) | {match[1] for match in _ALSO.finditer(text)} - denied
    # Standalone letters may name points or variables in a long answer, so they count only under the conditions below.
    standing = frozenset(first or second for first, second in _STANDING.findall(text)) - denied
    match = _LEADING.match(text)
    if match is None or not _begins_with_letter(match):
        return standing if denied or len(standing) > 1 or _is_short(text) else frozenset()
    named, rest = match["in"] or match["out"] or match["bare"], match["text"]
    # A response that goes through the options ("A is wrong because …") begins with a letter that it does not choose.
    if named in denied or _JUDGED.match(rest) or re.search(r"(?:^|[\s,;])\(?[A-J][.):]\s", rest):
        others = standing - {named}
        return others if others and re.match(r"\W*is\b", rest) else standing | {_NO_CHOICE}
    return frozenset([named])


def _begins_with_letter(match: re.Match[str]) -> bool:
    """Return whether a matched text begins with an option letter, as in "(A) …" or "A 30°", but not "A triangle"."""
    if match["bare"] is None:
        return True
    text = match.string[match.end("bare") :]
    return bool(re.match(r"\s*$|\s*-+\s|\s*[\u4e00-\u9fff]|\s+" + _MATH.pattern, text)) and not re.match(
        r"\s*[=^_+*/<>]", text
    )


def _is_short(text: str) -> bool:
    """Return whether a text has at most six words and no formulas.

    In other texts, single letters may name points or variables.
    """
    return len(text.split()) <= 6 and not re.search(r"[\\=^_<>+|%\d]", text)


def option(answer: str, choices: Sequence[str], same: Callable[[str, str], Outcome] | None = None) -> int | None:
    """Return the index of the option that `answer` selects by text, else by letter, else by value.

    Letters take precedence if the options are letters themselves ("D. I"). `same` compares an option with an answer.
    """
    ways = [_by_text, _by_letter]
    if any(is_letter(_option_text(choice)) for choice in choices):
        ways.reverse()
    found = (way(answer, choices) for way in ways)
    index = next((index for index in found if index is not None), None)
    if index is None and same is not None and not letters(answer):
        outcomes = [same(_option_text(choice), answer) for choice in choices]
        best = SAME if SAME in outcomes or is_prose(clean(answer)) else UNDECIDED  # 1/3 among options 1:3, 1:4
        matching = [
            i for i, outcome in enumerate(outcomes) if outcome is best and (best is SAME or not is_prose(choices[i]))
        ]
        index = matching[0] if len(matching) == 1 else _by_mention(answer, choices)
    return index


def _by_mention(answer: str, choices: Sequence[str]) -> int | None:
    """Return the index of the only option that a sentence mentions without negation, or None if there is no such
    option."""
    sentence, texts = plain_words(answer), [plain_words(_option_text(choice)) for choice in choices]
    found = [
        i
        for i, text in enumerate(texts)
        if re.search(r"[a-z]{3,}", text) and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", sentence)
    ]
    return found[0] if len(found) == 1 and not denies(sentence) and len(sentence.split()) <= _MAX_WORDS else None


def _by_text(answer: str, choices: Sequence[str]) -> int | None:
    texts = [key(_option_text(choice)) for choice in choices]
    named = (key(answer), key(_option_text(answer)))
    return next((texts.index(text) for text in named if texts.count(text) == 1), None)


def _by_letter(answer: str, choices: Sequence[str]) -> int | None:
    named = letter(answer)
    index = _LETTERS.find(named) if named else -1
    return index if 0 <= index < len(choices) else None


def _option_text(choice: str) -> str:
    """Strip the letter from an option: `3 cm` for `B. 3 cm`."""
    match = _LEADING.match(_plain(choice))
    bracketed = match is not None and match["bare"] is None
    return match["text"] if bracketed and match["text"] else choice


def _plain(text: str) -> str:
    r"""Strip LaTeX markup from a text: (A) 30 for \textbf{(A)}\ 30."""
    line = clean(" ".join(text.split()))
    line = _TEXT.sub(r"\1", line)
    line = re.sub(r"[\"'*]+(?=[A-J]\b)|(?<=\b[A-J])[\"'*]+$", "", line).strip()
    return re.sub(r"^\{\s*([A-J])\s*\}", r"\1", line)


Chosen = tuple[Outcome, str]
"""An (outcome, reason) pair."""


def decide(gold: str, answer: str, choices: Sequence[str], same: Callable[[str, str], Outcome]) -> Chosen | None:
    """Compare the options that two answers select, or return None if the answers must be compared as values."""
    wanted = gold_letters(gold)
    if len(wanted) > 1:
        named = letters(answer)
        return (SAME if named == wanted else DIFFERENT, _options(named)) if named else None
    if choices:
        return _decide_among(gold, answer, choices, same)
    return _decide_by_letter(gold, answer, wanted, same) if wanted else None


def _decide_among(gold: str, answer: str, choices: Sequence[str], same: Callable[[str, str], Outcome]) -> Chosen | None:
    wanted = option(gold, choices, same)
    if wanted is None:
        return None
    given = option(answer, choices, same)
    if given is not None:
        return SAME if given == wanted else DIFFERENT, f"option {_LETTERS[given : given + 1] or given + 1}"
    if named := letters(answer):
        return DIFFERENT, _options(named)
    outcome = DIFFERENT if is_refusal(answer) else same(_option_text(choices[wanted]), answer)
    return outcome, "names no option" if outcome is DIFFERENT else outcome.value


def _decide_by_letter(gold: str, answer: str, wanted: frozenset[str], same: Callable[[str, str], Outcome]) -> Chosen:
    named = letters(answer)
    if named:
        return SAME if named == wanted else DIFFERENT, _options(named)
    text = gold_text(gold)
    if text and plain_words(text) == plain_words(answer):
        return SAME, "the text of the option"
    if is_refusal(answer) or denies_letter(answer):
        return DIFFERENT, "names no option"
    outcome = same(text, answer) if text else UNDECIDED
    unknown = "names no option by letter, and the options are not known"
    return outcome, unknown if outcome is UNDECIDED else outcome.value


def denies_letter(answer: str) -> bool:
    """Return whether an answer rules out an option, as in "not A"."""
    text = _plain(answer)
    return any(pattern.search(text) for pattern in (_DENIED, _DENIED_CHINESE, _REFUTED))


def _options(named: frozenset[str]) -> str:
    letters_ = "".join(sorted(named & set(_LETTERS)))
    return f"option {letters_}" if len(named) == 1 else f"options {letters_}"
