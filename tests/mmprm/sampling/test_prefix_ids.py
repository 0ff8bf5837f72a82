"""Test how a vLLM sampler handles the ids of a prefix, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmprm.prompts import PromptConfig
from mmprm.sampling.config import SamplingConfig
from mmprm.sampling.token_text import TokenText
from mmprm.sampling.turn import TurnBeginning
from mmprm.sampling.vllm_sampler import ATTEMPTS, VllmSampler
from mmprm.selection.paths import Path, Writer
from mmprm.types import Completion, Problem, SampleRequest
from tests.byte_level import qwen_like

PROBLEM = Problem("p", "how many?", "6")
TOKENIZER = qwen_like()
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %} assistant:"


class Engine:
    """Answers request i with texts[i], one per sample, and records prompts and parameters."""

    def __init__(self, texts: list[list[str]]) -> None:
        self.texts, self.prompts, self.params = iter(texts), list[dict[str, Any]](), list[Any]()

    async def answer(self, prompt: dict[str, Any], params: Any) -> Any:
        self.prompts.append(prompt)
        self.params.append(params)
        samples = [
            SimpleNamespace(text=text, token_ids=TOKENIZER.encode(text), finish_reason="stop")
            for text in next(self.texts)
        ]
        return SimpleNamespace(prompt_token_ids=prompt.get("prompt_token_ids"), outputs=samples)


def sampler_of(engine: Engine, preset: str = "plain", prefill: str | None = None) -> VllmSampler:
    sampler = object.__new__(VllmSampler)
    TOKENIZER.chat_template = TEMPLATE
    sampler._template_owner = sampler._tokenizer = TOKENIZER
    sampler._token_text = TokenText(TOKENIZER)
    sampler._sampling, sampler._prompt = SamplingConfig(), PromptConfig(preset=preset, prefill=prefill)
    sampler._turn = TurnBeginning("", sampler._prompt)
    sampler._takes_ids = preset == "plain"

    async def generate(request: SampleRequest) -> Any:
        params = SimpleNamespace(n=request.n, seed=request.seed, stop=request.stop)
        return await engine.answer(sampler._beginning(request), params)

    sampler.generate = generate
    return sampler


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def request(prefix: str, ids: tuple[int, ...] | None, n: int = 1, **settings: Any) -> SampleRequest:
    return SampleRequest(PROBLEM, prefix, n, 5, prefix_ids=ids, **settings)


async def test_ids_follow_the_prompt_as_they_are() -> None:
    engine = Engine([["rest"]])
    prefix = "<step>a</step>\n"
    odd = tuple(TOKENIZER.convert_tokens_to_ids(list("<step>a</step>Ċ")))
    (completion,) = await sampler_of(engine).sample(request(prefix, odd))
    assert engine.prompts == [{"prompt_token_ids": [*ids_of("how many? assistant:"), *odd]}]
    assert completion.text == "rest"
    assert completion.tokens is not None
    assert completion.tokens.ids == ids_of("rest")


async def test_a_token_that_spans_two_steps_is_generated_again() -> None:
    """`><` spans two steps, so the prompt ends before it, and samples that differ there are repeated."""
    engine = Engine([["><step>b", ". And", ">\n<step>c"], ["!"], ["><answer>"]])
    prefix, ids = "<step>a</step>", ids_of("<step>a</step><step>")
    whole = ids[: [TOKENIZER.decode([index]) for index in ids].index("><")]
    first, second, third = await sampler_of(engine).sample(request(prefix, whole, n=3))
    assert [first.text, second.text, third.text] == ["<step>b", "<answer>", "\n<step>c"]
    assert first.tokens is not None
    assert (first.tokens.ids[0], first.tokens.ends[0]) == (ids_of("><")[0], 1)
    assert {tuple(prompt["prompt_token_ids"]) for prompt in engine.prompts} == {
        (*ids_of("how many? assistant:"), *whole)
    }
    seeds = [params.seed for params in engine.params]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


@pytest.mark.parametrize(("greedy", "asked"), [(False, ATTEMPTS + 1), (True, 2)])
async def test_a_policy_that_never_matches_the_prefix_continues_its_text(greedy: bool, asked: int) -> None:
    engine = Engine([*[["no"]] * (asked - 1), ["<step>b"]])
    sampler = sampler_of(engine)
    (completion,) = await sampler.sample(request("<step>a</step>", ids_of("<step>a</step>")[:-1], greedy=greedy))
    generated = (asked - 1) * len(ids_of("no")) + len(ids_of("<step>b"))
    assert completion == Completion("<step>b", generated, "stop", None)
    assert len(engine.prompts) == asked
    assert engine.prompts[-1] == {"prompt": "how many? assistant:<step>a</step>"}
    assert engine.params[-1].seed == 5


async def test_ids_of_another_text_or_in_the_user_turn_are_ignored() -> None:
    for preset, ids in (("plain", ids_of("other")), ("previous_steps", ids_of("<step>a</step>"))):
        engine = Engine([["x"]])
        (completion,) = await sampler_of(engine, preset).sample(request("<step>a</step>", ids))
        assert "prompt" in engine.prompts[0]
        assert completion.tokens is None


@pytest.mark.parametrize(
    ("prefix", "kept", "stop", "sent"),
    [
        ("a</step>", 3, ("</step>",), ("</step>",)),
        ("a.\n\n", 1, ("\n\n",), ()),  # the text that is generated again contains the stop string
        ("a\n\n\n", 1, ("\n\n",), ()),
    ],
)
async def test_a_stop_string_in_the_prefix_ends_nothing(
    prefix: str, kept: int, stop: tuple[str, ...], sent: tuple[str, ...]
) -> None:
    engine = Engine([[prefix[1:] + "b"]])
    ids = ids_of(prefix)[:kept]
    rest = prefix[len(TOKENIZER.decode(ids)) :]
    engine.texts = iter([[rest + "b"]])
    (completion,) = await sampler_of(engine).sample(request(prefix, ids, stop=stop))
    assert (engine.params[0].stop, completion.text) == (sent, "b")


async def test_a_prefill_belongs_to_the_prompt_and_not_to_the_ids() -> None:
    engine = Engine([["<step>a</step>\n<step>b</step>\n"], ["<step>c</step>"]])
    sampler = sampler_of(engine, prefill="So:")
    (root,) = await sampler.sample(SampleRequest(PROBLEM, "", 1, 5))
    assert root.text == "So:<step>a</step>\n<step>b</step>\n"
    assert root.tokens is not None
    prefix = "So:<step>a</step>\n"
    ids = root.tokens.ids[: root.tokens.whole_in(len(prefix))]
    assert ids == ids_of("<step>a</step>\n")
    (completion,) = await sampler.sample(request(prefix, ids))
    assert engine.prompts[1] == {"prompt_token_ids": [*ids_of("how many? assistant:So:"), *ids]}
    assert completion.text == "<step>c</step>"


async def test_guided_search_continues_the_tokens_of_its_path() -> None:
    """The stop string ended the text inside `><`, so the path keeps only the tokens before it."""
    engine = Engine([["<step>a</step>"], ["><step>b</step>"]])
    sampler = sampler_of(engine)
    answer = engine.answer

    async def overhanging(prompt: dict[str, Any], params: Any) -> Any:
        output = await answer(prompt, params)
        output.outputs[0].token_ids = TOKENIZER.encode(output.outputs[0].text + "<step>")
        return output

    engine.answer = overhanging
    writer = Writer(PROBLEM, sampler, "tags", 0)
    (path,) = await writer.steps(Path(), 1)
    (path,) = await writer.steps(path, 1)
    assert path.steps == ("<step>a</step>", "<step>b</step>")
    before = ids_of("<step>a</step><step>b</step><step>")
    positions = [position for position, index in enumerate(before) if TOKENIZER.decode([index]) == "><"]
    sent = engine.prompts[1]["prompt_token_ids"][len(ids_of("how many? assistant:")) :]
    assert tuple(sent) == before[: positions[0]]
    assert path.ids == before[: positions[1]]


async def test_a_given_solution_is_cut_at_tokens_of_the_whole_solution() -> None:
    """`><` is one token of the solution, so the prompt ends before it and the policy generates it again."""
    engine = Engine([["><step>c"]])
    prefix, rest = "<step>a</step>", "<step>b</step>"
    (completion,) = await sampler_of(engine).sample(request(prefix, None, continuation=rest))
    whole = ids_of(prefix + rest)
    before = whole[: [TOKENIZER.decode([index]) for index in whole].index("><")]
    assert engine.prompts == [{"prompt_token_ids": [*ids_of("how many? assistant:"), *before]}]
    assert completion.text == "<step>c"
