"""Step scores through transformers, in batches of similar length.

Shapes: B solution, T token, M marker (all steps of a batch, solution by solution).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmprm.prm.format import tokenizer_of
from mmprm.prm.model import load_prm
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import check_length, context_length
from mmprm.types import Solution, StepScores

BATCH_SOLUTIONS = 128
"""Most solutions of a batch, however short: what the processor must hold at once."""


class TransformersScorer:
    """A Scorer on one device: the GPU where there is one."""

    def __init__(self, config: ScorerConfig) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._batch_tokens = config.batch_tokens
        self._prm = load_prm(config.prm, getattr(torch, config.dtype))
        self._prm.model.to(self._device)
        self._context = context_length(self._prm.model.backbone.config)

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """P(step is right) = softmax of the logits [Yes, No] at each marker, first."""
        scores: dict[int, StepScores] = {}
        for indices, inputs in self._batches(solutions):
            right_M = self._probabilities(inputs)
            for index in indices:
                count = len(solutions[index].steps)
                scores[index], right_M = StepScores(tuple(right_M[:count])), right_M[count:]
        return [scores[index] for index in range(len(solutions))]

    def close(self) -> None:
        del self._prm
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _probabilities(self, inputs: Any) -> list[float]:
        logits_M2 = self._prm.model(**inputs.to(self._device))
        return logits_M2.float().softmax(dim=-1)[:, 0].tolist()

    def _batches(self, solutions: Sequence[Solution]) -> Iterator[tuple[list[int], Any]]:
        """Indices and model inputs of batches, the longest solutions first, so that the first batch needs the most
        memory and padding stays small.

        Only the processor knows how many tokens a picture becomes: a batch that turns out too large is made again,
        smaller, and the next one starts from the size that fits.
        """
        tokenizer = tokenizer_of(self._prm.processor)
        texts = [self._prm.renderer.render(solution) for solution in solutions]
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
        order = sorted(
            range(len(solutions)),
            key=lambda index: (len(solutions[index].problem.pictures), lengths[index]),
            reverse=True,
        )
        size = BATCH_SOLUTIONS
        while order:
            indices = order[:size]
            inputs = self._prm.renderer.encode([solutions[index] for index in indices])
            tokens = inputs["input_ids"].numel()
            fitting = max(1, len(indices) * self._batch_tokens // tokens)
            size = min(BATCH_SOLUTIONS, fitting)
            if fitting < len(indices):
                continue
            for index, length in zip(indices, inputs["attention_mask"].sum(dim=1).tolist(), strict=True):
                check_length(solutions[index], length, self._context)
            order = order[len(indices) :]
            yield indices, inputs
