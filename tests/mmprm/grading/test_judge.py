"""Test the LLM judge used after the symbolic grader: its cache, and its calibration on worked numbers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Act, ScriptedServer, error, says

from mmprm.cli.main import main
from mmprm.config import build, describe, load
from mmprm.errors import ConfigError, GradingError
from mmprm.grading.calibration import (
    Calibration,
    VerdictCounts,
    check_judge,
    read_calibration,
    tally,
    write_calibration,
)
from mmprm.grading.judge import PROMPT_HASH, TALKED, AnswerJudge, AnswerJudgeConfig
from mmprm.grading.open import open_grader
from mmprm.grading.reply_cache import ReplyCache
from mmprm.grading.symbolic import GraderConfig
from mmprm.metrics import wilson
from mmprm.types import Problem, Verdict

PROSE = Problem("p", "What kind of angle is it? {answer}", "an acute angle")
RESPONSE = "<answer>it is {gold} less than 90 degrees</answer>"
CORRECT, INCORRECT, UNKNOWN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNKNOWN


def values(server: ScriptedServer, folder: Path, **more: Any) -> dict[str, Any]:
    client = {"urls": [server.url], "attempts": 2, "backoff_seconds": 0.01, "timeout_seconds": 60}
    files = {"cache": str(folder / "cache.sqlite"), "calibration": str(folder / "judge.json")}
    return {"model": "judge-7b", "client": client} | files | more


def grader_config(server: ScriptedServer, folder: Path) -> GraderConfig:
    return build(GraderConfig, {"judge": values(server, folder)})


@pytest.mark.parametrize(
    ("reply", "verdict", "reason"),
    [
        ("Yes", CORRECT, "judge: same answer"),
        (" **no**. ", INCORRECT, "judge: another answer"),
        ("Yes, because both are below 90°", UNKNOWN, TALKED),
        ("Let me think about", UNKNOWN, TALKED),
        ("yes no", UNKNOWN, TALKED),
        ("", UNKNOWN, TALKED),
        ("Correct", UNKNOWN, TALKED),
    ],
)
async def test_one_word_decides(tmp_path: Path, reply: str, verdict: Verdict, reason: str) -> None:
    with ScriptedServer(says(reply)) as server:
        async with open_grader(grader_config(server, tmp_path)) as grader:
            grading = await grader.grade(PROSE, RESPONSE)
    assert (grading.verdict, grading.reason) == (verdict, reason)
    assert grading.extracted == "it is {gold} less than 90 degrees"
    (request,) = server.requests
    assert (request["temperature"], request["max_tokens"], request["model"]) == (0, 16, "judge-7b")
    prompt = request["messages"][0]["content"]
    assert "Question:\nWhat kind of angle is it? {answer}\n" in prompt
    assert "Reference answer:\nan acute angle\n" in prompt
    assert "Student's answer:\nit is {gold} less than 90 degrees\n" in prompt


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (error(500, "request 1739 died"), "judge failed: status 500"),
        (error(429), "judge failed: status 429"),
        (error(400, "too long"), "judge failed: status 400"),
        (error(401), "judge failed: status 401"),
        (Act(drop=True), "judge failed: connection dropped"),
        (Act(body=b"<html>"), "judge failed: answer is not JSON"),
        (Act(body=b"{}"), "judge failed: answer is not a chat completion"),
        (Act(wait=60), "judge failed: no answer within 2 s"),
    ],
)
async def test_a_failure_is_unknown_and_asked_again_later(tmp_path: Path, trouble: Act, reason: str) -> None:
    with ScriptedServer(trouble) as server:
        config = grader_config(server, tmp_path)
        if trouble.wait:
            own = values(server, tmp_path)
            client = own["client"] | {"attempts": 1, "timeout_seconds": 2}
            config = build(GraderConfig, {"judge": own | {"client": client}})
        async with open_grader(config) as grader:
            grading = await grader.grade(PROSE, RESPONSE)
    assert (grading.verdict, grading.reason) == (UNKNOWN, reason)
    with ScriptedServer(says("Yes")) as server:
        async with open_grader(grader_config(server, tmp_path)) as grader:
            assert (await grader.grade(PROSE, RESPONSE)).verdict is CORRECT


async def test_the_symbolic_grader_decides_first(tmp_path: Path) -> None:
    with ScriptedServer(says("Yes")) as server:
        async with open_grader(grader_config(server, tmp_path)) as grader:
            number = Problem("p", "?", "24")
            verdicts = [
                (await grader.grade(number, response)).verdict
                for response in ("<answer>24</answer>", "<answer>25</answer>", "no answer")
            ]
    assert verdicts == [CORRECT, INCORRECT, INCORRECT]
    assert server.requests == []


async def test_equal_questions_are_asked_once(tmp_path: Path) -> None:
    with ScriptedServer(says("Yes")) as server:
        config = build(AnswerJudgeConfig, values(server, tmp_path))
        async with AnswerJudge(config) as judge:
            verdicts = await asyncio.gather(*(judge.decide(PROSE, "below 90") for _ in range(20)))
            assert {verdict for verdict, _ in verdicts} == {CORRECT}
        assert len(server.requests) == 1
        async with AnswerJudge(config) as judge:
            assert (await judge.decide(PROSE, "below 90"))[0] is CORRECT
            assert len(server.requests) == 1
            await judge.decide(PROSE, "below 91")
            await judge.decide(Problem("p", "Another question", PROSE.answer), "below 90")
            await judge.decide(Problem("p", PROSE.question, "an obtuse angle"), "below 90")
        async with AnswerJudge(config.model_copy(update={"model": "judge-72b"})) as judge:
            await judge.decide(PROSE, "below 90")
    assert len(server.requests) == 5


def test_a_cache_can_be_opened_while_another_process_creates_it(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    other.execute("CREATE TABLE replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
    other.execute("BEGIN IMMEDIATE")
    cache = ReplyCache(tmp_path / "cache.sqlite")
    other.execute("COMMIT")
    cache.put(b"key", "Yes")
    assert cache.get(b"key") == "Yes"
    cache.close()
    other.close()


async def test_a_reply_without_verdict_is_cached_for_its_token_limit(tmp_path: Path) -> None:
    with ScriptedServer(says("Well, …"), says("Yes")) as server:
        for _ in range(2):
            async with AnswerJudge(build(AnswerJudgeConfig, values(server, tmp_path))) as judge:
                assert await judge.decide(PROSE, "x") == (UNKNOWN, TALKED)
        assert len(server.requests) == 1
        async with AnswerJudge(build(AnswerJudgeConfig, values(server, tmp_path, max_tokens=512))) as judge:
            assert (await judge.decide(PROSE, "x"))[0] is CORRECT
    assert [request["max_tokens"] for request in server.requests] == [16, 512]


async def test_a_canceled_caller_does_not_cancel_the_question(tmp_path: Path) -> None:
    with ScriptedServer(Act(wait=0.2, body=says("Yes").body)) as server:
        async with AnswerJudge(build(AnswerJudgeConfig, values(server, tmp_path))) as judge:
            first, second = (asyncio.create_task(judge.decide(PROSE, "x")) for _ in range(2))
            await asyncio.sleep(0.05)
            first.cancel()
            assert (await second)[0] is CORRECT
    assert len(server.requests) == 1


def test_an_invalid_cache_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_text("not a database, and longer than the header of one" * 10)
    with ScriptedServer(says("Yes")) as server, pytest.raises(GradingError, match="choose another file"):
        AnswerJudge(build(AnswerJudgeConfig, values(server, tmp_path)))


def test_wilson_by_hand() -> None:
    """For k = 8 of n = 10 and z² = 3.841459: ((0.8 + 0.192073) ± 1.959964 · sqrt(0.016 + 0.009604)) / 1.384146."""
    interval = wilson(8, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert (wilson(0, 10).low, wilson(10, 10).high) == pytest.approx((0, 1), abs=1e-12)
    assert wilson(10, 10).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert wilson(0, 0) is None


def test_shares_by_hand() -> None:
    verdicts = [CORRECT] * 6 + [INCORRECT] * 5 + [UNKNOWN] * 3
    truths = [True] * 5 + [False] + [False] * 3 + [True] * 2 + [True, False, True]
    counts = tally(verdicts, truths)
    assert counts == VerdictCounts(true_accepts=5, false_accepts=1, true_rejects=3, false_rejects=2, unknown=3)
    assert counts.precision == wilson(5, 6)
    assert counts.agreement == wilson(8, 11)
    assert counts.false_accept_rate == wilson(1, 4)
    assert counts.false_reject_rate == wilson(2, 7)
    assert counts.unknown_rate == wilson(3, 14)


def calibrated(
    folder: Path, judge: VerdictCounts, model: str = "judge-7b", prompt: str = PROMPT_HASH
) -> AnswerJudgeConfig:
    write_calibration(folder / "judge.json", Calibration(model, prompt, "file", VerdictCounts(9, 0, 9, 0, 0), judge))
    with ScriptedServer(says("Yes")) as server:
        return build(AnswerJudgeConfig, values(server, folder))


def test_a_calibration_that_meets_the_bars(tmp_path: Path) -> None:
    # 60 of 60 accepts are correct: the interval starts at 60 / (60 + 3.8415) = 0.9398. 118 of 120 agree: at 0.9413.
    config = calibrated(tmp_path, VerdictCounts(60, 0, 58, 2, 5))
    check_judge(config)
    assert read_calibration(config.calibration).judge == VerdictCounts(60, 0, 58, 2, 5)
    written = json.loads(Path(config.calibration).read_text())
    assert written["judge"]["precision"]["low"] == pytest.approx(60 / (60 + 1.959964**2))
    check_judge(None)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (
            VerdictCounts(10, 0, 80, 0, 0),
            r"precision is 1\.000 \[0\.722, 1\.000\], judge\.min_precision=0\.9 must lie below",
        ),
        (VerdictCounts(60, 0, 30, 12, 0), "agreement is 0.882"),
        (VerdictCounts(0, 0, 80, 0, 0), "precision is unknown"),
        (VerdictCounts(0, 0, 0, 0, 50), "precision is unknown"),
    ],
)
def test_a_calibration_below_the_bars(tmp_path: Path, counts: VerdictCounts, message: str) -> None:
    with pytest.raises(ConfigError, match=message + ".*set judge=null"):
        check_judge(calibrated(tmp_path, counts))


def test_a_calibration_of_another_judge(tmp_path: Path) -> None:
    good = VerdictCounts(60, 0, 60, 0, 0)
    with pytest.raises(ConfigError, match="was made with the model other, but this judge has judge-7b"):
        check_judge(calibrated(tmp_path, good, model="other"))
    with pytest.raises(ConfigError, match="was made with the prompt 0123, but this judge has"):
        check_judge(calibrated(tmp_path, good, prompt="0123"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1}', "nonsense"])
def test_invalid_calibration_files_are_rejected(tmp_path: Path, text: str) -> None:
    config = calibrated(tmp_path, VerdictCounts())
    Path(config.calibration).write_text(text)
    with pytest.raises(GradingError, match=r"is not the calibration of a judge.*mmprm grade --calibrate"):
        check_judge(config)
    Path(config.calibration).unlink()
    with pytest.raises(GradingError, match=r"cannot be read.*mmprm grade --calibrate"):
        check_judge(config)


def arguments(server: ScriptedServer, folder: Path) -> list[str]:
    sets = {
        "judge.model": "judge-7b",
        "judge.client.urls": f"[{server.url}]",
        "judge.client.attempts": "1",
        "judge.cache": str(folder / "cache.sqlite"),
        "judge.calibration": str(folder / "judge.json"),
        "judge.min_precision": "0.4",
        "judge.min_agreement": "0.5",
    }
    return [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


def by_content(request: dict[str, Any]) -> Act:
    """Answer like a judge that accepts mentions of an acute angle and gives no verdict on riddles."""
    answer = request["messages"][0]["content"].split("Student's answer:\n")[1]
    return says("Hmm, well" if "riddle" in answer else "Yes" if "acute" in answer else "No")


def test_calibrate_then_grade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"an acute angle of {kind} kind", True) for kind in ("some", "a", "this", "that", "the usual")]
    rows += [("rather acute", False), *((f"{much} wide", False) for much in ("quite", "very", "so", "too"))]
    rows += [("less than a right one", True), ("a riddle", True)]
    lines = [{"gold": "acute angle", "response": f"<answer>{text}</answer>", "correct": right} for text, right in rows]
    lines += [{"gold": "24", "response": f"<answer>{n}</answer>", "correct": n == 24} for n in (24, 25)]
    file = tmp_path / "labeled.jsonl"
    file.write_text("\n".join(map(json.dumps, lines + lines[:3])))  # a duplicate line adds no information
    with ScriptedServer(by_content) as server:
        assert main(["grade", str(file), *arguments(server, tmp_path)]) == 2
        assert "judge.json: cannot be read (No such file or directory)" in capsys.readouterr().err
        assert main(["grade", "--calibrate", str(file), *arguments(server, tmp_path)]) == 0
        output = capsys.readouterr().out
        assert "symbolic comparison decides 2 of 14 distinct lines" in output
        assert "judge-7b was asked about the other 12" in output
        assert "  correct: 5 accepted, 1 rejected; incorrect: 4 rejected, 1 accepted; unknown: 1" in output
        assert "  precision 0.833 [0.436, 0.970]\n" in output
        assert "  agreement 0.818 [0.523, 0.949]\n" in output
        assert "1 replies were neither Yes nor No" in output
        written = read_calibration(tmp_path / "judge.json")
        assert (written.symbols, written.judge) == (VerdictCounts(1, 0, 1, 0, 0), VerdictCounts(5, 1, 4, 1, 1))

        asked = len(server.requests)
        assert main(["grade", str(file), *arguments(server, tmp_path)]) == 0
        output = capsys.readouterr()
        verdicts = [json.loads(line)["verdict"] for line in output.out.splitlines()]
        assert verdicts == ["correct"] * 6 + ["incorrect"] * 5 + ["unknown", "correct", "incorrect"] + ["correct"] * 3
        assert output.err == f"17 graded: 10 correct, 6 incorrect, 1 unknown (1 {TALKED})\n"
        assert len(server.requests) == asked, "all answers come from the cache"

        higher = [*arguments(server, tmp_path), "--set", "judge.min_precision=0.9"]
        assert main(["grade", str(file), *higher]) == 2
        assert "judge.min_precision=0.9 must lie below the interval" in capsys.readouterr().err


def test_calibration_does_not_count_a_server_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labeled.jsonl"
    file.write_text('{"gold": "acute angle", "response": "<answer>a pointed one</answer>", "correct": true}')
    with ScriptedServer(error(503)) as server:
        assert main(["grade", "--calibrate", str(file), *arguments(server, tmp_path)]) == 2
    assert "1 judge failed: status 503; resolve this" in capsys.readouterr().err
    assert not (tmp_path / "judge.json").exists()


@pytest.mark.parametrize(
    ("line", "sets", "message"),
    [
        (
            '{"gold": "24", "response": "<answer>24</answer>", "correct": true}',
            True,
            "symbolic comparison decides all 1 distinct lines",
        ),
        ('{"gold": "24", "response": "24", "correct": "yes"}', True, "labeled.jsonl:1: correct must be true or false"),
        ('{"gold": "24", "response": "24", "correct": true}', False, "judge is not set"),
    ],
)
def test_invalid_calibration_inputs_are_rejected(tmp_path, capsys, line: str, sets: bool, message: str) -> None:
    file = tmp_path / "labeled.jsonl"
    file.write_text(line)
    with ScriptedServer(says("Yes")) as server:
        more = arguments(server, tmp_path) if sets else []
        assert main(["grade", "--calibrate", str(file), *more]) == 2
    assert message in capsys.readouterr().err


def test_grade_needs_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade"]) == 2
    assert "FILE.jsonl or --calibrate LABELED.jsonl: exactly one of them" in capsys.readouterr().err


def test_help_and_suggestions_include_the_keys_of_an_unset_judge() -> None:
    assert {"judge", "judge.model", "judge.client.urls"} <= {key for key, _, _ in describe(GraderConfig)}
    with pytest.raises(ConfigError, match=r"did you mean judge\.calibration\?"):
        load(GraderConfig, sets=["judge.calibrate=x", "judge.model=m", "judge.client.urls=[http://host/v1]"])
