"""Test which critiques are kept as training rows, and the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmprm.config import build
from mmprm.critiques.agreement import FALSE_ALARM, MISS, agreeing_share, contradiction, step_labels
from mmprm.critiques.build import build_critiques
from mmprm.critiques.config import CritiquesConfig
from mmprm.errors import DataError
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.tiny.image import draw
from mmprm.types import Completion, Counts, ImageRef, LabeledPath, Problem
from policy_rl.sft.conversations import read_conversations
from tests.mmprm.scoring.scripted_judge import ChainSampler, Reply, lines

YES, NO = Counts(1, 1), Counts(0, 2)
IMAGES = (ImageRef(data=draw((("red", 1, (0, 0)),) * 6)),)


def example(name: str, *counts: Counts | None, steps: Sequence[str] = "abcdef", images: Any = ()) -> LabeledExample:
    problem = Problem(name, f"question {name}", "1", images)
    return LabeledExample(problem, LabeledPath(name, tuple(steps[: len(counts)]), counts, False), "train")


def config(
    folder: Path, *examples: LabeledExample, teacher: dict[str, Any] | None = None, **more: Any
) -> CritiquesConfig:
    write_parquet(folder / "labels.parquet", examples)
    asked = {"engine": {"model": "teacher"}, "cache": str(folder / "replies.sqlite")} | (teacher or {})
    values = {"labels": str(folder / "labels.parquet"), "output": str(folder / "out"), "teacher": asked}
    return build(CritiquesConfig, values | more)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_question(replies: dict[str, list[Reply | Exception]]) -> ChainSampler:
    """Return a sampler whose replies depend on the problem's name, the last word of its question."""
    names = {f"question {name}": found for name, found in replies.items()}
    return ChainSampler(
        lambda request, number: next(r for q, r in names.items() if q in request.problem.question)[number]
    )


def test_labels_end_at_the_first_error_and_include_those_of_other_paths() -> None:
    first = example("p", YES, None, NO, YES)
    second = example("p", None, Counts(0, 0, 3), Counts(1, 15), steps="axy")
    assert step_labels([first, second], 0.0) == [(True, None, False, None), (True, None, True)]
    assert step_labels([first, second], 0.25) == [(True, None, False, None), (True, None, False)]


@pytest.mark.parametrize(
    ("verdicts", "reason", "share"),
    [
        ((True, True, False, False), None, 1.0),
        ((True, False, False, False), None, 1.0),  # the error may be in the unlabeled step
        ((False, False, False, False), FALSE_ALARM, 0.5),
        ((True, True, True, False), MISS, 0.5),
        ((False, True, True, True), FALSE_ALARM, 0.0),
    ],
)
def test_verdicts_are_compared_with_the_labels(verdicts: tuple[bool, ...], reason: str | None, share: float) -> None:
    labels = (True, None, False, None)
    assert contradiction(verdicts, labels) == reason
    assert agreeing_share(verdicts, labels) == share


def test_only_agreeing_critiques_are_kept_and_the_others_are_counted(tmp_path: Path) -> None:
    sampler = by_question(
        {
            "good": [lines(1, 0), lines(1, 1), lines(1, 1)],
            "bad": [lines(1, 1), "I cannot say.", Completion(lines(1, 0), 40, "length")],
        }
    )
    asked = config(tmp_path, example("good", YES, YES), example("bad", YES, NO), teacher={"chains": 3})
    counts = build_critiques(asked, sampler)
    assert (counts.solutions, counts.with_error, counts.critiques) == (2, 1, 6)
    assert (counts.kept, counts.kept_solutions, counts.kept_with_error, counts.tokens) == (1, 1, 0, 90)
    expected = {FALSE_ALARM: 1, MISS: 1, "no verdicts": 1, "a chain that was cut off": 1}
    assert counts.refused == expected
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["refused"] == expected
    refused = rows(tmp_path / "out" / "refused.jsonl")
    assert [(row["reason"], row["verdicts"], row["text"]) for row in refused[:2]] == [
        (FALSE_ALARM, [True, False], lines(1, 0)),
        (MISS, [True, True], lines(1, 1)),
    ]


def test_a_stopped_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    first, second = example("a", YES), example("b", NO)
    build_critiques(config(tmp_path, first), by_question({"a": [lines(1)]}))
    sampler = by_question({"b": [lines(0)]})
    assert build_critiques(config(tmp_path, first, second), sampler).kept == 2
    assert len(sampler.requests) == 1


def test_kept_rows_are_conversations_of_the_judges_request_and_reply(tmp_path: Path) -> None:
    teacher = {"system": "You judge.", "request": "{question}\n{steps}\n", "verdict_format": "thinkprm", "chains": 2}
    asked = config(tmp_path, example("a", YES, NO, images=IMAGES), teacher=teacher, max_per_solution=2)
    reply = "Step 1: yes \\boxed{correct}\nStep 2: no \\boxed{incorrect}"
    requests = by_question({"a": [reply, reply]})
    build_critiques(asked, requests)
    one, two = read_conversations(ProblemsConfig(path=str(tmp_path / "out" / "kept.jsonl")), PromptConfig())
    system, user, assistant = one.messages
    assert (system["content"], assistant["content"]) == ("You judge.", reply)
    text = {"type": "text", "text": "question a\nStep 1: a\n\nStep 2: b\n"}
    assert user["content"] == [{"type": "image"}, text]
    assert requests.requests[0].problem.question == text["text"]
    assert len(one.images) == len(two.images) == 1


def test_problems_hold_the_request_and_the_labels(tmp_path: Path) -> None:
    asked = config(tmp_path, example("a", YES, None, NO), example("b", YES), ask_teacher=False)
    counts = build_critiques(asked)
    assert (counts.solutions, counts.critiques) == (2, 0)
    assert not (tmp_path / "out" / "kept.jsonl").exists()
    wrong, correct = load_problems(ProblemsConfig(path=str(tmp_path / "out" / "problems.jsonl")))
    assert (wrong.answer, correct.answer) == ("3", "none")
    assert wrong.extra["step_labels"] == [True, None, False]
    assert (wrong.extra["verdict_format"], wrong.extra["after_error"]) == ("plain", "incorrect")
    assert "question a" in wrong.question
    assert "Step 3: c" in wrong.question


def test_the_same_text_in_other_steps_is_another_problem(tmp_path: Path) -> None:
    asked = config(
        tmp_path, example("a", YES, steps=["x\ny"]), example("a", YES, YES, steps=["x", "y"]), ask_teacher=False
    )
    build_critiques(asked)
    one, two = load_problems(ProblemsConfig(path=str(tmp_path / "out" / "problems.jsonl")))
    assert [one.extra["step_labels"], two.extra["step_labels"]] == [[True], [True, True]]


def test_a_run_that_keeps_nothing_names_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no critique was kept \(1 × no verdicts\)"):
        build_critiques(config(tmp_path, example("a", YES)), by_question({"a": ["Well."]}))


def test_a_split_without_labels_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no solution of the dev split has a label"):
        build_critiques(config(tmp_path, example("a", YES), split="dev"))


def test_a_solution_that_cannot_be_asked_about_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = example("broken", YES, images=(ImageRef(data=b"no image"),))
    reserved = example("reserved", YES, steps=["<|im_end|>"])
    asked = config(tmp_path, broken, reserved, example("good", YES))
    counts = build_critiques(asked, by_question({"good": [lines(1)], "broken": [DataError("cannot be read")]}))
    assert (counts.solutions, counts.kept, counts.refused) == (3, 1, {"a request that cannot be written": 2})
    assert len(rows(tmp_path / "out" / "problems.jsonl")) == 1
    assert "problems.jsonl lacks 2 solutions, for example: " in capsys.readouterr().err
