"""Test a process reward model of Qwen2.5-Omni: rows, gradients, scores after storing, and media that it cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmprm.config import load
from mmprm.errors import ConfigError, DataError
from mmprm.prm.data import PrmSample
from mmprm.prm.formats import open_format
from mmprm.prm.info import PrmInfo, PrmTokens, read_info
from mmprm.prm.model import Prm, initialize_prm, load_prm, save_prm
from mmprm.prm.packing import Marks
from mmprm.prm.task import PathRows, PrmTask
from mmprm.prm.train import TrainConfig, _check_media, prepare_model
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.transformers_scorer import TransformersScorer
from mmprm.tiny.omni_clip import encode_clip
from mmprm.tiny.omni_model import PIXELS
from mmprm.training.config import TrainingConfig
from mmprm.training.lora import plain_weights
from mmprm.training.ranks import Ranks
from mmprm.types import AudioRef, ImageRef, Problem, Solution, VideoRef
from tests.mmprm.data.test_images import PNG
from tests.mmprm.data.test_media import gray_frames, tone

CLIP = encode_clip(gray_frames(8, 28, 28), tone(440))
VIDEO, AUDIO = VideoRef(data=CLIP, frames=2), AudioRef(data=CLIP)
STEPS = ("move=up", "tone=high", "joy")
SOLUTIONS = [
    Solution(Problem("text", "2+2?", "4"), ("4",)),
    Solution(Problem("both", "Does <audio> fit <video>?", "joy", videos=(VIDEO,), audios=(AUDIO,)), STEPS),
    Solution(Problem("audio", "Which?", "joy", audios=(AUDIO,)), STEPS[1:]),
    Solution(Problem("all", "Which?", "joy", (ImageRef(data=PNG),), videos=(VIDEO, VIDEO), audios=(AUDIO,)), STEPS),
]


@pytest.fixture(scope="module")
def prm(omni_folder: Path) -> Prm:
    torch.manual_seed(0)
    return initialize_prm(str(omni_folder), PrmTokens())


def rows_of(prm: Prm) -> PathRows:
    form = open_format(prm.processor, prm.info)
    marks = Marks(form)
    samples = []
    for solution in SOLUTIONS:
        targets = tuple(0.25 * number for number in range(len(solution.steps)))
        samples.append(PrmSample(solution, targets, (1.0,) * len(targets), *marks(solution)))
    return PathRows(samples, form)


def test_media_come_first_in_their_order_and_replace_the_marks(prm: Prm) -> None:
    text = prm.renderer.render(SOLUTIONS[1])
    media = "<|vision_bos|><|VIDEO|><|vision_eos|><|audio_bos|><|AUDIO|><|audio_eos|>"
    assert f"{media}\nQuestion: Does  fit ?\nProcess: move=up<prm>tone=high<prm>joy<prm>" in text


def test_rows_are_what_the_processor_makes_of_the_whole_text(prm: Prm) -> None:
    rows = rows_of(prm)
    batch = rows.collate(range(len(SOLUTIONS)))
    whole = prm.renderer.encode(SOLUTIONS)
    assert torch.equal(batch.inputs["input_ids"], whole["input_ids"])
    assert rows.lengths == whole["attention_mask"].sum(dim=1).tolist()
    for name in whole.keys() - {"input_ids", "attention_mask"}:
        assert torch.equal(batch.inputs[name], whole[name]), name


def test_the_loss_reaches_both_towers_and_padding_changes_nothing(prm: Prm) -> None:
    rows = rows_of(prm)
    task = PrmTask(rows, rows, 4096, torch.device("cpu"))
    prm.model.zero_grad()
    together = task.loss_sum(prm.model, task.collate(range(len(SOLUTIONS))))
    together.backward()
    backbone = prm.model.backbone.model
    for tower in (backbone.visual.merger, backbone.audio_tower.proj, backbone.language_model.layers[0]):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in tower.parameters())
    with torch.no_grad():
        apart = sum(task.loss_sum(prm.model, task.collate([row])).item() for row in range(len(SOLUTIONS)))
    assert together.item() == pytest.approx(apart, rel=1e-5)


def test_a_stored_model_scores_as_the_trained_one(prm: Prm, tmp_path: Path) -> None:
    save_prm(tmp_path / "prm", prm)
    scorer = TransformersScorer(ScorerConfig(prm=str(tmp_path / "prm"), dtype="float32"))
    found = [score for each in scorer.score(SOLUTIONS) for score in each.scores]
    with torch.no_grad():
        logits_M2 = prm.model(**prm.renderer.encode(SOLUTIONS))
    assert len(logits_M2) == sum(len(each.steps) for each in SOLUTIONS)
    expected = logits_M2.softmax(dim=1)[:, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_adapters_are_in_the_language_layers_and_are_merged_into_the_stored_layout(
    omni_folder: Path, tmp_path: Path
) -> None:
    """The audio tower has projections of the same names."""
    torch.manual_seed(0)
    adapted = initialize_prm(str(omni_folder), PrmTokens())
    prepare_model(adapted.model, load(TrainConfig, None, ["model=x", "labels=x", "output=x", "lora.rank=4"]))
    backbone = adapted.model.eval().backbone
    learned = {name: each for name, each in backbone.named_parameters() if each.requires_grad}
    adapters = {name for name in learned if ".lora_" in name}
    assert adapters
    assert all(name.startswith("model.language_model.layers.") for name in adapters)
    assert all("trainable_tokens" in name for name in learned.keys() - adapters)
    inputs = adapted.renderer.encode(SOLUTIONS)
    with torch.no_grad():
        before_M2 = adapted.model(**inputs)
        for name in sorted(adapters):
            learned[name].normal_(std=0.2)
        expected_M2 = adapted.model(**inputs)
    assert (expected_M2 - before_M2).abs().max() > 0.1
    save_prm(tmp_path / "prm", adapted, plain_weights(backbone, backbone.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(load_prm(tmp_path / "prm").model(**inputs), expected_M2, rtol=0, atol=1e-3)


def test_frames_have_the_size_of_the_policys_frames(omni_folder: Path, tmp_path: Path) -> None:
    """The video has 2 frames of 28² pixels: one token at the policy's limits, and 12 · 12 at the processor's own."""
    torch.manual_seed(0)
    limited = initialize_prm(str(omni_folder), PrmTokens(), pixel_limits=PIXELS)
    video = limited.processor.tokenizer.convert_tokens_to_ids("<|VIDEO|>")
    rows = rows_of(limited)
    batch = rows.collate(range(len(SOLUTIONS)))
    whole = limited.renderer.encode(SOLUTIONS)
    assert (batch.inputs["input_ids"] == video).sum(dim=1).tolist() == [0, 1, 0, 2]
    assert torch.equal(batch.inputs["pixel_values_videos"], whole["pixel_values_videos"])
    save_prm(tmp_path / "prm", limited)
    assert read_info(tmp_path / "prm").pixel_limits == PIXELS
    scorer = TransformersScorer(ScorerConfig(prm=str(tmp_path / "prm"), dtype="float32"))
    with torch.no_grad():
        expected = limited.model(**whole).softmax(dim=1)[:, 0].tolist()
    found = [score for each in scorer.score(SOLUTIONS) for score in each.scores]
    assert found == pytest.approx(expected, abs=1e-5)


def test_only_a_prm_of_mmprm_has_limits_in_order() -> None:
    with pytest.raises(ValueError, match=r"max_pixels apply to the format mm-prm only, not to visualprm"):
        PrmInfo(format="visualprm", max_pixels=784)
    with pytest.raises(ValueError, match=r"min_pixels=784 must not exceed max_pixels=28"):
        TrainConfig(model="m", labels="l", output="o", min_pixels=784, max_pixels=28)


def test_a_model_without_clips_refuses_them(policy_folder: Path) -> None:
    other = initialize_prm(str(policy_folder), PrmTokens())
    with pytest.raises(
        DataError, match=r"problem audio: has videos or audio, but this process reward model reads none"
    ):
        other.renderer.render(SOLUTIONS[2])


def test_ranks_with_different_media_are_refused_under_zero_3() -> None:
    """A rank whose batch has a video and no audio would not run the audio tower, for which the others wait."""
    samples = [PrmSample(each, (1.0,), (1.0,), np.zeros(1), np.zeros(1)) for each in SOLUTIONS]
    config = TrainConfig(model="m", labels="l", output="o", training={"zero_stage": 3})
    two = Ranks(0, 2, torch.device("cpu"))
    refused = r"zero_stage=3 cannot mix problems with and without images, videos or audio on several ranks"
    with pytest.raises(ConfigError, match=refused):
        _check_media(samples[1:], config, two)  # both, audio, all
    _check_media(samples[1::2], config, two)  # both, all: each runs both towers
    _check_media(samples, config, Ranks(0, 1, torch.device("cpu")))
    frozen = config.model_copy(update={"frozen": ("vision", "projector"), "training": TrainingConfig(zero_stage=2)})
    with pytest.raises(ConfigError, match=r"or frozen=\[audio, projector, vision\] with stage 2"):
        _check_media(samples, frozen, two)
    _check_media(samples, frozen.model_copy(update={"frozen": ("vision", "audio", "projector")}), two)
