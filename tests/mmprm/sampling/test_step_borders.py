"""Test step borders that fall inside tokens: a state is continued from tokens that the policy generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mcts.roll import Roller
from mmprm.sampling.token_text import TokenText
from mmprm.steps import split
from mmprm.tiny.tokenizer import build_tokenizer
from mmprm.trees.serialization import pack_batch, unpack_batch
from mmprm.types import Batch, Completion, Grading, Problem, SampleRequest, Steps, Tokens, Verdict
from tests.byte_level import END, TEXTS, qwen_like

PROBLEM = Problem("p", "how many?", "6")
QWEN_LIKE = qwen_like()
TINY = build_tokenizer()


class Wrong:
    async def grade(self, problem: Problem, response: str) -> Grading:
        return Grading(Verdict.INCORRECT, None, "exact")


class Writes:
    """Stands in for a policy that always completes the same text in its own tokens, and records its requests."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._text, self._token_text = text, TokenText(tokenizer)
        self.ids = tuple(tokenizer.encode(text + END, add_special_tokens=False))
        self.asked: list[SampleRequest] = []

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.asked.append(request)
        before = request.prefix_ids or ()
        missing = self._token_text.missing(before, request.prefix)
        assert missing is not None
        text = missing + self._text[len(request.prefix) :]
        tokens = self._token_text.tokens(self.ids[len(before) :], text, len(missing))
        return (Completion(self._text[len(request.prefix) :], 1, "stop", tokens),) * request.n


async def rolled(sampler: Any, step_format: Any, states: Sequence[Steps], stored: Sequence[Batch] = ()) -> list[Batch]:
    emitted: list[Batch] = []
    roll = Roller(PROBLEM, sampler, Wrong(), step_format, 0, stored, emitted.append)
    for steps in states:
        await roll(steps, 2)
    return emitted


def states_of(text: str, step_format: Any) -> list[Steps]:
    steps = split(text, step_format).steps
    return [steps[:length] for length in range(len(steps))]


@pytest.mark.parametrize("tokenizer", [QWEN_LIKE, TINY], ids=["byte-level", "tiny"])
@pytest.mark.parametrize("name", TEXTS)
async def test_no_prefix_ends_inside_a_token(tokenizer: Any, name: str) -> None:
    """The ids of a state are a prefix of the policy's own ids, and its next token completes the missing text."""
    step_format, text = TEXTS[name]
    policy = Writes(tokenizer, text.replace("answer is \\boxed{6}", "answer is 6"))
    states = states_of(policy._text, step_format)
    await rolled(policy, step_format, states)
    assert len(policy.asked) == len(states) > 1
    for request in policy.asked[1:]:
        assert request.prefix_ids is not None
        count = len(request.prefix_ids)
        assert request.prefix_ids == policy.ids[:count]
        written, longer = (tokenizer.decode(policy.ids[:end]) for end in (count, count + 1))
        assert request.prefix.startswith(written)
        assert len(longer) > len(request.prefix), "only whole tokens"
        assert longer.startswith(request.prefix)


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "tags, one after the other"])
def test_with_line_breaks_the_text_of_a_prefix_gives_the_same_tokens(name: str) -> None:
    """Servers continue from text; only without line breaks is the token `><` split."""
    step_format, text = TEXTS[name]
    whole = QWEN_LIKE.encode(text, add_special_tokens=False)
    for steps in states_of(text, step_format):
        ids = QWEN_LIKE.encode("".join(steps), add_special_tokens=False)
        assert whole[: len(ids)] == ids


async def test_by_hand() -> None:
    policy = Writes(QWEN_LIKE, TEXTS["tags, one after the other"][1])
    root, first, second = await rolled(policy, "tags", states_of(policy._text, "tags"))
    pieces = [tuple(QWEN_LIKE.decode([index]) for index in step) for step in root.rollouts[0].step_ids]
    assert pieces == [
        ("<step", ">", "2", "×", "3", "=", "6", ".</", "step"),
        ("><", "step", ">So", " it", " is", " ", "6", ".</", "step"),
    ]
    # From the first state, the policy generates >< again: this token belongs to the next step.
    assert first.rollouts[0].step_ids == root.rollouts[0].step_ids[1:]
    assert second.rollouts[0].step_ids == (), "a last step is never continued"
    assert policy.asked[2].prefix_ids == sum(root.rollouts[0].step_ids, ())


async def test_the_first_tokens_of_a_prefix_are_kept() -> None:
    """Two tokenizations of the same steps are one state, which continues from the first one, even after a restart."""
    text = TEXTS["tags, line by line"][1]
    states = states_of(text, "tags")

    class Otherwise(Writes):
        """Returns the second sample as the same text with one token per byte."""

        async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
            first, second = await super().sample(request)
            ids = [QWEN_LIKE.convert_tokens_to_ids(c) for piece in QWEN_LIKE.tokenize(second.text) for c in piece]
            tokens = self._token_text.tokens(ids, second.text)
            assert tokens is not None
            return first, Completion(second.text, 1, "stop", tokens)

    policy = Otherwise(QWEN_LIKE, text)
    log = await rolled(policy, "tags", states)
    assert log[0].rollouts[0].steps == log[0].rollouts[1].steps
    assert log[0].rollouts[0].step_ids != log[0].rollouts[1].step_ids
    for kept in range(len(log) + 1):
        stored = [unpack_batch("p", batch.first_sample, pack_batch(batch).rollouts) for batch in log[:kept]]
        again = Otherwise(QWEN_LIKE, text)
        assert await rolled(again, "tags", states, stored) == log[kept:]
        assert again.asked == policy.asked[kept:]


async def test_a_store_without_ids_continues_by_text() -> None:
    text = TEXTS["tags, line by line"][1]
    states = states_of(text, "tags")
    sampler = Writes(QWEN_LIKE, text)
    old = await rolled(sampler, "tags", states[:1])
    root = old[0].rollouts[0]
    plain = type(root)(root.steps, root.verdict, root.token_count, root.text, root.unsplit, root.reason)
    again = Writes(QWEN_LIKE, text)
    new = await rolled(again, "tags", states, [Batch("p", (), 0, (plain, plain))])
    assert [request.prefix_ids for request in again.asked] == [None, None]
    assert [batch.steps for batch in new] == states[1:]


def test_tokens_of_a_text() -> None:
    token_text = TokenText(QWEN_LIKE)

    def ids(text: str) -> list[int]:
        return QWEN_LIKE.encode(text, add_special_tokens=False)

    # € is three tokens of one byte, and no prefix may end inside it.
    assert token_text.tokens(ids("a€b"), "a€b") == Tokens(tuple(ids("a€b")), (1, 2, 2, 2, 3))
    assert token_text.tokens(ids("a€")[:-1], "a") == Tokens(tuple(ids("a€")[:-1]), (1, 2, 2))
    # A stop string ended the text inside a token; the end-of-turn token has no text.
    assert token_text.tokens([*ids("x</step>\n"), QWEN_LIKE.eos_token_id], "x</step>") == Tokens(
        tuple(ids("x</step>\n")), (1, 3, 7, 9)
    )
    assert token_text.tokens([*ids("a"), QWEN_LIKE.eos_token_id, *ids("b")], "ab") is None, "contains a special token"
    assert token_text.tokens(ids("ab"), "ac") is None
    assert token_text.missing(ids("</step>\n")[:2], "</step>") == ">"
    assert token_text.missing(ids("other"), "</step>") is None


def test_every_token_has_the_bytes_that_it_decodes_to() -> None:
    for tokenizer in (QWEN_LIKE, TINY):
        token_text = TokenText(tokenizer)
        for index in range(len(tokenizer)):
            decoded = tokenizer.decode([index], skip_special_tokens=True)
            assert token_text._bytes(index).decode(errors="replace") == decoded
