from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmprm.cli import rerank, score
from mmprm.cli.main import main
from mmprm.prm.info import PrmInfo
from mmprm.selection.groups import Candidate, Group, Sampled
from mmprm.types import Problem, Solution, StepScores, Verdict


class LengthScorer:
    """Scores a step by its length; a step "bad" gets 0."""

    closed = 0

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(0.0 if "bad" in s else 1 / len(s) for s in item.steps)) for item in solutions]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> LengthScorer:
    fake = LengthScorer()
    for command in (score, rerank):
        monkeypatch.setattr(command, "open_scorer", lambda config: fake)
        monkeypatch.setattr(command, "read_info", lambda path: PrmInfo(aggregator="min"))
    return fake


def test_score_adds_to_each_line(tmp_path: Path, scorer: LengthScorer) -> None:
    lines = [{"id": 7, "question": "q", "steps": ["ab", "abcd"], "images": "x.png"}, {"question": "q", "steps": ["a"]}]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    out = tmp_path / "new" / "out.jsonl"
    assert main(["score", str(tmp_path / "in.jsonl"), "--out", str(out), "--set", "scorer.prm=p"]) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert first == {**lines[0], "scores": [0.5, 0.25], "aggregator": "min", "aggregate": 0.25}
    assert second["scores"] == [1.0]
    assert scorer.closed == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:2: is not JSON"),
        ("[]", "in.jsonl:2: must be an object"),
        ('{"question": "q"}', "in.jsonl:2: steps must be a list"),
        ('{"question": "q", "steps": []}', "in.jsonl:2: steps must be a list"),
        ('{"question": " ", "steps": ["a"]}', "in.jsonl:2: question must be text"),
        ('{"question": "q", "steps": ["a"], "images": [1]}', "in.jsonl:2: images must be"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(
    tmp_path: Path, scorer: LengthScorer, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "q", "steps": ["a"]}\n' + line)
    out = tmp_path / "out.jsonl"
    assert main(["score", str(tmp_path / "in.jsonl"), "--out", str(out), "--set", "scorer.prm=p"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_aggregator_is_no_silent_default(
    tmp_path: Path, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "read_info", lambda path: PrmInfo())
    (tmp_path / "in.jsonl").write_text('{"question": "q", "steps": ["a"]}')
    arguments = ["score", str(tmp_path / "in.jsonl"), "--set", "scorer.prm=p"]
    assert main(arguments) == 2
    assert "aggregator: prm.json names none" in capsys.readouterr().err
    assert main([*arguments, "--set", "aggregator=max"]) == 0


def candidate(step: str, answer: str, verdict: Verdict) -> Candidate:
    return Candidate(f"<step>{step}</step>", (step,) if step else (), answer, verdict, 4, None if step else "no step")


def test_rerank_writes_candidates_and_summary(
    tmp_path: Path, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = Verdict.CORRECT, Verdict.INCORRECT
    groups = [
        Group(Problem("p1", "q", "1"), (candidate("bad", "2", wrong), candidate("ok", "1", right))),
        Group(Problem("p2", "q", "1"), (candidate("", "1", right), candidate("bad", "3", Verdict.UNKNOWN))),
    ]
    monkeypatch.setattr(rerank, "_sample", lambda config: Sampled(groups, {"p3": "picture is missing"}))
    sets = ["problems.path=x.jsonl", "engine.model=tiny", "scorer.prm=p", "samples=2", f"output={tmp_path}"]
    assert main(["rerank", *(part for item in sets for part in ("--set", item))]) == 0

    rows = [json.loads(line) for line in (tmp_path / "candidates.jsonl").read_text().splitlines()]
    assert [(row["problem_id"], row["draw"], row["chosen"]) for row in rows] == [
        ("p1", 0, False),
        ("p1", 1, True),
        ("p2", 0, False),
        ("p2", 1, True),
    ]
    assert (rows[2]["unsplit"], rows[2]["scores"], rows[2]["reward"]) == ("no step", None, None)
    assert rows[3]["verdict"] == "unknown"

    summary = json.loads((tmp_path / "summary.json").read_text())
    # p1 is chosen right; in p2 the only scored candidate is not known to be right, and both votes weigh nothing.
    assert summary["accuracy"] == pytest.approx(
        {"random": 0.5, "first": 0.5, "majority": 0.5, "prm": 0.5, "weighted": 0.75, "oracle": 1.0}
    )
    assert summary["failed"] == {"p3": "picture is missing"}
    assert (summary["unknown_verdicts"], summary["unsplit"], summary["generated_tokens"]) == (1, {"no step": 1}, 16)
    assert [point["n"] for point in summary["accuracy_at_n"]] == [1, 2]
    printed = capsys.readouterr().out
    assert "oracle       0.500   1.000   +0.500" in printed
    assert "2 problems, 1 failed" in printed


def test_rerank_without_any_sample_is_an_error(
    scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rerank, "_sample", lambda config: Sampled([], {"p3": "picture is missing"}))
    sets = ["problems.path=x.jsonl", "engine.model=tiny", "scorer.prm=p"]
    assert main(["rerank", *(part for item in sets for part in ("--set", item))]) == 2
    assert "x.jsonl: no problem could be sampled; p3: picture is missing" in capsys.readouterr().err


def test_the_sizes_end_with_the_number_of_samples() -> None:
    assert rerank._sizes(8) == [1, 2, 4, 8]
    assert rerank._sizes(6) == [1, 2, 4, 6]
    assert rerank._sizes(1) == [1]


def test_pictures_are_relative_to_the_file() -> None:
    row = {"question": "q", "steps": ["a"], "images": ["a.png", "b.png"]}
    solution = score._solution(row, "f.jsonl:3", Path("folder"))
    assert [picture.path for picture in solution.problem.pictures] == ["folder/a.png", "folder/b.png"]
    assert solution.problem.id == "f.jsonl:3"


def test_rerank_chooses_an_aggregator_and_stores_it(
    tmp_path: Path, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are 1 / length: the right solution has the lower minimum and the higher maximum."""
    right = Candidate("", ("a", "abcd"), "1", Verdict.CORRECT, 4, None)
    wrong = Candidate("", ("ab", "ab"), "2", Verdict.INCORRECT, 4, None)
    groups = [Group(Problem("p1", "q", "1"), (wrong, right))]
    monkeypatch.setattr(rerank, "_sample", lambda config: Sampled(groups, {}))
    monkeypatch.setattr(rerank, "read_info", lambda path: PrmInfo())
    stored: list[PrmInfo] = []
    monkeypatch.setattr(rerank, "write_info", lambda path, info: stored.append(info))
    sets = ["problems.path=x.jsonl", "engine.model=tiny", "scorer.prm=p", "samples=2", f"output={tmp_path}"]
    assert main(["rerank", "--choose-aggregator", *(part for item in sets for part in ("--set", item))]) == 0
    assert [info.aggregator for info in stored] == ["mean"], "the first of those that choose right"
    assert "aggregator mean, chosen on 1 problems" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"]["prm"] == 1
