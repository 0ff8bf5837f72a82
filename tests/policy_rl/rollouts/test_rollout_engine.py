"""Test the requests of a rollout engine to vLLM and the responses that it builds, with a scripted vLLM."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmprm.errors import TrainingError
from mmprm.types import Problem, SampleRequest
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.types import Group, ResponsePrefix

PROBLEM = Problem("p", "how many?", "1")
PROMPT = [7, 7, 7]
PREFIX = ResponsePrefix(np.array([97, 98], dtype=np.int32), np.array([-0.5, -0.25], dtype=np.float32))


class ScriptedSampler:
    """Answers "c" and "de" after the prompt and the requested prefix, or after other tokens."""

    def __init__(self, changed: bool = False) -> None:
        self.requests: list[tuple[SampleRequest, dict[str, Any]]] = []
        self._changed = changed

    async def generate(self, request: SampleRequest, **settings: Any) -> SimpleNamespace:
        self.requests.append((request, settings))
        given = [1, 2] if self._changed else list(request.prefix_ids or ())
        outputs = [_output([99], [-1.0]), _output([100, 101], [-2.0, -3.0])]
        return SimpleNamespace(prompt_token_ids=[*PROMPT, *given], outputs=outputs)


def _output(ids: list[int], logprobs: list[float]) -> SimpleNamespace:
    return SimpleNamespace(token_ids=ids, logprobs=SimpleNamespace(logprobs=logprobs), finish_reason="stop")


def sample(sampler: ScriptedSampler, **settings: Any) -> Group:
    engine = RolloutEngine()
    engine._sampler, engine._banned = sampler, ()
    engine._tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    return asyncio.run(engine.sample(PROBLEM, 2, 5, 3, **settings))


def test_responses_without_a_prefix() -> None:
    sampler = ScriptedSampler()
    group = sample(sampler)
    assert [each.text for each in group.responses] == ["c", "de"]
    assert (group.prompt_tokens, group.version) == (3, 3)
    assert sampler.requests[0][0].prefix_ids is None


def test_a_prefix_is_sent_as_token_ids_and_is_part_of_the_responses() -> None:
    sampler = ScriptedSampler()
    group = sample(sampler, prefix=PREFIX, max_tokens=9)
    request, settings = sampler.requests[0]
    assert (request.prefix_ids, settings["max_tokens"]) == ((97, 98), 9)
    assert group.prompt_tokens == 3
    assert [each.text for each in group.responses] == ["abc", "abde"]
    assert group.responses[1].token_ids.tolist() == [97, 98, 100, 101]
    assert group.responses[1].logprobs.tolist() == [-0.5, -0.25, -2.0, -3.0]


def test_a_prefix_that_vllm_changes_ends_the_run() -> None:
    with pytest.raises(TrainingError, match=r"problem p: vLLM changed .* leave rollouts\.branching out"):
        sample(ScriptedSampler(changed=True), prefix=PREFIX)
