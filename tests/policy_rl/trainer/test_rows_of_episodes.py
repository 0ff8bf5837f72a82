"""Test the rows of episodes in the trainer: splitting, joining, plans, and the encoding of images in observations."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corridor import played_response
from one_rank import PLAIN
from PIL import Image

from mmprm.backbone.load import load_backbone
from mmprm.errors import DataError
from mmprm.types import ImageRef, Problem
from policy_rl.trainer.batch import Limits, collate_rows, plan
from policy_rl.trainer.policy import Policy
from policy_rl.trainer.prompt_encoder import PromptEncoder
from policy_rl.trainer.rows import join_rows, split_rows
from policy_rl.types import TokenRow, TrainingSample, as_sample

PROBLEM = Problem("p", "Go.", "")
TURNS = TrainingSample(
    PROBLEM,
    0,
    2,
    [1, 2, 3],
    engine=np.array([-1.0, -2.0, -3.0]),
    mask=np.ones(3, dtype=bool),
    rows=(TokenRow([9, 9], 2), TokenRow([9, 9, 8], 3)),
)
WHOLE = as_sample(PROBLEM, 1, 0, played_response(("a", "b"), (0.0, 1.0), 1.0).response)


def test_turns_are_split_and_joined() -> None:
    first, second = split_rows([TURNS])
    assert (first.token_ids.tolist(), first.prompt_tokens, first.rows) == ([1, 2], 2, (TokenRow([9, 9], 2),))
    assert (second.token_ids.tolist(), second.prompt_tokens, second.rows) == ([3], 3, (TokenRow([9, 9, 8], 1),))
    assert second.engine.tolist() == [-3]
    parts = [replace(each, old=each.engine + 0.5) for each in (first, second)]
    (joined, whole) = join_rows([TURNS, WHOLE], [*parts, WHOLE])
    assert joined.old.tolist() == [-0.5, -1.5, -2.5]
    assert (joined.rows, joined.ref, whole) == (TURNS.rows, None, WHOLE)


def test_rows_of_episodes_share_no_prompt() -> None:
    samples = [*split_rows([TURNS]), WHOLE, replace(WHOLE, rows=WHOLE.rows)]
    assert plan(samples, 100, 1, share_prompt=True).rows == ((0,), (1,), (2,), (3,))


def test_observations_may_hold_image_tokens_but_actions_may_not() -> None:
    limits = Limits(100, frozenset({WHOLE.token_ids[2]}))
    limits.check(WHOLE)  # token 2 belongs to an observation
    with pytest.raises(DataError, match="represents an image"):
        Limits(100, frozenset({WHOLE.token_ids[0]})).check(WHOLE)


def image(seed: int, width: int, height: int) -> ImageRef:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return ImageRef(data=file.getvalue())


IMAGES = (image(0, 84, 56), image(1, 56, 56))
"""Images of 6 and 4 tokens."""


@pytest.fixture(scope="module")
def encoder(random_policy_folder: Path) -> PromptEncoder:
    return PromptEncoder(*load_backbone(str(random_policy_folder), torch.float32), PLAIN)


def episode(encoder: PromptEncoder) -> TrainingSample:
    """Return an episode with an image in its prompt, and one in the observation between two actions of two tokens."""
    pad = encoder._image_id
    ids = [11, 12, 13, *[pad] * 4, 14, 15, 16]
    mask = np.array([True, True, *[False] * 6, True, True])
    rows = (TokenRow([20, *[pad] * 6, 21], len(ids), IMAGES),)
    return TrainingSample(PROBLEM, 0, 8, ids, mask=mask, rows=rows)


def test_positions_continue_after_the_images_of_observations(encoder: PromptEncoder) -> None:
    """An image of 2 × 3 cells takes three positions, and one of 2 × 2 cells two."""
    inputs = collate_rows([(0,)], [episode(encoder)], encoder)
    assert inputs.position_ids[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7, 8, 8, 8, 8, 10, 11, 12],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7, 8, 8, 9, 9, 10, 11, 12],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 9, 10, 11, 12],
    ]
    assert inputs.images["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]]
    assert inputs.response_NT.tolist() == [episode(encoder).mask.tolist()]


def test_images_of_another_size_are_an_error(encoder: PromptEncoder) -> None:
    sample = episode(encoder)
    wrong = replace(sample, rows=(replace(sample.rows[0], images=IMAGES[::-1][:1]),))
    with pytest.raises(DataError, match="problem p: the images of an episode are 4 tokens for the trainer, 10 for the"):
        collate_rows([(0,)], [wrong], encoder)


def test_log_probabilities_of_an_episode_equal_those_of_its_turns(random_policy_folder: Path, one_thread: None) -> None:
    """The second action is read after the same tokens, whether they are its prompt or part of the episode."""
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    policy, encoder = Policy(backbone.eval()), PromptEncoder(backbone, processor, PLAIN)
    whole = episode(encoder)
    head, tail = whole.rows[0].prompt_ids, whole.token_ids
    rows = (TokenRow(head, 2, IMAGES[:1]), TokenRow([*head, *tail[:8]], 4, IMAGES))
    turns = replace(whole, token_ids=tail[whole.mask], mask=np.ones(4, dtype=bool), rows=rows)
    with torch.inference_mode():
        together = policy(collate_rows([(0,)], [whole], encoder)).logprobs_NT
        apart = policy(collate_rows([(0,), (1,)], split_rows([turns]), encoder)).logprobs_NT
    torch.testing.assert_close(together[0][torch.from_numpy(whole.mask)], apart.flatten(), rtol=0, atol=1e-5)
    assert apart.std() > 1e-3


def test_episodes_of_a_group_keep_their_own_images(encoder: PromptEncoder) -> None:
    sample = episode(encoder)
    other = replace(sample, rows=(replace(sample.rows[0], images=(image(2, 84, 56), IMAGES[1])),))
    inputs = collate_rows([(0,), (1,)], [sample, other], encoder)
    assert inputs.feature_F is None, "each feature is used once"
    pixels = [encoder.row(each).images["pixel_values"] for each in (sample, other)]
    assert torch.equal(inputs.images["pixel_values"], torch.cat(pixels))
    assert not torch.equal(*pixels)


def test_an_image_of_several_episodes_is_encoded_once(
    random_policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two episodes share an image, so the processor reads three images, and the frozen tower runs on three."""
    backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
    encoder, read = PromptEncoder(backbone, processor, PLAIN), []
    inputs = encoder._inputs
    monkeypatch.setattr(
        encoder, "_inputs", lambda problem, text, media: read.append(media) or inputs(problem, text, media)
    )
    sample = episode(encoder)
    other = replace(sample, rows=(replace(sample.rows[0], images=(image(2, 84, 56), IMAGES[1])),))
    micro = collate_rows([(0,), (1,)], [sample, other], encoder)
    assert read == [IMAGES[:1], IMAGES[1:], (image(2, 84, 56),)]
    assert [each.features for each in micro.image_sets] == [6, 4, 6, 4]
    assert len({each.key for each in micro.image_sets}) == 3
