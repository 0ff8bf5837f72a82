"""Test that vLLM and the trainer agree on text after images, audio and videos, with a tiny random Qwen2.5-Omni."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.omni_mismatch import OmniEngine, largest_differences, media_problems
from mmprm.backbone.load import load_backbone
from mmprm.errors import SamplingError
from mmprm.tiny.omni_model import MEDIA_TOKENS
from policy_rl.weights.probe import probe_logprobs
from policy_rl.weights.transfer import FileTransfer, ModelWeights

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def engine(omni_folder: Path) -> Iterator[OmniEngine]:
    started = OmniEngine(omni_folder)
    yield started
    started.close()


async def test_the_engine_and_the_trainer_agree_after_every_kind_of_media(
    engine: OmniEngine, omni_folder: Path
) -> None:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    assert set(engine.banned) == set(processor.tokenizer.convert_tokens_to_ids(list(MEDIA_TOKENS.values())))
    differences = await largest_differences(engine, backbone, processor, 0)
    print(differences)
    assert max(differences.values()) <= 1e-5


async def test_new_weights_of_all_parts_reach_the_engine(engine: OmniEngine, omni_folder: Path, tmp_path: Path) -> None:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)
    stale = await largest_differences(engine, backbone, processor, 1)
    assert min(stale.values()) > 1e-3
    probe = probe_logprobs(backbone, engine.probe)
    published = FileTransfer(tmp_path).publish(ModelWeights(backbone, torch.float32), 2, probe)
    assert published is not None
    answer = await engine.engine.load(published)
    assert answer == pytest.approx(probe, abs=1e-4)
    assert max((await largest_differences(engine, backbone, processor, 2)).values()) <= 1e-5


async def test_more_media_than_the_engine_allows_are_an_error(engine: OmniEngine) -> None:
    video = media_problems()["video"]
    problem = replace(video, id="p", videos=video.videos * 3)
    with pytest.raises(SamplingError, match=r"problem p: .*2 video"):
        await engine.engine.sample(problem, 1, seed=1, version=0)
