"""Retrain the process reward model (PRM) of a run when its scores no longer agree with the labels of fresh trees.

    refresh = PrmRefresh(config, output, seed, prm, trees)
    metrics = refresh.see(groups)        # the groups of a step whose trees are kept
    await refresh.retrain_if_due(step)   # between two steps

A label is the verdict of a complete response, or the value of a continued prefix: the share of its continuations that
are correct, which counts as positive above 0.5, as in the evaluations of mmprm train. The AUC is computed on the newest
labels of held-out problems, whose trees no PRM of the run is trained on.

A new PRM is written to OUTPUT/prm/step-…/. The run writes a checkpoint before the training, so a run that is killed
during it resumes with it, and finds its labels, its checkpoints or the finished PRM there.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from pydantic import Field

from mmprm.config import Config, PathText, load
from mmprm.errors import ConfigError, TrainingError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.labels.parquet import LabeledExample, read_parquet, split_of, write_parquet
from mmprm.metrics import roc_auc
from policy_rl.graded import GradedGroup, GradedResponse
from policy_rl.rollouts.tree_store import TreeStore

OF_REFRESH = ("prm_tree_auc", "prm_tree_labels", "prm_refreshes")
"""Metrics that are logged with process.refresh."""
PRM_FOLDER, LABELS_FILE, LOG_FILE = "prm", "labels.parquet", "train.log"


class RefreshConfig(Config):
    """Configures when and how the process reward model is retrained during a run."""

    train: PathText
    """YAML file of mmprm train, with the base model and all training settings. Its `labels` and `output` are
    replaced."""
    min_auc: float = Field(0.8, gt=0, le=1)
    """Lower bound of the AUC. The PRM is retrained when the AUC on the newest held-out labels is below it."""
    window: int = Field(200, ge=2)
    """Number of newest held-out labels on which the AUC is computed. A new PRM is judged only by labels that come after
    it."""
    dev: float = Field(0.2, gt=0, lt=1)
    """Fraction of the problems that are held out from the training of PRMs."""
    min_problems: int = Field(50, ge=1)
    """Minimum number of problems with trees before the PRM is retrained."""
    labels: PathText | None = None
    """Labels file to train on in addition to the trees of the run, such as the one that the first PRM was trained
    on."""
    timeout_seconds: float = Field(86400, gt=0)
    """Timeout in seconds for training a PRM. The run waits meanwhile."""


class ReplaceablePrm(Protocol):
    """Protocol for a process reward model that can be replaced during a run. RemotePrm implements it."""

    async def run_instead(self, command: Sequence[str], log: Path, timeout_seconds: float) -> None:
        """Unload the PRM and run a command on its device; raise TrainingError if the command fails."""
        ...

    async def replace(self, folder: Path) -> None:
        """Load the PRM in `folder` instead of the current one."""
        ...


class PrmRefresh:
    """Watches the AUC of a run's PRM on fresh labels, and retrains and replaces the PRM when it is too low.

    `version` is the step after which the current PRM was trained, or 0 for the configured one. `count` is the number of
    times that it was replaced.
    """

    def __init__(self, config: RefreshConfig, output: Path, seed: int, prm: ReplaceablePrm, trees: TreeStore) -> None:
        self.version = self.count = 0
        self._config, self._output, self._seed, self._prm, self._trees = config, output, seed, prm, trees
        self._labels: deque[tuple[float, bool]] = deque(maxlen=config.window)

    @property
    def auc(self) -> float:
        """Return the AUC on the newest held-out labels, or NaN if there are too few or all are equal."""
        scores, positive = zip(*self._labels, strict=True) if self._labels else ((), ())
        if len(self._labels) < self._config.window or len(set(positive)) < 2:
            return math.nan
        return roc_auc(scores, positive)

    def see(self, groups: Sequence[GradedGroup]) -> dict[str, float]:
        """Add the labels of held-out problems, and return the metrics OF_REFRESH.

        prm_tree_auc: AUC of the PRM's scores on the newest held-out labels
        prm_tree_labels: number of these labels, at most `window`
        prm_refreshes: number of times that the PRM was replaced
        """
        for group in groups:
            held_out = split_of(group.problem.id, self._seed, self._config.dev, 0.0) == "dev"
            # Groups that were sampled ahead or carried over may have scores of the earlier PRM.
            if held_out and group.version >= self.version:
                self._labels.extend(labels_of(group))
        return dict(zip(OF_REFRESH, (self.auc, float(len(self._labels)), float(self.count)), strict=True))

    @property
    def is_due(self) -> bool:
        """Return whether the AUC is below its bound and there are enough trees to train a PRM on."""
        return self.auc < self._config.min_auc and self._trees.count >= self._config.min_problems

    async def retrain_if_due(self, step: int) -> None:
        """Retrain and replace the PRM if it is due after training step `step`."""
        if not self.is_due:
            return
        print(
            f"step {step}: the PRM's AUC on {len(self._labels)} held-out labels is {self.auc:.3f}, below "
            f"process.refresh.min_auc={self._config.min_auc:g}; training a new one on the trees of "
            f"{self._trees.count} problems",
            flush=True,
        )
        if not self._folder(step).joinpath(PRM_FOLDER).is_dir():
            await self._train(step)
        await self._prm.replace(self._folder(step) / PRM_FOLDER)
        self.version, self.count = step, self.count + 1
        self._labels.clear()
        print(f"step {step}: the new PRM is {self._folder(step) / PRM_FOLDER}", flush=True)

    def start_over(self) -> None:
        """Remove the PRMs of an earlier attempt, because the run starts over. Other files may be the user's."""
        for folder in (self._output / PRM_FOLDER).glob("step-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"version": self.version, "count": self.count, "labels": [list(label) for label in self._labels]}

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`, and load its PRM."""
        self.version, self.count = state["version"], state["count"]
        self._labels.extend((score, positive) for score, positive in state["labels"])
        if self.version:
            await self._prm.replace(self._folder(self.version) / PRM_FOLDER)

    def _folder(self, step: int) -> Path:
        return self._output / PRM_FOLDER / f"step-{step:08d}"

    async def _train(self, step: int) -> None:
        """Train the PRM of a step in its folder. Whatever an interrupted attempt has left there is used."""
        folder = self._folder(step)
        labels, run = folder / LABELS_FILE, folder / "train"
        if not labels.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(write_training_labels, labels, self._trees.path, self._config, self._seed)
        sets = (f"labels={labels}", f"output={run}")
        command = [sys.executable, "-m", "mmprm", "train", "--config", self._config.train]
        command += [part for each in sets for part in ("--set", each)]
        await self._prm.run_instead(command, folder / LOG_FILE, self._config.timeout_seconds)
        if not (run / PRM_FOLDER).is_dir():  # after SIGTERM, mmprm train saves a checkpoint and succeeds
            raise TrainingError(
                f"the training of a new PRM was stopped before its end; see {folder / LOG_FILE}, and run the same "
                "command again to resume"
            )
        (run / PRM_FOLDER).rename(folder / PRM_FOLDER)
        shutil.rmtree(run)


def check_refresh_files(config: RefreshConfig) -> None:
    """Raise ConfigError if the training could not start because of the files that the configuration names."""
    from mmprm.prm.train import TrainConfig

    load(TrainConfig, config.train, ["labels=unused", "output=unused"])
    if config.labels is not None and not Path(config.labels).is_file():
        raise ConfigError(
            f"process.refresh.labels={config.labels} is not a file; give a Parquet file of mmprm labels, or leave it "
            "out"
        )


def labels_of(group: GradedGroup) -> Iterator[tuple[float, bool]]:
    """Yield the PRM's score and whether the label is positive, for each scored label of a group's tree.

    The last step of a truncated response has no label, because the answer is missing.
    """
    for each in group.responses:
        ends = not each.response.ends_within_step
        if ends and each.process is not None and _has_verdict(each) and _is_scored_to_its_end(each):
            yield each.process.scores[-1], each.correct
    for branch in group.branches:
        known = [each.correct for each in branch.continuations if _has_verdict(each)]
        if branch.score is not None and known:
            yield branch.score, fmean(known) > 0.5


def _has_verdict(each: GradedResponse) -> bool:
    return each.reward.parts.get("accuracy") is not None and each.response.finish_reason != "abort"


def _is_scored_to_its_end(each: GradedResponse) -> bool:
    return each.process.step_of_token[-1] == len(each.process.scores) - 1


def write_training_labels(path: Path, store: Path, config: RefreshConfig, seed: int) -> None:
    """Write the labels of a store to a Parquet file, together with the training labels in `config.labels`.

    Of the latter, problems that are in the store or held out are left out.
    """
    fresh = path.with_name(f"fresh-{path.name}")
    build_labels(LabelsConfig(store=str(store), output=str(fresh), seed=seed, dev=config.dev))
    if config.labels is None:
        fresh.rename(path)
        return
    examples = read_parquet(fresh)
    known = {each.problem.id for each in examples}

    def is_used(each: LabeledExample) -> bool:
        held_out = split_of(each.problem.id, seed, config.dev, 0.0) == "dev"
        return each.split == "train" and not held_out and each.problem.id not in known

    write_parquet(path, [*examples, *filter(is_used, read_parquet(config.labels))])
    fresh.unlink()
