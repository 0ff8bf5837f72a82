"""Test the page of an RL run's rollouts: its data, and the page in a headless browser."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import texts_of_scenes
from PIL import Image

from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.report.images import inlined
from mmprm.report.rollouts import (
    credit_scale,
    of_spread_steps,
    read_samples,
    rollout_data,
    rollout_entry,
    write_rollouts,
)
from mmprm.report.training import write_training_report
from mmprm.types import ImageRef

EVIL = "</script><script>document.title='owned'</script><!--"


def row(step: int, problem: str = "cubes", verdict: str = "correct", **changes: Any) -> dict[str, Any]:
    values = {
        "step": step,
        "problem": problem,
        "question": f"How many {problem}?",
        "gold": "4",
        "verdict": verdict,
        "extracted": "4" if verdict == "correct" else "5",
        "reward": float(verdict == "correct"),
        "parts": {"accuracy": float(verdict == "correct"), "format": None},
        "tokens": 12,
        "finish_reason": "stop",
        "steps": [["look", 0.9], ["count", 0.25]],
        "unsplit": None,
        "text": "look count",
        "advantage": -0.5,
        "credits": [0.125, -1.0],
        "group": [3, 8],
        "images": [],
    }
    return values | changes


ROWS = [
    row(1, images=["images/cube.png"]),
    row(1, "spheres", "incorrect", reward=-0.5, steps=[["guess", 0.95]], credits=[], images=["gone.png"]),
    row(2, "cubes", "incorrect", steps=[], credits=[], text=f"half {EVIL}", unsplit="unclosed step", advantage=None),
    row(9, EVIL, "unknown", reward=None, steps=[["hm", None]], credits=[None]),
]
LINES = "".join(json.dumps(each) + "\n" for each in ROWS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts") / "run"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (28, 28), "blue").save(folder / "images" / "cube.png")
    (folder / "samples.jsonl").write_text(LINES)
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    return folder


def test_the_lowest_score_contradicts_the_outcome() -> None:
    found = [rollout_entry(each, 0) for each in ROWS]
    assert [each["lowest"] for each in found] == [0.25, 0.95, None, None]
    assert [each["contradiction"] for each in found] == [0.75, 0.95, None, None]


def test_steps_have_score_and_credit() -> None:
    found = rollout_data(ROWS[0])
    assert found["steps"] == [["look", 0.9, 0.125], ["count", 0.25, -1.0]]
    assert found["text"] == "", "the steps contain it"
    assert rollout_data(ROWS[1])["steps"] == [["guess", 0.95, None]], "credits of earlier versions are unknown"
    assert rollout_data(ROWS[2])["text"] == f"half {EVIL}"


def test_full_color_is_the_90_percent_quantile_of_credit() -> None:
    """Ten credits of sizes 0.1 to 1: the quantile is 0.9 + 0.1·(0.9·9 − 8) = 0.91."""
    credits = [(-1) ** number * number / 10 for number in range(1, 11)]
    assert credit_scale([row(1, credits=credits[:4]), row(2, credits=credits[4:])]) == pytest.approx(0.91)
    assert credit_scale([row(1, credits=[]), row(2, credits=[None, 0.0])]) == 1.0


def test_whole_steps_are_shown_including_the_first_and_the_last() -> None:
    rows = [row(step) for step in range(1, 11) for _ in range(2)]
    steps = [each["step"] for each in of_spread_steps(rows, 7)]
    assert steps == [1, 1, 5, 5, 10, 10]
    assert len(of_spread_steps(rows, 20)) == 20
    assert [each["step"] for each in of_spread_steps(rows, 1)] == [1]
    assert of_spread_steps([], 5) == []


def test_photos_are_stored_as_jpeg() -> None:
    stream = io.BytesIO()
    Image.effect_noise((300, 200), 60).convert("RGB").save(stream, "PNG")
    url, small = inlined(ImageRef(data=stream.getvalue()))
    assert url.startswith("data:image/jpeg;base64,")
    assert not small
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), "white").save(stream, "PNG")
    assert inlined(ImageRef(data=stream.getvalue()))[0].startswith("data:image/png;base64,")


def test_a_run_without_samples_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples\.jsonl: cannot be read .* monitor\.samples above 0"):
        read_samples(tmp_path)


def test_the_command_writes_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run), "--rollouts", "3"]) == 0
    assert f"{run / 'rollouts.html'}: 2 of 4 logged rollouts" in capsys.readouterr().out
    page = (run / "rollouts.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|https?://(?!www.w3.org/2000/svg)|@import", page)
    assert main(["view", str(run), "--problems", "3"]) == 2
    assert "--problems=3 is for a run of mmprm annotate" in capsys.readouterr().err
    assert main(["view", str(run), "--prm", "folder"]) == 2
    assert "--prm=folder is for a run of mmprm annotate" in capsys.readouterr().err


def test_the_report_of_a_run_links_to_the_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    (tmp_path / "samples.jsonl").write_text(LINES)
    report = write_training_report(tmp_path)
    assert "rollouts.html" not in report.read_text()
    write_rollouts(tmp_path / "rollouts.html", tmp_path)
    assert '<a href="rollouts.html">Browse the rollouts</a>' in write_training_report(tmp_path).read_text()


SCENES = {
    "first": [""],
    "credit": ["rollout=0&color=credit"],
    "reward": ["reward-from=-1&reward-to=0"],
    "step": ["step-from=2&step-to=8"],
    "order": ["order=scores+contradict+outcome&verdict=incorrect"],
    "keys": ["rollout=0", "j", "j"],
    "nothing": ["q=pyramids"],
    "unknown": ["verdict=unknown"],
}
"""What is done to the page, in one run of the browser: the address, then keys."""


@pytest.fixture(scope="module")
def seen(run: Path) -> dict[str, str]:
    assert main(["view", str(run)]) == 0
    return texts_of_scenes(run / "rollouts.html", SCENES)


def test_the_page_shows_a_rollout_with_scores_and_credits(seen: dict[str, str]) -> None:
    shown = seen["first"]
    assert "all 4\ncorrect 1\nincorrect 2\nunknown 1\n" in shown
    assert "✓ correct\n: answer 4\ngold answer\n4\nreward\n1 (accuracy 1)\nadvantage\n−0.50 per token" in shown
    assert "3 of 8 responses are correct\nlength\n12 tokens, ended by stop\nsampled\nin training step 1" in shown
    assert "1\nlook\n0.90\n+0.13\n2\ncount\n0.25\n−1.00\nOther rollouts of this problem\n✗\nstep 2, reward 0" in shown
    assert "score: P(no error so far)" in shown
    assert "credit: mean advantage of the step's tokens" in seen["credit"]


def test_the_page_filters_by_reward_step_and_text(seen: dict[str, str]) -> None:
    assert "all 2\ncorrect 0\nincorrect 2\nunknown 0" in seen["reward"]
    assert "all 1\ncorrect 0\nincorrect 1\nunknown 0" in seen["step"]
    assert "unclosed step\n" in seen["step"]
    assert f"half {EVIL}" in seen["step"], "texts are not interpreted as HTML"
    assert "No rollout matches." in seen["nothing"]
    assert "reward none" in seen["unknown"]


def test_the_page_orders_and_moves(seen: dict[str, str]) -> None:
    assert "advantage\n−0.50 per token" in seen["order"], "the most contradictory incorrect rollout comes first"
    assert "gone.png: cannot be read" in seen["order"]
    assert "advantage\nnot trained on" in seen["keys"]


def test_the_page_shows_what_the_policy_saw_in_each_turn(tmp_path: Path) -> None:
    turns = [
        {"text": "count", "images": [], "reward": -0.1, "truth": "1 move is left"},
        {"text": "a wall", "images": ["gone.png"], "reward": 1.0, "truth": None},
    ]
    (tmp_path / "samples.jsonl").write_text(json.dumps(row(1, question="count", turns=turns)) + "\n")
    write_rollouts(tmp_path / "rollouts.html", tmp_path)
    (shown,) = texts_of_scenes(tmp_path / "rollouts.html", {"first": [""]}).values()
    assert "look\nreward −0.1, then: 1 move is left" in shown, "the question is shown above"
    assert re.search(r"gone\.png: cannot be read[^\n]*\na wall\ncount\nreward 1\n", shown)
