"""Test outcome rewards: what counts, what is dropped, and the limits of custom functions."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import get_args

import pytest

from mmprm.config import build
from mmprm.errors import ConfigError, TrainingError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.rewards.outcome import (
    ACCURACIES,
    COMBINATIONS,
    FORMATS,
    LengthLimits,
    OutcomeReward,
    RewardConfig,
    exact_label,
    format_reward,
    length_penalty,
)
from policy_rl.types import Response

PROBLEM = Problem(id="p1", question="2 + 3 = ?", answer="5")
THOUGHT = "<think>2 + 3</think><answer>5</answer>"
RIGHT = Grading(Verdict.CORRECT, "5", "equal")
WRONG = Grading(Verdict.INCORRECT, "6", "different")
UNKNOWN = Grading(Verdict.UNKNOWN, None, "time-out")


def written(text: str, token_count: int = 10, finish_reason: str = "stop") -> Response:
    return Response(text, range(token_count), [-1.0] * token_count, finish_reason)


def total(response: str, grading: Grading, token_count: int = 10, prefill: str = "", **values) -> float | None:
    return OutcomeReward(build(RewardConfig, values), prefill)(PROBLEM, written(response, token_count), grading).total


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            (THOUGHT, 1.0),
            ("  <think>a\nb < c</think>\n\n<answer>5</answer>\n", 1.0),
            ("<answer>5</answer><think>a</think>", 0.0),
            ("<think>a</think>", 0.0),
            ("<answer>5</answer>", 0.0),
            ("so <think>a</think><answer>5</answer>", 0.0),
            ("<think>a</think> so <answer>5</answer>", 0.0),
            ("<think>a</think><answer>5</answer> done", 0.0),
            ("<think>a</think><think>b</think><answer>5</answer>", 0.0),
            ("<think>a</think><answer>5</answer><answer>6</answer>", 0.0),
            ("<think>a<think>b</think></think><answer>5</answer>", 0.0),
            ("<think>a<answer>5</answer></think><answer>5</answer>", 0.0),
            ("<think>a</think><answer>5", 0.0),
            ("", 0.0),
        ],
    )
    def test_think(self, text: str, reward: float) -> None:
        assert format_reward(text, "think") == reward

    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            ("<step>blue=5</step><step>red=3</step><step>5+3=8</step><answer>8</answer>", 1.0),
            ("<step>8</step>\n<answer>8</answer>", 1.0),
            ("<answer>8</answer>", 0.0),
            ("<step>blue=5</step>red=3<step>5+3=8</step><answer>8</answer>", 0.0),
            ("<step>a</step><answer>8</answer><step>b</step>", 0.0),
            ("<step>a<step>b</step></step><answer>8</answer>", 0.0),
            ("<step>a</step><answer>8</answer><answer>8</answer>", 0.0),
        ],
    )
    def test_steps(self, text: str, reward: float) -> None:
        assert format_reward(text, "steps") == reward

    @pytest.mark.parametrize(
        ("text", "reward"),
        [
            (f"I will think first. {THOUGHT} Done.", 1.0),
            (f"a < b <b>{THOUGHT}</b>", 1.0),
            ("<think>a</think>\n<answer>5</answer>\n", 1.0),
            ("<think>a</think> so <answer>5</answer>", 0.0),
            (f"<think>{THOUGHT}", 0.0),
            (f"{THOUGHT}</answer>", 0.0),
            (f"{THOUGHT}{THOUGHT}", 0.0),
            ("<answer>5</answer><think>a</think>", 0.0),
            ("Five.", 0.0),
        ],
    )
    def test_text_outside(self, text: str, reward: float) -> None:
        """Text outside is accepted only without further tags, and only white space may separate the two parts."""
        assert format_reward(text, "think", text_outside=True) == reward

    @pytest.mark.parametrize(("thoughts", "reward"), [("x" * 300, 1.0), ("x" * 299, 0.0), (f" {'x' * 299}\n", 0.0)])
    def test_short_thoughts_earn_nothing(self, thoughts: str, reward: float) -> None:
        response = f"<think>{thoughts}</think><answer>5</answer>"
        assert format_reward(response, "think", min_thought_characters=300) == reward
        assert total(response, RIGHT, format="think", format_weight=1.0, min_thought_characters=300) == 1.0 + reward
        keys = {"format": "think", "min_thought_characters": 300}
        assert total(response.removeprefix("<think>"), RIGHT, prefill="<think>", **keys) == 1.0 + 0.5 * reward

    def test_prefilled_tag_counts(self) -> None:
        response = "2 + 3</think><answer>5</answer>"
        assert total(response, RIGHT, format="think") == 1.0
        assert total(response, RIGHT, format="think", prefill="Let me see. <think>\n") == 1.0
        assert total(response, RIGHT, format="think", prefill="<think>\n") == 1.5
        assert total("<think>" + response, RIGHT, format="think", prefill="<think>") == 1.0

    def test_long_text_without_an_end_is_quick(self) -> None:
        assert format_reward("<step>" + "<" * 200_000, "steps") == 0.0
        assert format_reward("<step>" + "<" * 200_000, "steps", text_outside=True) == 0.0
        assert format_reward("<step>a</step>" * 20_000, "steps") == 0.0


class TestCombination:
    @pytest.mark.parametrize(
        ("response", "grading", "summed", "gated"),
        [(THOUGHT, RIGHT, 1.5, 1.0), (THOUGHT, WRONG, 0.5, 0.0), ("5", RIGHT, 1.0, 0.0), ("6", WRONG, 0.0, 0.0)],
    )
    def test_sum_and_gate(self, response: str, grading: Grading, summed: float, gated: float) -> None:
        assert total(response, grading, format="think") == summed
        assert total(response, grading, format="think", combination="gate") == gated

    def test_weights(self) -> None:
        assert total(THOUGHT, RIGHT, format="think", accuracy_weight=2.0, format_weight=0.25) == 2.25

    @pytest.mark.parametrize("combination", COMBINATIONS)
    def test_unknown_verdict_has_no_reward(self, combination: str) -> None:
        assert total(THOUGHT, UNKNOWN, format="think", combination=combination) is None

    def test_unknown_verdict_does_not_matter_where_accuracy_does_not(self) -> None:
        assert total(THOUGHT, UNKNOWN, format="think", accuracy_weight=0.0) == 0.5

    def test_parts_are_reported_unweighted(self) -> None:
        reward = OutcomeReward(RewardConfig(format="think"))(PROBLEM, written(THOUGHT), WRONG)
        assert reward.parts == {"accuracy": 0.0, "format": 1.0, "length": 0.0}
        unknown = OutcomeReward(RewardConfig(format="think"))(PROBLEM, written(THOUGHT), UNKNOWN)
        assert unknown.parts == {"accuracy": None, "format": 1.0, "length": 0.0}


class TestExactLabel:
    @pytest.mark.parametrize(
        ("gold", "extracted", "reward"),
        [
            *(("happy", "Happy", 1.0), ("happy", " happy\n", 1.0), ("happy", "unhappy", 0.0), ("B", "AB", 0.0)),
            ("<answer> happy </answer>", "happy", 1.0),  # R1-V's and R1-Omni's data
            ("<think>Tense.</think>\n<answer>sad</answer>", "happy", 0.0),
        ],
    )
    def test_label(self, gold: str, extracted: str, reward: float) -> None:
        problem = Problem(id="p", question="?", answer=gold)
        assert exact_label(problem, Grading(Verdict.INCORRECT, extracted, "")) == reward

    def test_no_answer_is_incorrect_and_a_failed_grading_is_unknown(self) -> None:
        assert exact_label(PROBLEM, Grading(Verdict.INCORRECT, None, "no answer")) == 0.0
        assert exact_label(PROBLEM, UNKNOWN) is None

    def test_it_replaces_the_verdict(self) -> None:
        assert total("5", Grading(Verdict.UNKNOWN, "5", "gold does not parse"), accuracy="exact_label") == 1.0

    def test_an_incorrect_word_is_a_signal(self) -> None:
        """The symbolic grader cannot compare words, so by its verdicts a group would have only correct answers."""
        problem = Problem(id="p", question="left or right?", answer="left")
        undecided = Grading(Verdict.UNKNOWN, "right", "symbols cannot decide")
        by_verdict, by_label = (OutcomeReward(RewardConfig(accuracy=kind)) for kind in ("verdict", "exact_label"))
        assert by_verdict(problem, written("right"), undecided).total is None
        assert by_label(problem, written("right"), undecided).total == 0.0


class TestLength:
    @pytest.mark.parametrize(
        ("tokens", "penalty"),
        [
            (0, -1.0),
            (10, -0.5),
            (15, -0.25),
            (20, 0.0),
            (100, 0.0),
            (101, -0.05),
            (110, -0.5),
            (120, -1.0),
            (999, -1.0),
        ],
    )
    def test_soft_limits(self, tokens: int, penalty: float) -> None:
        assert length_penalty(tokens, LengthLimits(min=20, max=100, margin=20)) == pytest.approx(penalty)

    @pytest.mark.parametrize(("tokens", "penalty"), [(19, -1.0), (20, 0.0), (100, 0.0), (101, -1.0)])
    def test_hard_limits(self, tokens: int, penalty: float) -> None:
        assert length_penalty(tokens, LengthLimits(min=20, max=100)) == penalty

    def test_no_limits_by_default(self) -> None:
        assert length_penalty(0, LengthLimits()) == length_penalty(10**6, LengthLimits()) == 0.0

    def test_weight(self) -> None:
        limits = {"max": 100, "margin": 20, "weight": 0.4}
        assert total(THOUGHT, RIGHT, 110, format="think", length=limits) == pytest.approx(1.3)

    def test_limits_in_reverse_order_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="min=30 must not exceed max=20"):
            build(RewardConfig, {"length": {"min": 30, "max": 20}})


class TestTruncated:
    def test_a_penalty_for_the_finish_reason_not_the_length(self) -> None:
        """The correct truncated, incorrect truncated and correct finished responses earn 1 − 0.5, 0 − 0.5 and 1."""
        reward = OutcomeReward(build(RewardConfig, {"truncated": "penalize", "truncation_penalty": 0.5}))
        cases = [("length", RIGHT), ("length", WRONG), ("stop", RIGHT)]
        found = [reward(PROBLEM, written("5", 10, reason), grading) for reason, grading in cases]
        assert [each.total for each in found] == [0.5, -0.5, 1.0]
        assert [each.parts["truncated"] for each in found] == [-1.0, -1.0, 0.0]

    @pytest.mark.parametrize("truncated", ["keep", "mask"])
    def test_otherwise_the_reward_does_not_depend_on_it(self, truncated: str) -> None:
        reward = OutcomeReward(build(RewardConfig, {"truncated": truncated}))
        assert reward(PROBLEM, written("5", 10, "length"), RIGHT) == reward(PROBLEM, written("5"), RIGHT)

    def test_a_penalty_that_nothing_uses_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="truncation_penalty=2 has no effect with truncated=mask"):
            build(RewardConfig, {"truncated": "mask", "truncation_penalty": 2})


USER_MODULE = """
def double(problem, response, grading): return 2 * (response.count("5") > 0)
def unknown(problem, response, grading): return None
def nan(problem, response, grading): return float("nan")
def infinite(problem, response, grading): return float("inf")
def text(problem, response, grading): return "1"
def raises(problem, response, grading): raise KeyError("gold")
CONSTANT = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards"


class TestParts:
    def test_a_part_that_does_not_count_is_not_shown(self) -> None:
        plain = OutcomeReward(RewardConfig())(PROBLEM, written(THOUGHT), RIGHT)
        assert plain.parts.keys() == {"accuracy", "length"}
        formed = OutcomeReward(RewardConfig(format="think"))(PROBLEM, written("5"), RIGHT)
        assert (formed.parts["format"], formed.total) == (0.0, 1.0)


class TestUserFunctions:
    async def test_a_slow_function_does_not_block_the_loop(self, user_module: str, monkeypatch) -> None:
        """Other tasks continue in the meantime, and calls never overlap, so a function needs no locks."""
        import my_rewards

        busy, ticks = threading.Lock(), 0

        def slow(problem: Problem, response: str, grading: Grading) -> float:
            assert busy.acquire(blocking=False), "two concurrent calls"
            goal, end = ticks + 2, time.monotonic() + 20
            while ticks < goal:
                assert time.monotonic() < end, "the loop does not run"
                time.sleep(0.01)
            busy.release()
            return float(response)

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        monkeypatch.setattr(my_rewards, "double", slow)
        reward = OutcomeReward(build(RewardConfig, {"functions": [{"path": f"{user_module}:double"}]}))
        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(
            *(reward.compute_async(PROBLEM, written(str(number)), RIGHT) for number in range(3))
        )
        ticking.cancel()
        assert [each.total for each in found] == [1.0, 2.0, 3.0]

    async def test_one_that_never_ends_ends_the_run(self, user_module: str, monkeypatch) -> None:
        import my_rewards

        monkeypatch.setattr(my_rewards, "double", lambda *_: time.sleep(0.2))
        values = {"functions": [{"path": f"{user_module}:double"}], "timeout_seconds": 0.05}
        reward = OutcomeReward(build(RewardConfig, values))
        with pytest.raises(
            TrainingError, match=r"my_rewards:double: no answer for problem p1 within rewards.timeout_seconds"
        ):
            await reward.compute_async(PROBLEM, written("5"), RIGHT)
        await asyncio.sleep(0.3)  # ends the thread, so that the test can end

    def test_sees_what_the_prompt_prefilled(self, user_module: str, monkeypatch) -> None:
        import my_rewards

        monkeypatch.setattr(my_rewards, "double", lambda problem, response, grading: float("<think>" in response))
        assert total("5", RIGHT, prefill="<think>", functions=[{"path": f"{user_module}:double"}]) == 2.0

    def test_adds_its_weighted_value(self, user_module: str) -> None:
        functions = [{"path": f"{user_module}:double", "weight": 0.25}]
        assert total("5", RIGHT, functions=functions) == 1.5
        reward = OutcomeReward(build(RewardConfig, {"functions": functions}))(PROBLEM, written("5"), RIGHT)
        assert reward.parts["my_rewards:double"] == 2.0

    def test_none_drops_the_sample(self, user_module: str) -> None:
        assert total("5", RIGHT, functions=[{"path": f"{user_module}:unknown"}]) is None

    @pytest.mark.parametrize(("name", "value"), [("nan", "nan"), ("infinite", "inf"), ("text", "'1'")])
    def test_a_value_that_is_not_finite_stops_the_run(self, user_module: str, name: str, value: str) -> None:
        with pytest.raises(TrainingError, match=rf"my_rewards:{name}.*{value}.*problem p1"):
            total("5", RIGHT, functions=[{"path": f"{user_module}:{name}"}])

    def test_an_exception_stops_the_run_and_keeps_its_cause(self, user_module: str) -> None:
        with pytest.raises(TrainingError, match=r"my_rewards:raises.*KeyError.*gold.*problem p1") as caught:
            total("5", RIGHT, functions=[{"path": f"{user_module}:raises"}])
        assert isinstance(caught.value.__cause__, KeyError)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("my_rewards", "module:function"),
            ("no_such_module_of_mine:f", "No module named"),
            ("my_rewards:missing", "missing"),
            ("my_rewards:CONSTANT", "callable"),
        ],
    )
    def test_a_path_without_a_function_is_refused(self, user_module: str, path: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            OutcomeReward(build(RewardConfig, {"functions": [{"path": path}]}))


class TestConfig:
    def test_format_weight_without_a_format_is_not_silently_zero(self) -> None:
        with pytest.raises(ConfigError, match="gate"):
            build(RewardConfig, {"combination": "gate"})

    def test_keys_of_a_format_need_one(self) -> None:
        with pytest.raises(ConfigError, match="text_outside=true needs a format"):
            build(RewardConfig, {"text_outside": True})
        with pytest.raises(ConfigError, match="min_thought_characters=300 requires thoughts; set format=think"):
            build(RewardConfig, {"format": "steps", "min_thought_characters": 300})

    @pytest.mark.parametrize("key", ["accuracy_weight", "format_weight"])
    def test_a_gate_has_no_weights(self, key: str) -> None:
        with pytest.raises(ConfigError, match=f"{key}=2.0 has no effect with combination=gate"):
            build(RewardConfig, {"combination": "gate", "format": "think", key: 2})

    def test_negative_weight(self) -> None:
        with pytest.raises(ConfigError, match="accuracy_weight"):
            build(RewardConfig, {"accuracy_weight": -1})

    def test_names_are_those_of_the_tables(self) -> None:
        fields = RewardConfig.model_fields
        assert set(get_args(fields["accuracy"].annotation)) == set(ACCURACIES)
        assert set(get_args(fields["combination"].annotation)) == set(COMBINATIONS)
        assert set(get_args(get_args(fields["format"].annotation)[0])) == set(FORMATS)


def test_every_reward_is_finite_or_unknown() -> None:
    for grading in (RIGHT, WRONG, UNKNOWN):
        value = total(THOUGHT, grading, format="think")
        assert value is None or math.isfinite(value)


def test_rewards_need_no_torch() -> None:
    code = "import policy_rl.rewards.outcome, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
