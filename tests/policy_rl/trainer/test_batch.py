"""Test the layout of rows and micro-batches by hand, and samples that must not be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmprm.backbone.image_features import ImageSet
from mmprm.backbone.load import load_backbone
from mmprm.errors import DataError, TrainingError
from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from mmprm.types import ImageRef, Problem
from policy_rl.trainer import prompt_encoder
from policy_rl.trainer.batch import Limits, cheapest_rows, check_finite, collate_rows, padded, plan
from policy_rl.trainer.prompt_encoder import EncodedPrompt, PromptEncoder
from policy_rl.types import TrainingSample

PLAIN = PromptConfig(preset="plain")


class Numbers:
    """Encodes prompts of numbers without a tokenizer; prompts with images have two image tokens."""

    axes, padding = 1, 0
    media_ids, reads_clips = (0,), False
    stand_in = {"pixels": torch.zeros(1, 2)}  # noqa: RUF012 - as the encoder's

    def __call__(self, problem: Problem, expected_tokens: int) -> EncodedPrompt:
        ids_P = torch.tensor([int(word) for word in problem.question.split()])
        images = {"pixels": torch.full((4, 2), float(ids_P[0]))} if problem.images else {}
        sets = (ImageSet(problem.question, 2, {"pixels": 4}),) if images else ()
        return EncodedPrompt(ids_P, torch.arange(len(ids_P))[None], images, sets)


def respond(question: str, group: int, *token_ids: int, with_image: bool = False, **arrays: Any) -> TrainingSample:
    problem = Problem(f"p{group}", question, "", (ImageRef(data=b"x"),) if with_image else ())
    return TrainingSample(problem, group, len(question.split()), token_ids, **arrays)


THREE = [respond("3 4 5", 0, 6, 7), respond("3 4 5", 0, 8), respond("9 10", 1, 11, 12, 13)]


def test_a_row_with_two_responses() -> None:
    """Responses 6 7 and 8 to prompt 3 4 5 attend to the prompt and themselves, and both continue from position 3."""
    inputs = collate_rows([(0, 1), (2,)], THREE, Numbers())
    assert inputs.input_ids_BL.tolist() == [[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 0]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 0]]
    assert inputs.end_BL.tolist() == [[5, 5, 5, 4, 4, 5], [4, 4, 4, 4, 4, 5]]
    assert inputs.present_BL.tolist() == [[True] * 6, [True] * 5 + [False]]
    # The first token of a response is predicted at the prompt's last one.
    assert inputs.read_NT[inputs.response_NT].tolist() == [2, 3, 2, 7, 8, 9]
    assert inputs.token_NT.tolist() == [[6, 7, 0], [8, 0, 0], [11, 12, 13]]
    assert inputs.response_NT.sum(dim=1).tolist() == [2, 1, 3]


def test_responses_that_begin_alike_share_tokens() -> None:
    """After prompt 3 4, the responses 6 7 8, 6 7 9 9 and 6 7 8 share 6 7, followed by 8 and 9 9."""
    samples = [respond("3 4", 0, *token_ids) for token_ids in ((6, 7, 8), (6, 7, 9, 9), (6, 7, 8))]
    assert plan(samples, 100, 1, share_prompt=True).rows == ((0, 2, 1),)
    inputs = collate_rows([(0, 2, 1)], samples, Numbers())
    assert inputs.input_ids_BL.tolist() == [[3, 4, 6, 7, 8, 9, 9]]
    assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    assert inputs.end_BL.tolist() == [[6, 6, 6, 6, 4, 6, 6]]
    assert inputs.read_NT.tolist() == [[1, 2, 3, 0], [1, 2, 3, 0], [1, 2, 3, 5]]
    assert inputs.token_NT.tolist() == [[6, 7, 8, 0], [6, 7, 8, 0], [6, 7, 9, 9]]


def test_rows_of_one_response_need_no_mask() -> None:
    inputs = collate_rows([(0,), (1,)], THREE, Numbers())
    assert inputs.end_BL is None
    assert inputs.input_ids_BL.tolist() == [[3, 4, 5, 6, 7], [3, 4, 5, 8, 0]]


def test_images_appear_once_for_all_rows() -> None:
    one, two = (
        [respond(f"{first} 4", group, 6, with_image=True) for _ in range(2)] for group, first in ((0, 3), (1, 5))
    )
    samples = [*one, *two, respond("7", 2, 6)]
    inputs = collate_rows([(0,), (2,), (4,), (1,), (3,)], samples, Numbers())
    assert inputs.images["pixels"][:, 0].tolist() == [3.0] * 4 + [5.0] * 4
    assert inputs.feature_F.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert inputs.shows_images
    assert collate_rows([(0, 1), (2, 3)], samples, Numbers()).feature_F is None
    without = collate_rows([(4,)], samples, Numbers())
    assert (without.images, without.shows_images) == ({}, False)
    stand_in = collate_rows([(4,)], samples, Numbers(), stand_in=True)
    assert (list(stand_in.images), stand_in.shows_images) == (["pixels"], False)


def test_plan_by_hand() -> None:
    """Prompts have 3 and 2 tokens, and responses 2, 1 and 3; sharing prompts gives rows of 6 and 5 tokens."""
    shared = plan(THREE, 12, 1, share_prompt=True)
    assert shared.rows_of(0) == [([(0, 1), (2,)], False)]
    assert plan(THREE, 6, 1, share_prompt=True).rows_of(0) == [([(0, 1)], False), ([(2,)], False)]
    # Five tokens are too few for both responses of the first group.
    assert [row for rows, _ in plan(THREE, 5, 1, share_prompt=True).rows_of(0) for row in rows] == [(0,), (2,), (1,)]
    apart = plan(THREE, 15, 1, share_prompt=False)
    assert apart.rows_of(0) == [([(0,), (2,), (1,)], False)]


def sizes_of(cuts: list[slice]) -> list[int]:
    return [cut.stop - cut.start for cut in cuts]


def test_cheapest_rows() -> None:
    """For a prompt of 24 tokens and responses of 36 that share nothing, rows of 4 responses are the cheapest.

    At a cost of 1/768 per pair, rows of 4 cost 168·(1 + 168/768)/4 = 51.2 per response, rows of 8 54.8, and rows of 1
    64.7. Long responses gain nothing from sharing a row; with free attention, all share one.
    """
    nothing = [0] * 7
    assert sizes_of(cheapest_rows(24, [36] * 8, nothing, 10_000, 1 / 768, 8)) == [4, 4]
    assert sizes_of(cheapest_rows(24, [1000] * 8, nothing, 10_000, 1 / 768, 8)) == [1] * 8
    assert sizes_of(cheapest_rows(24, [1000] * 8, nothing, 10_000, 0.0, 8)) == [8]
    assert sizes_of(cheapest_rows(24, [36] * 8, nothing, 10_000, 0.0, 1)) == [1] * 8
    # The budget holds the prompt and two responses; a longer response has its own row.
    assert sorted(sizes_of(cheapest_rows(24, [36] * 5, nothing[:4], 96, 0.0, 5))) == [1, 2, 2]
    assert sizes_of(cheapest_rows(24, [36, 100, 36], nothing[:2], 96, 0.0, 3)) == [1, 1, 1]


def test_rows_are_split_where_least_is_shared() -> None:
    """Within each of two families, 30 of 36 tokens are shared, so splitting between them only repeats the prompt."""
    assert cheapest_rows(24, [36] * 6, [30, 30, 0, 30, 30], 100, 0.0, 6) == [slice(0, 3), slice(3, 6)]
    families = [(0, *range(1, 6)), (9, *range(1, 6))]
    samples = [respond("3 4", 0, *families[k % 2], 10 + k) for k in range(4)]
    assert plan(samples, 12, 1, share_prompt=True).rows == ((0, 2), (1, 3))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("budget", [8, 30, 1000])
def test_every_response_once_on_one_rank(ranks: int, share: bool, budget: int) -> None:
    samples = [
        respond(" ".join(["3"] * (2 + group)), group, *range(1, 2 + (group * k) % 7))
        for group in range(5)
        for k in range(4)
    ]
    planned = plan(samples, budget, ranks, share)
    rounds = {len(planned.rows_of(rank)) for rank in range(ranks)}
    assert len(rounds) == 1
    counted = [
        position
        for rank in range(ranks)
        for rows, is_padding in planned.rows_of(rank)
        if not is_padding
        for row in rows
        for position in row
    ]
    assert sorted(counted) == list(range(20))
    for rows, _ in planned.rows_of(0):
        width = collate_rows(rows, samples, Numbers()).input_ids_BL.shape[1]
        assert width * len(rows) <= budget or (len(rows) == 1 and len(rows[0]) == 1)


def test_arrays_in_the_order_of_the_rows() -> None:
    arrays = [np.array([1.0, 2.0]), np.array([3.0]), np.array([4.0, 5.0, 6.0])]
    samples = [replace(each, advantages=array) for each, array in zip(THREE, arrays, strict=True)]
    samples[2] = replace(samples[2], mask=np.array([True, False, True]))
    rows = [(2,), (0, 1)]
    assert padded(rows, samples, "advantages").tolist() == [[4, 5, 6], [1, 2, 0], [3, 0, 0]]
    assert padded(rows, samples, "counted", torch.bool).tolist() == [
        [True, False, True],
        [True, True, False],
        [True, False, False],
    ]
    assert padded(rows, samples, "old") is None
    with pytest.raises(AssertionError, match="for all responses of an update or none"):
        padded(rows, [replace(samples[0], old=arrays[0]), *samples[1:]], "old")


def test_responses_that_cannot_be_trained_on() -> None:
    limits = Limits(context=6, reserved=frozenset({5}))
    limits.check(respond("1 2 3", 0, 6, 7, 8))
    with pytest.raises(DataError, match=r"problem p0: a prompt of 3 tokens and a response of 4 exceed .* context of 6"):
        limits.check(respond("1 2 3", 0, 6, 7, 8, 9))
    with pytest.raises(DataError, match="problem p0: a response without tokens"):
        limits.check(respond("1 2 3", 0))
    with pytest.raises(DataError, match="a response contains token 5, which represents an image; leave it out"):
        limits.check(respond("1 2", 0, 6, 5))


def test_non_finite_values_are_rejected_where_they_count() -> None:
    for value in (float("nan"), float("inf")):
        bad = respond("1", 0, 6, 7, advantages=np.array([0.5, value]))
        with pytest.raises(TrainingError, match="problem p0: advantages of a response is not finite, so no update"):
            check_finite([THREE[0], bad])
        check_finite([replace(bad, mask=np.array([True, False]))])


class TestEncoder:
    @pytest.fixture(scope="class")
    def encoder(self, random_policy_folder: Path) -> PromptEncoder:
        backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
        return PromptEncoder(backbone, processor, PLAIN)

    def test_a_prompt_is_made_once(self, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = make_problems(1, seed=3, split="train")[0].problem
        tokens = len(encoder._encode(problem).ids_P)
        first = encoder(problem, tokens)
        assert first.image_tokens > 0
        assert encoder(replace(problem), tokens) is first
        monkeypatch.setattr(prompt_encoder, "KEPT_BYTES", first.bytes)
        other = make_problems(1, seed=4, split="train")[0].problem
        encoder(other, len(encoder._encode(other).ids_P))
        assert encoder(problem, tokens) is not first

    def test_smaller_images(self, random_policy_folder: Path) -> None:
        backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
        problem = make_problems(1, seed=3, split="train")[0].problem
        tokens = [
            PromptEncoder(backbone, processor, PLAIN, most)._encode(problem).image_tokens for most in (None, 1000)
        ]
        assert tokens[1] == 1 < tokens[0]

    def test_larger_images(self, random_policy_folder: Path) -> None:
        """A token is 28 × 28 pixels; the image has at least 100 tokens, and at most 120 if both limits are set."""
        backbone, processor = load_backbone(str(random_policy_folder), torch.float32)
        problem = make_problems(1, seed=3, split="train")[0].problem
        area = 28 * 28
        plain, larger, between = (
            PromptEncoder(backbone, processor, PLAIN, *limits)._encode(problem).image_tokens
            for limits in ((None, None), (None, 100 * area), (120 * area, 100 * area))
        )
        assert plain < 100 <= larger
        assert 100 <= between <= 120

    def test_another_length_than_the_engines(self, encoder: PromptEncoder) -> None:
        problem = make_problems(1, seed=3, split="train")[0].problem
        with pytest.raises(DataError, match=r"its prompt is \d+ tokens for the trainer, 7 for the engine"):
            encoder(problem, 7)

    def test_a_broken_image_names_the_problem(self, encoder: PromptEncoder, tmp_path: Path) -> None:
        problem = Problem("p9", "?", "1", (ImageRef(path=str(tmp_path / "none.png")),))
        with pytest.raises(DataError, match=r"problem p9: .*none\.png"):
            encoder(problem, 7)

    def test_a_text_model_refuses_images(self) -> None:
        model = SimpleNamespace(config=SimpleNamespace(), model=SimpleNamespace(config=SimpleNamespace()))
        encoder = PromptEncoder(model, SimpleNamespace(pad_token_id=0), PLAIN)
        with pytest.raises(DataError, match="problem p0: has images, but the model reads text only"):
            encoder(respond("1", 0, 2, with_image=True).problem, 1)
