from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmprm.cli import eval as command
from mmprm.cli.main import main
from mmprm.errors import DataError
from mmprm.evaluation.best_of_n import evaluate_best_of_n
from mmprm.evaluation.labeled import LabeledSolution, Options, read_labeled
from mmprm.evaluation.prm_evaluation import ScoredSolution, judge, split_development
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.metrics import NO_ERROR, choose_step_threshold, macro_f1
from mmprm.prm.info import PrmInfo
from mmprm.selection.candidates import read_groups
from mmprm.types import Counts, LabeledPath, Problem, Solution, StepScores


def test_macro_f1_by_hand() -> None:
    # correct: 2 hits of 3 predictions and 3 members, F1 4/6; incorrect: 1 hit of 2 predictions and 2 members, 2/4.
    result = macro_f1([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert (result.on_correct, result.on_incorrect, result.correct, result.incorrect) == (
        pytest.approx(2 / 3),
        0.5,
        3,
        2,
    )
    assert result.f1 == pytest.approx(7 / 12)
    assert macro_f1([0, 0], [1, 0]).f1 == pytest.approx(1 / 3)  # no step predicted correct: 0 and 2/3
    assert math.isnan(macro_f1([1, 0], [1, 1]).f1)  # undefined for a single class


def test_step_threshold_is_the_middle_of_the_best_gap() -> None:
    threshold, best = choose_step_threshold([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1])
    assert (threshold, best.f1) == (pytest.approx(0.4), 1.0)
    # No threshold separates these: macro-F1 is (4/5 + 2/3) / 2 between 0.2 and 0.5 and in the wider gap up to 0.9.
    scores, correct = [0.2, 0.5, 0.5, 0.9], [0, 1, 0, 1]
    threshold, best = choose_step_threshold(scores, correct)
    assert (threshold, best.f1) == (pytest.approx(0.7), pytest.approx(11 / 15))
    tried = [macro_f1([score >= t / 1000 for score in scores], correct).f1 for t in range(1001)]
    assert best.f1 == pytest.approx(max(tried))
    with pytest.raises(DataError, match="2 correct and 0 incorrect"):
        choose_step_threshold([0.1, 0.2], [1, 1])


def read(name: str, *records: dict[str, Any], options: Options = Options()) -> list[LabeledSolution]:  # noqa: B008
    return read_labeled(name, ((f"f:{i}", record) for i, record in enumerate(records)), Path("root"), "f", options)


def test_processbench_has_no_truth_after_the_first_error() -> None:
    record = {"id": "gsm8k-0", "problem": "q", "steps": ["a", "b", "c"], "final_answer_correct": True, "label": 1}
    incorrect, correct = read("processbench", record, {**record, "label": -1})
    assert (incorrect.correct, incorrect.first_error) == ((True, False, None), 1)
    assert (correct.correct, correct.first_error) == ((True, True, True), NO_ERROR)
    assert incorrect.problem == correct.problem
    assert (incorrect.source, incorrect.solution.problem.id) == ("f", "f:0")


def test_visualprocessbench_leaves_out_neutral_steps() -> None:
    response = {"steps": ["a", "b", "c"], "process_correctness": [1, 0, -1]}
    record = {"image": ["x.png"], "question": "q", "answer": "1", "response": response, "data_source": "MathVision"}
    first, text = read("visualprocessbench", record, {**record, "response": json.dumps(response), "image": "y.png"})
    assert (first.correct, first.first_error, first.source) == ((True, None, False), 2, "MathVision")
    assert [image.path for image in first.solution.problem.images] == ["root/x.png"]
    assert text.correct == first.correct
    assert text.problem != first.problem  # another image makes another problem
    assert read("visualprocessbench", {**record, "response": {"steps": ["a"], "process_correctness": [0]}}) == []


def prm800k(*ratings: int | None) -> dict[str, Any]:
    steps = [
        {"completions": [{"text": f"s{i}", "rating": rating}], "chosen_completion": 0}
        for i, rating in enumerate(ratings)
    ]
    return {"question": {"problem": "q"}, "label": {"steps": steps}}


def test_steps_come_in_the_forms_of_other_projects() -> None:
    (found,) = read("steps", prm800k(1, 0, -1, None))
    assert found.correct == (True, True, False, None)  # PRM800K's neutral step is not an error
    turns = [
        {"from": "human", "value": "<image>\nQuestion: q\nProcess: a<prm>b<prm>"},
        {"from": "gpt", "value": [0.6, 0.4]},
    ]
    (soft,) = read("steps", {"image": "x.png", "conversations": turns}, options=Options("mm-prm", 0.5))
    assert (soft.solution.steps, soft.correct) == (("a", "b"), (True, False))
    assert soft.solution.problem.images[0].path == "root/x.png"


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        (
            "processbench",
            {"problem": "q", "steps": ["a"], "label": 1},
            "f:0: .*label must be -1 or the index of one of",
        ),
        ("processbench", {"problem": "q", "steps": ["a"]}, r"f:0: .*has no 'label'; it has the fields problem, steps"),
        ("processbench", {"problem": "q", "steps": [], "label": -1}, "steps must be a list of at least one"),
        ("processbench", {"problem": 3, "steps": ["a"], "label": -1}, "question must be text"),
        ("visualprocessbench", {"question": "q", "response": "{"}, "f:0: is not a record of visualprocessbench"),
        (
            "visualprocessbench",
            {"question": "q", "response": {"steps": ["a", "b"], "process_correctness": [1]}},
            "2 steps but 1 labels",
        ),
        (
            "visualprocessbench",
            {"question": "q", "response": {"steps": ["a"], "process_correctness": [7]}},
            "rating 7 must be 1, 0, -1 or null",
        ),
        ("steps", {"prompt": "q"}, "f:0: is not a record of steps"),
    ],
)
def test_an_invalid_row_is_named(name: str, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(name, record)


def judged(problem: str, source: str, scores: tuple[float, ...], correct: tuple[bool | None, ...]) -> ScoredSolution:
    solution = Solution(Problem(problem, "q", ""), tuple("s" for _ in correct))
    return LabeledSolution(solution, correct, problem, source), StepScores(scores)


# At 0.5, source a is judged correctly. In source b, the error is located too late.
JUDGED = [
    judged("a1", "a", (0.9, 0.2, 0.9), (True, False, None)),
    judged("a2", "a", (0.8, 0.7), (True, True)),
    judged("b1", "b", (0.9, 0.6, 0.1), (True, False, None)),
    judged("b2", "b", (0.6,), (True,)),
]


def test_first_error_f1_by_source_and_average() -> None:
    result = judge("processbench", "first_error_f1", JUDGED, threshold=0.5)
    assert {name: metrics.f1.value for name, metrics in result.sources.items()} == {"a": 1.0, "b": 0.0}
    assert result.average.value == 0.5
    assert result.pooled.f1.value == pytest.approx(2 / 3)  # 1 of 2 first errors, 2 of 2 correct solutions
    assert (result.pooled.parts["on_bad"].value, result.pooled.parts["on_good"].value) == (0.5, 1.0)
    assert (result.pooled.solutions, result.pooled.steps, result.sources["a"].steps) == (4, 7, 4)
    assert (result.threshold, result.threshold_from) == (0.5, "given")
    # Correct: .9 .8 .7 .9 .6; incorrect: .2 .6. Of 10 pairs, 5 + 4 are won and one is tied.
    assert result.auc == pytest.approx(0.95)
    # Bins of width 0.1: 0.2 (0 of 1 correct), 0.6 (1 of 2), 0.7, 0.8, 0.9 (all of 1, 1, 2).
    assert [(entry.count, entry.observed) for entry in result.curve] == [(1, 0), (2, 0.5), (1, 1), (1, 1), (2, 1)]
    assert result.ece == pytest.approx((0.2 + 2 * 0.1 + 0.3 + 0.2 + 2 * 0.1) / 7)


def test_macro_f1_counts_steps_and_an_undefined_source_is_none() -> None:
    items = [*JUDGED, judged("c1", "c", (0.9, 0.1), (True, True))]
    result = judge("visualprocessbench", "macro_f1", items, threshold=0.5)
    # Predicted correct: .9 .8 .7 .9 .6 .6 .9, 6 hits of 7 members; incorrect: .2 .1, one hit of 2 members.
    assert result.pooled.f1.value == pytest.approx((12 / 14 + 2 / 4) / 2)
    assert result.sources["c"].f1 is None
    assert result.average is None
    assert result.sources["a"].f1.value == 1.0


def test_the_development_split_takes_problems_whole_by_content() -> None:
    items = [judged(f"p{i % 10}", "a", (0.9,), (True,)) for i in range(40)]
    chosen, rest, words = split_development(items, 0.3, seed=0)
    inside = {item[0].problem for item in chosen}
    assert (len(inside), len(chosen), len(rest), words) == (3, 12, 28, "3 of 10 problems, 12 solutions")
    assert inside.isdisjoint(item[0].problem for item in rest)
    again, *_ = split_development(items[::-1], 0.3, seed=0)
    assert {item[0].problem for item in again} == inside
    assert any({x[0].problem for x in split_development(items, 0.3, seed)[0]} != inside for seed in (1, 2, 3))
    with pytest.raises(DataError, match=r"leaves none of the 10 problems"):
        split_development(items, 0.99, seed=0)
    with pytest.raises(DataError, match="must be a share below 1 or the name of a source; set one of a"):
        split_development(items, "gsm8k", seed=0)


def test_a_named_source_chooses_the_threshold_and_is_measured() -> None:
    result = judge("processbench", "first_error_f1", JUDGED, development="a")
    assert result.threshold == pytest.approx(0.45)  # between 0.2, which is incorrect, and 0.7
    assert result.threshold_from == "a, 2 solutions"
    assert set(result.sources) == {"a", "b"}


class TextScorer:
    """Scores each step by the number that it contains."""

    closed = 0

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        return [StepScores(tuple(float(step) for step in solution.steps)) for solution in solutions]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> TextScorer:
    fake = TextScorer()
    monkeypatch.setattr(command, "open_scorer", lambda config: fake)
    monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo(threshold=0.75))
    return fake


def processbench(*rows: tuple[list[str], int]) -> list[dict[str, Any]]:
    return [{"id": f"x-{i}", "problem": f"q{i}", "steps": s, "label": label} for i, (s, label) in enumerate(rows)]


def write_labels(path: Path) -> None:
    problem = Problem("p", "q", "1")
    labeled = LabeledPath("p", ("s0", "s1"), (Counts(3, 1), Counts(0, 4)), False)
    write_parquet(path, [LabeledExample(problem, labeled, "train")])


def run(*arguments: str) -> int:
    return main(["eval", *arguments])


def processbench_files(folder: Path) -> list[str]:
    (folder / "gsm8k.json").write_text(json.dumps(processbench((["0.9", "0.2"], 1), (["0.8"], -1))))
    rows = processbench((["0.9", "0.6"], 1), (["0.8"], -1), (["0.7"], -1))
    (folder / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(folder / "gsm8k.json"), str(folder / "math.jsonl")]


def test_the_threshold_comes_from_a_development_file(
    tmp_path: Path, scorer: TextScorer, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "scorer.prm=p", "--set", f"output={tmp_path / 'out'}"]
    assert run("processbench", *processbench_files(tmp_path), *sets, "--set", "development=gsm8k") == 0
    result = json.loads((tmp_path / "out" / "processbench.json").read_text())
    assert (result["threshold"], result["threshold_from"]) == (pytest.approx(0.5), "gsm8k, 2 solutions")
    assert {name: entry["f1"]["value"] for name, entry in result["sources"].items()} == {"gsm8k": 1.0, "math": 0.0}
    printed = capsys.readouterr().out
    assert re.search(r"average +0.500 \[", printed)
    assert "threshold 0.500, gsm8k, 2 solutions" in printed
    assert scorer.closed == 1


def measure_everything(folder: Path) -> Path:
    """Run every PRM and label evaluation into one folder and return it."""
    out = folder / "out"
    sets = ["--set", "scorer.prm=p", "--set", f"output={out}"]
    assert run("processbench", *processbench_files(folder), *sets, "--set", "development=0") == 0
    visual = {"question": "q", "response": {"steps": ["0.9", "0.1"], "process_correctness": [1, -1]}}
    (folder / "test.jsonl").write_text(json.dumps(visual))
    assert run("visualprocessbench", str(folder / "test.jsonl"), *sets, "--set", "threshold=0.5") == 0
    write_labels(folder / "labels.parquet")
    (folder / "people.jsonl").write_text(json.dumps(prm800k(1, -1)))
    labels = ["--set", f"truth={folder / 'people.jsonl'}", "--set", "threshold=0.5", "--set", f"output={out}"]
    assert run("labels", str(folder / "labels.parquet"), *labels) == 0
    (folder / "candidates.jsonl").write_text("\n".join(map(json.dumps, CANDIDATES)))
    bon = [str(folder / "candidates.jsonl"), "--set", f"output={out}", "--set", "aggregators=[min,last]"]
    assert run("bon", *bon) == 0
    return out


def test_the_threshold_of_the_prm(tmp_path: Path, scorer: TextScorer) -> None:
    """prm.json sets 0.75, so a correct step with score 0.7 is predicted to be incorrect."""
    out = measure_everything(tmp_path)
    assert json.loads((out / "processbench.json").read_text())["sources"]["math"]["f1"]["value"] == pytest.approx(2 / 3)
    assert json.loads((out / "labels.json").read_text())["pooled"]["f1"]["value"] == 1.0


def test_one_page_shows_all_evaluations(tmp_path: Path, scorer: TextScorer) -> None:
    html = (measure_everything(tmp_path) / "report.html").read_text()
    root = ElementTree.fromstring(html)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    assert [node.text for node in root.iter() if node.tag.endswith("h2")] == [
        "processbench",
        "visualprocessbench",
        "labels",
        "Best of 2 by aggregator",
        "Accuracy by number of samples",
    ]
    plots = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    colors = set(re.findall(r"var\(--([\w-]+)\)", plots))
    assert {"good", "soft", "series-prm"} <= colors <= set(re.findall(r"--([\w-]+):", html))
    text = " ".join("".join(root.itertext()).split())
    for expected in ("gsm8k", "Threshold 0.750 (given)", "0.667", "average"):
        assert expected in text


def test_threshold_and_format_must_be_known(
    tmp_path: Path, scorer: TextScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "scorer_info", lambda config: PrmInfo())
    (tmp_path / "x.jsonl").write_text(json.dumps(processbench((["0.9"], -1))[0]))
    sets = ["--set", "scorer.prm=p", "--set", f"output={tmp_path}"]
    assert run("processbench", str(tmp_path / "x.jsonl"), *sets, "--set", "development=0") == 2
    assert "prm.json has none and development=0; set threshold" in capsys.readouterr().err
    assert run("steps", str(tmp_path / "x.jsonl"), *sets, "--set", "format=x") == 2
    assert "format='x' must be one of trl, math-shepherd, prm800k" in capsys.readouterr().err
    assert run("processbench", str(tmp_path / "nowhere.jsonl"), *sets) == 2
    assert "nowhere.jsonl: cannot be read" in capsys.readouterr().err
    write_labels(tmp_path / "labels.parquet")
    (tmp_path / "others.jsonl").write_text(json.dumps({**prm800k(1), "question": {"problem": "another"}}))
    labels = ["--set", f"truth={tmp_path / 'others.jsonl'}", "--set", f"output={tmp_path}"]
    assert run("labels", str(tmp_path / "labels.parquet"), *labels) == 2
    assert "others.jsonl: contains none of the labeled steps" in capsys.readouterr().err
    (tmp_path / "one.json").write_text("{}")
    assert run("processbench", str(tmp_path / "one.json"), *sets) == 2
    assert "one.json: must hold a list of objects" in capsys.readouterr().err


def test_truncated_solutions_are_left_out(
    tmp_path: Path, scorer: TextScorer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scorer that truncates long solutions gives no scores for their last steps, correct or not."""

    class Cutting(TextScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores(scores.scores[:2]) for scores in super().score(solutions)]

    monkeypatch.setattr(command, "open_scorer", lambda config: Cutting())
    rows = processbench((["0.9", "0.2"], 1), (["0.8"], -1), (["0.8", "0.8", "0.1"], 2))
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = ["--set", "scorer.prm=p", "--set", f"output={tmp_path}", "--set", "threshold=0.5"]
    assert run("processbench", str(tmp_path / "x.jsonl"), *sets) == 0
    assert "1 solutions exceed the PRM's context and are left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "processbench.json").read_text())["pooled"]["solutions"] == 2


def line(problem: str, sample: int, correct: bool, scores: list[float] | None) -> dict[str, Any]:
    return {
        "problem_id": problem,
        "sample": sample,
        "response": "r",
        "steps": [] if scores is None else ["s"] * len(scores),
        "answer": str(correct),
        "verdict": "correct" if correct else "incorrect",
        "unsplit": "no step" if scores is None else None,
        "scores": scores,
        "reward": None,
        "chosen": False,
    }


# The minimum score finds the correct solution of p, the last score that of q.
CANDIDATES = [
    line("p", 0, True, [0.5, 0.4]),
    line("p", 1, False, [0.1, 0.9]),
    line("q", 0, False, [0.8, 0.2]),
    line("q", 1, True, [0.1, 0.3]),
]


def test_best_of_n_by_aggregator_from_rerank_output() -> None:
    groups = read_groups(enumerate(CANDIDATES))
    assert [(group.problem.id, len(group.candidates)) for group in groups] == [("p", 2), ("q", 2)]
    result = evaluate_best_of_n(groups, ["min", "last"])
    accuracy = {name: points[-1].accuracy["prm"].value for name, points in result.accuracy.items()}
    assert accuracy == {"min": 0.5, "last": 0.5}
    result = evaluate_best_of_n(groups[:1], ["last", "min"])
    assert (result.best, result.samples, [p.n for p in result.accuracy["min"]]) == ("min", 2, [1, 2])
    assert result.accuracy["min"][-1].accuracy["prm"].value == 1.0
    assert result.accuracy["last"][-1].accuracy["prm"].value == 0.0
    with pytest.raises(DataError, match=r"f:1: is not a line of a candidates\.jsonl"):
        read_groups([("f:1", {"problem_id": "p"})])


def test_two_runs_with_the_same_ids_are_not_mixed() -> None:
    rows = [("a:1", CANDIDATES[0] | {"problem_digest": "1"}), ("b:1", CANDIDATES[0] | {"problem_digest": "2"})]
    with pytest.raises(DataError, match=r"b:1: problem_id .* already belongs to a different problem"):
        read_groups(rows)


def test_published_datasets_if_available() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data"
    files = [*folder.glob("[Pp]rocess[Bb]ench/*.json*"), *folder.glob("[Vv]isual[Pp]rocess[Bb]ench/*.jsonl")]
    if not files:
        pytest.skip("neither ProcessBench nor VisualProcessBench lies in the shared data")
    for file in files:
        name = "visualprocessbench" if "visual" in str(file).lower() else "processbench"
        assert len(read_labeled(name, command._rows(file), file.parent, file.stem, Options())) > 100
