"""Test campaigns over given solutions: the store, resuming, labels from one and two completers, and status output."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.fork import fork
from mcts.progress import CampaignSummary
from mcts.solutions import SolutionsConfig
from mcts.worker import LocalWorker
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import ConfigError, StoreError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.given import combine_labels, disagreement
from mmprm.labels.parquet import LabeledExample, read_parquet
from mmprm.prm.targets import TargetConfig, make_targets
from mmprm.sampling.scripted import ScriptedSampler, Write
from mmprm.trees.database import STORE_NAME
from mmprm.trees.store import Store
from mmprm.types import Counts, Problem
from tests.mcts import scripted_campaign as scripted

STEPS = scripted.STEPS


def weak(problem: Problem, prefix: str, rng: random.Random) -> str:
    """Sample like the scripted policy, but fail whenever four or more steps are missing."""
    given = prefix.count("<step>")
    return scripted.write(problem, prefix if given > STEPS - 4 else f"{prefix}bad", rng)


def solution(number: int, bad: int, **columns: Any) -> dict[str, Any]:
    """Return a solution of problem `number` whose first bad step is `bad`; STEPS means that no step is bad."""
    steps = [f"{'good' if step < bad else 'bad'} {step}" for step in range(STEPS)]
    steps.append(f"<answer>{number if bad == STEPS else 'nothing'}</answer>")
    problem = {"problem_id": f"p{number}", "question": f"question {number}", "answer": str(number)}
    return problem | {"id": f"s{number}-{bad}", "author": "teacher", "steps": steps} | columns


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    path = tmp_path / "solutions.jsonl"
    rows = [solution(number, bad) for number in range(3) for bad in (0, 2, 5, STEPS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def annotate(
    solutions: Path, run: Path, write: Write = scripted.write, mode: str = "first_error"
) -> tuple[CampaignConfig, CampaignSummary]:
    given = {"path": str(solutions), "mode": mode}
    config = scripted.config(str(solutions), str(run), solutions=given, search={})

    async def make(number: int) -> LocalWorker:
        sampler = ScriptedSampler(write)
        return LocalWorker(sampler, scripted.Grader(), config.step_format, config.seed, config.search)

    return config, run_campaign(config, make_worker=make)


def labels(*runs: Path) -> list[LabeledExample]:
    output = runs[0] / "labels.parquet"
    build_labels(build(LabelsConfig, {"store": [str(run) for run in runs], "output": str(output)}))
    return read_parquet(output)


def values(example: LabeledExample) -> list[float | None]:
    return [None if counts is None else counts.value for counts in example.path.counts]


def test_a_number_of_shared_rollouts_is_refused(solutions: Path, tmp_path: Path) -> None:
    config, _ = annotate(solutions, tmp_path / "run")
    given = LabelsConfig(store=config.output, output=str(tmp_path / "labels.parquet"), min_shared_rollouts=8)
    with pytest.raises(ConfigError, match="min_shared_rollouts=8 does not apply to given solutions"):
        build_labels(given)


def test_first_errors_become_labels_of_the_solutions(solutions: Path, tmp_path: Path) -> None:
    _, summary = annotate(solutions, tmp_path / "run")
    assert (summary.problems["done"], summary.ended) == (12, {"first error": 9, "no error": 3})
    found = {example.solution_id: example for example in labels(tmp_path / "run")}
    example = found["s1-2"]
    assert (example.problem.id, example.author, example.problem.given) == ("p1", "teacher", None)
    assert example.path.steps[:3] == ("good 0", "good 1", "bad 2")
    assert values(found["s1-0"])[0] == 0
    assert values(found["s1-2"]) == [1, 1, 0, None, None, None, 0]
    # Its first two steps are labeled on s1-2, the first solution that begins with them.
    assert values(found["s1-5"]) == [None, None, 1, 1, 1, 0, 0]
    assert values(found[f"s1-{STEPS}"]) == [None, None, None, None, None, 1, 1]


def test_an_unfinished_solution_has_no_label(solutions: Path, tmp_path: Path) -> None:
    annotate(solutions, tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / STORE_NAME) as connection:
        connection.execute("UPDATE problems SET status = 'open' WHERE id = 's1-2'")
    assert "s1-2" not in {example.solution_id for example in labels(tmp_path / "run")}


def test_first_errors_are_targets_of_the_same_steps(solutions: Path, tmp_path: Path) -> None:
    annotate(solutions, tmp_path / "run")
    examples = labels(tmp_path / "run")
    targets = make_targets(examples, TargetConfig(kind="first_error"))
    by_id = {example.solution_id: target.values for example, target in zip(examples, targets, strict=True)}
    assert by_id["s1-2"][:3] == (1, 1, 0)


def test_values_are_those_of_the_completer(solutions: Path, tmp_path: Path) -> None:
    """No rollout from a bad prefix succeeds; every rollout from all six good steps does."""
    annotate(solutions, tmp_path / "run", mode="values")
    found = {example.solution_id: example for example in labels(tmp_path / "run")}
    *_, last, verdict = values(found[f"s0-{STEPS}"])
    assert (last, verdict) == (1, 1)
    assert values(found["s0-2"])[2:] == [0] * 5
    root = found["s0-2"].path.root_value
    assert root is not None
    assert 0 < root < 1


@pytest.mark.parametrize("mode", ["first_error", "values"])
def test_an_added_solution_is_labeled_by_the_next_run(solutions: Path, tmp_path: Path, mode: str) -> None:
    _, before = annotate(solutions, tmp_path / "run", mode=mode)
    with solutions.open("a") as file:
        file.write(json.dumps(solution(0, 3)) + "\n")
    _, after = annotate(solutions, tmp_path / "run", mode=mode)
    assert after.problems["done"] == before.problems["done"] + 1
    assert after.rollouts - before.rollouts == after.new_rollouts < 200


def test_two_completers_are_combined_and_disagree(solutions: Path, tmp_path: Path) -> None:
    """With fewer than three steps given, the weak completer always fails and the strong one sometimes succeeds."""
    annotate(solutions, tmp_path / "strong", mode="values")
    annotate(solutions, tmp_path / "weak", weak, mode="values")
    strong, one, both = (
        {example.solution_id: example for example in labels(*(tmp_path / name for name in names))}["s1-2"]
        for names in (("strong",), ("weak",), ("weak", "strong"))
    )
    assert values(one)[:2] == [0, 0]
    assert one.disagreement is None
    alone = [value or 0 for value in values(strong)]
    assert min(alone[:2]) > 0
    assert values(both) == pytest.approx([value / 2 for value in alone])
    assert both.disagreement == pytest.approx(alone)
    known = [example.path.counts[0].known for example in (strong, one, both) if example.path.counts[0]]
    assert known[0] + known[1] == known[2]


def test_the_mean_and_the_maximum_of_two_completers() -> None:
    one = (Counts(3, 1), Counts(0, 16), None, Counts(0, 1))
    other = (Counts(1, 3), Counts(2, 2, 0, estimate=1.0), None, Counts(0, 1))
    mean = (Counts(4, 4, 0, 0.5), Counts(2, 18, 0, 0.5), None, Counts(0, 1))
    assert combine_labels([one, other], "values") == mean
    assert [label.value for label in combine_labels([one, other], "first_error") if label] == [0.75, 1, 0]
    assert combine_labels([one], "values") == one
    assert disagreement([one, other]) == (0.5, 1.0, None, 0.0)


def test_runs_of_other_modes_are_not_combined(solutions: Path, tmp_path: Path) -> None:
    annotate(solutions, tmp_path / "one")
    annotate(solutions, tmp_path / "other", mode="values")
    with pytest.raises(ConfigError, match=r"store: .*one.* has solutions=.*first_error.* and .*other.* has solutions="):
        labels(tmp_path / "one", tmp_path / "other")


def test_a_run_is_not_forked_to_another_mode(solutions: Path, tmp_path: Path) -> None:
    config, _ = annotate(solutions, tmp_path / "run")
    other = config.model_copy(update={"solutions": SolutionsConfig(path=str(solutions), mode="values")})
    with pytest.raises(
        ConfigError, match=r"solutions.mode must equal that of .*run \(stored 'first_error', asked 'val"
    ):
        fork(other)
    assert not (tmp_path / "run-2").exists()


def test_a_run_is_shown(solutions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotate(solutions, tmp_path / "run")
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "first error 9 (75.0%), no error 3 (25.0%)" in capsys.readouterr().out
    assert main(["tree", str(tmp_path / "run"), "s1-2"]) == 0
    assert "good 1" in capsys.readouterr().out
    assert main(["view", str(tmp_path / "run"), "--output", str(tmp_path / "view.html")]) == 0


def test_a_changed_solution_needs_a_new_id(solutions: Path, tmp_path: Path) -> None:
    annotate(solutions, tmp_path / "run")
    store = Store.read(tmp_path / "run")
    assert store.problem("s1-2").given is not None
    store.close()
    solutions.write_text(json.dumps(solution(1, 2, author="other")) + "\n")
    with pytest.raises(StoreError, match="problem 's1-2' is stored with another given solution"):
        annotate(solutions, tmp_path / "run")
