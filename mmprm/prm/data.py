"""Convert labeled paths to training samples: token ids, with a target and a weight for each step."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
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
    """Loss weight of each step. The mean over all labels of the training set's paths is 1."""
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

    Steps after the last target would add nothing to the loss. In the train split, about every second path of turns
    gives another sample, so that the model also learns to score an action before it is played: it ends with a random
    turn that has a target, its only one, and without the observation that follows. The choice depends only on the path.
    The order of the paths is preserved. Raises DataError if a solution cannot be rendered.
    """
    marks, samples = Marks(MmPrmFormat(renderer.processor, renderer.tokens, renderer.pixel_limits)), []
    for example, targets in zip(examples, make_targets(examples, config), strict=True):
        labeled = [depth for depth, value in enumerate(targets.values, start=1) if not math.isnan(value)]
        if not labeled:
            continue
        seen = tuple(observation.parts for observation in example.observations or ())
        solution = Solution(example.problem, example.path.steps, seen)
        judged = slice(labeled[-1])
        found = [(solution.first_steps(labeled[-1]), targets.values[judged])]
        if seen and example.split == "train":
            found += _before_an_effect(solution, targets.values, labeled)
        for solution, values in found:
            samples.append(PrmSample(solution, values, targets.weights[: len(values)], *marks(solution)))
    return samples


def _before_an_effect(
    episode: Solution, values: Sequence[float], labeled: Sequence[int]
) -> Iterator[tuple[Solution, tuple[float, ...]]]:
    """Yield, for about every second episode, its beginning up to a labeled turn, with the target of this turn alone."""
    rng = random.Random(json.dumps([episode.problem.id, episode.steps]))
    if rng.random() < 0.5:
        depth = rng.choice(labeled)
        beginning = replace(episode, steps=episode.steps[:depth], observations=episode.observations[:depth])
        yield beginning, (*(math.nan for _ in range(depth - 1)), values[depth - 1])
