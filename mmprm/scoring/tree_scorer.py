"""Scores of many solutions of one problem in one pass: what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmprm.prm.formats import Format
from mmprm.prm.judge import Judge
from mmprm.prm.packing import Marks, attention_mask, pack_batch, pack_solutions, use_block_masks, why_not_packed
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import context_length, fitting, step_scores
from mmprm.training.batches import micro_batches
from mmprm.types import Solution, StepScores


class TreeScorer:
    """A Scorer that packs the solutions of each problem as a tree; equal to scoring them one by one.

    `judge` must be able to read packed rows: see `tree_scorer`.
    """

    def __init__(self, judge: Judge, form: Format, config: ScorerConfig, device: str) -> None:
        self._judge, self._form, self._config, self._device = judge, form, config, torch.device(device)
        self._marks = Marks(form)
        self._context = context_length(judge.backbone.config)

    @torch.inference_mode()
    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        solutions = [self._fitting(solution) for solution in solutions]
        marked = [self._marks(solution) for solution in solutions]
        trees = pack_solutions(solutions, marked, self._config.batch_tokens)
        scores: dict[int, StepScores] = {}
        lengths = [len(tree.tokens) for tree in trees]
        for (micro,) in micro_batches(range(len(trees)), lengths, self._config.batch_tokens, ranks=1):
            packed = pack_batch([[trees[tree]] for tree in micro.samples], self._form, self._judge.backbone)
            inputs = {name: tensor.to(self._device) for name, tensor in packed.inputs.items()}
            mask = attention_mask(packed.end_BT.to(self._device))
            log_odds_M = self._judge(packed.read_BT.to(self._device), attention_mask=mask, **inputs)
            right_M = log_odds_M.sigmoid().cpu().numpy()
            for tree, reads in zip(micro.samples, packed.reads, strict=True):
                for member, places in zip(trees[tree].members, reads, strict=True):
                    scores[member] = step_scores(right_M[places].tolist())
        return [scores[place] for place in range(len(solutions))]

    def _fitting(self, solution: Solution) -> Solution:
        return fitting(solution, lambda each: len(self._marks(each)[0]), self._context, self._config.too_long)


def tree_scorer(judge: Judge, form: Format, config: ScorerConfig, device: str) -> TreeScorer | None:
    """None, with a word, for a model that cannot read packed rows."""
    why_not = why_not_packed(judge.backbone)
    if why_not:
        print(f"share_prefixes becomes false for {type(judge.backbone).__name__}: {why_not}", flush=True)
        return None
    if device == "cuda":
        use_block_masks(judge.backbone)
    return TreeScorer(judge, form, config, device)
