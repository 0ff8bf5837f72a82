"""Replace phrases in thoughts that reveal that the model read a description instead of seeing the image, and find any
that remain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mmprm.data.choices import LETTERS
from mmprm.errors import ConfigError
from mmprm.grading.choice import gold_letters
from mmprm.grading.extract import open_gold
from mmprm.grading.quantities import split_unit
from mmprm.grading.text import clean

_TEXT = r"(?:(?:image|visual|picture|textual|text|detailed|given|provided|above) )*(?:description|caption)"

_IMAGE = r"(image|picture|figure|diagram)"

REPAIRS = {
    rf"\b(?:the|this|that|your|their|its) {_TEXT}(?: of (?:the|this) (?:image|picture|figure|diagram))?\b": "the image",
    rf"\bthe {_IMAGE} (?:says|states|mentions|tells (?:us|me)|specifies|describes)\b": r"the \1 shows",
    r"\bas (?:described|stated|mentioned)\b": "as shown",
    r"\b(is|are) described as\b": r"\1 shown as",
    r"\b(we|I)(?:'re| are|'m| am) told\b": r"\1 see",
}
"""Replacements of phrases, applied in this order and ignoring case."""

BETRAYALS = (
    r"\bdescriptions?\b",
    r"\bcaptions?\b",
    r"\bdescribed\b",
    r"\b(?:we|I)(?:'re| are|'m| am| was| were|'ve been| have been) told\b",
    r"\bthe (?:user|prompt) (?:says|said|states|stated|mentions|mentioned|gave|provided|wrote)\b",
    rf"\b(?:no|without (?:an?|any|the)) {_IMAGE}\b",
    rf"\b{_IMAGE} (?:is|was)(?:n't| not) (?:\w+ )?(?:here|attached|available|given|included|provided|shown|visible)\b",
    rf"\b(?:wasn't|was not|weren't|were not|haven't been|have not been) (?:given|shown|provided with)"
    rf" (?:an?|any|the|that|this) {_IMAGE}\b",
    rf"\b(?:don't|do not) (?:actually )?(?:have|see) (?:access to )?(?:an?|any|the|that|this) (?:\w+ )?{_IMAGE}\b",
    r"\b(?:can't|cannot|can not|couldn't|unable to|without) (?:actually |directly )?(?:see|view|look)(?:ing)?"
    rf" (?:at )?(?:the|this|it|{_IMAGE}s?)\b",
    r"\b(?:given|known|provided|reference) (?:correct )?answer\b",
    r"\bthe (?:notes?|text) (?:says?|states?|mentions?|tells?)\b",
    r"\baccording to the (?:notes?|text)\b",
    r"描述",
)
"""Phrases that must not occur in repaired thoughts."""

_LEAKS = re.compile(
    r"\\boxed|</?answer>|\b(?:final|correct|right)\s+(?:answer|option|choice|result)\b"
    r"|\banswer\s*(?:is|would be|must be|:)|\b(?:option|choice)\s+\(?[A-J]\)?\s+is\s+(?:correct|right)\b",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?:^|(?<=[.,;:\n]))\s*(?:therefore|thus|hence|so|consequently)\b[^.\n]*(?:\.\d[^.\n]*)*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Wording:
    """Holds the repairs and betrayals to apply, as compiled patterns."""

    repairs: tuple[tuple[re.Pattern[str], str], ...]
    betrayals: tuple[re.Pattern[str], ...]

    def repaired(self, thoughts: str) -> tuple[str, int]:
        """Apply all repairs, preserving initial capitals; return the text and the number of replacements."""
        total = 0
        for pattern, replacement in self.repairs:
            thoughts, count = pattern.subn(lambda match, r=replacement: _like(match[0], match.expand(r)), thoughts)
            total += count
        return thoughts, total

    def betrayal(self, thoughts: str) -> str | None:
        """Return the first phrase that matches a betrayal, or None if there is none."""
        plain = thoughts.replace("’", "'")
        return next((match[0] for pattern in self.betrayals if (match := pattern.search(plain))), None)


def read_wording(path: str | None) -> Wording:
    """Read repairs and betrayals from a YAML file, or return the built-in ones for None. Raises ConfigError."""
    values: Any = {}
    if path is not None:
        try:
            with open(path, encoding="utf-8") as file:
                values = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"wording={path}: cannot be read ({error}); write a YAML file") from error
        if not isinstance(values, dict) or set(values) - {"repairs", "betrayals"}:
            raise ConfigError(f"wording={path}: must hold only the keys repairs and betrayals; remove all others")
    return build_wording(values.get("repairs", REPAIRS), values.get("betrayals", BETRAYALS), f"wording={path}")


def build_wording(
    repairs: Mapping[str, str] = REPAIRS, betrayals: Sequence[str] = BETRAYALS, location: str = "wording"
) -> Wording:
    """Compile the patterns. Raises ConfigError, with `location`, for an invalid pattern or replacement."""
    if not isinstance(repairs, Mapping) or not isinstance(betrayals, list | tuple):
        raise ConfigError(f"{location}: repairs must be a mapping and betrayals a list; see docs/bridge.md")
    try:
        pairs = [(re.compile(str(pattern), re.IGNORECASE), str(text)) for pattern, text in repairs.items()]
        for pattern, text in pairs:
            re.compile(f"{pattern.pattern}|", re.IGNORECASE).sub(text, "")  # checks the groups that `text` refers to
        return Wording(tuple(pairs), tuple(re.compile(str(pattern), re.IGNORECASE) for pattern in betrayals))
    except (re.error, IndexError) as error:
        raise ConfigError(f"{location}: is not a valid regular expression ({error}); correct it") from error


def leaks(description: str, answer: str, choices: Sequence[str] = ()) -> bool:
    """Return whether a description announces an answer, or draws a conclusion that contains the gold answer.

    The gold answer is also recognized without its unit, and by the text of its option. Outside of conclusions, it may
    occur: a description must be able to state a value that the problem asks to read.
    """
    if _LEAKS.search(description):
        return True
    gold = re.compile("|".join(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)" for text in _spellings(answer, choices)))
    return any(gold.search(match[0]) for match in _CONCLUSION.finditer(description))


def _spellings(answer: str, choices: Sequence[str]) -> set[str]:
    """Return the spellings of the gold answer: its text without wrappers, the texts of its options, and each of these
    without units."""
    gold = open_gold(answer)
    letters = gold_letters(gold) if choices else ()
    texts = [gold, *(choice for letter, choice in zip(LETTERS, choices, strict=False) if letter in letters)]
    spellings = {spelling.strip() for text in texts for spelling in (text, split_unit(clean(text))[0])}
    return {spelling for spelling in spellings if spelling}


def _like(before: str, after: str) -> str:
    """Capitalize the replacement `after` if the replaced text `before` starts with a capital letter."""
    return after[:1].upper() + after[1:] if before[:1].isupper() else after
