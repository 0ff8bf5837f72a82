"""Train the tiny policy from random weights on 2 CPU cores, in seven stages.

The first stage trains the vision tower alone: a linear head on each merged patch predicts its digit and color. A model
of this size does not learn to see through the language model's loss. The later stages train the whole model on the
mixtures of lessons below. The language model learns arithmetic, then to connect a color's name with its cell, then
solutions, and then solutions with checks. In that mixture, the few targets of the checks have too little weight. The
next stage therefore has checks alone, where the model learns to tell incorrect statements from correct ones. The last
stage has both again.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from mmprm.errors import CheckpointError, ConfigError
from mmprm.files import parse_json, whole_file
from mmprm.tiny import lessons
from mmprm.tiny.config import TinyTrainConfig
from mmprm.tiny.evaluate import evaluate_tiny
from mmprm.tiny.image import COLORS, COLUMNS, DIGITS, ROWS
from mmprm.tiny.lessons import Collator, Lesson
from mmprm.tiny.model import build_model
from mmprm.tiny.tokenizer import build_processor
from mmprm.tiny.world import Mistakes, TinyProblem, make_problems
from mmprm.weights import model_errors

LESSONS = {
    "drill": lambda tiny, rng, mistakes: lessons.drill(rng),
    "readings": lambda tiny, rng, mistakes: lessons.readings(tiny, rng),
    "checks": lambda tiny, rng, mistakes: lessons.checks(tiny, rng),
    "solution": lessons.solution,
}
MIXTURES = {
    "arithmetic": {"drill": 1.0},
    "reading": {"readings": 0.6, "checks": 0.2, "drill": 0.2},
    "solutions": {"solution": 0.75, "checks": 0.15, "drill": 0.1},
    "checking": {"solution": 0.5, "checks": 0.5},
    "statements": {"checks": 1.0},
    "both": {"solution": 0.6, "checks": 0.4},
}
"""Fraction of each kind of lesson in each stage, in the order of the stages."""
STAGES = ("vision", *MIXTURES)


def train(config: TinyTrainConfig, out: Path, say: Callable[[str], None] = print) -> dict:
    """Train the policy, write its checkpoint and evaluation metrics (tiny.json) to `out`, and return the metrics.

    Weights are saved after each stage, so an interrupted run resumes after its last finished stage. Every stage has its
    own random numbers and a fresh optimizer, so the result equals that of an uninterrupted run.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    collate = Collator(processor)
    problems = make_problems(config.problems, config.seed, "train")
    say(f"{len(problems)} problems, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    progress = _Progress.find(out, config, model)
    for stage in STAGES:
        if stage in progress.seconds:
            say(f"{stage}: already finished")
            continue
        started = time.monotonic()
        if stage == "vision":
            _train_vision(model, collate, problems, config, say)
        else:
            _train_stage(stage, model, collate, problems, config, say)
        progress.finished(stage, time.monotonic() - started, model)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    metrics = evaluate_tiny(model, processor, config.held_out, config.seed)
    metrics |= {"train_seconds": round(sum(progress.seconds.values())), "config": config.model_dump()}
    (out / "tiny.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    progress.forget()
    return metrics


@dataclass
class _Progress:
    """Tracks the finished stages, with their durations in seconds and the weights saved after each."""

    folder: Path
    config: TinyTrainConfig
    seconds: dict[str, float]

    @classmethod
    def find(cls, out: Path, config: TinyTrainConfig, model: nn.Module) -> _Progress:
        """Find an interrupted run with this configuration in `out`, and load its last saved weights into `model`."""
        progress = cls(out / "stages", config, {})
        if (progress.folder / "stages.json").is_file():
            file = progress.folder / "stages.json"
            stored = parse_json(file.read_bytes(), str(file), CheckpointError)
            if not isinstance(stored, dict) or not isinstance(stored.get("seconds"), dict) or not stored["seconds"]:
                raise CheckpointError(f"{file}: was not written by mmprm tiny train; remove {progress.folder}")
            if stored.get("config") != config.model_dump():
                raise ConfigError(f"{out}: holds a run with another configuration; choose another folder or remove it")
            progress.seconds = stored["seconds"]
            weights = progress.folder / f"{list(progress.seconds)[-1]}.safetensors"
            with model_errors(str(weights)):
                load_model(model, weights)
        return progress

    def finished(self, stage: str, seconds: float, model: nn.Module) -> None:
        """Save the weights after a stage, and record it as finished."""
        self.seconds[stage] = seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(self.folder / f"{stage}.safetensors"))
        with whole_file(self.folder / "stages.json") as file:
            json.dump({"config": self.config.model_dump(), "seconds": self.seconds}, file)

    def forget(self) -> None:
        """Delete the saved stages."""
        shutil.rmtree(self.folder)


def _train_stage(
    stage: str,
    model: Qwen2_5_VLForConditionalGeneration,
    collate: Collator,
    problems: list[TinyProblem],
    config: TinyTrainConfig,
    say: Callable[[str], None],
) -> None:
    started, steps = time.monotonic(), getattr(config.steps, stage)
    stream = _lessons(stage, problems, config)
    for step, update in optimizer_steps(model.parameters(), steps, config.learning_rate, config.weight_decay):
        loss, hit = _language_loss(model, collate(list(itertools.islice(stream, config.batch))))
        loss.backward()
        update()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            say(f"{stage} {step}/{steps} loss {loss.item():.4f} targets correct {hit:.3f} after {seconds:.0f} s")


def _lessons(stage: str, problems: list[TinyProblem], config: TinyTrainConfig) -> Iterator[Lesson]:
    # Each stage has its own generator, so a resumed run sees the same lessons as an uninterrupted one.
    rng = random.Random(f"{config.seed}/{stage}")
    mistakes = Mistakes(config.mistake_rate, config.hard_mistake_rate)
    kinds, shares = list(MIXTURES[stage]), list(MIXTURES[stage].values())
    while True:
        (kind,) = rng.choices(kinds, shares)
        yield LESSONS[kind](rng.choice(problems), rng, mistakes)


def _language_loss(
    model: Qwen2_5_VLForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, float]:
    """Return the mean cross-entropy over the target tokens, and the accuracy of the most likely token."""
    labels_BT = batch.pop("labels")
    logits_BTV = model(**batch, use_cache=False).logits
    targets_N = labels_BT[:, 1:].flatten()
    kept = targets_N != lessons.IGNORED
    # Only target positions enter the softmax, which is most of the cost for texts with few targets.
    logits_NV = logits_BTV[:, :-1].flatten(0, 1)[kept]
    hit = (logits_NV.argmax(dim=-1) == targets_N[kept]).float().mean().item()
    return cross_entropy(logits_NV, targets_N[kept]), hit


def _train_vision(
    model: Qwen2_5_VLForConditionalGeneration,
    collate: Collator,
    problems: list[TinyProblem],
    config: TinyTrainConfig,
    say: Callable[[str], None],
) -> None:
    tower = model.model.visual
    rng = random.Random(f"{config.seed}/vision")
    colors = list(COLORS)
    heads = nn.Linear(tower.config.out_hidden_size, len(colors) + len(DIGITS))
    for step, update in optimizer_steps(
        [*tower.parameters(), *heads.parameters()], config.steps.vision, config.learning_rate, config.weight_decay
    ):
        images = [rng.choice(problems).cells for _ in range(config.batch)]
        pixels = collate.pixels(images)
        features = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
        assert len(features) == config.batch * ROWS * COLUMNS
        color_logits, digit_logits = heads(features).split([len(colors), len(DIGITS)], dim=-1)
        cells = [cell for image in images for cell in image]
        color_targets = torch.tensor([colors.index(color) for color, _, _ in cells])
        digit_targets = torch.tensor([digit - 1 for _, digit, _ in cells])
        loss = cross_entropy(color_logits, color_targets) + cross_entropy(digit_logits, digit_targets)
        loss.backward()
        update()
        if step % 50 == 0 or step == config.steps.vision - 1:
            hit = (digit_logits.argmax(dim=-1) == digit_targets).float().mean()
            say(f"vision {step}/{config.steps.vision} loss {loss.item():.4f} digits correct {hit:.3f}")


def optimizer_steps(
    parameters: Iterable[nn.Parameter], steps: int, learning_rate: float, weight_decay: float
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield (step, update); after `backward`, call `update` to clip and apply the gradients and advance the
    schedule."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(1, steps - warm_up)
        return 0.05 + 0.95 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    for step in range(steps):
        yield step, update
