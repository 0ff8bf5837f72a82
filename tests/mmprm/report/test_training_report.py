from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mmprm.errors import DataError
from mmprm.report.smoothing import moving_mean, smoothing
from mmprm.report.training import LEARNING, read_metrics, training_page, write_training_report


def train(step: int, **metrics: float | None) -> dict:
    return {"kind": "train", "step": step, **metrics}


def evaluation(step: int, value: float) -> dict:
    metrics = {"pass_at_1": value, "pass_at_1_low": value - 0.05, "pass_at_1_high": value + 0.05}
    return {"kind": "eval", "step": step, **metrics}


RECORDS = [
    evaluation(0, 0.4),
    *(
        train(
            step,
            accuracy=0.4 + step / 1000,
            reward=0.5,
            reward_format=0.9,
            reward_length=0.0,
            prm_score=0.7,
            entropy=0.5,
            prm_auc=None if step % 2 else 0.8,
            prm_step_1=0.9,
            dropped_unknown=1.0,
            dropped_aborted=0.0,
            seconds_generate=3.0,
            seconds_update=1.0,
            seconds_sync=0.0,
            seconds=4.0,
        )
        for step in range(1, 61)
    ),
    evaluation(30, 0.5),
    evaluation(60, 0.55),
]


def points_of(page: str, name: str) -> list[tuple[float, float]]:
    """Return the points of a plot's only line in plot units, in which y grows downward."""
    (path,) = re.findall(rf'id="{name}-line2d_\d+">\s*<path d="([^"]*)" clip-path="[^"]*" style="[^"]*--series', page)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]


def text_of(page: str) -> str:
    return " ".join("".join(ElementTree.fromstring(page).itertext()).split())


def test_the_page_is_well_formed_and_self_contained() -> None:
    page = training_page(RECORDS, "a run of <x>")
    root = ElementTree.fromstring(page)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) > 0
    assert not {node.tag.rpartition("}")[2] for node in root.iter()} & {"script", "link", "iframe", "img"}
    assert not re.search(r"#0000[01][0-9a-f]", page)
    used = set(re.findall(r"var\(--([\w-]+)\)", "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))))
    assert "good" in used
    assert used <= set(re.findall(r"--([\w-]+):", page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_reflection_is_plotted_next_to_response_length() -> None:
    records = [train(n, response_tokens=9.0, reflection_phrases=1.0 * n, relook_phrases=0.5 * n) for n in (1, 2)]
    page = training_page(records, "run")
    assert re.findall("<h3>(.*?)</h3>", page) == ["Response length", "Reflection"]
    assert "second look at the image" in text_of(page)
    records = [train(step, response_tokens=9.0) for step in (1, 2)]
    assert "Reflection" not in training_page(records, "run"), "runs of earlier versions have no such metric"


def test_the_text_of_the_report() -> None:
    text = text_of(training_page(RECORDS, "a run of <x>"))
    assert "a run of <x>" in text
    assert "60 steps of reinforcement learning. Thick lines are moving means over 3 steps." in text
    assert "55.0 % of the policy's responses are correct after step 60, compared to 40.0 % after step 0" in text
    assert "0.500 0.450–0.550" in text
    for title in ("Reward by source", "Entropy", "Agreement of PRM and outcome", "Score by step", "Dropped"):
        assert title in text
    assert "generate18075.0%" in text
    assert "update6025.0%" in text


def test_only_measured_metrics_are_plotted() -> None:
    text = text_of(training_page(RECORDS, "run"))
    assert "KL divergence" not in text
    assert "Gradient norm" not in text
    # sources and reasons that were always 0
    for left_out in ("aborted", "sync"):
        assert left_out not in text
    svg = training_page(RECORDS, "run")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"total", "format", "process"} <= set(labels)
    assert "length" not in labels


def test_a_panel_that_is_always_0_is_only_named() -> None:
    page = training_page([train(step, clip_fraction=0.0, kl_old=0.0, kl_ref=0.1) for step in (1, 2)], "run")
    assert "Always 0: Clip fraction<" in page
    assert "<h3>Clip fraction" not in page
    assert "<h3>KL divergence" in page


def test_ratios_mismatch_and_staleness_are_plotted() -> None:
    steep = {"log_ratio_min": -1.5, "log_ratio_max": 0.5, "mismatch_max": 0.3, "staleness": 0.5}
    page = training_page([train(1, **steep), train(2, **steep)], "run")
    for title in ("Ratio extremes", "Maximum engine–trainer mismatch", "Staleness"):
        assert title in text_of(page)
        assert title not in text_of(training_page(RECORDS, "run"))
    assert {"minimum", "maximum"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", page))


def test_curves_go_through_their_values() -> None:
    """Relative to its axis, the drawn line falls by as much as the values do."""
    records = [train(step, entropy=value) for step, value in enumerate([3.0, 1.0, 2.0], start=1)]
    (x1, y1), (x2, y2), (x3, y3) = points_of(training_page(records, "run"), "entropy")
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.01)
    assert (y2 - y1) == pytest.approx(2 * (y2 - y3), abs=0.01)
    assert y2 > y1


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    for records in ([], [evaluation(0, 0.4)], [train(1, accuracy=0.5, seconds_generate=1.0)]):
        ElementTree.fromstring(training_page(records, "run"))
    assert "<svg" not in training_page([], "run")
    assert "<svg" in training_page([train(1, entropy=0.5)], "run")


def test_a_step_without_an_update_leaves_a_gap_and_not_a_zero() -> None:
    records = [train(1, entropy=0.5), train(2, groups=0.0), train(3, entropy=0.5)]
    (x1, y1), (x2, y2) = points_of(training_page(records, "run"), "entropy")
    assert y1 == y2
    assert x1 < x2


def test_files(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot be read"):
        write_training_report(tmp_path)
    metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"kind": "train", "st')
    assert read_metrics(metrics) == RECORDS
    assert write_training_report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text() == training_page(RECORDS, tmp_path.name)


def test_damaged_lines_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, good = tmp_path / "metrics.jsonl", {"kind": "train", "step": 1}
    damaged = ["nonsense", "7", '{"step": 2}', '{"kind": "train", "step": "2"}', "[" * 100_000, "\0\0"]
    metrics.write_text("".join(f"{line}\n" for line in (json.dumps(good), *damaged, json.dumps(good))))
    assert read_metrics(metrics) == [good, good]
    said = capsys.readouterr().err
    assert all(f"line {number} is damaged" in said for number in range(2, 8))


def test_moving_mean() -> None:
    assert smoothing(39) == 1
    assert smoothing(100) == 5
    assert moving_mean([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    assert moving_mean([1.0, 2.0, 6.0, 4.0], 3) == [1.5, 3.0, 4.0, 5.0]
    assert math.isclose(moving_mean([0.0, 3.0, 6.0], 2)[0], 1.5)


def test_every_panel_of_a_page_has_a_unique_name() -> None:
    assert len({panel.title for panel in LEARNING}) == len(LEARNING)
