from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from mmprm.errors import DataError
from mmprm.metrics import Interval
from mmprm.report.data import Headline, PolicyGain, ReportData, TrainingPoint, extremes
from mmprm.report.page import page, write_report
from mmprm.report.plots import SERIES
from mmprm.selection.accuracy import accuracy_at_n
from mmprm.selection.groups import Candidate, CandidateGroup
from mmprm.selection.selectors import SELECTORS
from mmprm.types import ImageRef, Problem, StepScores, Verdict


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (28, 28), "blue").save(stream, "PNG")
    return stream.getvalue()


def group(name: str, *scores: float) -> CandidateGroup:
    problem = Problem(name, f"{name}: is 1 < 2 & <script>alert('no')</script>?", "yes", (ImageRef(data=png()),))
    candidates = tuple(
        Candidate("", (f"claim {score}\x00", "done"), "yes", Verdict(score > 0.5), 1, scores=StepScores((score, 0.9)))
        for score in scores
    )
    return CandidateGroup(problem, candidates)


GROUPS = [group("p1", 0.95, 0.2), group("p2", 0.85, 0.05), group("p3", 0.75, 0.1)]


@pytest.fixture(scope="module")
def html() -> str:
    best, worst = extremes(GROUPS, "min", 2, truth=lambda problem, steps: [True, False])
    data = ReportData(
        title="A run of <x>",
        headlines=[
            Headline("label_auc", 0.9712, "≥ 0.95", True),
            Headline("prm_step_f1", 0.7821, "≥ 0.80", False, note="too few reading errors"),
            Headline("labels", 4321),
        ],
        accuracy=accuracy_at_n(GROUPS, "min", sizes=(1, 2)),
        problems=3,
        aggregator="min",
        labels=[0.0, 0.5, 1.0, 1.0],
        labels_correct=[False, True, True, True],
        training=[TrainingPoint(1, 0.7), TrainingPoint(2, 0.5, 0.55)],
        best=best,
        worst=worst,
        policy=PolicyGain(
            Interval(0.41, 0.38, 0.44),
            Interval(0.72, 0.69, 0.75),
            Interval(0.31, 0.28, 0.34),
            problems=307,
            rollouts=[(1, 0.4), (2, 0.7)],
        ),
        facts={"seed": "17"},
    )
    return page(data)


def test_extremes_come_from_different_problems() -> None:
    best, worst = extremes(GROUPS, "min", 2)
    assert [solution.reward for solution in best] == [0.9, 0.85]
    assert [solution.reward for solution in worst] == [0.05, 0.1]
    assert worst[0].verdict is Verdict.INCORRECT
    assert worst[0].question.startswith("p2")
    assert [step.correct for step in best[0].steps] == [None, None]


def test_the_page_is_well_formed_with_unique_ids(html: str) -> None:
    root = ElementTree.fromstring(html)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) > 0
    hrefs = [value for node in root.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert all(href.removeprefix("#") in ids for href in hrefs)


def test_the_page_loads_nothing_from_elsewhere(html: str) -> None:
    root = ElementTree.fromstring(html)
    names = {node.tag.rpartition("}")[2] for node in root.iter()}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    assert all(node.get("src", "data:").startswith("data:") for node in root.iter())
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    # The only remaining addresses are SVG namespace names.
    assert set(re.findall(r"https?://[^\s\"']+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_page_contains_the_data(html: str) -> None:
    root = ElementTree.fromstring(html)
    text = " ".join("".join(root.itertext()).split())
    for expected in ("A run of <x>", "0.971", "✓ met", "✗ missed", "too few reading errors", "4,321", "seed", "17"):
        assert expected in text
    accuracy = accuracy_at_n(GROUPS, "min", sizes=(2,))[0]
    assert f"{accuracy.accuracy['majority'].value:.3f}" in text
    assert f"+{accuracy.minus_random['prm'].value:.3f}" in text
    for expected in ("2 steps with outcome reward", "307 held-out", "0.410", "0.720", "+0.310", "+0.280 to +0.340"):
        assert expected in text
    assert "p2: is 1 < 2 & <script>alert('no')</script>?" in text
    assert "claim 0.05\ufffd" in text
    assert "0.05" in [node.text for node in root.iter() if node.get("class") == "score"]
    assert html.count("data:image/png;base64,") == 4
    assert {node.text for node in root.iter() if node.get("title") in ("correct", "incorrect")} == {"✓", "✗"}


def test_every_selector_is_plotted_and_every_color_is_defined(html: str) -> None:
    assert set(SERIES) == set(SELECTORS)
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    defined = set(re.findall(r"--([\w-]+):", html))
    assert {f"series-{name}" for name in SELECTORS} <= used
    assert used <= defined
    assert not re.search(r"#0000[01][0-9a-f]", html)


def test_sections_without_data_are_left_out() -> None:
    html = page(ReportData(title="empty"))
    assert "<h2>" not in html
    assert "<svg" not in html


def test_writing_replaces_the_page_or_says_why_not(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", ReportData(title="one"))
    write_report(tmp_path / "new" / "report.html", ReportData(title="two"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    assert "<h1>two</h1>" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/report\.html"):
        write_report(tmp_path / "file" / "report.html", ReportData(title="no"))
