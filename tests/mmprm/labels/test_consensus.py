"""Test labels combined with a judge's opinion: their agreement, and which labels are kept, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pyarrow import parquet
from scripted_server import Act, ScriptedServer, error, says

from mmprm.cli import consensus as command
from mmprm.cli.main import main
from mmprm.config import build
from mmprm.errors import DataError, EngineStoppedError
from mmprm.labels.consensus import (
    AgreementCounts,
    AgreementRule,
    count_agreement,
    judge_with_scorer,
    keep_agreeing_first_errors,
    keep_agreeing_steps,
)
from mmprm.labels.parquet import LabeledExample, read_metadata, read_parquet, write_parquet
from mmprm.labels.step_judge import StepJudge, StepJudgeConfig, yes_probability
from mmprm.types import Counts, ImageRef, LabeledPath, Problem, Solution, StepScores

PROBLEM = Problem("p", "What is 1 + 1?", "2")
GOOD, HALF, BAD = Counts(4, 0), Counts(2, 2), Counts(0, 4)


def example(steps: str, counts: Sequence[Counts | None], judged: Sequence[float | None] | None, complete=False):
    path = LabeledPath("p", tuple(steps), tuple(counts), complete)
    return LabeledExample(PROBLEM, path, "train", None if judged is None else tuple(judged), "judge")


FIRST = example("abcd", [GOOD, HALF, BAD, BAD], [0.9, 0.8, 0.1, 0.7])
"""Both see the first error at c; at d they differ."""
SECOND = example("abxy", [None, None, HALF, BAD], [None, None, 0.5, 0.2], complete=True)
"""Shares a and b; both see the first error at y, the end."""
THIRD = example("apq", [None, HALF, BAD], [None, 0.3, 0.1])
"""The judge sees an error at p already, the label at q."""
FOURTH = example("rs", [GOOD, GOOD], [None, 0.9])
"""The judge did not say anything about r."""
ALL = [FIRST, SECOND, THIRD, FOURTH]
RULE = AgreementRule()


def test_counted_by_hand() -> None:
    # Both correct: a, b, abx, rs. Both incorrect: abc, abxy, apq. Only labeled: ap. Only judged: abcd. Unjudged: r.
    assert count_agreement(ALL, RULE) == AgreementCounts(
        both_correct=4,
        both_incorrect=3,
        label_alone_correct=1,
        judge_alone_correct=1,
        unjudged=1,
        paths=4,
        paths_agreeing=2,
    )


def test_steps_on_which_both_agree() -> None:
    kept = keep_agreeing_steps(ALL, RULE)
    assert [one.path.counts for one in kept] == [
        (GOOD, HALF, BAD, None),
        (None, None, HALF, BAD),
        (None, None, BAD),
        (None, GOOD),
    ]
    assert [one.path.complete for one in kept] == [False, True, False, False]


def test_the_rule_moves_both_sides() -> None:
    strict = AgreementRule(value_above=0.5, probability_at_least=0.85)
    kept = keep_agreeing_steps(ALL, strict)
    # With this threshold, 2 of 4 counts as incorrect, as do the judge's 0.8, 0.5 and 0.7.
    assert [one.path.counts for one in kept] == [
        (GOOD, HALF, BAD, BAD),
        (None, None, HALF, BAD),
        (None, HALF, BAD),
        (None, GOOD),
    ]


def test_a_path_without_its_last_label_is_not_complete() -> None:
    (kept,) = keep_agreeing_steps([example("ab", [GOOD, BAD], [0.9, 0.9], complete=True)], RULE)
    assert (kept.path.counts, kept.path.complete) == ((GOOD, None), False)
    assert keep_agreeing_steps([example("b", [BAD], [0.9]), example("c", [BAD], None)], RULE) == []


def test_first_errors_on_which_both_agree() -> None:
    kept = keep_agreeing_first_errors(ALL, RULE)
    assert [one.path.steps for one in kept] == [tuple("abcd"), tuple("abxy")]
    assert [one.path.counts for one in kept] == [(GOOD, HALF, BAD, None), (None, None, HALF, BAD)]
    assert [one.judged for one in kept] == [(0.9, 0.8, 0.1, None), (None, None, 0.5, 0.2)]


def test_shared_labels_move_to_the_path_that_is_kept() -> None:
    dropped = example("abcd", [GOOD, HALF, BAD, BAD], [0.9, 0.8, 0.9, 0.7])
    (kept,) = keep_agreeing_first_errors([dropped, SECOND], RULE)
    assert kept.path.steps == tuple("abxy")
    assert kept.path.counts == (GOOD, HALF, HALF, BAD)
    assert kept.judged == (0.9, 0.8, 0.5, 0.2)


def test_paths_of_other_problems_share_nothing() -> None:
    other = LabeledExample(Problem("q", "?", "1"), LabeledPath("q", ("a",), (BAD,), False), "train", (0.1,), "judge")
    kept = keep_agreeing_first_errors([FIRST, other], RULE)
    assert [one.path.counts for one in kept] == [(GOOD, HALF, BAD, None), (BAD,)]


class Scorer:
    """Scores the steps 0.1, 0.2, …; rejects solutions that contain a step z."""

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        if any("z" in solution.steps for solution in solutions):
            raise DataError("too long")
        return [StepScores(tuple((i + 1) / 10 for i in range(len(solution.steps)))) for solution in solutions]


def test_a_scorer_judges_labeled_steps_only() -> None:
    bad = example("az", [GOOD, BAD], None)
    judged = judge_with_scorer([SECOND, bad, FOURTH], Scorer(), "prm")
    assert [one.judged for one in judged] == [(None, None, 0.3, 0.4), (None, None), (0.1, 0.2)]
    assert {one.judged_by for one in judged} == {"prm"}


def test_truncated_steps_are_not_judged() -> None:
    class Cutting(Scorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores(whole.scores[:2]) for whole in super().score(solutions)]

    (judged,) = judge_with_scorer([FIRST], Cutting(), "prm")
    assert judged.judged == (0.1, 0.2, None, None)


def test_opinions_survive_parquet_and_older_files_have_none(tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    write_parquet(file, [SECOND, example("ab", [GOOD, BAD], None)])
    back = read_parquet(file)
    assert back[0].judged == (None, None, 0.5, pytest.approx(0.2))
    assert (back[0].judged_by, back[1].judged, back[1].judged_by) == ("judge", None, None)
    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns(["judge", "judged_by"]), file)
    assert [(one.path, one.judged) for one in read_parquet(file)] == [(one.path, None) for one in back]
    broken = table.set_column(table.schema.get_field_index("judge"), "judge", [[[0.5], [0.5, 7.0]]])
    parquet.write_table(broken, file)
    with pytest.raises(DataError, match=r"row 1: judge=.*for each of the 4 steps"):
        read_parquet(file)


def test_bias_corrected_estimates_survive_parquet(tmp_path: Path) -> None:
    """mmprm consensus reads and writes labels, and must keep estimates that are corrected for the stopping
    rule's bias.
    """
    counts = (Counts(1, 2, 0, 0.25), Counts(1, 2), None)
    write_parquet(tmp_path / "labels.parquet", [example("abc", counts, None)])
    assert read_parquet(tmp_path / "labels.parquet")[0].path.counts == counts


def test_probability_at_the_answer_token() -> None:
    tops = [("Yes", math.log(0.6)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("The", math.log(0.1))]
    assert yes_probability(tops) == pytest.approx(0.7 / 0.9)
    assert yes_probability([("NO", math.log(0.9))]) == 0
    assert yes_probability([("The", math.log(0.9)), ("Yes", math.log(0.08))]) is None
    assert yes_probability([]) is None


def judge_config(server: ScriptedServer, folder: Path, **more: Any) -> StepJudgeConfig:
    client = {"urls": [server.url], "attempts": 2, "backoff_seconds": 0.01}
    return build(StepJudgeConfig, {"model": "vlm", "client": client, "cache": str(folder / "steps.sqlite")} | more)


def logprobs(yes: float) -> Act:
    tops = [{"token": "Yes", "logprob": math.log(yes)}, {"token": "No", "logprob": math.log(1 - yes)}]
    return says("Yes", choice={"logprobs": {"content": [{"token": "Yes", "logprob": 0, "top_logprobs": tops}]}})


async def test_a_model_judges_each_labeled_prefix_with_its_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    problem = Problem("p", "How many {steps}?", "2", (ImageRef(path=str(tmp_path / "red.png")),))
    path = LabeledPath("p", ("one {question}", "two", "three"), (GOOD, None, BAD), False)
    with ScriptedServer(lambda request: logprobs(0.25 if "three" in json.dumps(request) else 0.75)) as server:
        async with StepJudge(judge_config(server, tmp_path)) as judge:
            (judged,) = await judge.judge([LabeledExample(problem, path, "train")])
        assert judged.judged == (pytest.approx(0.75), None, pytest.approx(0.25))
        assert (judged.judged_by, judged.path) == ("vlm", path)
        (first,) = [request for request in server.requests if "three" not in json.dumps(request)]
        assert (first["max_tokens"], first["logprobs"], first["temperature"]) == (1, True, 0)
        kinds = [part["type"] for part in first["messages"][0]["content"]]
        assert sorted(kinds) == ["image_url", "text"]
        text = "".join(part.get("text", "") for part in first["messages"][0]["content"])
        assert "How many {steps}?" in text
        assert "Beginning of the solution:\n1. one {question}\n\nAre all of these" in text
        async with StepJudge(judge_config(server, tmp_path)) as judge:
            assert await judge.judge([LabeledExample(problem, path, "train")]) == [judged]
        assert len(server.requests) == 2, "the second run takes both from the cache"


@pytest.mark.parametrize(
    ("answer", "read", "reason"),
    [
        (says("I see a triangle"), "text", "reply was neither Yes nor No"),
        (says("Yes"), "logprobs", "no log-probabilities: set judge.read=text"),
        (error(400, "too long"), "text", "status 400"),
    ],
    ids=["talks", "no logprobs", "refused"],
)
async def test_replies_without_a_probability_are_counted(tmp_path: Path, answer: Act, read: str, reason: str) -> None:
    with ScriptedServer(answer) as server:
        async with StepJudge(judge_config(server, tmp_path, read=read)) as judge:
            (judged,) = await judge.judge([example("ab", [GOOD, BAD], None)])
            assert judged.judged == (None, None)
            assert judge.failures == {reason: 2}


async def test_a_lost_server_ends_the_run_and_keeps_its_replies(tmp_path: Path) -> None:
    with ScriptedServer(says("No"), error(503)) as server:
        async with StepJudge(judge_config(server, tmp_path, read="text")) as judge:
            assert (await judge.judge([example("a", [BAD], None)]))[0].judged == (0.0,)
            with pytest.raises(EngineStoppedError, match="status 503"):
                await judge.judge([example("b", [BAD], None)])
    with ScriptedServer(says("Yes")) as server:
        async with StepJudge(judge_config(server, tmp_path, read="text")) as judge:
            judged = await judge.judge([example("a", [BAD], None), example("b", [BAD], None)])
            assert [one.judged for one in judged] == [(0.0,), (1.0,)]
        assert len(server.requests) == 1


async def test_a_higher_token_limit_repeats_text_replies(tmp_path: Path) -> None:
    talks = (says("Let me see"), says("No"))
    for read, script, asked, last in (("text", talks, [16, 512], 0.0), ("logprobs", (logprobs(0.25),), [1], 0.25)):
        with ScriptedServer(*script) as server:
            for more in ({}, {}, {"max_tokens": 512}):
                async with StepJudge(judge_config(server, tmp_path, read=read, **more)) as judge:
                    (judged,) = await judge.judge([example("a", [BAD], None)])
        assert [request["max_tokens"] for request in server.requests] == asked
        assert judged.judged == (pytest.approx(last),)


async def test_a_server_that_gave_no_log_probabilities_is_asked_again(tmp_path: Path) -> None:
    with ScriptedServer(says("Yes"), logprobs(0.75)) as server:
        for probability in (None, pytest.approx(0.75)):
            async with StepJudge(judge_config(server, tmp_path)) as judge:
                assert (await judge.judge([example("a", [GOOD], None)]))[0].judged == (probability,)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    labels, output = tmp_path / "labels.parquet", tmp_path / "judged.parquet"
    origin = {"source": "someone/labels", "license": "mit"}
    write_parquet(labels, [example("ab", [GOOD, BAD], None), example("c", [BAD], None)], origin)
    sets = ["--set", f"labels={labels}", "--set", f"output={output}"]

    def answer(request: dict[str, Any]) -> Act:
        return says("No" if "2. b" in request["messages"][0]["content"] else "Yes")

    with ScriptedServer(answer) as server:
        judge = {"model": "vlm", "client.urls": f"[{server.url}]", "read": "text", "cache": tmp_path / "c.sqlite"}
        more = [part for key, value in judge.items() for part in ("--set", f"judge.{key}={value}")]
        assert main(["consensus", *sets, *more]) == 0
    assert [one.judged for one in read_parquet(output)] == [(1.0, 0.0), (1.0,)]
    assert read_metadata(output) == origin
    assert capsys.readouterr().out == (
        "3 labeled steps, 3 judged; they agree on 2 of 3 (66.7%): 1 correct, 1 incorrect; only the label says "
        "correct 0, only the judge says correct 1\nsame first error (or none) on 1 of 2 (50.0%) of the paths\n"
        f"{output}: 2 paths\n"
    )
    scorer = Scorer()
    scorer.close = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr("mmprm.scoring.open.open_scorer", lambda config: scorer)
    assert main(["consensus", *sets, "--set", "scorer.prm=some/prm"]) == 0
    assert read_parquet(output)[0].judged == pytest.approx((0.1, 0.2))
    assert read_parquet(output)[0].judged_by == "some/prm"
    capsys.readouterr()
    assert main(["consensus", *sets]) == 2
    assert "exactly one of them must be set" in capsys.readouterr().err
    assert command.ConsensusConfig.model_fields["judge"].default is None
