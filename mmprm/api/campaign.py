"""Annotate problems, read search trees, and write and load labels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mcts.progress import CampaignSummary
from mmprm.api.inputs import AnyPath, check_argument, check_path, configured, read_problems
from mmprm.cli.shared.policy import policy_folder
from mmprm.config import merged
from mmprm.data.cells import Row
from mmprm.errors import ConfigError, DataError
from mmprm.labels.build import LabelsConfig, LabelsSummary, build_labels
from mmprm.labels.checks import Split
from mmprm.labels.schema import EARLIER_NAMES, SCHEMA, known_columns
from mmprm.problems import ProblemsConfig, write_problems
from mmprm.trees.evidence import evidence
from mmprm.trees.stopping import StoppingRule, rule_of
from mmprm.trees.store import Store
from mmprm.types import Counts, Problem, Steps, Tree

if TYPE_CHECKING:
    from datasets import Dataset, Features

PROBLEMS_NAME = "problems.jsonl"


@dataclass(frozen=True, slots=True)
class SearchedProblem:
    """Holds a problem, its search tree, and the verdict counts from which `mmprm labels` computes the label of each
    prefix.

    `evidence[steps].value` is the value of a prefix in [0, 1]. The empty prefix stands for the problem itself. Prefixes
    keep the text that the policy wrote, including its step markup.
    """

    problem: Problem
    tree: Tree
    evidence: Mapping[Steps, Counts]


def annotate(
    problems: AnyPath | Iterable[Problem | Row],
    output: AnyPath,
    *,
    config: AnyPath | None = None,
    **settings: Any,
) -> CampaignSummary:
    """Label the reasoning steps of problems by tree search, like `mmprm annotate`, and return the run's summary.

    `problems` is a file, a folder, a hub id, or a list of `Problem` objects and dict rows with question, answer and
    images; a list is written to problems.jsonl in the run folder `output`. `config` is a YAML file, and `settings`
    override its keys, with a dict per group: `engine={"model": "tiny"}`. An existing run is resumed. `summary.failures`
    gives the reason for each problem that failed.
    """
    _check_no_loop()
    check_path(output, "annotate", "output")
    if isinstance(problems, Mapping) or not isinstance(problems, str | os.PathLike | Iterable):
        expected = "a file, a folder, a hub id, or a list of Problem objects and dict rows"
        check_argument(problems, str | os.PathLike | list, "annotate", "problems", expected)
    folder = Path(output)
    is_path = isinstance(problems, str | os.PathLike)
    source = os.fspath(problems) if is_path else str(folder / PROBLEMS_NAME)
    given = merged(settings, {"output": folder, "problems": {"path": source}})
    campaign = configured(CampaignConfig, "annotate", given, config)
    if not is_path:
        episodes = campaign.environment is not None
        write_problems(source, read_problems(problems, campaign.problems, episodes))
        campaign = campaign.model_copy(update={"problems": ProblemsConfig(path=source)})
    return run_campaign(campaign, model_folder=policy_folder(campaign.engine))


def read_trees(run: AnyPath) -> Iterator[SearchedProblem]:
    """Yield a SearchedProblem for every search tree of a run, which may still be in progress."""
    check_path(run, "read_trees", "run")
    store = Store.read(run)
    return _searched(store, rule_of(store.config))


def write_labels(run: AnyPath, output: AnyPath, **settings: Any) -> LabelsSummary:
    """Write the labels of a run to a Parquet file, as `mmprm labels` does, and return their counts.

    `settings` are the other keys of `mmprm labels`, such as `dev=0.1`.
    """
    return build_labels(configured(LabelsConfig, "write_labels", {"store": run, "output": output} | settings))


def load_labels(path: AnyPath, split: Split | None = None) -> Dataset:
    """Load a Parquet file written by `mmprm labels` as a `datasets.Dataset`, with all rows or those of one split.

    The columns are those of `mmprm.labels.schema.SCHEMA`; images are decoded on access. Raises DataError for a file
    that is missing, damaged or not written by `mmprm labels`, and for a split without rows.
    """
    import datasets
    import pyarrow
    from pyarrow import dataset, parquet

    check_path(path, "load_labels", "path")
    if split is not None and split not in get_args(Split):
        raise ConfigError(f"mmprm.load_labels: split={split!r} must be one of {', '.join(get_args(Split))}")
    options = dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    filters = None if split is None else [("split", "==", split)]
    try:
        names = known_columns(parquet.read_schema(path).names, path)
        if filters is not None and not parquet.read_table(path, columns=["split"], filters=filters).num_rows:
            raise DataError(f"{path}: has no rows of split={split}; choose another split")
        labels = datasets.load_dataset(
            "parquet",
            data_files=os.fspath(path),
            split="train",  # the name that datasets gives the rows of a single file
            columns=names,
            features=_features(names),
            filters=filters,
            fragment_scan_options=options,
        )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; write it with mmprm labels") from error
    except (pyarrow.ArrowException, OSError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{path}: is not readable Parquet ({reason}); write it again with mmprm labels") from error
    return labels.rename_columns({name: EARLIER_NAMES[name] for name in names if name in EARLIER_NAMES})


def _features(names: Iterable[str]) -> Features:
    """Return the `datasets` features for the given label columns, with images decoded on access."""
    from datasets import Features, Image, List

    current = Features.from_arrow_schema(SCHEMA) | {"images": List(Image())}
    return Features({name: current[EARLIER_NAMES.get(name, name)] for name in names})


def _searched(store: Store, rule: StoppingRule) -> Iterator[SearchedProblem]:
    try:
        for tree in store.trees():
            yield SearchedProblem(store.problem(tree.problem_id), tree, evidence(tree, rule))
    finally:
        store.close()


def _check_no_loop() -> None:
    """Raise ConfigError if an event loop is already running, because annotation starts its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        "mmprm.annotate: an event loop runs in this thread, as in a notebook; use await "
        "asyncio.to_thread(mmprm.annotate, …)"
    )
