"""Score many solutions of a problem in one forward pass in which shared prefixes are computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmprm.backbone.masks import packed_mask, use_block_masks, why_not_packed
from mmprm.backbone.token_tree import Ints, fill_rows
from mmprm.prm.formats import Format
from mmprm.prm.packing import Marks, TreeInputs, pack_solutions
from mmprm.prm.scoring_model import ScoringModel
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.context import context_length, fitting, step_scores
from mmprm.training.batches import micro_batches
from mmprm.types import Solution, StepScores


class TreeScorer:
    """Scores solutions packed into one token tree per problem, with the same result as scoring them one by one.

    `model` must support packed rows (see `tree_scorer`).
    """

    def __init__(self, model: ScoringModel, form: Format, config: ScorerConfig, device: str) -> None:
        self._model, self._config, self._device = model, config, torch.device(device)
        self._marks, self._inputs = Marks(form), TreeInputs(form, model.backbone)
        self._context = context_length(model.backbone.config)

    @torch.inference_mode()
    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        """Compute P(no error so far) for each step of each solution."""
        solutions, marked = self._fitting(solutions)
        trees = pack_solutions(solutions, marked, self._config.batch_tokens)
        lengths = [len(tree.tokens) for tree in trees]
        rows = [[trees[tree] for tree in row] for row in fill_rows(lengths, max(lengths, default=0))]
        widths = [sum(len(tree.tokens) for tree in row) for row in rows]
        # Scores are computed tree by tree; the indices restore the order of the solutions.
        scores: dict[int, StepScores] = {}
        for (micro,) in micro_batches(range(len(rows)), widths, self._config.batch_tokens, ranks=1):
            chosen = [rows[row] for row in micro.samples]
            packed = self._inputs(chosen)
            inputs = {name: tensor.to(self._device) for name, tensor in packed.inputs.items()}
            mask = packed_mask(packed.end_BT.to(self._device))
            log_odds_M = self._model(packed.read_BT.to(self._device), attention_mask=mask, **inputs)
            correct_M = log_odds_M.sigmoid().cpu().numpy()
            for tree, reads in zip((tree for row in chosen for tree in row), packed.reads, strict=True):
                for member, positions in zip(tree.members, reads, strict=True):
                    scores[member] = step_scores(correct_M[positions].tolist())
        return [scores[position] for position in range(len(solutions))]

    def _fitting(self, solutions: Sequence[Solution]) -> tuple[list[Solution], list[tuple[Ints, Ints]]]:
        solutions, marked = list(solutions), self._marks.many(solutions)
        for position, (ids, _) in enumerate(marked):
            if len(ids) > self._context:
                solutions[position] = fitting(solutions[position], self._length, self._context, self._config.too_long)
                marked[position] = self._marks(solutions[position])
        return solutions, marked

    def _length(self, solution: Solution) -> int:
        return len(self._marks(solution)[0])


def tree_scorer(model: ScoringModel, form: Format, config: ScorerConfig, device: str) -> TreeScorer | None:
    """Create a TreeScorer or, if the model cannot process packed solutions, print the reason and return None."""
    why_not = why_not_packed(model.backbone)
    if why_not:
        print(f"scorer.share_prefixes has no effect for {type(model.backbone).__name__}: {why_not}", flush=True)
        return None
    use_block_masks(model.backbone)
    return TreeScorer(model, form, config, device)
