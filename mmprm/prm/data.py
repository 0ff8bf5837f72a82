"""Labelled paths as training samples: targets, lengths, collation, loss and evaluation of a PRM.

Shapes: B sample, S step, M marker (all steps of a batch, sample by sample).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmprm.config import Config
from mmprm.errors import DataError
from mmprm.labels.parquet import LabelledExample
from mmprm.labels.paths import RIGHT
from mmprm.metrics import roc_auc
from mmprm.prm.format import Renderer, tokenizer_of
from mmprm.prm.losses import soft_cross_entropy_sum
from mmprm.problems import open_picture
from mmprm.training.batches import micro_batches
from mmprm.training.engine import Engine
from mmprm.types import Counts, Picture, Solution, Steps

NO_TARGET = float("nan")


@dataclass(frozen=True, slots=True)
class Sample:
    solution: Solution
    targets: tuple[float, ...]
    """One a step, in [0, 1]; NaN where the step has no label."""
    length: int
    """Tokens, pictures included."""

    @property
    def label_count(self) -> int:
        return sum(target == target for target in self.targets)


class TargetConfig(Config):
    kind: Literal["soft", "hard"] = "soft"
    """soft: the Monte Carlo value itself; hard: 1 where it is above error_value, else 0."""
    error_value: float = Field(0.0, ge=0, lt=1)
    """A prefix with a Monte Carlo value up to this one counts as wrong."""
    after_error: Literal["keep", "mask"] = "keep"
    """mask: a step that continues a wrong prefix has no target, so that only the first error is learned as one."""
    right_solutions: Literal["last_step", "all_steps"] = "last_step"
    """all_steps: in a complete solution that is right and has no prefix known as wrong, the steps without label have
    target 1. Search labels few right steps late in a solution; but right answers can come from wrong steps."""


def make_samples(examples: Sequence[LabelledExample], renderer: Renderer, config: TargetConfig) -> list[Sample]:
    """Samples with at least one target, in order. What cannot be rendered raises DataError before training begins."""
    count, wrong = TokenCount(renderer), _wrong_prefixes(examples, config.error_value)
    samples = []
    for example in examples:
        path = example.path
        targets = [_target(counts, config) for counts in path.counts]
        prefixes = [(path.problem_id, path.steps[:depth]) for depth in range(1, len(targets) + 1)]
        error = next((place for place, prefix in enumerate(prefixes) if prefix in wrong), None)
        if config.after_error == "mask" and error is not None:
            targets[error + 1 :] = [NO_TARGET] * (len(targets) - error - 1)
        if config.right_solutions == "all_steps" and error is None and path.complete and path.counts[-1] == RIGHT:
            targets = [1.0 if target != target else target for target in targets]
        if any(value == value for value in targets):
            solution = Solution(example.problem, path.steps)
            samples.append(Sample(solution, tuple(targets), count(solution)))
    return samples


class TokenCount:
    """Tokens of a solution. Each picture is opened once, so that a broken one stops a run before it begins."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer_of(renderer.processor)
        self._of_size: dict[tuple[int, int], int] = {}
        self._of_picture: dict[Picture, int] = {}

    def __call__(self, solution: Solution) -> int:
        text = self._renderer.render(solution)
        tokens = len(self._tokenizer.encode(text, add_special_tokens=False))
        return tokens + sum(self._added_by(picture) for picture in solution.problem.pictures)

    def _added_by(self, picture: Picture) -> int:
        if picture not in self._of_picture:
            self._of_picture[picture] = self._added_by_size(open_picture(picture).size)
        return self._of_picture[picture]

    def _added_by_size(self, size: tuple[int, int]) -> int:
        """Tokens that a picture takes beyond its placeholder's, which depends on its size alone."""
        if size not in self._of_size:
            from PIL import Image

            placeholder = self._renderer.picture
            inputs = self._renderer.processor(
                text=[placeholder], images=[Image.new("RGB", size)], add_special_tokens=False
            )
            alone = self._tokenizer.encode(placeholder, add_special_tokens=False)
            self._of_size[size] = len(inputs["input_ids"][0]) - len(alone)
        return self._of_size[size]


class PrmTask:
    """The Task of mmprm.training.loop: a loss term is a labelled step."""

    def __init__(
        self,
        renderer: Renderer,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        micro_batch_tokens: int,
        device: torch.device,
    ) -> None:
        self._renderer, self._samples, self._held_out = renderer, samples, held_out
        self._micro_batch_tokens, self._device = micro_batch_tokens, device
        self.lengths = [sample.length for sample in samples]
        self.terms = [sample.label_count for sample in samples]

    def collate(self, samples: Sequence[int]) -> tuple[Any, Tensor]:
        return self._collate([self._samples[sample] for sample in samples])

    def loss_sum(self, model: nn.Module, batch: tuple[Any, Tensor]) -> Tensor:
        inputs, target_M = batch
        return soft_cross_entropy_sum(model(**inputs.to(self._device)), target_M.to(self._device))

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Loss a label, and AUC of P(Yes) against target > 0.5, on the held-out samples; {} where there are none."""
        if not self._held_out:
            return {}
        lengths = [sample.length for sample in self._held_out]
        rows = micro_batches(range(len(lengths)), lengths, self._micro_batch_tokens, engine.ranks.count)
        loss = 0.0
        judged: list[tuple[float, float]] = []
        with engine.inference() as model:
            for row in rows:
                micro = row[engine.ranks.rank]
                inputs, target_M = self._collate([self._held_out[sample] for sample in micro.samples])
                logits_M2 = model(**inputs.to(self._device)).float().cpu()
                if not micro.filler:
                    loss += soft_cross_entropy_sum(logits_M2, target_M).item()
                    yes_M = logits_M2.softmax(dim=1)[:, 0]
                    judged += [
                        pair for pair in zip(yes_M.tolist(), target_M.tolist(), strict=True) if pair[1] == pair[1]
                    ]
        (loss,) = engine.ranks.sum(loss)
        pairs = [pair for part in engine.ranks.gather(judged) for pair in part]
        return {"loss": loss / len(pairs), "auc": _auc(pairs), "labels": float(len(pairs))}

    def _collate(self, samples: Sequence[Sample]) -> tuple[Any, Tensor]:
        inputs = self._renderer.encode([sample.solution for sample in samples])
        targets = [target for sample in samples for target in sample.targets]
        return inputs, torch.tensor(targets, dtype=torch.float32)


def _target(counts: Counts | None, config: TargetConfig) -> float:
    if counts is None or counts.value is None:
        return NO_TARGET
    return counts.value if config.kind == "soft" else float(counts.value > config.error_value)


def _wrong_prefixes(examples: Sequence[LabelledExample], error_value: float) -> set[tuple[str, Steps]]:
    """(problem, prefix) of the wrong ones; a prefix's label stands on one of the paths that share it."""
    return {
        (example.path.problem_id, example.path.steps[:depth])
        for example in examples
        for depth, counts in enumerate(example.path.counts, start=1)
        if counts is not None and counts.value is not None and counts.value <= error_value
    }


def _auc(pairs: Sequence[tuple[float, float]]) -> float:
    """NaN where the held-out labels are all on one side."""
    try:
        return roc_auc([score for score, _ in pairs], [target > 0.5 for _, target in pairs])
    except DataError:
        return float("nan")
