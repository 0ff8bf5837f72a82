"""Count phrases of reflection, and of looking at the image again, in the sampled responses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from policy_rl.graded import GradedGroup

_NOUNS = ("image", "picture", "figure", "diagram", "graph", "chart")

REFLECTION = (
    *("wait", "hmm", "aha", "on second thought", "check again", "think again", "try again", "verify again"),
    *("recheck", "re-check", "rechecking", "re-checking", "double-check", "double-checking"),
    *("reconsider", "reconsidering", "re-evaluate", "reevaluate", "re-evaluating", "rethink", "re-think"),
    *("let me verify", "let's verify", "made a mistake", "made an error", "that's not right"),
)
"""Phrases to count if monitor.reflection_phrases is unset."""

RELOOK = (
    *("look again", "looking again", "look back", "looking back", "look closer", "looking closer"),
    *("look more closely", "looking more closely", "look more carefully", "another look", "closer look", "second look"),
    *("re-examine", "reexamine", "re-examining", "reexamining", "re-inspect", "reinspect"),
    *(f"at the {noun} again" for noun in _NOUNS),
    *(f"check the {noun} again" for noun in _NOUNS),
    *(f"{verb} the {noun}" for verb in ("revisit", "back to", "back at", "double-check") for noun in _NOUNS),
)
"""Phrases to count if monitor.relook_phrases is unset."""

_WORD = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")
"""Matches a word, or one character of a script that is written without spaces."""


def phrase_metrics(groups: Sequence[GradedGroup], lists: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Compute, for each named list, the mean number of its phrases per response.

    Only whole words match; case, punctuation and line breaks are ignored. Phrases that overlap each count. Averages
    over the responses with a known reward, or returns NaN if there are none. Empty lists are left out.
    """
    responses = [each.response for group in groups for each in group.responses if each.reward.total is not None]
    texts = [words_of(response.text) for response in responses]
    metrics = {}
    for name, phrases in lists.items():
        counts = [_count(text, [words_of(phrase) for phrase in phrases]) for text in texts]
        if phrases:
            metrics[name] = fmean(counts) if counts else math.nan
    return metrics


def _count(words: Sequence[str], phrases: Sequence[Sequence[str]]) -> int:
    present, spaced = set(words), _spaced(words)
    return sum(spaced.count(_spaced(phrase)) for phrase in phrases if present.issuperset(phrase))


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def _spaced(words: Sequence[str]) -> str:
    """Return the words, each between two spaces, so that a substring search finds whole words."""
    return "".join(f" {word} " for word in words)
