"""Measure how much the log-probabilities of engine and trainer differ over episodes of several turns with images.

The environment shows random images of different sizes, and the policy has random weights that are larger than usual, so
that its log-probabilities depend on the images. `image_effect` shows by how much: it is the largest change in an
episode when its images are rotated. Both sides compute in float32.
"""

from __future__ import annotations

import asyncio
import io
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from mmprm.backbone.load import load_backbone
from mmprm.backbone.processor import tokenizer_of, vision_token_ids
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.model import build_model
from mmprm.tiny.tokenizer import build_processor
from mmprm.types import ImageRef, Problem
from policy_rl.rollouts.engine import ARGUMENTS
from policy_rl.rollouts.episodes import EpisodeConfig, EpisodePlayer, EpisodeSampler
from policy_rl.trainer.batch import collate_rows
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.types import Response, TrainingSample, as_sample

PLAIN = PromptConfig(preset="plain")
SCALE = 3.0
"""Factor by which the initial weights are larger than usual."""


class RandomFrames:
    """Shows a random image after each turn, which depends on the texts so far. Episodes never end by themselves."""

    def reset(self, problem: Problem, seed: int) -> Observation:
        self._history = f"{problem.id}/{seed}"
        return self._look()

    def step(self, text: str) -> Transition:
        self._history += f"/{text}"
        return Transition(self._look(), 0.0, False)

    def close(self) -> None: ...

    def _look(self) -> Observation:
        rng = random.Random(self._history)
        return Observation(("Look: ", ImageRef(data=_random_png(rng)), "\n"))


def _random_png(rng: random.Random) -> bytes:
    width, height = 28 * rng.randint(2, 5), 28 * rng.randint(2, 5)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(file, format="PNG")
    return file.getvalue()


def write_policy(folder: Path) -> Path:
    """Write a tiny policy with large random weights."""
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SCALE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def measure_mismatch(folder: Path, episodes: int = 16, turns: int = 8) -> dict[str, float]:
    """Play episodes with the policy in `folder`, and compare all their log-probabilities.

    `max` and `mean` are differences in nats per token.
    """
    backbone, processor = load_backbone(str(folder), torch.float32)
    banned = vision_token_ids(backbone.config, tokenizer_of(processor))
    responses = _played(folder, banned, episodes, turns)
    encoder, policy = PromptEncoder(backbone.eval(), processor, PLAIN), Policy(backbone, banned=banned)
    differences, effects = [], []
    for number, response in enumerate(responses):
        sample = as_sample(Problem("frames", "", ""), number, 0, response)
        own = sample.counted
        here = _logprobs(policy, encoder, sample)[own]
        differences.append(np.abs(here - response.logprobs[own]))
        effects.append(np.abs(_logprobs(policy, encoder, _rotated(sample))[own] - here).max())
    found = np.concatenate(differences)
    return {
        "max": float(found.max()),
        "mean": float(found.mean()),
        "tokens": len(found),
        "images": fmean(len(response.played.rows[0].images) for response in responses),
        "image_effect": float(min(effects)),
    }


def _played(folder: Path, banned: tuple[int, ...], episodes: int, turns: int) -> tuple[Response, ...]:
    path = f"{__name__}:RandomFrames"
    environment = EnvironmentConfig(path=path, max_turns=turns, max_turn_tokens=12)
    engine = EngineConfig(
        model=str(folder), dtype="float32", kv_cache_gib=0.2, max_num_seqs=32, images_per_prompt=turns
    )
    further = {name: value for name, value in ARGUMENTS.items() if name == "logprobs_mode"}
    sampler = EpisodeSampler(engine, SamplingConfig(), PLAIN, environment, further)
    sampler.banned = banned
    player = EpisodePlayer(sampler, EpisodeConfig(environment, 0))
    try:
        return asyncio.run(player.group(Problem("frames", "", ""), episodes, 0, 0)).responses
    finally:
        player.close()
        sampler.close()


@torch.inference_mode()
def _logprobs(policy: Policy, encoder: PromptEncoder, sample: TrainingSample) -> np.ndarray:
    return policy(collate_rows([(0,)], [sample], encoder)).logprobs_NT[0].numpy()


def _rotated(sample: TrainingSample) -> TrainingSample:
    """Rotate each image by 180 degrees, which leaves its size as it is."""

    def turned(image: ImageRef) -> ImageRef:
        file = io.BytesIO()
        Image.open(io.BytesIO(image.data)).rotate(180).save(file, format="PNG")
        return ImageRef(data=file.getvalue())

    (row,) = sample.rows
    return replace(sample, rows=(replace(row, images=tuple(map(turned, row.images))),))
