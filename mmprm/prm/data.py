"""Labelled paths as training samples: what can be rendered, with its targets and its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmprm.backbone.token_tree import Ints
from mmprm.labels.parquet import LabelledExample
from mmprm.prm.format import Renderer
from mmprm.prm.formats import OwnFormat
from mmprm.prm.packing import Marks
from mmprm.prm.targets import TargetConfig, make_targets
from mmprm.types import Solution


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality of their own
class Sample:
    solution: Solution
    targets: tuple[float, ...]
    """One a step, in [0, 1]; NaN where the step has no label."""
    weights: tuple[float, ...]
    """One a step, of mean 1 over the labels of the training set."""
    ids: Ints
    """Tokens, pictures included."""
    places: Ints
    """Which of them each step is judged at."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def label_count(self) -> int:
        return sum(target == target for target in self.targets)


def make_samples(examples: Sequence[LabelledExample], renderer: Renderer, config: TargetConfig) -> list[Sample]:
    """Samples with at least one target, in order, each up to its last one: the steps behind it would teach nothing.
    What cannot be rendered raises DataError before training begins."""
    marks, samples = Marks(OwnFormat(renderer.processor, renderer.tokens)), []
    for example, targets in zip(examples, make_targets(examples, config), strict=True):
        labelled = [depth for depth, value in enumerate(targets.values, start=1) if value == value]
        if labelled:
            judged = slice(labelled[-1])
            solution = Solution(example.problem, example.path.steps[judged])
            samples.append(Sample(solution, targets.values[judged], targets.weights[judged], *marks(solution)))
    return samples
