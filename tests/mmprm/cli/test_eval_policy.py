"""Benchmarks for policies: each published layout is read, asked and scored; We-Math's four-way figures by hand."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from mmprm.cli import eval_policy as command
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import DataError, EngineStoppedError, SamplingError
from mmprm.evaluation.benchmarks import Item, read_items
from mmprm.evaluation.four_way import four_way
from mmprm.evaluation.pass_at_k import majority_share, pass_at_k
from mmprm.evaluation.policy import PolicyEvalConfig, score
from mmprm.grading.choice import inline_choices
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.problems import ProblemsConfig
from mmprm.types import Completion, Grading, Problem, SampleRequest, Verdict


def png(size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "PNG")
    return file.getvalue()


MMK12 = {
    "id": "math-1",
    "question": "As in the figure, ∠A is ( )\nA. 30°\nB. 40°\nC. 50°\nD. 60°",
    "answer": "B",
    "subject": "math",
    "image": {"bytes": png(), "path": None},
}
MATHVISTA = {
    "pid": "1",
    "question": "When a spring does work, by what distance is it compressed?",
    "image": "images/1.jpg",
    "decoded_image": {"bytes": png(), "path": None},
    "choices": None,
    "unit": "m",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"category": "math-targeted-vqa", "task": "textbook question answering", "source": "SciBench"},
    "query": "Hint: …",
}
MATHVISTA_CHOICE = {
    **MATHVISTA,
    "pid": "2",
    "question": "The derivative at 2 is ____ that at 5",
    "choices": ["larger than", "equal to", "smaller than"],
    "unit": None,
    "precision": None,
    "answer": "equal to",
    "question_type": "multi_choice",
    "answer_type": "text",
    "metadata": {"category": "math-targeted-vqa", "task": "geometry problem solving", "source": "FunctionQA"},
}
MATHVERSE = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Text Dominant",
    "question": "AB ∥ CD; find ∠E.\nChoices:\nA:145°\nB:125°\nC:100°\nD:55°",
    "image": {"bytes": png(), "path": None},
    "answer": "B",
    "question_type": "multi-choice",
    "metadata": {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"},
    "query_wo": "…",
    "query_cot": "…",
}
MATHVERSE_VISION = {**MATHVERSE, "sample_index": "5", "problem_version": "Vision Only", "question": ""}
MATHVISION = {
    "id": "4",
    "question": "Which bridge must be closed? <image1>",
    "options": ["A", "B", "C", "D", "E"],
    "image": "images/4.jpg",
    "answer": "B",
    "solution": None,
    "level": 2,
    "subject": "graph theory",
}
MATHVISION_FREE = {**MATHVISION, "id": "5", "question": "How many? <image1>", "options": [], "answer": "7"}
OLYMPIAD = {
    "id": 2231,
    "question": "Solve $x^2 = 4$ as in <image_1>.",
    "solution": ["…"],
    "final_answer": ["$2$, $-2$"],
    "context": "Let x be real.",
    "image_1": {"bytes": png(), "path": None},
    "image_2": None,
    "modality": "Multimodal",
    "difficulty": "Competition",
    "is_multiple_answer": True,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
    "question_type": "Open-ended",
    "subfield": "Algebra",
    "subject": "Math",
    "language": "English",
}
WE_MATH = {
    "ID": "7",
    "split": "testmini",
    "knowledge concept": "Area of Circles",
    "question": "The circumference is ( ) cm?",
    "option": "A. 18; B. 15 ; C. 12; D. 10; E. No correct answer",
    "answer": "C",
    "image_path": "2steps/image/7-1.png",
    "key": "2steps_1",
    "question number": 1,
    "knowledge concept description": "…",
}


def read(folder: Path, benchmark: str, *rows: dict[str, Any], form: str = "json") -> tuple[list[Item], int]:
    file = folder / f"{benchmark}.{form}"
    if form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    elif form == "json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_items(benchmark, ProblemsConfig(path=str(file)))


def test_mmk12(tmp_path: Path) -> None:
    ((item,), _) = read(tmp_path, "mmk12", MMK12, form="parquet")
    assert item.problem.choices == ("30°", "40°", "50°", "60°")
    assert (item.problem.id, item.problem.answer, item.subject) == ("math-1", "B", "math")
    assert item.problem.question == MMK12["question"], "the choices stand in it already"
    assert item.problem.images[0].data == png()


def test_mathvista(tmp_path: Path) -> None:
    ((free, chosen), _) = read(tmp_path, "mathvista", MATHVISTA, MATHVISTA_CHOICE, form="parquet")
    lines = free.problem.question.splitlines()
    assert lines[1:] == ["(Unit: m)", "Give the answer as a number with 1 decimal place(s)."]
    assert (free.problem.answer, free.problem.choices) == ("1.2", ())
    assert chosen.problem.question.splitlines()[1:] == ["Choices:", "A. larger than", "B. equal to", "C. smaller than"]
    assert (chosen.problem.answer, chosen.subject) == ("B", "geometry problem solving")
    assert free.problem.images[0].data == png()


def test_mathverse(tmp_path: Path) -> None:
    ((full, vision), _) = read(tmp_path, "mathverse", MATHVERSE, MATHVERSE_VISION, form="parquet")
    assert full.problem.choices == ("145°", "125°", "100°", "55°")
    assert vision.problem.question == "Answer the question in the image."
    assert (vision.problem.choices, vision.problem.answer) == ((), "B")
    assert full.family == vision.family == "1"
    assert (full.subject, vision.part) == ("Plane Geometry", "Vision Only")


def test_mathvision(tmp_path: Path) -> None:
    ((chosen, free), _) = read(tmp_path, "mathvision", MATHVISION, MATHVISION_FREE, form="jsonl")
    assert chosen.problem.question.startswith("Which bridge must be closed? <image>\nChoices:\nA. A\n")
    assert chosen.problem.images[0].path == str(tmp_path / "images/4.jpg")
    assert (free.problem.question, free.problem.choices, free.problem.answer) == ("How many? <image>", (), "7")
    assert free.subject == "graph theory"


def test_olympiadbench(tmp_path: Path) -> None:
    others = [{**OLYMPIAD, "language": "Chinese"}, {**OLYMPIAD, "question_type": "Theorem proof"}]
    unit = {**OLYMPIAD, "id": 3, "question": "See <image_2> and <image_1>.", "unit": "cm", "final_answer": ["3"]}
    ((item, two), left_out) = read(tmp_path, "olympiadbench", OLYMPIAD, *others, unit, form="parquet")
    assert left_out == 2
    assert item.problem.question == "Let x be real.\nSolve $x^2 = 4$ as in <image>."
    assert (item.problem.answer, item.subject, item.problem.id) == ("$2$, $-2$", "Algebra", "2231")
    assert "See picture 2 and picture 1.\n(Unit of the answer: cm)" in two.problem.question


def test_we_math(tmp_path: Path) -> None:
    whole = {**WE_MATH, "key": "2steps_multi"}
    ((part, multi), _) = read(tmp_path, "we-math", WE_MATH, whole)
    assert part.problem.choices == ("18", "15", "12", "10", "No correct answer")
    assert part.problem.question.endswith("( ) cm?\nChoices:\nA. 18\nB. 15\nC. 12\nD. 10\nE. No correct answer")
    assert (part.subject, multi.subject) == ("one step", "two steps")
    assert part.family == multi.family
    assert (part.part, multi.part) == ("1", "multi")
    assert part.problem.id != multi.problem.id


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("Q\nA. (2, 3)\nB. (1, 2)", ("(2, 3)", "(1, 2)")),
        ("A. 18 cm; B. 15 cm; C. none", ("18 cm", "15 cm", "none")),
        ("Q\n(A) one\n(B) two", ()),
        ("Q\nA: x", ()),
        ("Q\nB. x\nA. y", ()),
        ("The point A. Then B moves.", ()),
        ("Points A, B, C. Find x:\nA. 1\nB. 2", ("1", "2")),
    ],
)
def test_inline_choices(text: str, choices: tuple[str, ...]) -> None:
    if text.startswith("Q\n(A)"):
        choices = ("one", "two")
    assert inline_choices(text) == choices


def test_the_answer_forms_are_graded(tmp_path: Path) -> None:
    """Letters and texts of choices, numbers and several answers, by the grader as it is."""
    found = [
        *read(tmp_path, "mmk12", MMK12, form="parquet")[0],
        *read(tmp_path, "mathvista", MATHVISTA, MATHVISTA_CHOICE, form="parquet")[0],
        *read(tmp_path, "mathverse", MATHVERSE, form="parquet")[0],
        *read(tmp_path, "mathvision", MATHVISION, MATHVISION_FREE)[0],
        *read(tmp_path, "olympiadbench", OLYMPIAD, form="parquet")[0],
        *read(tmp_path, "we-math", WE_MATH)[0],
    ]
    correct = ["40°", "1.2", "B", "125°", "B", "7", "-2, 2", "12"]
    incorrect = ["C", "1.3", "smaller than", "D", "C", "8", "2", "A"]
    with SymbolicGrader(GraderConfig()) as grader:
        for answers, verdict in ((correct, Verdict.CORRECT), (incorrect, Verdict.INCORRECT)):
            pairs = [(item.problem, f"<answer>{a}</answer>") for item, a in zip(found, answers, strict=True)]
            gradings = grader.grade_many(pairs)
            assert [grading.verdict for grading in gradings] == [verdict] * len(found)


def test_options_may_be_letters_themselves(tmp_path: Path) -> None:
    """As in We-Math, where "D. I" is the right one of four."""
    row = {**WE_MATH, "question": "Which one?", "option": "A. F; B. D; C. B; D. I", "answer": "D"}
    (item,) = read(tmp_path, "we-math", row)[0]
    with SymbolicGrader(GraderConfig()) as grader:
        answers = ("D", "D. I", "I", "B. D", "B", "C. B")
        gradings = grader.grade_many([(item.problem, f"<answer>{answer}</answer>") for answer in answers])
    assert [grading.verdict is Verdict.CORRECT for grading in gradings] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("choices", "gold"), [(["D", "F", "G", "H"], "A"), (["larger than", "equal to"], "B")])
def test_mathvista_names_the_right_option_by_its_text(tmp_path: Path, choices: list[str], gold: str) -> None:
    row = {**MATHVISTA_CHOICE, "choices": choices, "answer": choices[ord(gold) - ord("A")]}
    (item,) = read(tmp_path, "mathvista", row, form="parquet")[0]
    with SymbolicGrader(GraderConfig()) as grader:
        gradings = grader.grade_many([(item.problem, f"<answer>{letter}</answer>") for letter in "AB"])
    assert [grading.verdict is Verdict.CORRECT for grading in gradings] == [gold == "A", gold == "B"]


def test_rows_of_another_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"item 2: is not a row of mmk12: lacks 'subject'"):
        read(tmp_path, "mmk12", {**MMK12, "image": "a.png"}, {"id": 2, "question": "Q", "answer": "A"})
    with pytest.raises(DataError, match="empty question or answer"):
        read(tmp_path, "mathvision", {**MATHVISION, "answer": ""})
    with pytest.raises(DataError, match="used before"):
        read(tmp_path, "mathvision", MATHVISION, MATHVISION)


def test_unknown_is_left_out_and_families_are_resampled_together() -> None:
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    found = score([[correct], [correct], [incorrect], [unknown]], [["7"]] * 4, ["a", "a", "b", "c"], 0)
    assert (found.correct, found.incorrect, found.unknown) == (2, 1, 1)
    assert found.accuracy.value == pytest.approx(2 / 4)
    assert found.of_known.value == pytest.approx(2 / 3)
    assert (found.of_known.low, found.of_known.high) == (0, 1), "one of two families may be drawn alone"
    nothing = score([[unknown]], [[None]], ["a"], 0)
    assert (nothing.accuracy.value, nothing.of_known, nothing.majority) == (0, None, None)


def test_samples_give_pass_at_k_and_the_majority() -> None:
    """Two questions of four samples, 2 and 0 of them correct: pass@2 = (1 - 1/6 + 0) / 2, pass@4 = 1/2."""
    correct, incorrect, unknown = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN
    verdicts = [[correct, incorrect, correct, incorrect], [incorrect, unknown, incorrect, incorrect]]
    answers = [["7", "8", "7", "9"], ["1", None, "1", "2"]]
    found = score(verdicts, answers, ["a", "b"], 0)
    assert found.accuracy.value == pytest.approx(2 / 8)
    assert {k: value.value for k, value in found.pass_at.items()} == pytest.approx({2: 5 / 12, 4: 1 / 2})
    assert found.of_known.value == pytest.approx(2 / 7)
    assert found.majority.value == pytest.approx(1 / 2)


def test_pass_at_k_by_hand() -> None:
    assert [pass_at_k(5, 2, k) for k in (1, 2, 4, 5)] == pytest.approx([0.4, 0.7, 1, 1])
    assert pass_at_k(3, 0, 3) == 0
    with pytest.raises(ValueError, match="k=4 must be between 1 and n=3"):
        pass_at_k(3, 1, 4)


def test_the_majority_of_a_tie_is_shared() -> None:
    correct, incorrect = Verdict.CORRECT, Verdict.INCORRECT
    assert majority_share(["1", "2", None, None], [correct, incorrect, incorrect, incorrect]) == 0.5
    assert majority_share([None], [incorrect]) == 0


def test_four_way_metrics_by_hand() -> None:
    """Seven composite problems: each kind once, all of loose and strict, and one with an unknown part."""
    table = {
        "mastery": "RRR",
        "rote, strict only": "RWR",
        "rote, both": "WWR",
        "inadequate": "RRW",
        "insufficient": "RWW",
        "insufficient, all": "WWW",
        "unknown": "R?R",
    }
    verdicts = {"R": Verdict.CORRECT, "W": Verdict.INCORRECT, "?": Verdict.UNKNOWN}
    parts = ("1", "2", "multi")
    items = [Item(Problem(f"{name}{part}", "Q", "A"), "", name, part) for name in table for part in parts]
    found = four_way(items, [verdicts[letter] for row in table.values() for letter in row])
    assert (found.problems, found.unknown) == (6, 1)
    assert found.insufficient == pytest.approx(2 / 6)
    assert found.inadequate == pytest.approx(1 / 6)
    assert found.mastery == pytest.approx({"strict": 1 / 6, "loose": 2 / 6})
    assert found.rote == pytest.approx({"strict": 2 / 6, "loose": 1 / 6})
    assert found.score == pytest.approx({"strict": 1.5 / 6, "loose": 2.5 / 6})


class Scripted:
    """Answers by question; a text that begins with ! is an error."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.requests: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        text = next(text for start, text in self.answers.items() if request.problem.question.startswith(start))
        if text == "!stopped":
            raise EngineStoppedError("the engine has stopped")
        if text == "!":
            raise SamplingError("the prompt is too long")
        return (Completion(text, 7, "stop" if "</answer>" in text else "length"),) * request.n


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], judged: Any = None, more: Sequence[str] = ()
) -> tuple[int, Scripted, dict[str, Any]]:
    """`mmprm eval policy` on six rows of MathVision, with a scripted policy and judge."""
    rows = [{**MATHVISION_FREE, "id": str(n), "question": f"Q{n}", "answer": "7", "image": "x.png"} for n in range(6)]
    for row, subject in zip(rows, "aabbbb", strict=True):
        row["subject"] = subject
    rows[4]["answer"] = "the red bridge"
    file = folder / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampler = Scripted(answers)

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Scripted]:
        yield sampler

    monkeypatch.setattr(command, "open_sampler", opened)
    monkeypatch.setattr(command, "check_config", lambda *_: None)
    monkeypatch.setattr(command.actors, "connect", lambda address: False)
    words = [f"--set={item}" for item in ("benchmark=mathvision", "engine.model=scripted", f"output={folder}", *more)]
    if judged is not None:
        real = command.open_grader

        @asynccontextmanager
        async def grader(config: GraderConfig) -> AsyncIterator[Any]:
            if config.judge is not None:
                yield judged
                return
            async with real(config) as symbolic:
                yield symbolic

        monkeypatch.setattr(command, "open_grader", grader)
        monkeypatch.setattr(command, "check_judge", lambda _: None)
        words += ["--set=grader.judge.model=j", "--set=grader.judge.client.urls=[http://localhost:1/v1]"]
    code = main(["eval", "policy", str(file), *words])
    result = folder / "policy-mathvision.json"
    return code, sampler, json.loads(result.read_text()) if result.exists() else {}


ANSWERS = {
    "Q0": "<answer>7</answer>",
    "Q1": "<answer>8</answer>",
    "Q2": "no answer",
    "Q3": "!",
    "Q4": "<answer>that which is red</answer>",
    "Q5": "<answer>7</answer>",
}


def responses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "responses-mathvision.jsonl").read_text().splitlines()]


def test_the_command_reports_by_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, sampler, found = run(tmp_path, monkeypatch, ANSWERS)
    assert code == 0
    symbolic = found["scores"]["symbolic"]
    counts = {name: (s["correct"], s["incorrect"], s["unknown"]) for name, s in symbolic.items()}
    assert counts == {"all": (2, 2, 1), "a": (1, 1, 0), "b": (1, 1, 1)}
    assert (symbolic["all"]["accuracy"]["value"], symbolic["all"]["of_known"]["value"]) == (0.4, 0.5)
    assert symbolic["all"]["accuracy"]["low"] < 0.4 < symbolic["all"]["accuracy"]["high"]
    assert list(found["failed"]) == ["3"]
    assert (found["questions"], found["cut"], found["tokens"]) == (5, 1, 7)
    assert "judged" not in found["scores"]
    assert {request.n for request in sampler.requests} == {1}
    head, *lines = responses(tmp_path)
    assert head["asked_with"]["engine"]["model"] == "scripted"
    assert [line["symbolic"] for line in lines] == ["correct", "incorrect", "incorrect", "unknown", "correct"]
    printed = capsys.readouterr().out
    assert "1 could not be sampled" in printed
    assert "1 cut at the limit" in printed


def test_the_judge_is_asked_for_what_is_unknown_and_scored_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Judge:
        async def grade(self, problem: Problem, response: str) -> Grading:
            asked.append(problem.id)
            return Grading(Verdict.CORRECT, "that which is red", "judge: same answer")

    _, _, found = run(tmp_path, monkeypatch, ANSWERS, Judge())
    assert asked == ["4"]
    pairs = {
        name: (s["all"]["correct"], s["all"]["incorrect"], s["all"]["unknown"]) for name, s in found["scores"].items()
    }
    assert pairs == {"symbolic": (2, 2, 1), "judged": (3, 2, 0)}


def test_the_same_command_asks_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(answers: dict[str, str], *more: str) -> list[str]:
        sampler = run(tmp_path, monkeypatch, answers, more=more)[1]
        return [request.problem.id for request in sampler.requests]

    assert asked({**ANSWERS, "Q2": "!stopped"}) == list("012345")
    assert [row["response"] for row in responses(tmp_path)[1:]] == [ANSWERS[f"Q{n}"] for n in "0145"]
    capsys.readouterr()
    assert asked(ANSWERS) == ["2", "3"]
    assert "4 of 6 responses are stored already" in capsys.readouterr().err
    first = json.loads((tmp_path / "policy-mathvision.json").read_text())
    assert asked(ANSWERS) == ["3"], "what could not be asked is tried again"
    assert json.loads((tmp_path / "policy-mathvision.json").read_text()) == first
    assert asked(ANSWERS, "limit=1") == []
    assert len(responses(tmp_path)) == 6, "what is not asked for today stays"
    capsys.readouterr()
    assert asked(ANSWERS, "sampling.max_tokens=99") == list("012345")
    assert "will be replaced: sampling.max_tokens (stored 4096, asked 99)" in capsys.readouterr().err


def test_files_that_share_an_id_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, monkeypatch, ANSWERS)
    file = str(tmp_path / "test.jsonl")
    words = ["--set=benchmark=mathvision", "--set=engine.model=scripted", f"--set=output={tmp_path}"]
    assert main(["eval", "policy", file, file, *words]) == 2
    assert "id '0' occurs in several of these files; evaluate each file separately" in capsys.readouterr().err


def test_another_policy_or_question_is_sampled_again(tmp_path: Path) -> None:
    def kept(question: str = "Q", weights: bytes = b"") -> command.Responses:
        (tmp_path / "model").mkdir(exist_ok=True)
        if weights:
            (tmp_path / "model/model.safetensors").write_bytes(weights)
        values = {"benchmark": "mmk12", "engine": {"model": str(tmp_path / "model")}}
        asked_with = command._asked_with(build(PolicyEvalConfig, values))
        return command.Responses(tmp_path / "r.jsonl", asked_with, [Item(Problem("1", question, "A"), "", "1", "")])

    responses = kept(weights=b"one")
    responses.add(Problem("1", "Q", "A"), [Completion("A", 1, "stop")])
    responses.save()
    assert (kept().missing, kept("other").missing) == (0, 1)
    responses._rows.clear()
    responses.add(Problem("1", "Q", "A"), [Completion("A", 1, "abort")])
    assert responses.missing == 1, "what was broken off is asked again"
    responses.add(Problem("1", "Q", "A"), [Completion("A", 1, "stop")])
    assert kept(weights=b"another").missing == 1


def test_a_stopped_engine_and_questions_that_all_fail_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, monkeypatch, {**ANSWERS, "Q0": "!stopped"})[0] == 2
    assert "the engine has stopped" in capsys.readouterr().err
    (tmp_path / "responses-mathvision.jsonl").unlink()
    assert run(tmp_path, monkeypatch, {"Q": "!"})[0] == 2
    assert "no question could be answered (first failure: 0: the prompt is too long" in capsys.readouterr().err
    assert not (tmp_path / "policy-mathvision.json").exists()


def own_benchmark(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, Scripted, dict[str, Any]]:
    """`mmprm eval policy` on a problem file of one's own: benchmark=problems, which is the default."""
    rows = [{"id": name, "question": f"Q{name}", "answer": "7"} for name in "ab"]
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampler = Scripted({"Qa": "<answer>7</answer>", "Qb": "<answer>8</answer>"})

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Scripted]:
        yield sampler

    monkeypatch.setattr(command, "open_sampler", opened)
    monkeypatch.setattr(command, "check_config", lambda *_: None)
    monkeypatch.setattr(command.actors, "connect", lambda address: False)
    words = [f"--set={item}" for item in ("engine.model=scripted", f"output={folder}", *more)]
    code = main(["eval", "policy", str(file), *words])
    result = folder / "policy-problems.json"
    return code, sampler, json.loads(result.read_text()) if result.exists() else {}


def test_a_problem_file_of_ones_own_with_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("sampling.temperature=1", "samples=4")
    code, sampler, found = own_benchmark(tmp_path, monkeypatch, *more)
    assert (code, [request.n for request in sampler.requests]) == (0, [4, 4])
    all_ = found["scores"]["symbolic"]["all"]
    assert (all_["accuracy"]["value"], all_["pass_at"]["4"]["value"], all_["majority"]["value"]) == (0.5, 0.5, 0.5)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("pass@1", "pass@2", "pass@4", "majority", "2 questions × 4"))
    sampler = own_benchmark(tmp_path, monkeypatch, "sampling.temperature=1", "samples=6")[1]
    assert [request.n for request in sampler.requests] == [2, 2], "only what is missing"


def test_samples_without_temperature_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_benchmark(tmp_path, monkeypatch, "samples=4")[0] == 2
    assert "samples=4 with sampling.temperature=0 would sample the same response 4 times" in capsys.readouterr().err
