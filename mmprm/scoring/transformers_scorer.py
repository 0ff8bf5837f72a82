"""Compute step scores with transformers, in batches of solutions with similar lengths.

Shapes: B solution, T token, M position at which a score is read (all of a batch, solution by solution).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.errors import DataError
from mmprm.prm.info import read_info
from mmprm.prm.scoring_model import load_scoring_model
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import all_scored, check_length, context_length, fitting, score_fitting, step_scores
from mmprm.scoring.dtype import scorer_dtype
from mmprm.scoring.tree_scorer import tree_scorer
from mmprm.types import Solution, StepScores

_BATCH_SOLUTIONS = 128
"""Maximum number of solutions per batch, which bounds the memory of the processor's output."""


class TransformersScorer:
    """Scores solutions with transformers on one device: the GPU if there is one, otherwise the CPU."""

    def __init__(self, config: ScorerConfig) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config = config
        info, dtype = read_info(config.prm, config.format), scorer_dtype(config, self._device == "cuda")
        self._model, self._format = load_scoring_model(config.prm, info, getattr(torch, dtype))
        self._model.to(self._device)
        _own_memory(self._model)
        self._context = context_length(self._model.backbone.config)
        shared = config.share_prefixes
        self._trees = tree_scorer(self._model, self._format, config, self._device) if shared else None

    @property
    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens of a solution, or None if longer solutions are scored as far as they
        fit."""
        return self._context if self._config.too_long == "refuse" else None

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Compute P(no error so far) for each step, at the token positions that the prompt format defines."""
        return all_scored(self.score_each(solutions))

    def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
        """Score solutions like `score`, but return a DataError for each one that cannot be scored."""
        return score_fitting(solutions, self._readable, self._score)

    def _readable(self, solution: Solution) -> Solution:
        length = len(self._format.mark(solution).ids)  # lower bound: an image counts as one token here
        return solution if length <= self._context else self._fitting(solution, length)

    def _score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        if self._trees:
            return self._trees.score(solutions)
        scores: dict[int, StepScores] = {}
        for indices, inputs, read_BT in self._batches(solutions):
            correct_M = self._probabilities(inputs, read_BT)
            for index, count in zip(indices, read_BT.sum(dim=1).tolist(), strict=True):
                scores[index], correct_M = step_scores(correct_M[:count]), correct_M[count:]
        return [scores[index] for index in range(len(solutions))]

    def close(self) -> None:
        """Free the model's memory."""
        del self._model, self._trees
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _probabilities(self, inputs: Any, read_BT: Tensor) -> list[float]:
        log_odds_M = self._model(read_BT.to(self._device), **inputs.to(self._device))
        return log_odds_M.sigmoid().tolist()

    def _batches(self, solutions: Sequence[Solution]) -> Iterator[tuple[list[int], Any, Tensor]]:
        """Yield (indices, model inputs, positions) for each batch of solutions of similar length, longest first.

        The first batch thus needs the most memory, and there is little padding. Only the processor knows how many
        tokens an image expands to. A batch that turns out too large is rebuilt smaller, and the next one starts with
        the size that fits. A batch with a solution that must be cut is rebuilt too.
        """
        solutions = list(solutions)
        lengths = [len(self._format.mark(solution).ids) for solution in solutions]
        order = sorted(
            range(len(solutions)),
            key=lambda index: (len(solutions[index].media), lengths[index]),
            reverse=True,
        )
        size = _BATCH_SOLUTIONS
        while order:
            # Encode first, then decide whether the batch is too large: only the result shows its number of tokens.
            indices = order[:size]
            inputs, read_BT = self._format.encode([solutions[index] for index in indices])
            tokens = inputs["attention_mask"].sum(dim=1).tolist()
            too_long = [index for index, count in zip(indices, tokens, strict=True) if count > self._context]
            for index in too_long:
                solutions[index] = self._fitting(solutions[index])
            if too_long:
                continue
            affordable = max(1, len(indices) * self._config.batch_tokens // inputs["input_ids"].numel())
            size = min(_BATCH_SOLUTIONS, affordable)
            if affordable < len(indices):
                continue
            order = order[len(indices) :]
            yield indices, inputs, read_BT

    def _fitting(self, solution: Solution, length: int | None = None) -> Solution:
        if length is not None and self._config.too_long == "refuse":
            check_length(solution, length, self._context)  # the length is already known
        return fitting(solution, self._format.length, self._context, self._config.too_long)


def _own_memory(module: nn.Module) -> None:
    """Copy memory-mapped weights to this process's own memory.

    Overwriting or truncating their file would otherwise change the scores or crash the process.
    """
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type == "cpu":
                tensor.data = tensor.data.clone()
