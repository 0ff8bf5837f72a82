"""Test the limit of images in the prompts of episodes, without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmprm.environments.episode import Action, TurnRequest
from mmprm.environments.interface import Observation
from mmprm.errors import ConfigError
from mmprm.sampling.vllm_turns import VllmTurnSampler
from mmprm.types import ImageRef, Problem


async def test_too_many_images_are_an_error_and_not_an_unknown_episode() -> None:
    """The first observation has no image, so the check before the start cannot see that later ones have two."""
    seen = Observation((ImageRef(data=b"1"), ImageRef(data=b"2")))
    request = TurnRequest(Problem("p", "?", ""), (Observation(("Go.",)), seen, seen), (Action("a"), Action("b")), 0)
    sampler = object.__new__(VllmTurnSampler)
    sampler._images_per_prompt = 3
    sampler.encoder = SimpleNamespace(prompt=lambda *_: SimpleNamespace(images=seen.images * 2))
    with pytest.raises(ConfigError, match=r"images_per_prompt=3 must be at least 4, .* images after 2 turns"):
        await sampler.act(request)
