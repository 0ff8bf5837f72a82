"""Test how phrases of reflection and of a second look are counted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scripted_rl import make_config

from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.metrics import metric_names
from policy_rl.monitor.alarms import MonitorConfig
from policy_rl.monitor.phrases import REFLECTION, RELOOK, phrase_metrics
from policy_rl.types import Response, Reward


def group(*texts: str, reward: float | None = 1.0) -> GradedGroup:
    responses = (
        GradedResponse(
            Response(text, (0,), (0.0,), "stop"),
            Grading(Verdict.CORRECT, "4", ""),
            Reward(reward, {"accuracy": reward}),
        )
        for text in texts
    )
    return GradedGroup(Problem("p", "How many?", "4"), 5, 0, tuple(responses))


def count(text: str, *phrases: str) -> float:
    return phrase_metrics([group(text)], {"found": phrases})["found"]


def test_the_mean_is_over_responses_with_a_known_reward() -> None:
    groups = [group("Wait, wait.", "It is 4."), group("Wait!", reward=None), group("But wait: no.")]
    assert phrase_metrics(groups, {"found": ("wait",), "none": ("aha",)}) == {"found": (2 + 0 + 1) / 3, "none": 0}


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("WAIT… wait", "wait", 2),
        ("The waiter is awaited.", "wait", 0),
        ("I look\n  again, and look again.", "look again", 2),
        ("I look at it again.", "look again", 0),
        ("Let me re-check; rechecking is good.", "re-check", 1),
        ("That’s not right.", "that's not right", 1),
        ("等等，再看一下图。", "等等", 1),
        ("等一等", "等等", 0),
        ("", "wait", 0),
    ],
)
def test_whole_words_are_counted(text: str, phrase: str, found: int) -> None:
    assert count(text, phrase) == found


def test_overlapping_phrases_each_count() -> None:
    assert count("Let me double-check the figure again.", "double-check", "double-check the figure") == 2


@pytest.mark.parametrize(
    ("text", "reflections", "relooks"),
    [
        ("Hmm, 3 + 4 = 8? On second thought, it is 7. I made a mistake.", 3, 0),
        ("Wait, I should look at the figure again: the angle is 40°.", 1, 1),
        ("Looking back at the image, the cube is red.", 0, 2),
        ("On closer look, let me re-examine the diagram.", 0, 2),
        ("The image shows a cube. So it has 6 faces.", 0, 0),
    ],
)
def test_the_built_in_lists(text: str, reflections: int, relooks: int) -> None:
    found = phrase_metrics([group(text)], MonitorConfig().phrases)
    assert found == {"reflection_phrases": reflections, "relook_phrases": relooks}


def test_the_lists_can_be_replaced_and_left_out(tmp_path: Path) -> None:
    assert MonitorConfig().phrases == {"reflection_phrases": REFLECTION, "relook_phrases": RELOOK}
    config = build(MonitorConfig, {"reflection_phrases": ["aha"], "relook_phrases": []})
    assert phrase_metrics([group("Aha, wait.")], config.phrases) == {"reflection_phrases": 1}
    names = metric_names(make_config(tmp_path, monitor={"relook_phrases": []}))
    assert "reflection_phrases" in names
    assert "relook_phrases" not in names, "no alarm can be set on it"


def test_no_responses_have_no_mean() -> None:
    assert math.isnan(phrase_metrics([], {"found": ("wait",)})["found"])


def test_a_phrase_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the phrase '…' has no word, so it would match nothing; remove it"):
        build(MonitorConfig, {"relook_phrases": ["look", "…"]})
