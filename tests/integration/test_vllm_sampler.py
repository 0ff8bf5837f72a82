"""Test the vLLM sampler with a real engine and the tiny policy."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mmprm.errors import DataError, EngineStoppedError, SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig, on_one_core
from mmprm.sampling.seeds import derive_seed
from mmprm.sampling.vllm_sampler import VllmSampler
from mmprm.tiny.world import make_problems
from mmprm.types import ImageRef, Problem, SampleRequest

pytestmark = pytest.mark.integration

PROBLEMS = [tiny.problem for tiny in make_problems(16, seed=0, split="dev")]
TEXT_ONLY = Problem("text", "Left to right: 1 + 1 = ?", "2")


def ask(problem: Problem, prefix: str = "", n: int = 1, first_sample: int = 0) -> SampleRequest:
    return SampleRequest(problem, prefix, n, derive_seed(0, problem.id, prefix, first_sample))


@pytest.fixture
def greedy(sampler, monkeypatch):
    monkeypatch.setattr(sampler, "_sampling", SamplingConfig(temperature=0, max_tokens=24))
    return sampler


@pytest.mark.parametrize("problem", [TEXT_ONLY, PROBLEMS[0]], ids=["text", "image"])
async def test_a_prefix_is_continued_not_repeated(greedy, problem):
    (whole,) = await greedy.sample(ask(problem))
    tokens = greedy._template_owner.tokenizer.tokenize(whole.text)
    assert len(tokens) > 2
    prefix = "".join(tokens[: len(tokens) // 2])
    (rest,) = await greedy.sample(ask(problem, prefix))
    assert (prefix + rest.text).startswith("".join(tokens[:12]))


async def test_the_image_is_seen(sampler):
    first, second = PROBLEMS[0], next(other for other in PROBLEMS if other.images != PROBLEMS[0].images)
    swapped = Problem(first.id, first.question, first.answer, second.images)
    completions = [await sampler.sample(ask(problem, n=8)) for problem in (first, swapped)]
    assert [generated.text for generated in completions[0]] != [generated.text for generated in completions[1]]


async def test_the_same_seed_gives_the_same_text(sampler):
    once, again = [await sampler.sample(ask(PROBLEMS[0], n=8)) for _ in range(2)]
    other = await sampler.sample(ask(PROBLEMS[0], n=8, first_sample=8))
    assert once == again
    assert {generated.text for generated in once} != {generated.text for generated in other}
    assert len({generated.text for generated in once}) > 1


async def test_many_requests_are_in_flight_at_once(sampler):
    before = sampler.stats()
    requests = [ask(PROBLEMS[i % len(PROBLEMS)], "<step>" * (i % 3), 4, i) for i in range(64)]
    answers = asyncio.gather(*map(sampler.sample, requests))
    running = 0
    while not answers.done():
        await asyncio.sleep(0.002)
        running = max(running, sampler.stats().running)
    completions = [generated for answer in await answers for generated in answer]
    assert running == 128, "the engine computes max_num_seqs at once"
    assert len(completions) == 256
    assert {generated.finish_reason for generated in completions} <= {"stop", "length"}
    assert all(generated.token_count == 96 for generated in completions if generated.finish_reason == "length")
    assert sampler.stats().generated_tokens - before.generated_tokens == sum(
        generated.token_count for generated in completions
    )
    assert (sampler.stats().running, sampler.stats().waiting) == (0, 0)


async def test_shared_prefixes_come_from_the_cache(sampler):
    prefix = "<step>1+1=2</step>" * 8
    await sampler.sample(ask(PROBLEMS[1], prefix))
    before = sampler.stats()
    await sampler.sample(ask(PROBLEMS[1], prefix, n=4))
    cached = sampler.stats().cached_tokens - before.cached_tokens
    assert cached >= 4 * 64
    assert cached % 32 == 0


async def written(sampler, problem: Problem) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Return the text and token ids of half a solution, and the ids of the whole solution."""
    (whole,) = await sampler.sample(ask(problem))
    half = len(whole.tokens.ids) // 2
    return whole.text[: whole.tokens.ends[half - 1]], whole.tokens.ids[:half], whole.tokens.ids


@pytest.mark.parametrize("problem", [TEXT_ONLY, PROBLEMS[0]], ids=["text", "image"])
async def test_prefix_ids_and_prefix_text_give_the_same_prompt(sampler, problem):
    """In the tiny policy, text and ids of an output agree, so both must give the engine the same prompt."""
    prefix, ids, _ = await written(sampler, problem)
    request = ask(problem, prefix, n=8)
    by_text, by_ids = [await sampler.generate(each) for each in (request, replace(request, prefix_ids=ids))]
    assert by_ids.prompt_token_ids == by_text.prompt_token_ids
    assert by_ids.prompt_token_ids[-len(ids) :] == list(ids)
    assert [generated.text for generated in by_ids.outputs] == [generated.text for generated in by_text.outputs]


async def test_continuing_from_ids_hits_the_prefix_cache(sampler):
    (whole,) = await sampler.sample(ask(PROBLEMS[2]))
    ids, prefix = whole.tokens.ids[:-1], whole.text[: whole.tokens.ends[-2]]
    before = sampler.stats()
    output = await sampler.generate(replace(ask(PROBLEMS[2], prefix), prefix_ids=ids))
    length = len(output.prompt_token_ids)
    assert length > 32
    assert sampler.stats().cached_tokens - before.cached_tokens == (length - 1) // 32 * 32


async def test_a_token_that_straddles_the_prefix_is_sampled_again(sampler):
    """If a prefix ends inside `</step>`, samples start with the rest of that tag, and their ids continue the prefix
    ids.
    """
    decode = sampler.template_owner.tokenizer.decode
    text, _, ids = await written(sampler, PROBLEMS[0])
    position = [decode([index]) for index in ids].index("</step>")
    prefix = text[: text.index("</step>")] + "</"
    completions = await sampler.sample(replace(ask(PROBLEMS[0], prefix, n=8), prefix_ids=ids[:position]))
    continued = [
        generated for generated in completions if generated.tokens is not None
    ]  # the others never matched the prefix
    assert continued
    for generated in continued:
        assert decode([*ids[:position], *generated.tokens.ids]) == prefix + generated.text
        assert generated.text.startswith("step>")


async def test_a_request_that_is_too_long_fails_alone(sampler):
    missing = Problem("missing", "?", "1", (ImageRef(path="nowhere.png"),))
    bad = [ask(TEXT_ONLY, "1" * 5000), ask(missing), ask(TEXT_ONLY)]
    long, unreadable, good = await asyncio.gather(*map(sampler.sample, bad), return_exceptions=True)
    assert isinstance(long, SamplingError)
    assert "problem text" in str(long)
    assert "maximum context length is 1024" in str(long)
    assert isinstance(unreadable, DataError)
    assert "nowhere.png" in str(unreadable)
    assert good[0].token_count > 0


async def test_a_closed_engine_answers_everyone(sampler, policy_folder):
    engine = on_one_core(EngineConfig(model=str(policy_folder), mode="in_process", kv_cache_gib=0.1), 0)
    second = VllmSampler(engine, SamplingConfig(max_tokens=900), PromptConfig(preset="plain"))
    in_flight = asyncio.gather(*(second.sample(ask(problem)) for problem in PROBLEMS), return_exceptions=True)
    while not second.stats().running:
        await asyncio.sleep(0.001)
    second.close()
    assert any(isinstance(answer, EngineStoppedError) for answer in await in_flight)
    with pytest.raises(EngineStoppedError, match="closed"):
        await second.sample(ask(PROBLEMS[0]))
    assert await sampler.sample(ask(PROBLEMS[0])), "the other engine in this process keeps running"
