"""Test process rewards: tokens of steps, responses without scores, and advantages by hand."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scripted_prm import PROBLEM, Scripted, sampled, scored

from mmprm.config import build
from mmprm.errors import ConfigError, EngineStoppedError, TrainingError
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.steps import StepFormat, StepSplit, split
from mmprm.tiny.tokenizer import build_tokenizer
from mmprm.types import Solution, StepScores
from policy_rl.graded import StepRewards
from policy_rl.rewards.cutter import StepCutter, steps_of
from policy_rl.rewards.process import ProcessConfig, ProcessReward
from policy_rl.rewards.token_begins import step_of_tokens, token_begins
from policy_rl.types import Response
from tests.policy_rl.byte_tokenizers import byte_level, sentence_piece


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
        # The text is split inside that token.
        assert split(text, "tags").steps == ("<step>a</step>", "<step>b</step>")

    def test_bytes_that_end_one_character_and_begin_the_next(self) -> None:
        tokenizer = byte_level()
        text, ids = "😀😁", tokenizer.encode("😀😁", add_special_tokens=False)

        def decode(groups: Sequence[int]) -> str:
            """Decode tokens of two, three and three bytes; the second one ends the first emoji and starts the
            second.
            """
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


class TestMissingProcessRewards:
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

    def test_unsplittable_responses_are_not_scored(self) -> None:
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


def test_steps_lack_their_markup_or_say_why_there_are_none() -> None:
    def found(text: str, step_format: StepFormat) -> StepSplit:
        return steps_of(Response(text, (), (), "stop"), step_format)

    assert found("<step> a </step>\n<answer>4</answer>", "tags").steps == ("a", "<answer>4</answer>")
    assert found("1. a\n2.\n3. c", "numbered").reason == "empty step"


@pytest.mark.parametrize(
    ("tail", "steps"),
    [
        ("<step>b", ("a", "b")),
        ("<step>", ("a",)),
        ("<", ("a",)),
        ("<st", ("a",)),
        ("<step>b</st", ("a", "b")),
        ("<step>3 < 4", ("a", "3 < 4")),
        ("<answer>", ("a<answer>",)),
        ("<answer>4", ("a", "<answer>4")),
        ("<step>b</step>", ("a", "b")),
        ("<step>b</step>\n", ("a", "b")),
    ],
)
def test_a_truncated_response_ends_with_the_beginning_of_a_step(tail: str, steps: tuple[str, ...]) -> None:
    """All its tokens have a step, and the same text is not split if the policy itself ended it there."""
    tokenizer = byte_level()
    text = f"<step>a</step>{tail}"
    response = replace(sampled(tokenizer, text), finish_reason="length")
    found, step_of_token = StepCutter(tokenizer, "tags", "").cut(response)
    assert found.steps == steps
    assert sorted(set(step_of_token.tolist())) == list(range(len(steps)))
    assert "".join(StepCutter(tokenizer, "tags", "").verbatim(response)) == text
    if tail.startswith(("<step>", "<answer>")) and not tail.rstrip().endswith("</step>"):
        assert not steps_of(replace(response, finish_reason="stop"), "tags").steps


def test_a_truncated_response_can_lack_steps() -> None:
    assert steps_of(Response("<step>", (), (), "length"), "tags").reason == "empty step"
    assert steps_of(Response("a", (), (), "length"), "tags").reason == "no step"
    assert steps_of(Response("<step>a<step>", (), (), "length"), "tags").reason == "nested step"


def test_an_aggregator_is_named_or_refused(tmp_path) -> None:
    (tmp_path / "prm.json").write_text('{"format": "mm-prm", "aggregator": "last"}')
    scorer = {"prm": str(tmp_path)}
    assert build(ProcessConfig, {"scorer": scorer}).aggregate()([0.9, 0.1]) == 0.1
    assert build(ProcessConfig, {"scorer": scorer, "aggregator": "max"}).aggregate()([0.9, 0.1]) == 0.9
    (tmp_path / "prm.json").write_text('{"format": "mm-prm"}')
    with pytest.raises(ConfigError, match=r"aggregator is not set and prm\.json names none"):
        build(ProcessConfig, {"scorer": scorer}).aggregate()
