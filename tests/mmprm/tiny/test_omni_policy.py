"""Test the training of the tiny Omni policy: its inputs, its targets, and a short run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmprm.backbone.load import load_backbone
from mmprm.data.media_inputs import processor_arguments
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.tiny.config import OmniTrainConfig
from mmprm.tiny.omni_model import PIXELS, build_omni_model, build_omni_processor
from mmprm.tiny.omni_policy import ClipCollator, reading_probabilities, train_omni
from mmprm.tiny.omni_words import CLIP_MOVES, CLIP_TONES
from mmprm.tiny.omni_world import make_omni_problems, solution_of
from mmprm.tiny.tokenizer import END

SHORT = OmniTrainConfig(clips=6, batch=4, tower_steps=2, answer_steps=2, held_out=5, threads=1)


@pytest.fixture(scope="module")
def collator() -> tuple[ClipCollator, Any, Any]:
    processor = build_omni_processor()
    torch.manual_seed(0)
    model = build_omni_model(processor.tokenizer)
    return ClipCollator(model, processor), model.eval(), processor


def test_the_inputs_are_those_of_the_trainer_and_the_engine(collator: Any) -> None:
    """Every clip has the template's tokens; only three words differ."""
    made, model, processor = collator
    problems = make_omni_problems(3, 1, "train")
    words = ("left", "middle")
    texts = [
        render(processor, each.problem, "", PromptConfig(preset="plain")) + "".join(solution_of(*words)) + END
        for each in problems
    ]
    media = [medium for each in problems for medium in each.problem.media]
    whole = dict(processor(text=texts, return_tensors="pt", **processor_arguments(processor, media, PIXELS)))
    ids_BT = made.ids_T.repeat(3, 1)
    emotion = solution_of(*words)[2].removeprefix("<answer>").removesuffix("</answer>")
    said = [*words, emotion]
    ids_BT[:, made.word_at] = torch.tensor([made.word_ids[word] for word in said])
    assert torch.equal(ids_BT, whole["input_ids"])
    with torch.no_grad():
        expected = model(**whole).logits
        found = made.logits(model, made.of_problems(problems), ids_BT)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_targets_have_the_configured_mistakes() -> None:
    moves, tones = reading_probabilities(OmniTrainConfig(mistake_rate=0.3, hard_mistake_rate=0.6))
    assert moves[CLIP_MOVES.index("up")].tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert tones[CLIP_TONES.index("low")].tolist() == pytest.approx([0.7, 0.15, 0.15])
    assert tones[CLIP_TONES.index("middle")].tolist() == pytest.approx([0.0, 0.4, 0.6])


def test_a_short_run_writes_a_policy_that_loads(tmp_path: Path) -> None:
    said: list[str] = []
    metrics = train_omni(SHORT, tmp_path, said.append)
    assert metrics.keys() == {"pass_at_1", "greedy_accuracy", "video_only", "audio_only", "train_seconds"}
    assert [line.split()[0] for line in said] == ["towers", "towers", "answers", "answers"]
    backbone, _ = load_backbone(str(tmp_path), torch.float32)
    assert backbone.config.text_config.hidden_size == 128
    assert (tmp_path / "omni.json").is_file()
