"""Test rows of the trainer whose prompts show images, videos and audio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmprm.backbone.load import load_backbone
from mmprm.prompts import PromptConfig
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import PIXELS
from mmprm.types import AudioRef, ImageRef, Problem, VideoRef
from policy_rl.trainer.batch import _features_by_kind, collate_rows
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import EncodedPrompt, PromptEncoder
from policy_rl.types import TrainingSample
from tests.mmprm.data.test_images import PNG
from tests.mmprm.data.test_media import gray_frames, tone

CLIP, OTHER = encode_clip(gray_frames(8, 56, 56), tone(440)), encode_clip(gray_frames(5, 56, 84), tone(900, 1.5))
PROBLEMS = [
    Problem("both", "Which?", "joy", videos=(VideoRef(data=CLIP),), audios=(AudioRef(data=CLIP),)),
    Problem("text", "Which?", "joy"),
    Problem(
        "all",
        "Does <audio> fit <video>?",
        "joy",
        (ImageRef(data=PNG),),
        videos=(VideoRef(data=OTHER, frames=4),),
        audios=(AudioRef(data=OTHER),),
    ),
]


def prompt(ids: list[int]) -> EncodedPrompt:
    return EncodedPrompt(torch.tensor(ids), torch.zeros(3, len(ids)), {"pixels": torch.zeros(1)})


def test_each_token_finds_its_feature_by_kind_then_group() -> None:
    """Features: image of A; two of A's video, one of B's; one of A's audio, two of B's."""
    first, second = prompt([9, 2, 2, 1, 3]), prompt([2, 9, 3, 3])
    found = _features_by_kind([0, 0, 1], [first, first, second], {0: first, 1: second}, (1, 2, 3))
    assert found.tolist() == [1, 2, 0, 4, 1, 2, 0, 4, 3, 5, 6]


@pytest.fixture(scope="module")
def trained(omni_folder: Path) -> tuple[PromptEncoder, Policy]:
    backbone, processor = load_backbone(str(omni_folder), torch.float32)
    encoder = PromptEncoder(
        backbone, processor, PromptConfig(preset="plain"), PIXELS["max_pixels"], PIXELS["min_pixels"]
    )
    return encoder, Policy(backbone).eval()


@pytest.mark.parametrize("stand_in", [False, True])
def test_a_row_has_the_same_log_probabilities_alone_and_beside_others(
    trained: tuple[PromptEncoder, Policy], stand_in: bool
) -> None:
    encoder, policy = trained
    samples: list[Any] = []
    for group, problem in enumerate(PROBLEMS):
        length = len(encoder._encode(problem).ids_P)
        samples += [TrainingSample(problem, group, length, ids) for ids in ([30, 31, 32], [40, 41])]
    with torch.no_grad():
        together_NT = policy(collate_rows([(n,) for n in range(len(samples))], samples, encoder, stand_in)).logprobs_NT
        for n, sample in enumerate(samples):
            (alone_T,) = policy(collate_rows([(n,)], samples, encoder)).logprobs_NT
            torch.testing.assert_close(together_NT[n, : len(sample.token_ids)], alone_T, rtol=0, atol=1e-5)
