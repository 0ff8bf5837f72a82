"""Turn labeled paths into training samples: rendered tokens with targets and weights per step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.backbone.token_tree import Ints
from mmprm.labels.parquet import LabeledExample
from mmprm.prm.format import Renderer
from mmprm.prm.formats import OwnFormat
from mmprm.prm.packing import Marks
from mmprm.prm.targets import TargetConfig, make_targets
from mmprm.types import Solution


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality of their own
class PrmSample:
    """Holds one rendered solution with the targets of its steps."""

    solution: Solution
    targets: tuple[float, ...]
    """Target of each step in [0, 1]; NaN for a step without a label."""
    weights: tuple[float, ...]
    """Weight of each step, with mean 1 over the labels of the training set."""
    ids: Ints
    """Token ids, including those of images."""
    positions: Ints
    """Index of the token at which each step is judged."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def label_count(self) -> int:
        """Return the number of steps with a target."""
        return sum(not math.isnan(target) for target in self.targets)


def make_samples(examples: Sequence[LabeledExample], renderer: Renderer, config: TargetConfig) -> list[PrmSample]:
    """Return the samples with at least one target, in order, each truncated after its last target.

    Later steps would contribute nothing to the loss. Raises DataError for a solution that cannot be rendered.
    """
    marks, samples = Marks(OwnFormat(renderer.processor, renderer.tokens)), []
    for example, targets in zip(examples, make_targets(examples, config), strict=True):
        labeled = [depth for depth, value in enumerate(targets.values, start=1) if not math.isnan(value)]
        if labeled:
            judged = slice(labeled[-1])
            solution = Solution(example.problem, example.path.steps[judged])
            samples.append(PrmSample(solution, targets.values[judged], targets.weights[judged], *marks(solution)))
    return samples
