"""Test process rewards: tokens of steps, responses without scores, and advantages by hand."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mmprm.config import build
from mmprm.errors import ConfigError, DataError, EngineStoppedError, TrainingError
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.steps import split
from mmprm.tiny.tokenizer import build_tokenizer
from mmprm.types import Grading, Problem, Solution, StepScores, Verdict
from policy_rl.algorithms.advantages import ESTIMATORS, AdvantageConfig
from policy_rl.algorithms.credit import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.rewards.process import ProcessConfig, ProcessReward, plain_steps
from policy_rl.rewards.token_begins import step_of_tokens, token_begins
from policy_rl.types import Response, Reward, TrainingSample
from tests.policy_rl.byte_tokenizers import byte_level, sentence_piece


def sampled(tokenizer: PreTrainedTokenizerFast, text: str, end: bool = True) -> Response:
    ids = tokenizer.encode(text, add_special_tokens=False) + ([tokenizer.eos_token_id] if end else [])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    return Response(text, tuple(ids), (0.0,) * len(ids), "stop")


class Scripted:
    """Score each step by its text; "?" marks a solution that is rejected."""

    def __init__(self, scores: dict[str, float] | None = None) -> None:
        self.scores, self.seen = scores or {}, list[Solution]()

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        for solution in solutions:
            if any("?" in step for step in solution.steps):
                raise DataError(f"problem {solution.problem.id}: too long")
        self.seen += solutions
        return [StepScores(tuple(self.scores.get(step, 0.5) for step in solution.steps)) for solution in solutions]


PROBLEM = Problem("p1", "how many?", "4")


def scored(
    responses: Sequence[Response], scorer: object, tokenizer: object, step_format: str = "tags"
) -> tuple[list[StepRewards | None], ProcessReward]:
    process: list[ProcessReward] = []

    async def run() -> list[StepRewards | None]:
        queue = ScoreQueue(scorer)
        process.append(ProcessReward(tokenizer, step_format, "", queue))
        try:
            return await process[0].score(PROBLEM, responses)
        finally:
            queue.close()

    return asyncio.run(run()), process[0]


class TestTokens:
    def test_byte_level_by_hand(self) -> None:
        tokenizer = byte_level()
        text = "aé\n\n€b"
        response = sampled(tokenizer, text)
        # a, two bytes of é, two line ends, three bytes of €, b, the end of turn
        assert len(response.token_ids) == 10
        begins = token_begins(response.token_ids, text, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        assert begins.tolist() == [0, 1, 1, 2, 3, 4, 4, 4, 5, 6]
        steps = split(text, "blank_lines").steps
        assert step_of_tokens(steps, begins).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]

    def test_a_token_that_straddles_belongs_to_the_step_in_which_it_begins(self) -> None:
        tokenizer = byte_level(["><"])
        text = "<step>a</step><step>b</step>"
        response = sampled(tokenizer, text)
        assert tokenizer.decode([response.token_ids[14]]) != "><"
        position = next(i for i, token in enumerate(response.token_ids) if tokenizer.decode([token]) == "><")
        (rewards,), _ = scored([response], Scripted(), tokenizer)
        after = len(response.token_ids) - position - 1
        assert rewards.step_of_token.tolist() == [0] * (position + 1) + [1] * after
        # The text itself is cut inside that token.
        assert split(text, "tags").steps == ("<step>a</step>", "<step>b</step>")

    def test_bytes_that_end_one_character_and_begin_the_next(self) -> None:
        tokenizer = byte_level()
        text, ids = "😀😁", tokenizer.encode("😀😁", add_special_tokens=False)

        def decode(groups: Sequence[int]) -> str:
            """Decode tokens of two, three and three bytes: the second one ends the first face and begins the second."""
            parts = ids[:2], ids[2:5], ids[5:]
            return tokenizer.decode([each for group in groups for each in parts[group]])

        assert token_begins([0, 1, 2], text, decode).tolist() == [0, 0, 1]

    @pytest.mark.parametrize("cut", [1, 2, 3])
    def test_a_character_that_was_never_finished(self, cut: int) -> None:
        tokenizer = byte_level()
        ids = [*tokenizer.encode("a😀", add_special_tokens=False)[: 1 + cut], *tokenizer.encode("b\n\nc")]
        text = tokenizer.decode(ids)
        assert "\ufffd" in text
        begins = token_begins(ids, text, tokenizer.decode)
        assert begins[0] == 0
        assert begins[-4:].tolist() == [len(text) - 4, len(text) - 3, len(text) - 2, len(text) - 1]

    @pytest.mark.parametrize("make", [byte_level, lambda: byte_level(["</step>", ">\n", "é ", " b"]), sentence_piece])
    def test_every_token_begins_where_the_text_before_it_ends(self, make) -> None:
        tokenizer, rng = make(), random.Random(0)
        pieces = ["a", "b", " ", "é", "€", "😀", "<step>", "</step>", ">\n", "\n\n"]

        def decode(ids: Sequence[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        for _ in range(30):
            text = f"x{''.join(rng.choices(pieces, k=20))}."
            response = sampled(tokenizer, text)
            expected = 0
            for index, begin in enumerate(token_begins(response.token_ids, text, decode)):
                before = decode(response.token_ids[:index]).rstrip("\ufffd")
                assert text.startswith(before)
                expected = max(expected, len(before))
                assert begin == expected

    def test_special_tokens_inside_and_at_the_end(self) -> None:
        tokenizer = build_tokenizer()
        text = "<step>blue=5</step><step>red=3</step><answer>8</answer>"
        pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        plain = sampled(tokenizer, text)
        ids = (*plain.token_ids[:6], pad, *plain.token_ids[6:])
        (rewards,), _ = scored([Response(text, ids, (0.0,) * len(ids), "stop")], Scripted(), tokenizer)
        (alone,), _ = scored([plain], Scripted(), tokenizer)
        assert alone.step_of_token.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert rewards.step_of_token.tolist() == [0] * 4 + [1] * 5 + [2] * 4

    def test_a_tokenizer_that_changes_its_text_is_named(self) -> None:
        with pytest.raises(TrainingError, match="do not add up to its text 'ab'"):
            token_begins([0, 1], "ab", lambda ids: "x" * len(ids))

    def test_steps_of_the_prefill_are_joined_to_the_first_written_step(self) -> None:
        tokenizer, scorer = byte_level(), Scripted()

        async def run() -> list[StepRewards | None]:
            queue = ScoreQueue(scorer)
            process = ProcessReward(tokenizer, "blank_lines", "<think>\n\n</think>\n\n", queue)
            found = await process.score(PROBLEM, [sampled(tokenizer, "ab\n\ncd", end=False)])
            queue.close()
            return found

        (rewards,) = asyncio.run(run())
        assert rewards.step_of_token.tolist() == [0] * 4 + [1] * 2
        assert scorer.seen[0].steps == ("<think>\n\n</think>\n\nab", "cd")

    def test_prefill_belongs_to_the_first_step(self) -> None:
        tokenizer, scorer = byte_level(), Scripted()

        async def run() -> list[StepRewards | None]:
            queue = ScoreQueue(scorer)
            process = ProcessReward(tokenizer, "tags", "<step>", queue)
            found = await process.score(PROBLEM, [sampled(tokenizer, "a</step><answer>4</answer>", end=False)])
            queue.close()
            return found

        (rewards,) = asyncio.run(run())
        assert rewards.step_of_token.tolist() == [0] * 8 + [1] * 18
        assert scorer.seen[0].steps == ("a", "<answer>4</answer>")


WITHOUT = {
    "<step>a</step><step>b": "unclosed step",
    "no steps at all": "no step",
    " ": "empty",
    "<step></step><answer>4</answer>": "empty step",
    "<step>why?</step>": "refused by the PRM",
}


class TestWhatHasNoProcessReward:
    def test_each_is_counted_by_its_reason_and_the_others_are_scored(self) -> None:
        tokenizer = byte_level()
        good = "<step>a</step><answer>4</answer>"
        responses = [sampled(tokenizer, text) for text in (*WITHOUT, good)]
        found, process = scored(responses, Scripted({"a": 0.75, "<answer>4</answer>": 0.25}), tokenizer)
        assert found[:-1] == [None] * len(WITHOUT)
        assert found[-1].scores == (0.75, 0.25)
        assert process.unscored == dict.fromkeys(WITHOUT.values(), 1)

    def test_a_step_inside_one_token(self) -> None:
        class Pieces:
            def decode(self, ids: Sequence[int], **_: object) -> str:
                return "".join(("<step>a</step><step>b</step><step>", "c</step>")[each] for each in ids)

        text = "<step>a</step><step>b</step><step>c</step>"
        (none,), process = scored([Response(text, (0, 1), (0.0, 0.0), "stop")], Scripted(), Pieces())
        assert none is None
        assert process.unscored == {"step without a token": 1}

    def test_nothing_is_asked_where_nothing_can_be_cut(self) -> None:
        scorer = Scripted()
        assert scored([sampled(byte_level(), "no steps")], scorer, byte_level())[0] == [None]
        assert not scorer.seen

    def test_steps_after_a_truncation_are_outside(self) -> None:
        class Cutting(Scripted):
            def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
                return [StepScores(each.scores[:1]) for each in super().score(solutions)]

        (rewards,), _ = scored([sampled(byte_level(), "a\n\nb")], Cutting(), byte_level(), "blank_lines")
        assert rewards == StepRewards((0.5,), (0, 0, 0, -1, -1))

    @pytest.mark.parametrize("value", [math.nan, 1.5, -0.1])
    def test_a_score_that_is_not_a_probability_stops_the_run(self, value: float) -> None:
        with pytest.raises(TrainingError, match=rf"problem p1: the PRM gave 1 scores for 1 steps, {value:g}; "):
            scored([sampled(byte_level(), "<step>a</step>")], Scripted({"a": value}), byte_level())

    @pytest.mark.parametrize(
        ("raised", "expected", "words"),
        [
            (EngineStoppedError("the server is gone"), EngineStoppedError, "the server is gone"),
            (RuntimeError("out of memory"), TrainingError, "problem p1: the PRM failed .RuntimeError: out of memory"),
        ],
    )
    def test_a_scorer_that_fails_stops_the_run(self, raised: Exception, expected: type, words: str) -> None:
        class Broken:
            def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
                raise raised

        with pytest.raises(expected, match=words):
            scored([sampled(byte_level(), "<step>a</step>")], Broken(), byte_level())


# From text and token ids to advantages N×T: three steps of 2, 3 and 4 tokens, of a byte-level policy.
TEXT = "\n\n".join(("a", "bc", "defg"))
P = {"a": 0.9, "bc": 0.1, "defg": 0.8}
TOKENS = [3, 4, 5]


def batch(
    texts: Sequence[Sequence[str]], scores: dict[str, float], rewards: Sequence[Sequence[float | None]] | None = None
) -> list[GradedGroup]:
    """Return groups that are actually split and scored; a reward above 0 means a correct answer."""
    tokenizer, groups = byte_level(), []
    for p, row in enumerate(texts):
        responses = [sampled(tokenizer, text) for text in row]
        found, _ = scored(responses, Scripted(scores), tokenizer, "blank_lines")
        totals = rewards[p] if rewards else [0.0] * len(row)
        graded = tuple(
            GradedResponse(response, Grading(_verdict(total), None, ""), Reward(total, {"accuracy": total}), process)
            for response, total, process in zip(responses, totals, found, strict=True)
        )
        groups.append(GradedGroup(PROBLEM, 5, 0, graded))
    return groups


def _verdict(total: float | None) -> Verdict:
    return Verdict.UNKNOWN if total is None else Verdict.CORRECT if total > 0 else Verdict.INCORRECT


def advantages(groups: Sequence[GradedGroup], estimator: str = "rloo", aggregate=min, **credit) -> list[list[float]]:
    """Return one list per kept sample with the advantage of each of its tokens."""
    kept_PK = kept_mask(groups, ESTIMATORS[estimator].least)
    drafts = draft(groups, kept_PK)
    if ESTIMATORS[estimator].critic:
        drafts = [with_values(each) for each in drafts]
    config = AdvantageConfig(estimator=estimator, whiten=False)
    settings = AdvantageSettings(config, build(CreditConfig, credit) if credit else None, aggregate=aggregate)
    made, _ = add_advantages(groups, kept_PK, drafts, settings)
    return [each.advantages.tolist() for each in made]


def with_values(sample: TrainingSample) -> TrainingSample:
    return replace(sample, values=torch.zeros(len(sample.token_ids)).numpy())


def steps_of(values: Sequence[float], lengths: Sequence[int] = TOKENS) -> list[float]:
    """Return each value for each token of its step, with the end of turn in the last step."""
    return [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]


class TestWholeWay:
    @pytest.mark.parametrize(
        ("credit", "expected"),
        [
            ({"mode": "strict_min"}, [-0.8, -0.8, 0.6]),
            ({"mode": "soft_min"}, [-0.8, -0.8, 0.0]),
            ({"mode": "return_to_go"}, [1.8, 0.9, 0.8]),
            ({"mode": "return_to_go", "transform": "clip", "eta": 0.5}, [-0.4, -0.4, 0.0]),
            ({"mode": "return_to_go", "transform": "delta"}, [0.9, 0.1, 0.8]),
        ],
    )
    def test_worked_numbers(self, credit: dict, expected: list[float]) -> None:
        groups = batch([[TEXT, "h"]], P | {"h": 0.5})
        first, second = advantages(groups, baseline="none", **credit)
        assert first == pytest.approx(steps_of(expected), abs=1e-5)
        assert len(second) == 2

    def test_token_baseline_on_tokens(self) -> None:
        # Strict form: R* −.8 over 12 tokens, and .6 over 6 ("hhhhh" and the end of turn).
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8})
        first, second = advantages(groups, mode="strict_min", baseline="pure_tokens")
        rate = 0.6 / 6
        assert first == pytest.approx(steps_of([-0.8 - 12 * rate, -0.8 - 9 * rate, 0.6 - 5 * rate]), abs=1e-6)
        assert second == pytest.approx([0.6 + 6 * 0.8 / 12] * 6, abs=1e-6)

    def test_the_default_baseline_on_tokens(self) -> None:
        # Strict form (−.8, −.8, .6) and (.6): each minus the other's first; no other one has later steps.
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8})
        first, second = advantages(groups, mode="strict_min")
        assert first == pytest.approx(steps_of([-1.4, 0.0, 0.0]), abs=1e-6)
        assert second == pytest.approx([1.4] * 6, abs=1e-6)

    def test_outcome_and_process_add_up(self) -> None:
        groups = batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8}, rewards=[[1.0, 0.0]])
        outcome_only = advantages(groups)
        assert outcome_only == [pytest.approx([1.0] * 12), pytest.approx([-1.0] * 6)]
        process = advantages(batch([[TEXT, "hhhhh"]], P | {"hhhhh": 0.8}), mode="soft_min")
        both = advantages(groups, mode="soft_min")
        for row, ones, added in zip(both, outcome_only, process, strict=True):
            assert row == pytest.approx([one + more for one, more in zip(ones, added, strict=True)], abs=1e-6)

    def test_scalar_by_source(self) -> None:
        scores = P | {"h": 0.5, "i": 0.3}
        groups = batch([[TEXT, "h", "i"]], scores, rewards=[[1.0, 0.0, 0.0]])
        rows = advantages(groups, estimator="grpo", mode="scalar", per_source=True)
        # Outcome (1, 0, 0): (2/3, −1/3, −1/3) / 0.57735. Lowest scores (.1, .5, .3): (−.2, .2, 0) / .2.
        expected = [1.154701 - 1, -0.577350 + 1, -0.577350]
        assert [row[0] for row in rows] == pytest.approx(expected, abs=1e-4)
        assert all(len(set(row)) == 1 for row in rows)
        together = advantages(groups, estimator="rloo", mode="scalar")
        # Sums (1.1, .5, .3)
        assert [row[0] for row in together] == pytest.approx([1.1 - 0.4, 0.5 - 0.7, 0.3 - 0.8], abs=1e-6)

    def test_step_gae(self) -> None:
        groups = batch([[TEXT]], P, rewards=[[1.0]])
        (row,) = advantages(groups, estimator="gae", mode="step_gae")
        # No values, γ = λ = 1: the sum of what is still to come, the outcome at the end of turn.
        assert row == pytest.approx(steps_of([0.9 + 0.1 + 0.8 + 1, 0.1 + 0.8 + 1, 0.8 + 1]), abs=1e-6)

    def test_gate(self) -> None:
        texts = [[TEXT, "hhhhh", "ii"]]
        scores = P | {"hhhhh": 0.8, "ii": 0.9}
        rows = advantages(batch(texts, scores, rewards=[[1.0, 1.0, 0.0]]), mode="soft_min", gate="correct")
        ungated = advantages(batch([texts[0][:2]], scores), mode="soft_min")
        outcome = [0.5, 0.5, -1.0]
        for row, process, base in zip(rows[:2], ungated, outcome[:2], strict=True):
            assert row == pytest.approx([base + value for value in process], abs=1e-6)
        assert rows[2] == pytest.approx([-1.0] * 3)

    @pytest.mark.parametrize("mode", ["soft_min", "strict_min"])
    def test_merging_two_steps_earns_nothing(self, mode: str) -> None:
        """Two steps with equal scores are as long as the one that replaces them, and the first token earns the same."""
        scores = {"aaaa": 0.9, "bb": 0.9, "bbbbbbbb": 0.9, "cc": 0.3, "dd": 0.7}
        other = "cc\n\ndd"
        for baseline in ("step_index", "pure_tokens"):
            values = {"mode": mode, "baseline": baseline}
            apart = advantages(batch([["aaaa\n\nbb", other]], scores), **values)
            merged = advantages(batch([["bbbbbbbb", other]], scores), **values)
            assert len(apart[0]) == len(merged[0]) == 9
            assert apart[0][0] == pytest.approx(merged[0][0], abs=1e-6)
            assert apart[1][0] == pytest.approx(merged[1][0], abs=1e-6)

    def test_without_the_baseline_plain_sums_do_reward_more_steps(self) -> None:
        scores = {"aaaa": 0.9, "bb": 0.9, "bbbbbbbb": 0.9, "cc": 0.3}
        settings = {"mode": "return_to_go", "baseline": "none"}
        apart = advantages(batch([["aaaa\n\nbb", "cc"]], scores), **settings)
        merged = advantages(batch([["bbbbbbbb", "cc"]], scores), **settings)
        assert apart[0][0] == pytest.approx(merged[0][0] + 0.9, abs=1e-6)

    @pytest.mark.parametrize("mode", ["scalar", "return_to_go", "soft_min", "strict_min"])
    def test_order_and_longer_neighbours_change_nothing(self, mode: str) -> None:
        scores = P | {"h": 0.5, "ii": 0.3, "jjj": 0.7, "k" * 40: 0.2}
        texts = [[TEXT, "h", "ii\n\njjj"], ["jjj", "h\n\nii"]]
        rewards = [[1.0, 0.0, 0.0], [1.0, 0.0]]
        whole = advantages(batch(texts, scores, rewards), mode=mode)
        turned = advantages(
            batch([row[::-1] for row in texts[::-1]], scores, [row[::-1] for row in rewards[::-1]]), mode=mode
        )
        expected = [*whole[:3][::-1], *whole[3:][::-1]]
        for row, other in zip([*turned[2:], *turned[:2]], expected, strict=True):
            assert row == pytest.approx(other, abs=1e-6)
        longer = [*texts, ["k" * 40, "k" * 40 + "\n\n" + "k" * 40, "h", "h"]]
        wide = advantages(batch(longer, scores, [*rewards, [1.0, 0.0, 0.0, 1.0]]), mode=mode)
        for row, other in zip(wide[:5], whole, strict=True):
            assert row == pytest.approx(other, abs=1e-6)

    def test_no_steps_means_outcome_alone_and_no_zero_for_the_others(self) -> None:
        scores = P | {"hhhhh": 0.8}
        with_it = batch([[TEXT, "hhhhh", "\n\n?"]], scores, rewards=[[1.0, 0.0, 0.0]])
        assert with_it[0].responses[2].process is None
        rows = advantages(with_it, mode="soft_min")
        assert rows[2] == pytest.approx([-0.5] * len(rows[2]))
        without = advantages(batch([[TEXT, "hhhhh"]], scores), mode="soft_min")
        for row, process, outcome in zip(rows[:2], without, [1.0, -0.5], strict=True):
            assert row == pytest.approx([outcome + value for value in process], abs=1e-6)


def test_plain_steps_say_why_there_are_none() -> None:
    assert plain_steps("<step> a </step>\n<answer>4</answer>", "tags").steps == ("a", "<answer>4</answer>")
    assert plain_steps("1. a\n2.\n3. c", "numbered").reason == "empty step"


def test_an_aggregator_is_named_or_refused(tmp_path) -> None:
    (tmp_path / "prm.json").write_text('{"format": "mm-prm", "aggregator": "last"}')
    scorer = {"prm": str(tmp_path)}
    assert build(ProcessConfig, {"scorer": scorer}).aggregate()([0.9, 0.1]) == 0.1
    assert build(ProcessConfig, {"scorer": scorer, "aggregator": "max"}).aggregate()([0.9, 0.1]) == 0.9
    (tmp_path / "prm.json").write_text('{"format": "mm-prm"}')
    with pytest.raises(ConfigError, match=r"aggregator is not set and prm\.json names none"):
        build(ProcessConfig, {"scorer": scorer}).aggregate()
