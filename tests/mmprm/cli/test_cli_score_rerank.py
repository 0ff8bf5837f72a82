from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli import rerank, score
from mmprm.cli.main import main
from mmprm.errors import CheckpointError, DataError, UnknownScoresError
from mmprm.prm.info import AggregatorEvidence, JudgeInfo, PrmInfo, read_info, write_info
from mmprm.problems import ProblemReader
from mmprm.selection.groups import Candidate, CandidateGroup, SampledGroups
from mmprm.types import Problem, Solution, StepScores, Verdict


class LengthScorer:
    """Scores a step by its length; the step "bad" scores 0."""

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
        monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo(aggregator="min"))
    return fake


def test_score_adds_to_each_line(tmp_path: Path, scorer: LengthScorer) -> None:
    lines = [{"id": 7, "question": "q", "steps": ["ab", "abcd"], "images": "x.png"}, {"question": "q", "steps": ["a"]}]
    (tmp_path / "in.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    out = tmp_path / "new" / "out.jsonl"
    assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(out), "--set", "scorer.prm=p"]) == 0
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
    assert main(["score", str(tmp_path / "in.jsonl"), "--output", str(out), "--set", "scorer.prm=p"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_aggregator_is_an_error(
    tmp_path: Path, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "scorer_info", lambda config: PrmInfo())
    (tmp_path / "in.jsonl").write_text('{"question": "q", "steps": ["a"]}')
    arguments = ["score", str(tmp_path / "in.jsonl"), "--set", "scorer.prm=p"]
    assert main(arguments) == 2
    assert "aggregator is not set and prm.json names none" in capsys.readouterr().err
    assert main([*arguments, "--set", "aggregator=max"]) == 0


def candidate(step: str, answer: str, verdict: Verdict) -> Candidate:
    return Candidate(f"<step>{step}</step>", (step,) if step else (), answer, verdict, 4, None if step else "no step")


RIGHT, WRONG = Verdict.CORRECT, Verdict.INCORRECT
CANDIDATES = {
    "p1": (candidate("bad", "2", WRONG), candidate("ok", "1", RIGHT)),
    "p2": (candidate("", "1", RIGHT), candidate("bad", "3", Verdict.UNKNOWN)),
}


class Rerank:
    """Runs the command on problems p1, p2 and p3. Only those in `candidates` can be sampled; `asked` lists the problems
    of each call.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.candidates = dict(CANDIDATES)
        self.asked: list[list[str]] = []
        self.stop_after = ""
        rows = ({"id": name, "question": f"q {name}", "answer": "1"} for name in ("p1", "p2", "p3"))
        (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))

        async def sample(
            config: rerank.RerankConfig, problems: Sequence[Problem], keep: Callable[[CandidateGroup], None]
        ) -> SampledGroups:
            self.asked.append([problem.id for problem in problems])
            groups = [CandidateGroup(p, self.candidates[p.id]) for p in problems if p.id in self.candidates]
            for group in groups:
                keep(group)
                if group.problem.id == self.stop_after:
                    raise KeyboardInterrupt
            return SampledGroups(groups, {p.id: "image is missing" for p in problems if p.id not in self.candidates})

        monkeypatch.setattr(rerank, "_sample", sample)
        for check in ("check_prm", "check_config"):  # neither model exists
            monkeypatch.setattr(rerank, check, lambda *_: None, raising=False)

    def __call__(self, *arguments: str, **sets: object) -> int:
        fixed = {"problems.path": self.folder / "x.jsonl", "engine.model": "tiny", "scorer.prm": self.folder}
        values = fixed | {"samples": 2, "output": self.folder / "out"} | sets
        given = {key: value for key, value in values.items() if value is not None}
        options = (part for key, value in given.items() for part in ("--set", f"{key}={value}"))
        return main(["rerank", *arguments, *options])

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out" / name).read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "out" / "summary.json").read_text())


@pytest.fixture
def reranked(tmp_path: Path, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch) -> Rerank:
    return Rerank(tmp_path, monkeypatch)


def test_rerank_writes_candidates_and_summary(reranked: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    assert reranked() == 0
    rows, summary = reranked.rows("candidates.jsonl"), reranked.summary
    assert [(row["problem_id"], row["sample"], row["chosen"]) for row in rows] == [
        ("p1", 0, False),
        ("p1", 1, True),
        ("p2", 0, False),
        ("p2", 1, True),
    ]
    assert (rows[2]["unsplit"], rows[2]["scores"], rows[2]["reward"]) == ("no step", None, None)
    assert rows[3]["verdict"] == "unknown"

    # p1's choice is correct. In p2 the only scored candidate has no known verdict, and both votes have weight 0.
    assert summary["accuracy"] == pytest.approx(
        {"random": 0.5, "first": 0.5, "majority": 0.5, "prm": 0.5, "weighted": 0.75, "oracle": 1.0}
    )
    assert summary["failed"] == {"p3": "image is missing"}
    assert (summary["unknown_verdicts"], summary["unsplit"], summary["generated_tokens"]) == (1, {"no step": 1}, 16)
    assert [point["n"] for point in summary["accuracy_at_n"]] == [1, 2]
    printed = capsys.readouterr().out
    assert "oracle     0.500  1.000   +0.500" in printed
    assert "2 problems, 1 failed" in printed
    assert "aggregator min, from prm.json, which records no evidence for it" in printed
    assert max(map(len, printed.splitlines()[:-2])) <= 80


def test_rerank_reports_what_a_judge_could_not_score(
    reranked: Rerank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Judge(LengthScorer):
        def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
            return [
                UnknownScoresError("no verdicts", 30) if "bad" in each.steps else StepScores((0.75,), 20)
                for each in solutions
            ]

    monkeypatch.setattr(rerank, "open_scorer", lambda config: Judge())
    monkeypatch.setattr(rerank, "scorer_info", lambda config: JudgeInfo())
    assert reranked() == 0
    rows, summary = reranked.rows("candidates.jsonl"), reranked.summary
    assert [(row["scores"], row["unscored"], row.get("score_tokens")) for row in rows] == [
        (None, "no verdicts", 30),
        ([0.75], None, 20),
        (None, None, None),
        (None, "no verdicts", 30),
    ]
    assert (summary["unscored"], summary["unknown_scores"], summary["score_tokens"]) == (2, 2, 80)
    printed = capsys.readouterr()
    assert "aggregator min, the default for a judge\n2 solutions unknown, 80 tokens of the judge" in printed.out
    assert "2 solutions could not be scored, the first: no verdicts" in printed.err


def test_rerank_without_a_scorer_reports_score_free_metrics(
    reranked: Rerank, scorer: LengthScorer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reranked(**{"scorer": "null", "scorer.prm": None}) == 0
    first, last = (reranked.summary["accuracy_at_n"][n]["accuracy"] for n in (0, -1))
    assert {name: interval["value"] for name, interval in first.items()} == dict.fromkeys(
        ("random", "first", "majority", "oracle"), 0.5
    )
    # One of two samples of each problem is correct; in p1 and p2 both answers have one vote.
    assert {name: interval["value"] for name, interval in last.items()} == {
        "random": 0.5,
        "first": 0.5,
        "majority": 0.5,
        "oracle": 1.0,
    }
    assert {row["reward"] for row in reranked.rows("candidates.jsonl")} == {None}
    assert not any(row["chosen"] for row in reranked.rows("candidates.jsonl"))
    assert reranked.summary["aggregator"] is None
    assert "prm" not in capsys.readouterr().out
    assert reranked() == 0, "with a scorer the same samples are scored"
    assert len(reranked.asked) == 2
    assert reranked.asked[1] == ["p3"]
    assert scorer.closed == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "aggregator=min"), "aggregator=min needs step scores; set scorer.prm"),
        (("--choose-aggregator",), "scorer.prm='' must be a local folder"),
    ],
)
def test_without_a_scorer_nothing_is_aggregated(
    reranked: Rerank, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert reranked(*arguments, **{"scorer.prm": None}) == 2
    assert words in capsys.readouterr().err


def test_a_run_stopped_while_sampling_resumes(reranked: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    reranked.stop_after = "p1"
    assert reranked() == 130
    assert "the same command resumes from what was saved" in capsys.readouterr().err
    reranked.stop_after = ""
    assert reranked() == 0
    assert reranked.asked == [["p1", "p2", "p3"], ["p2", "p3"]]
    assert [row["problem_id"] for row in reranked.rows("samples.jsonl")[1:]] == ["p1", "p1", "p2", "p2"]


@pytest.mark.parametrize("fault", ["garbage\n", "", '{"problem_id": "p1"}\n', "[" * 100_000 + "\n"])
def test_a_damaged_sample_line_resamples_only_its_problem(reranked: Rerank, fault: str) -> None:
    assert reranked() == 0
    path = reranked.folder / "out" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], fault, *lines[3:], '{"problem_id": "p3", "dr']))
    assert reranked() == 0
    assert reranked.asked[1] == ["p1", "p3"]


def test_a_candidate_that_cannot_be_scored_is_not_chosen(
    reranked: Rerank, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def score_most(solutions: Sequence[Solution]) -> list[StepScores]:
        if any("bad" in solution.steps for solution in solutions):
            raise DataError("longer than the PRM reads")
        return LengthScorer.score(scorer, solutions)

    monkeypatch.setattr(scorer, "score", score_most)
    assert reranked() == 0
    rows = reranked.rows("candidates.jsonl")
    assert [row["unscored"] for row in rows] == ["longer than the PRM reads", None, None, "longer than the PRM reads"]
    assert [row["chosen"] for row in rows[:2]] == [False, True]
    assert reranked.summary["unscored"] == 2
    assert "note: 2 solutions could not be scored, the first: longer than" in capsys.readouterr().err


def test_rerank_without_any_sample_is_an_error(reranked: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    reranked.candidates.clear()
    assert reranked() == 2
    assert "x.jsonl: no problem could be sampled (first failure: p1: image is missing" in capsys.readouterr().err


def test_samples_outlive_a_prm_that_does_not_load(
    reranked: Rerank, scorer: LengthScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: object) -> None:
        raise CheckpointError("model.safetensors is cut off")

    with monkeypatch.context() as patch:
        patch.setattr(rerank, "open_scorer", broken)
        assert reranked() == 2
    assert [row.get("scores") for row in reranked.rows("samples.jsonl")] == [None] * 5
    reranked.candidates = {"p3": CANDIDATES["p1"]}
    assert reranked() == 0
    assert reranked.asked == [["p1", "p2", "p3"], ["p3"]], "only failed problems are sampled again"
    assert "2 of 3 problems are sampled already" in capsys.readouterr().err
    assert [row["problem_id"] for row in reranked.rows("candidates.jsonl")] == ["p1"] * 2 + ["p2"] * 2 + ["p3"] * 2
    before = reranked.rows("candidates.jsonl")
    assert reranked(aggregator="max") == 0, "another aggregator samples nothing"
    assert len(reranked.asked) == 2
    strip = ("scores", "reward", "chosen")
    assert [{k: v for k, v in row.items() if k not in strip} for row in reranked.rows("candidates.jsonl")] == [
        {k: v for k, v in row.items() if k not in strip} for row in before
    ]


def test_samples_of_other_settings_are_not_reused(reranked: Rerank, capsys: pytest.CaptureFixture[str]) -> None:
    reranked.candidates["p3"] = CANDIDATES["p1"]
    assert reranked() == 0
    assert reranked(seed=1) == 0
    said = capsys.readouterr().err
    assert "samples.jsonl: was sampled with other settings and will be replaced: seed (stored 0, asked 1)" in said
    text = (reranked.folder / "x.jsonl").read_text()
    (reranked.folder / "x.jsonl").write_text(text.replace("q p1", "another"))
    assert reranked(seed=1) == 0
    assert reranked.asked == [["p1", "p2", "p3"]] * 3


def test_images_are_relative_to_the_file() -> None:
    row = {"question": "q", "steps": ["a"], "images": ["a.png", "b.png"]}
    config = score.ScoreConfig(scorer={"prm": "p"})
    (solution,) = score.read_line(row, "f.jsonl:3", ProblemReader(config.columns, Path("folder")), config).solutions
    assert [image.path for image in solution.problem.images] == ["folder/a.png", "folder/b.png"]
    assert solution.problem.id == "f.jsonl:3"


def test_rerank_chooses_an_aggregator_and_stores_it(
    reranked: Rerank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are 1 / length, so the correct solution has the lower minimum and the higher maximum."""
    correct = Candidate("", ("a", "abcd"), "1", Verdict.CORRECT, 4, None)
    incorrect = Candidate("", ("ab", "ab"), "2", Verdict.INCORRECT, 4, None)
    reranked.candidates = dict.fromkeys(("p1", "p2", "p3"), (incorrect, correct))
    write_info(reranked.folder, PrmInfo(labels={"after_error": "mask"}))
    monkeypatch.setattr(rerank, "scorer_info", lambda config: read_info(config.prm))
    assert reranked("--choose-aggregator") == 0
    stored = read_info(reranked.folder)
    assert stored.aggregator == "mean", "the first aggregator that chooses correctly"
    assert stored.aggregator_evidence == AggregatorEvidence(problems=3, samples=2, value=1.0, low=1.0, high=1.0)
    printed = capsys.readouterr()
    assert "aggregator mean, chosen on 3 problems: best-of-2 1.000 [1.000, 1.000]" in printed.out
    assert "note: aggregator mean uses the scores of steps after the first error" in printed.err
    assert reranked.summary["accuracy"]["prm"] == 1
    assert reranked() == 0
    assert "note:" not in capsys.readouterr().err, "an aggregator chosen on evidence raises no warning"
    assert reranked("--choose-aggregator", **{"scorer.prm": "owner/name"}) == 2
    assert "must be a local folder" in capsys.readouterr().err
