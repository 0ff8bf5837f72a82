"""Test that vLLM and the trainer agree on text after images, audio and videos, with a tiny random Qwen2.5-Omni."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmprm.backbone.load import load_backbone
from mmprm.errors import SamplingError
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import MEDIA_TOKENS, PIXELS
from mmprm.types import AudioRef, ImageRef, Problem, VideoRef
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.trainer.batch import collate_rows
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.types import TrainingSample
from policy_rl.weights.probe import probe_logprobs
from policy_rl.weights.transfer import FileTransfer, ModelWeights
from tests.mmprm.data.test_images import PNG
from tests.mmprm.data.test_media import gray_frames, tone

pytestmark = pytest.mark.integration

PLAIN = PromptConfig(preset="plain")
CLIP, OTHER = encode_clip(gray_frames(16, 56, 56), tone(440)), encode_clip(gray_frames(9, 84, 28), tone(900, 2.0))
MEDIA: dict[str, dict[str, Any]] = {
    "image": {"images": (ImageRef(data=PNG),)},
    "audio": {"audios": (AudioRef(data=CLIP),)},
    "video": {"videos": (VideoRef(data=CLIP),)},
    "video, then its audio": {"videos": (VideoRef(data=CLIP),), "audios": (AudioRef(data=CLIP),)},
    "audio before the video": {
        "question": "Does <audio> fit <video>?",
        "videos": (VideoRef(data=OTHER, frames=5),),
        "audios": (AudioRef(data=OTHER),),
    },
    "image and two of each": {
        "images": (ImageRef(data=PNG),),
        "videos": (VideoRef(data=CLIP, frames=4), VideoRef(data=OTHER)),
        "audios": (AudioRef(data=OTHER), AudioRef(data=CLIP)),
    },
}
PROBLEMS = [
    Problem(
        f"p{number}",
        media.get("question", "Which emotion?"),
        "joy",
        media.get("images", ()),
        **{name: media.get(name, ()) for name in ("videos", "audios")},
    )
    for number, media in enumerate(MEDIA.values())
]


@pytest.fixture(scope="module")
def engine(omni_folder: Path) -> Iterator[tuple[RolloutEngine, tuple[int, ...], tuple[int, ...]]]:
    """Start a float32 engine in this process; return it with its probe and the tokens that it must not sample."""
    limits = {"images_per_prompt": 1, "videos_per_prompt": 2, "audios_per_prompt": 2, **PIXELS}
    memory = {"max_num_seqs": 16, "kv_cache_gib": 0.25, "max_model_len": 512}
    config = EngineConfig(model=str(omni_folder), dtype="float32", **memory, **limits)
    started = RolloutEngine()
    probe, banned = asyncio.run(started.start(config, SamplingConfig(max_tokens=12), PLAIN, {}))
    yield started, probe, banned
    started._sampler.close()


async def largest_differences(engine: Any, backbone: Any, processor: Any, version: int) -> dict[str, float]:
    """Sample two responses per problem; return the largest difference of log-probabilities by kind of media."""
    started, _, banned = engine
    samples = []
    for number, problem in enumerate(PROBLEMS):
        group = await started.sample(problem, 2, seed=version, version=version)
        for response in group.responses:
            assert not set(response.token_ids.tolist()) & set(banned)
            samples.append(
                TrainingSample(problem, number, group.prompt_tokens, response.token_ids, np.array(response.logprobs))
            )
    encoder = PromptEncoder(backbone, processor, PLAIN, PIXELS["max_pixels"], PIXELS["min_pixels"])
    inputs = collate_rows([(index,) for index in range(len(samples))], samples, encoder)
    with torch.no_grad():
        found_NT = Policy(backbone, banned=banned).eval()(inputs).logprobs_NT.numpy()
    differences: dict[str, float] = dict.fromkeys(MEDIA, 0.0)
    for sample, found_T in zip(samples, found_NT, strict=True):
        name = list(MEDIA)[sample.group]
        difference = np.abs(found_T[: len(sample.token_ids)] - sample.engine).max()
        differences[name] = max(differences[name], float(difference))
    return differences


async def test_the_engine_and_the_trainer_agree_after_every_kind_of_media(engine: Any, omni_folder: Path) -> None:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    assert set(engine[2]) == set(processor.tokenizer.convert_tokens_to_ids(list(MEDIA_TOKENS.values())))
    differences = await largest_differences(engine, backbone, processor, 0)
    print(differences)
    assert max(differences.values()) <= 1e-5


async def test_new_weights_of_all_parts_reach_the_engine(engine: Any, omni_folder: Path, tmp_path: Path) -> None:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)
    stale = await largest_differences(engine, backbone, processor, 1)
    assert min(stale.values()) > 1e-3
    probe = probe_logprobs(backbone, engine[1])
    published = FileTransfer(tmp_path).publish(ModelWeights(backbone, torch.float32), 2, probe)
    assert published is not None
    answer = await engine[0].load(published)
    assert answer == pytest.approx(probe, abs=1e-4)
    assert max((await largest_differences(engine, backbone, processor, 2)).values()) <= 1e-5


async def test_more_media_than_the_engine_allows_are_an_error(engine: Any) -> None:
    problem = Problem("p", "Which?", "joy", videos=(VideoRef(data=CLIP),) * 3)
    with pytest.raises(SamplingError, match=r"problem p: .*2 video"):
        await engine[0].sample(problem, 1, seed=1, version=0)
