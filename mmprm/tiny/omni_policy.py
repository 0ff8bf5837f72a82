"""Train a tiny Omni policy from random weights to name what a clip shows and plays, and the emotion that follows.

1. towers: the vision tower and the audio tower alone learn the move and the tone, with a linear head on the mean of the
   features of a clip. A model of this size does not learn to see or hear through the language model's loss.
2. answers: the whole model learns solutions with mistakes. The target of a reading is the probability of each word
   rather than a sampled word, which has the same expected gradient but less noise.

Every word of a solution is one token, so all texts have the same tokens except for the two readings and the answer.

Shapes: B clip, T token, N predicted token, V vocabulary, H hidden.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from mmprm.backbone.experts import save_backbone
from mmprm.backbone.omni import OmniForConditionalGeneration
from mmprm.backbone.positions import Positions
from mmprm.data.media import SAMPLE_RATE, open_audio, open_video
from mmprm.data.media_inputs import processor_arguments
from mmprm.prompts import PromptConfig
from mmprm.rendering import render
from mmprm.tiny.config import OmniTrainConfig
from mmprm.tiny.omni_model import PIXELS, build_omni_model, build_omni_processor
from mmprm.tiny.omni_words import CLIP_MOVES, CLIP_TONES, EMOTIONS
from mmprm.tiny.omni_world import (
    MISHEARD,
    OmniProblem,
    emotion_of,
    make_omni_problems,
    solution_of,
)
from mmprm.tiny.pretrain import optimizer_steps
from mmprm.tiny.tokenizer import END

_SAID = solution_of(CLIP_MOVES[0], CLIP_TONES[0])
CLIP_WORDS = (*CLIP_MOVES, *CLIP_TONES, *EMOTIONS)


@dataclass(frozen=True, slots=True)
class ClipTensors:
    """Holds the inputs of clips, all of the same shape: patches per clip, and mel features per clip."""

    patches: Tensor
    mel: Tensor
    moves_B: Tensor
    tones_B: Tensor

    def of(self, index_B: Tensor) -> ClipTensors:
        """Return the clips with these indices."""
        return ClipTensors(self.patches[index_B], self.mel[index_B], self.moves_B[index_B], self.tones_B[index_B])


class ClipCollator:
    """Prepares clips for the policy. All texts share the template tokens, in which only three words differ."""

    def __init__(self, model: OmniForConditionalGeneration, processor: Any) -> None:
        self._processor, tokenizer = processor, processor.tokenizer
        (example,) = make_omni_problems(1, 0, "train")
        text = render(processor, example.problem, "", PromptConfig(preset="plain")) + "".join(_SAID) + END
        arguments = processor_arguments(processor, example.problem.media, PIXELS)
        inputs = dict(processor(text=[text], return_tensors="pt", **arguments))
        self.ids_T = inputs["input_ids"][0]
        self._grid = inputs["video_grid_thw"]
        self.positions_3T = Positions(model.model).of_sequence(self.ids_T, inputs)
        self.word_ids = dict(zip(CLIP_WORDS, tokenizer.convert_tokens_to_ids(list(CLIP_WORDS)), strict=True))
        said = tokenizer("".join(_SAID) + END, add_special_tokens=False).input_ids
        self.begin = len(self.ids_T) - len(said)
        words = set(self.word_ids.values())
        self.word_at = [self.begin + place for place, token in enumerate(said) if token in words]
        """Indices of the move, the tone and the emotion among the tokens."""
        assert len(self.word_at) == 3, "each word is one token"

    def clips(self, frames: Sequence[Any], sounds: Sequence[Any], problems: Sequence[OmniProblem]) -> ClipTensors:
        """Return the inputs of clips, given as frames and samples."""
        videos = self._processor.video_processor(videos=list(frames), return_tensors="pt")
        audio = self._processor.feature_extractor(
            list(sounds),
            sampling_rate=SAMPLE_RATE,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        heard = int(audio["attention_mask"][0].sum())
        return ClipTensors(
            videos["pixel_values_videos"].unflatten(0, (len(frames), -1)),
            audio["input_features"][:, :, :heard],
            torch.tensor([CLIP_MOVES.index(each.move) for each in problems]),
            torch.tensor([CLIP_TONES.index(each.tone) for each in problems]),
        )

    def of_problems(self, problems: Sequence[OmniProblem]) -> ClipTensors:
        """Decode the clips of problems and return their inputs."""
        frames = [open_video(each.problem.videos[0]) for each in problems]
        sounds = [open_audio(each.problem.audios[0]) for each in problems]
        return self.clips(frames, sounds, problems)

    def media(self, clips: ClipTensors) -> dict[str, Tensor]:
        """Return the model's inputs of clips."""
        count = len(clips.moves_B)
        return {
            "pixel_values_videos": clips.patches.flatten(0, 1),
            "video_grid_thw": self._grid.repeat(count, 1),
            "input_features": clips.mel,
            "feature_attention_mask": torch.ones(count, clips.mel.shape[2], dtype=torch.long),
        }

    def logits(self, model: nn.Module, clips: ClipTensors, ids_BT: Tensor) -> Tensor:
        """Return logits_BTV of texts about clips."""
        positions = self.positions_3T[:, None].expand(-1, len(ids_BT), -1)
        logits_BTV: Tensor = model(input_ids=ids_BT, position_ids=positions, **self.media(clips)).logits
        return logits_BTV


def train_omni(config: OmniTrainConfig, out: Path, say: Callable[[str], None] = print) -> dict[str, float]:
    """Train the policy, write its checkpoint and metrics (omni.json) to `out`, and return the metrics."""
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processor = build_omni_processor()
    model = build_omni_model(processor.tokenizer)
    collator = ClipCollator(model, processor)
    clips = collator.of_problems(make_omni_problems(config.clips, config.seed, "train"))
    _train_towers(model, collator, clips, config, say)
    _train_answers(model, collator, clips, config, say)
    model.eval()
    out.mkdir(parents=True, exist_ok=True)
    save_backbone(model, out)
    processor.save_pretrained(out)
    metrics = evaluate_omni(model, collator, config)
    metrics["train_seconds"] = round(time.monotonic() - started)
    text = json.dumps(metrics | {"config": config.model_dump()}, indent=2)
    (out / "omni.json").write_text(text + "\n", encoding="utf-8")
    return metrics


def _train_towers(
    model: OmniForConditionalGeneration,
    collator: ClipCollator,
    clips: ClipTensors,
    config: OmniTrainConfig,
    say: Callable[[str], None],
) -> None:
    backbone, hidden = model.model, model.config.text_config.hidden_size
    heads = nn.ModuleDict({"move": nn.Linear(hidden, len(CLIP_MOVES)), "tone": nn.Linear(hidden, len(CLIP_TONES))})
    parameters = [*backbone.visual.parameters(), *backbone.audio_tower.parameters(), *heads.parameters()]
    rng = torch.Generator().manual_seed(config.seed)
    steps = optimizer_steps(parameters, config.tower_steps, config.learning_rate, config.weight_decay)
    for step, update in steps:
        batch = clips.of(torch.randint(len(clips.moves_B), (config.batch,), generator=rng))
        (table_FH,) = backbone.get_image_features(**collator.media(batch)).pooler_output
        seen = int(collator.media(batch)["video_grid_thw"][0].prod()) // 4 * config.batch
        video_BH, audio_BH = (
            part.unflatten(0, (config.batch, -1)).mean(dim=1) for part in table_FH.tensor_split([seen])
        )
        logits = {"move": heads["move"](video_BH), "tone": heads["tone"](audio_BH)}
        loss = cross_entropy(logits["move"], batch.moves_B) + cross_entropy(logits["tone"], batch.tones_B)
        loss.backward()
        update()
        if step % 50 == 0 or step == config.tower_steps - 1:
            move, tone = (
                (logits[name].argmax(dim=1) == targets).float().mean().item()
                for name, targets in (("move", batch.moves_B), ("tone", batch.tones_B))
            )
            say(f"towers {step}/{config.tower_steps} loss {loss.item():.4f} moves {move:.2f} tones {tone:.2f}")


def _train_answers(
    model: OmniForConditionalGeneration,
    collator: ClipCollator,
    clips: ClipTensors,
    config: OmniTrainConfig,
    say: Callable[[str], None],
) -> None:
    started, rng = time.monotonic(), torch.Generator().manual_seed(config.seed + 1)
    parameters, rows = model.parameters(), len(collator.ids_T) - collator.begin
    vocabulary = model.config.text_config.vocab_size
    table = torch.tensor([[EMOTIONS.index(emotion_of(move, tone)) for tone in CLIP_TONES] for move in CLIP_MOVES])
    move_ids, tone_ids, emotion_ids = (
        torch.tensor([collator.word_ids[word] for word in words]) for words in (CLIP_MOVES, CLIP_TONES, EMOTIONS)
    )
    moves_MM, tones_OO = reading_probabilities(config)
    at = torch.tensor(collator.word_at) - collator.begin
    for step, update in optimizer_steps(parameters, config.answer_steps, config.learning_rate, config.weight_decay):
        batch = clips.of(torch.randint(len(clips.moves_B), (config.batch,), generator=rng))
        said_moves_BM, said_tones_BO = moves_MM[batch.moves_B], tones_OO[batch.tones_B]
        moves_B = said_moves_BM.multinomial(1, generator=rng)[:, 0]
        tones_B = said_tones_BO.multinomial(1, generator=rng)[:, 0]
        words_B3 = torch.stack([move_ids[moves_B], tone_ids[tones_B], emotion_ids[table[moves_B, tones_B]]], dim=1)
        ids_BT = collator.ids_T.repeat(config.batch, 1)
        ids_BT[:, collator.word_at] = words_B3
        target_BNV = one_hot(ids_BT[:, -rows:], vocabulary).float()
        target_BNV[:, at[:2]] = 0.0
        target_BNV[:, at[0]] = target_BNV[:, at[0]].index_copy(1, move_ids, said_moves_BM)
        target_BNV[:, at[1]] = target_BNV[:, at[1]].index_copy(1, tone_ids, said_tones_BO)
        logits_BNV = collator.logits(model, batch, ids_BT)[:, collator.begin - 1 : -1]
        loss = cross_entropy(logits_BNV.flatten(0, 1), target_BNV.flatten(0, 1))
        loss.backward()
        update()
        if step % 50 == 0 or step == config.answer_steps - 1:
            seconds = time.monotonic() - started
            say(f"answers {step}/{config.answer_steps} loss {loss.item():.4f} after {seconds:.0f} s")


def reading_probabilities(config: OmniTrainConfig) -> tuple[Tensor, Tensor]:
    """Return P(said move | move) and P(said tone | tone), one row per truth, at the configured mistake rates."""

    def uniform(count: int) -> Tensor:
        others = torch.full((count, count), config.mistake_rate / (count - 1))
        return others.fill_diagonal_(1 - config.mistake_rate)

    tones_OO = uniform(len(CLIP_TONES))
    for truth, other in MISHEARD.items():
        row = torch.zeros(len(CLIP_TONES))
        row[CLIP_TONES.index(truth)], row[CLIP_TONES.index(other)] = (
            1 - config.hard_mistake_rate,
            config.hard_mistake_rate,
        )
        tones_OO[CLIP_TONES.index(truth)] = row
    return uniform(len(CLIP_MOVES)), tones_OO


@torch.inference_mode()
def evaluate_omni(
    model: OmniForConditionalGeneration, collator: ClipCollator, config: OmniTrainConfig
) -> dict[str, float]:
    """Return the shares of correct answers about `config.held_out` clips of the test split; see correct_answers."""
    problems = make_omni_problems(config.held_out, config.seed, "test")
    return {
        name: sum(found) / len(found) for name, found in correct_answers(model, collator, problems, config.seed).items()
    }


@torch.inference_mode()
def correct_answers(
    model: OmniForConditionalGeneration, collator: ClipCollator, problems: Sequence[OmniProblem], seed: int
) -> dict[str, list[bool]]:
    """Answer questions about clips, and return whether each answer is correct, under four conditions.

    `pass_at_1` samples at temperature 1, and `greedy_accuracy` takes the most likely words. `video_only` and
    `audio_only` take them with silence, and with a blank video.
    """
    frames = [open_video(each.problem.videos[0]) for each in problems]
    sounds = [open_audio(each.problem.audios[0]) for each in problems]
    silence = [np.zeros_like(each) for each in sounds]
    blank = [np.full_like(each, 20) for each in frames]
    conditions: Mapping[str, tuple[Any, Any, bool]] = {
        "pass_at_1": (frames, sounds, True),
        "greedy_accuracy": (frames, sounds, False),
        "video_only": (frames, silence, False),
        "audio_only": (blank, sounds, False),
    }
    torch.manual_seed(seed)
    found = {}
    for name, (seen, heard, sample) in conditions.items():
        ids_BT = collator.ids_T.repeat(len(problems), 1)
        clips = collator.clips(seen, heard, problems)
        for at in collator.word_at:
            logits_BV = collator.logits(model, clips, ids_BT)[:, at - 1]
            ids_BT[:, at] = logits_BV.softmax(-1).multinomial(1)[:, 0] if sample else logits_BV.argmax(-1)
        golds = torch.tensor([collator.word_ids[each.problem.answer] for each in problems])
        found[name] = (ids_BT[:, collator.word_at[-1]] == golds).tolist()
    return found
