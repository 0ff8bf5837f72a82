"""Convert labeled paths to training samples: token ids, with a target and a weight for each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmprm.backbone.token_tree import Ints
from mmprm.labels.parquet import LabeledExample
from mmprm.prm.formats import MmPrmFormat
from mmprm.prm.mm_prm_format import Renderer
from mmprm.prm.packing import Marks
from mmprm.prm.targets import TargetConfig, make_targets
from mmprm.types import Solution


@dataclass(frozen=True, slots=True, eq=False)  # arrays cannot be compared with ==
class PrmSample:
    """Holds one tokenized solution or episode with a target and a weight for each step."""

    solution: Solution
    targets: tuple[float, ...]
    """Target of each step, in [0, 1], or NaN if the step has no label."""
    weights: tuple[float, ...]
    """Loss weight of each step. The mean over all labels of the training set is 1."""
    ids: Ints
    """Token ids, including image tokens."""
    positions: Ints
    """Index of each step's marker token, at which the step is scored."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def label_count(self) -> int:
        """Return the number of steps with a target."""
        return sum(not math.isnan(target) for target in self.targets)


def make_samples(examples: Sequence[LabeledExample], renderer: Renderer, config: TargetConfig) -> list[PrmSample]:
    """Convert labeled paths to samples, truncated after their last target. Paths without a target are dropped.

    Steps after the last target would add nothing to the loss. Every second path of turns ends without the
    observation after its last target, so that the model also learns to score an action before it is played. The order
    of the paths is preserved. Raises DataError if a solution cannot be rendered.
    """
    marks, samples = Marks(MmPrmFormat(renderer.processor, renderer.tokens, renderer.pixel_limits)), []
    for number, (example, targets) in enumerate(zip(examples, make_targets(examples, config), strict=True)):
        labeled = [depth for depth, value in enumerate(targets.values, start=1) if not math.isnan(value)]
        if labeled:
            judged = slice(labeled[-1])
            seen = tuple(observation.parts for observation in example.observations or ())
            solution = Solution(example.problem, example.path.steps, seen).first_steps(labeled[-1])
            if number % 2:
                solution = replace(solution, observations=solution.observations[: labeled[-1]])
            samples.append(PrmSample(solution, targets.values[judged], targets.weights[judged], *marks(solution)))
    return samples
