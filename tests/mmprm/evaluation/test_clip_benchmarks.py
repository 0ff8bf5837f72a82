"""Test the emotion benchmarks: their published rows, their labels, and weighted and unweighted average recall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli.eval_policy import _read
from mmprm.config import build
from mmprm.errors import DataError
from mmprm.evaluation.benchmarks import BENCHMARKS, aggregate_scores, read_items
from mmprm.evaluation.entries import Item
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.problems import ProblemsConfig
from mmprm.types import AudioRef, Verdict, VideoRef

ASKED = "<video>\n<audio>\nWhich emotion is the most obvious?"


def read(folder: Path, benchmark: str, *rows: dict[str, Any]) -> list[Item]:
    (folder / "test.json").write_text(json.dumps(rows))
    return read_items(benchmark, ProblemsConfig(path=str(folder / "test.json"), split="test"))[0]


def turns(label: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": ASKED}, {"from": "gpt", "value": label}]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark_can_be_chosen(benchmark: str) -> None:
    assert build(PolicyEvalConfig, {"benchmark": benchmark, "engine": {"model": "m"}}).benchmark == benchmark


def test_r1_omnis_rows_ask_about_a_clip_and_its_sound(tmp_path: Path) -> None:
    plain, tagged = read(
        tmp_path,
        "dfew",
        {"video": "a.mp4", "conversations": turns("happy")},
        {"video": "b.mp4", "conversations": turns("<think>…</think>\n<answer>Fear</answer>")},
    )
    assert plain.problem.question == "Which emotion is the most obvious?"
    assert plain.problem.videos == (VideoRef(path=str(tmp_path / "a.mp4"), frames=8),)
    assert plain.problem.audios == (AudioRef(path=str(tmp_path / "a.mp4")),)
    assert [plain.problem.answer, tagged.problem.answer] == ["happy", "fear"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("fear", 1), ("Fearful.", 1), ("The emotion is fear", 1), ("sad", 0), ("fear or sad", 0), ("frightened", 0)],
)
def test_only_the_gold_label_is_correct(tmp_path: Path, answer: str, verdict: int) -> None:
    (item,) = read(tmp_path, "ravdess", {"video": "a.mp4", "question": ASKED, "emotion": "fearful"})
    assert item.problem.answer == "fear"
    assert item.rule is not None
    assert item.rule("fear", answer)[0] is Verdict(verdict)


@pytest.mark.parametrize(("label", "noun"), [("happy", "happiness"), ("contemptuous", "contempt"), ("fear", "fear")])
def test_mafw_has_r1_omnis_labels_and_the_nouns_of_its_own_files(tmp_path: Path, label: str, noun: str) -> None:
    """Source: R1-Omni, humanomni/eval/eval_mafw_dfew.py, options_mafw."""
    items = read(
        tmp_path,
        "mafw",
        {"video": "a.mp4", "conversations": turns(label)},
        {"video": "b.mp4", "question": ASKED, "label": noun},
    )
    for item in items:
        assert (item.problem.answer, item.groups) == (label, {"emotion": (label,)})
        found = [item.rule(label, answer)[0].name for answer in (label, noun.capitalize(), "anxiety", "sadness")]
        assert found == ["CORRECT", "CORRECT", "INCORRECT", "INCORRECT"]


def test_unknown_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a row of dfew: label 'happiness' must be one of happy, sad, neutral"):
        read(tmp_path, "dfew", {"video": "a.mp4", "question": ASKED, "label": "happiness"})


def test_a_row_without_a_clip_is_named(tmp_path: Path) -> None:
    """Otherwise, the question would be asked without its clip."""
    with pytest.raises(DataError, match=r"is not a row of dfew: its video is empty"):
        read(tmp_path, "dfew", {"video": "", "conversations": turns("sad")})


def test_system_turns_are_not_the_question(tmp_path: Path) -> None:
    system = {"from": "system", "value": "You recognize emotions."}
    (item,) = read(tmp_path, "dfew", {"video": "a.mp4", "conversations": [system, *turns("sad")]})
    assert (item.problem.question, item.problem.answer) == ("Which emotion is the most obvious?", "sad")


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.json.*is not a row of dfew: lacks 'label'; it has video, question"):
        read(tmp_path, "dfew", {"video": "a.mp4", "question": ASKED})


@pytest.mark.parametrize("benchmark", ["dfew", "problems"])
def test_the_number_of_frames_can_be_set(tmp_path: Path, benchmark: str) -> None:
    (tmp_path / "test.json").write_text(json.dumps([{"video": "a.mp4", "conversations": turns("sad")}]))
    config = build(PolicyEvalConfig, {"benchmark": benchmark, "engine": {"model": "m"}, "video_frames": 16})
    ((item,), _) = _read(tmp_path / "test.json", config)
    assert [video.frames for video in item.problem.videos] == [16]


def test_unweighted_recall_counts_each_label_once(tmp_path: Path) -> None:
    """Of three happy clips 2 are correct, and of one sad clip none: WAR 2/4, UAR (2/3 + 0) / 2."""
    labels = ["happy", "happy", "happy", "sad"]
    rows = [{"video": f"{n}.mp4", "question": ASKED, "label": label} for n, label in enumerate(labels)]
    items = read(tmp_path, "dfew", *rows)
    assert aggregate_scores("dfew", items, [[True, True, False, False]]) == pytest.approx({"WAR": 0.5, "UAR": 1 / 3})
