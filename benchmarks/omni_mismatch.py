"""Measure how much the log-probabilities of engine and trainer differ after images, audio and videos.

The policy is a tiny Qwen2.5-Omni with random weights that are larger than usual, so that its log-probabilities depend
on the media. Both sides compute in float32.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.load import load_backbone
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import PIXELS, build_omni_model, build_omni_processor
from mmprm.tiny.omni_world import draw_frames, play_tone
from mmprm.types import AudioRef, ImageRef, Problem, VideoRef
from policy_rl.rollouts.engine import RolloutEngine
from policy_rl.trainer.batch import collate_rows
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.types import TrainingSample

PLAIN = PromptConfig(preset="plain")
SCALE = 2.0
"""Factor by which the initial weights are larger than usual."""
RESPONSES, TOKENS = 2, 12


def write_policy(folder: Path) -> Path:
    """Write a tiny Omni policy with large random weights."""
    processor = build_omni_processor()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_omni_model(processor.tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(SCALE)
    save_backbone(model, folder)
    processor.save_pretrained(folder)
    return folder


def media_problems() -> dict[str, Problem]:
    """Return problems with different media by name: one or several items, in different orders and sizes."""
    frames = draw_frames("up", 10, 0)
    png = io.BytesIO()
    Image.fromarray(frames[0]).save(png, "PNG")
    image = ImageRef(data=png.getvalue())
    clip = encode_clip(np.concatenate([frames, frames[::-1]] * 2), play_tone(440, 0))
    other = encode_clip(np.repeat(frames[:, :28], 2, axis=0)[:, :, ::-1], np.tile(play_tone(900, 1), 4))
    video, audio = VideoRef(data=clip), AudioRef(data=clip)
    asked = "Which emotion?"
    return {
        "image": Problem("image", asked, "joy", (image,)),
        "audio": Problem("audio", asked, "joy", audios=(audio,)),
        "video": Problem("video", asked, "joy", videos=(video,)),
        "video, then its audio": Problem("both", asked, "joy", videos=(video,), audios=(audio,)),
        "audio before the video": Problem(
            "reversed",
            "Does <audio> fit <video>?",
            "joy",
            videos=(VideoRef(data=other, frames=5),),
            audios=(AudioRef(data=other),),
        ),
        "image and two of each": Problem(
            "all",
            asked,
            "joy",
            (image,),
            videos=(VideoRef(data=clip, frames=4), VideoRef(data=other)),
            audios=(AudioRef(data=other), audio),
        ),
    }


class OmniEngine:
    """Runs a float32 engine in this process, which accepts the media of media_problems().

    `probe` are the tokens with which weight transfers are checked, and `banned` those that are not sampled.
    """

    def __init__(self, folder: Path) -> None:
        limits = {"images_per_prompt": 1, "videos_per_prompt": 2, "audios_per_prompt": 2, **PIXELS}
        memory = {"max_num_seqs": 16, "kv_cache_gib": 0.25, "max_model_len": 512}
        config = EngineConfig(model=str(folder), dtype="float32", **memory, **limits)
        self.engine = RolloutEngine()
        self.probe, self.banned = asyncio.run(self.engine.start(config, SamplingConfig(max_tokens=TOKENS), PLAIN, {}))

    def close(self) -> None:
        """Shut down the engine."""
        self.engine._sampler.close()


async def largest_differences(engine: OmniEngine, backbone: Any, processor: Any, version: int) -> dict[str, float]:
    """Sample responses to all problems with weights of `version`, and return the largest difference between the
    log-probabilities of engine and trainer by problem."""
    problems, samples = media_problems(), []
    for number, problem in enumerate(problems.values()):
        group = await engine.engine.sample(problem, RESPONSES, seed=version, version=version)
        for response in group.responses:
            assert not set(response.token_ids.tolist()) & set(engine.banned)
            samples.append(
                TrainingSample(problem, number, group.prompt_tokens, response.token_ids, np.array(response.logprobs))
            )
    encoder = PromptEncoder(backbone, processor, PLAIN, PIXELS["max_pixels"], PIXELS["min_pixels"])
    inputs = collate_rows([(index,) for index in range(len(samples))], samples, encoder)
    with torch.no_grad():
        found_NT = Policy(backbone, banned=engine.banned).eval()(inputs).logprobs_NT.numpy()
    differences = dict.fromkeys(problems, 0.0)
    for sample, found_T in zip(samples, found_NT, strict=True):
        name = list(problems)[sample.group]
        difference = np.abs(found_T[: len(sample.token_ids)] - sample.engine).max()
        differences[name] = max(differences[name], float(difference))
    return differences


def measure_mismatch(folder: Path) -> dict[str, float]:
    """Return the largest difference by problem for the policy in `folder`."""
    backbone, processor = load_backbone(str(folder), torch.float32)
    engine = OmniEngine(folder)
    try:
        return asyncio.run(largest_differences(engine, backbone, processor, 0))
    finally:
        engine.close()
