"""Build the Parquet file of labeled paths from the run store of `mmprm annotate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from mmprm.config import Config, PathText
from mmprm.data.images import image_bytes
from mmprm.errors import ConfigError, DataError
from mmprm.labels.checks import Split
from mmprm.labels.given import check_completers, label_given
from mmprm.labels.parquet import LabeledExample, split_of, write_parquet
from mmprm.labels.soft_labels import LabelCounts, count_labels, label_tree
from mmprm.labels.turns import label_turns
from mmprm.steps import StepFormat
from mmprm.trees.repair import check_structure
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store
from mmprm.types import ImageRef, LabeledPath, Problem


class LabelsConfig(Config):
    store: PathText | Annotated[tuple[PathText, ...], Field(min_length=1)]
    """Run store written by mmprm annotate: a database file, or the folder that contains trees.sqlite. A list combines
    the runs of several completers that labeled the same given solutions."""
    output: PathText
    """Parquet file to write."""
    step_format: StepFormat | None = None
    """Step format of the policy: tags, blank_lines, numbered or thoughts. Defaults to the store's format, and must
    equal it if set."""
    min_shared_rollouts: int | None = Field(None, ge=1)
    """Minimum number of rollouts of a label that are shared with other states. Default: that of the search. A higher
    number gives fewer labels with less noise. A lower one labels further prefixes; states that the search sampled from
    keep their own rollouts, so labels of the others are too high on average after a search (see `evidence`)."""
    seed: int = 0
    """Random seed for choosing complete solutions and for the split."""
    dev: float = Field(0.1, ge=0, lt=1)
    """Fraction of the problems in the dev split, which is not used for training."""
    test: float = Field(0.0, ge=0, lt=1)
    """Fraction of the problems in the test split."""
    embed_images: bool = True
    """Whether to store image bytes, which makes the file self-contained, rather than image paths. Videos and audio stay
    files, which the file names by absolute paths."""


@dataclass(frozen=True, slots=True)
class LabelsSummary:
    """Holds the label counts and the number of paths per split."""

    counts: LabelCounts
    paths_by_split: dict[str, int]


def build_labels(config: LabelsConfig) -> LabelsSummary:
    """Label every tree in the store and write the paths; raise DataError if there are no labels."""
    if config.dev + config.test >= 1:
        raise ConfigError(
            f"dev={config.dev} and test={config.test} must sum to less than 1, to leave problems for training; try 0.1 "
            "and 0"
        )
    names = [config.store] if isinstance(config.store, str) else list(config.store)
    stores = [Store.read(name) for name in names]
    for store in stores:
        check_structure(store)
    check_completers(stores)
    step_format = stores[0].config.get("step_format", "tags")
    if config.step_format not in (None, step_format):
        raise ConfigError(
            f"step_format={config.step_format} must equal {step_format}, the step format of {names[0]}; leave it out "
            f"or set step_format={step_format}"
        )
    if config.min_shared_rollouts is not None and stores[0].config.get("solutions") is not None:
        raise ConfigError(
            f"min_shared_rollouts={config.min_shared_rollouts} does not apply to given solutions, whose steps have "
            "rollouts of their own; leave it out"
        )
    paths: list[LabeledPath] = []
    splits: Counter[str] = Counter()

    def examples() -> Iterator[LabeledExample]:
        for example in _examples(stores, step_format, config):
            paths.append(example.path)
            splits[example.split] += 1
            yield example
        if not paths:
            raise DataError(
                f"{', '.join(names)}: no tree has a label; annotate more problems, or problems that the policy solves "
                "in part of its samples"
            )

    try:
        write_parquet(config.output, examples())
    finally:
        for store in stores:
            store.close()
    return LabelsSummary(count_labels(paths), dict(splits))


def _examples(stores: Sequence[Store], step_format: StepFormat, config: LabelsConfig) -> Iterator[LabeledExample]:
    """Yield the labeled paths of the searched trees, of the given solutions, or of the episodes."""

    def complete(problem: Problem) -> Problem:
        # Images are read only if the tree has labels: a problem with no labels may name a missing file.
        return embed_images(problem) if config.embed_images else problem

    def split(problem: Problem) -> Split:
        return split_of(problem.id, config.seed, config.dev, config.test)

    if stores[0].config.get("solutions") is not None:
        for found in label_given(stores, step_format):
            given = found.solution.given
            assert given is not None, "label_given yields given solutions"
            problem = replace(found.solution, id=given.problem_id, given=None)
            yield LabeledExample(
                complete(problem),
                found.path,
                split(problem),
                solution_id=found.solution.id,
                author=given.author,
                disagreement=found.disagreement,
            )
        return
    rule, enough = rule_of(stores[0].config), config.min_shared_rollouts
    if stores[0].config.get("environment") is not None:
        for problem, path, observations in label_turns(stores[0], rule, config.seed, enough):
            yield LabeledExample(complete(problem), path, split(problem), observations=observations)
        return
    for tree in stores[0].trees():
        problem = stores[0].problem(tree.problem_id)
        paths = label_tree(tree, rule, step_format, config.seed, enough)
        if paths:
            problem = complete(problem)
        yield from (LabeledExample(problem, path, split(problem)) for path in paths)


def embed_images(problem: Problem) -> Problem:
    """Replace image paths with image bytes; raise DataError if an image cannot be read."""
    return replace(problem, images=tuple(ImageRef(data=_read(image, problem.id)) for image in problem.images))


def _read(image: ImageRef, problem_id: str) -> bytes:
    if image.data is not None:
        return image.data
    assert image.path is not None
    try:
        return image_bytes(image)
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"problem {problem_id}: image {image.path}: cannot be read ({reason}); restore the file, or set "
            "embed_images=false"
        ) from error
