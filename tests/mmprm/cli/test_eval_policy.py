"""Test `mmprm eval policy` with a scripted policy: reports, the judge, resuming, and invalid settings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import MATHVISION_FREE
from scripted_server import ScriptedServer, says

from mmprm.cli import eval_policy as command
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.evaluation.entries import Item
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.grading.symbolic import GraderConfig
from mmprm.types import Completion, Grading, Problem, SampleRequest, Verdict


class Scripted:
    """Answers each question with a fixed text; a text that starts with ! is raised as an error."""

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
    """Run `mmprm eval policy` on six rows in MathVision's format, with a scripted policy and judge."""
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
    assert counts == {"all": (2, 2, 1), "level: 2": (2, 2, 1), "subject: a": (1, 1, 0), "subject: b": (1, 1, 1)}
    assert symbolic["all"]["accuracy"]["value"] == pytest.approx(2 / 6), (
        "problems that could not be sampled count as incorrect"
    )
    assert (symbolic["all"]["of_known"]["value"], symbolic["all"]["failed"]) == (0.5, 1)
    assert symbolic["all"]["accuracy"]["low"] < 2 / 6 < symbolic["all"]["accuracy"]["high"]
    assert list(found["failed"]) == ["3"]
    by_question = {name: each["correct"]["symbolic"] for name, each in found["by_question"].items()}
    assert by_question == {"0": 1, "1": 0, "2": 0, "3": 0, "4": 0, "5": 1}
    assert (found["questions"], found["cut"], found["tokens"]) == (6, 1, 7)
    assert "judged" not in found["scores"]
    assert {request.n for request in sampler.requests} == {1}
    head, *lines = responses(tmp_path)
    assert head["asked_with"]["engine"]["model"] == "scripted"
    assert [line["verdicts"]["symbolic"] for line in lines] == [
        "correct",
        "incorrect",
        "incorrect",
        "unknown",
        "correct",
    ]
    printed = capsys.readouterr().out
    assert "1 could not be sampled and count as incorrect" in printed
    assert "1 cut at the limit" in printed


def test_the_judge_decides_unknown_verdicts_in_a_separate_score(
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


def test_the_same_command_samples_only_what_is_missing(
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
    assert asked(ANSWERS) == ["3"], "failed questions are tried again"
    assert json.loads((tmp_path / "policy-mathvision.json").read_text()) == first
    assert asked(ANSWERS, "limit=1") == []
    assert len(responses(tmp_path)) == 6, "results of questions outside this call are kept"
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
        return command.Responses(tmp_path / "r.jsonl", asked_with, [Item(Problem("1", question, "A"), family="1")])

    responses = kept(weights=b"one")
    responses.add(Problem("1", "Q", "A"), [Completion("A", 1, "stop")])
    responses.save()
    assert (kept().missing, kept("other").missing) == (0, 1)
    responses._rows.clear()
    responses.add(Problem("1", "Q", "A"), [Completion("A", 1, "abort")])
    assert responses.missing == 1, "interrupted questions are asked again"
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
    """Run `mmprm eval policy` on a custom problem file: benchmark=problems, which is the default."""
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


def test_a_custom_problem_file_with_several_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("sampling.temperature=1", "samples=4")
    code, sampler, found = own_benchmark(tmp_path, monkeypatch, *more)
    assert (code, [request.n for request in sampler.requests]) == (0, [4, 4])
    all_ = found["scores"]["symbolic"]["all"]
    assert (all_["accuracy"]["value"], all_["pass_at"]["4"]["value"], all_["majority"]["value"]) == (0.5, 0.5, 0.5)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("avg@4", "pass@2", "pass@4", "majority", "2 questions × 4"))
    sampler = own_benchmark(tmp_path, monkeypatch, "sampling.temperature=1", "samples=6")[1]
    assert [request.n for request in sampler.requests] == [2, 2], "only the missing questions"


def test_samples_without_temperature_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert own_benchmark(tmp_path, monkeypatch, "samples=4")[0] == 2
    assert "samples=4 with sampling.temperature=0 would sample the same response 4 times" in capsys.readouterr().err


def test_aggregate_scores_and_extracted_answers_of_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In MME, both questions about image 1 and one of two about image 2 are correct; the fourth needs the extractor.

    Without the extractor: accuracy 3/4 and accuracy+ 1/2, so 125 points; with it, 200.
    """
    pairs = [("1", "Yes"), ("1", "No"), ("2", "Yes"), ("2", "No")]
    rows = [
        {"question_id": image, "question": f"Q{number}", "answer": answer, "category": "color", "image": "x.png"}
        for number, (image, answer) in enumerate(pairs)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = "I looked at the image and can say that it is yes.\nThe dog in the image makes me sure."
    sampler = Scripted({"Q0": "Yes", "Q1": "No.", "Q2": talk, "Q3": "no"})

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Scripted]:
        yield sampler

    monkeypatch.setattr(command, "open_sampler", opened)
    monkeypatch.setattr(command, "check_config", lambda *_: None)
    monkeypatch.setattr(command.actors, "connect", lambda address: False)
    with ScriptedServer(says("yes")) as server:
        values = ("benchmark=mme", "engine.model=scripted", f"output={tmp_path}", "extractor.model=m")
        values = (*values, f"extractor.client.urls=[{server.url}]", f"extractor.cache={tmp_path / 'cache.sqlite'}")
        assert main(["eval", "policy", str(tmp_path / "test.jsonl"), *(f"--set={value}" for value in values)]) == 0
        assert len(server.requests) == 1
    found = json.loads((tmp_path / "policy-mme.json").read_text())
    totals = {stage: scores["total"] for stage, scores in found["official"].items()}
    assert totals == {"symbolic": 125, "extracted": 200}
    assert found["scores"]["symbolic"]["category: color"]["accuracy"]["value"] == 0.75
    assert "perception: 200.000" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "responses-mme.jsonl").read_text().splitlines()[1:]]
    assert rows[2]["verdicts"] == {"symbolic": "incorrect", "extracted": "correct"}
    assert [row["id"] for row in rows] == ["color/1", "color/1/2", "color/2", "color/2/2"]
