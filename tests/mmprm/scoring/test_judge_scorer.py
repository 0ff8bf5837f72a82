"""Test the scores of a thinking judge: averages, unknown solutions, budget, cache, and what it is asked."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.judges_malformed import FORMATS, measure, written
from mmprm.errors import ConfigError, DataError, EngineStoppedError, SamplingError, UnknownScoresError
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.judge_scorer import JudgeScorer, judge_request
from mmprm.scoring.verdicts import FormatOfVerdicts
from mmprm.types import Completion, ImageRef, SampleRequest, StepScores
from tests.mmprm.scoring.scripted_judge import ChainSampler, Reply, judge_config, lines, solution

CUT = Completion(lines(1, 1, 1), 40, "length")


def chains(*replies: Reply | Exception) -> ChainSampler:
    """Return a sampler that gives these chains in turn, whichever solution they are about."""
    left = iter(replies)
    return ChainSampler(lambda request, number: next(left))


def test_scores_are_the_mean_verdicts_of_the_readable_chains(tmp_path: Path) -> None:
    sampler = chains(lines(1, 1, 0), lines(1, 0, 1), CUT, "I cannot say.", lines(1, 1, 1))
    scorer = JudgeScorer(judge_config(tmp_path, chains=5), sampler)
    assert scorer.score([solution()]) == [StepScores((1.0, 2 / 3, 1 / 3), tokens=80)]
    assert scorer.unread == {"a chain that was cut off": 1, "no verdicts": 1}
    assert [request.n for request in sampler.requests] == [5]
    scorer.close()


def test_own_verdicts_after_an_error(tmp_path: Path) -> None:
    scorer = JudgeScorer(judge_config(tmp_path, after_error="as_judged"), chains(lines(1, 0, 1)))
    assert scorer.score([solution()]) == [StepScores((1.0, 0.0, 1.0), tokens=10)]
    scorer.close()


def test_a_solution_without_a_readable_chain_is_unknown(tmp_path: Path) -> None:
    def reply(request: SampleRequest, number: int) -> Reply:
        if "Step 1: bad" in request.problem.question:
            return ("", "Maybe.", CUT)[number]
        return lines(1)

    scorer = JudgeScorer(judge_config(tmp_path, chains=3), ChainSampler(reply))
    good, bad = solution("good"), solution("bad", name="b")
    first, unknown, last = scorer.score_each([good, bad, good])
    assert (first, last) == (StepScores((1.0,), 30), StepScores((1.0,), 30))
    assert isinstance(unknown, UnknownScoresError)
    assert unknown.tokens == 60
    message = (
        "problem b: the judge's verdicts are unknown (1 × no reply, 1 × no verdicts, 1 × a chain that was cut off)"
    )
    assert str(unknown).startswith(message)
    with pytest.raises(UnknownScoresError, match="problem b"):
        scorer.score([good, bad])
    scorer.close()


def test_malformed_chains_give_no_score_and_are_all_counted(tmp_path: Path) -> None:
    assert measure(tmp_path) == {
        "outputs": 2000,
        "made_up": 0,
        "counted": 2000,
        "well_formed": 1000,
        "well_formed_scored": 1000,
    }


@pytest.mark.parametrize("form", FORMATS)
def test_well_formed_chains_are_scored_in_every_layout(tmp_path: Path, form: FormatOfVerdicts) -> None:
    sampler = chains(written([True, False], form))
    scorer = JudgeScorer(judge_config(tmp_path, verdict_format=form), sampler)
    assert scorer.score([solution("a", "b")]) == [StepScores((1.0, 0.0), 10)]
    scorer.close()


def test_further_chains_are_written_while_they_surely_fit_the_budget(tmp_path: Path) -> None:
    """Chain j is asked for if 10 j + 100 ≤ 135, so four of them."""
    sampling = {"max_tokens": 100, "temperature": 0.6}
    sampler = ChainSampler(lambda request, number: lines(1, 1, 1))
    scorer = JudgeScorer(judge_config(tmp_path, chains=8, token_budget=135, sampling=sampling), sampler)
    assert scorer.score([solution()]) == [StepScores((1.0, 1.0, 1.0), tokens=40)]
    base = sampler.requests[0].seed
    assert [(request.n, request.seed - base) for request in sampler.requests] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    scorer.close()
    scorer = JudgeScorer(judge_config(tmp_path, chains=3, token_budget=135, sampling=sampling), chains())
    assert scorer.score([solution()]) == [StepScores((1.0, 1.0, 1.0), tokens=30)]
    scorer.close()


def test_an_interrupted_run_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    stopped = EngineStoppedError("the server is gone")
    scorer = JudgeScorer(judge_config(tmp_path, chains=2), chains(lines(1), lines(0), stopped, stopped))
    assert scorer.score([solution("a")]) == [StepScores((0.5,), 20)]
    with pytest.raises(EngineStoppedError, match="the server is gone"):
        scorer.score([solution("a"), solution("b")])
    scorer.close()
    sampler = chains(lines(1), lines(1), lines(1), lines(1))
    scorer = JudgeScorer(judge_config(tmp_path, chains=3), sampler)
    assert scorer.score([solution("a", name="other"), solution("b")]) == [
        StepScores((2 / 3,), 30),
        StepScores((1.0,), 30),
    ]
    assert sorted(request.n for request in sampler.requests) == [1, 3]
    scorer.close()


def test_another_question_model_or_setting_is_asked_again(tmp_path: Path) -> None:
    def asked(question: str = "q", **more: object) -> int:
        sampler = ChainSampler(lambda request, number: lines(1))
        scorer = JudgeScorer(judge_config(tmp_path, **more), sampler)
        scorer.score([solution("a", question=question)])
        scorer.close()
        return len(sampler.requests)

    assert [asked(), asked()] == [1, 0]
    assert [asked("r"), asked("r")] == [1, 0]
    for more in (
        {"seed": 1},
        {"verdict_format": "thinkprm"},
        {"request": "{question} {steps}"},
        {"system": "s"},
        {"prefill": "p"},
        {"sampling": {"temperature": 0.7}},
        {"sampling": {"max_tokens": 100}},
        {"template_options": {"enable_thinking": True}},
        {"engine": {"model": "tiny", "max_pixels": 200_000}},
    ):
        sampler = ChainSampler(lambda request, number: "\\boxed{correct}\nStep 1: correct")
        scorer = JudgeScorer(judge_config(tmp_path, **more), sampler)
        assert scorer.score([solution("a", question="q")]) == [StepScores((1.0,), 10)]
        assert len(sampler.requests) == 1
        scorer.close()
    assert asked(engine={"model": "another"}) == 1
    assert asked(after_error="as_judged") == 0


def test_a_damaged_cache_is_asked_again(tmp_path: Path) -> None:
    for _ in range(2):
        sampler = chains(lines(1))
        scorer = JudgeScorer(judge_config(tmp_path), sampler)
        assert scorer.score([solution("a")]) == [StepScores((1.0,), 10)]
        assert len(sampler.requests) == 1
        scorer.close()
        with sqlite3.connect(tmp_path / "judge.sqlite") as database:
            database.execute("UPDATE replies SET reply = '{\"text\": 7'")


def test_failed_requests_and_aborted_chains_are_not_cached(tmp_path: Path) -> None:
    for reply in (SamplingError("status 400"), Completion(lines(1), 4, "abort"), lines(0)):
        scorer = JudgeScorer(judge_config(tmp_path), chains(reply))
        (answer,) = scorer.score_each([solution("a")])
        scorer.close()
    assert answer == StepScores((0.0,), 10)


def test_the_judge_sees_question_images_and_steps_as_they_are(tmp_path: Path) -> None:
    image = ImageRef(data=b"png")
    sampler = ChainSampler(lambda request, number: lines(1, 1))
    scorer = JudgeScorer(judge_config(tmp_path), sampler)
    scorer.score(
        [solution("take {question}", "<image> is 3", question="How many {steps}?", images=(image,), choices=("1", "3"))]
    )
    (request,) = sampler.requests
    assert (request.problem.images, request.prefix, request.n) == ((image,), "", 1)
    text = request.problem.question
    assert "Problem:\nHow many {steps}?\nChoices:\nA. 1\nB. 3\n\nSolution:\n" in text
    assert "Solution:\nStep 1: take {question}\n\nStep 2:   is 3\n\nCheck" in text
    with pytest.raises(DataError, match=r"problem p: steps holds '<\|im_end\|>'"):
        scorer.score([solution("a<|im_end|>")])
    assert len(sampler.requests) == 1
    scorer.close()


def test_episodes_are_refused(tmp_path: Path) -> None:
    episode = replace(solution("up"), observations=(("Go.",),))
    with pytest.raises(DataError, match="problem p: is an episode, which no judge reads"):
        judge_request(judge_config(tmp_path), episode)


def test_a_request_of_ones_own(tmp_path: Path) -> None:
    sampler = ChainSampler(lambda request, number: lines(1))
    scorer = JudgeScorer(judge_config(tmp_path, request="Q {question}\nS {steps}"), sampler)
    scorer.score([solution("a", question="q")])
    assert sampler.requests[0].problem.question == "Q q\nS Step 1: a"
    scorer.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"chains": 2, "sampling": {"temperature": 0}},
            "chains=2 with sampling.temperature=0: all chains would be equal",
        ),
        ({"token_budget": 9, "sampling": {"max_tokens": 10}}, "token_budget=9 must be at least sampling.max_tokens=10"),
        ({"request": "{question}"}, r"must contain \{question\} and \{steps\}"),
        ({"template_options": {"messages": 1}}, "messages is set by mmprm"),
        ({"engine": {"model": "x", "chat_template": "nowhere.jinja"}}, "nowhere.jinja: cannot be read"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge_config(tmp_path, **settings)


def test_the_backend_and_the_judge_are_set_together(tmp_path: Path) -> None:
    judge = judge_config(tmp_path)
    assert ScorerConfig(backend="judge", judge=judge).described == "judge"
    server = {"urls": ["http://localhost:8100"]}
    for settings, message in (
        ({"backend": "judge"}, "backend=judge and judge.engine.model must be set together"),
        ({"judge": judge, "prm": "p"}, "backend=judge and judge.engine.model must be set together"),
        ({"backend": "judge", "judge": judge, "prm": "p"}, "prm=p with backend=judge: the judge replaces it"),
        ({"backend": "judge", "judge": judge, "server": server}, "backend=server and server.urls must be set together"),
    ):
        with pytest.raises(ValueError, match=message):
            ScorerConfig(**settings)
