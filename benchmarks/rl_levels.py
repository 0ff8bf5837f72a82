"""Prepare a level of the built-in toy world for the RL benchmark: problems, the initial policy, and a PRM.

short   the built-in policy, which solves 43% of the problems
weak    the short level with a PRM that is trained on few labels
long    a policy that was fine-tuned on long solutions with mistakes; outcome rewards are sparse (see docs/tiny.md)

A PRM is trained on labels of problems of its level, annotated with the level's initial policy. Every stage is an mmprm
command that resumes or is skipped if its output exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.problems import write_problems
from mmprm.tiny.world import make_problems

ROOT = Path(__file__).parent.parent
RATE = 3e-4
"""Learning rate of runs with one update per rollout."""
SEEDS_OF = {"train": 50, "test": 3000, "annotate": 77}


@dataclass(frozen=True)
class Sizes:
    """Configures the numbers of seeds, steps, and samples. `SMALL` tests every part in minutes."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of all runs; the best process mode is chosen by these."""
    fresh_seeds: tuple[int, ...] = (3, 4, 5)
    """Seeds with which the chosen mode is measured."""
    prompts: int = 32
    group_size: int = 8
    steps: int | None = None
    """Steps of a run; None: those of its level."""
    every: int | None = None
    """Steps between evaluations; None: those of its level."""
    train: int = 3200
    held_out: int | None = None
    eval_samples: int | None = None
    """Samples per problem of an evaluation; None: those of its level."""
    solved: int = 16_000
    annotated: int = 300
    max_rollouts: int = 320


FULL = Sizes()
SMALL = Sizes((0,), (1,), 8, 4, 2, 1, 32, 8, 2, 32, 4, 40)


@dataclass(frozen=True)
class LevelSettings:
    """Configures a level. `minutes` is the estimated duration of a run on two cores."""

    name: str
    max_tokens: int
    steps: int
    held_out: int
    minutes: float
    sft: Mapping[str, Any] | None = None
    """Settings of the fine-tuning that makes the initial policy, or None for the built-in policy."""
    annotated: int | None = None
    """Number of problems that are annotated for the PRM, or None for that of all levels."""
    every: int = 5
    """Steps between evaluations."""
    eval_samples: int = 8
    """Samples per problem of an evaluation."""


LEVELS = {
    "short": LevelSettings("short", 96, 40, 300, 2.5),
    "weak": LevelSettings("short", 96, 80, 300, 5, annotated=8),
    "long": LevelSettings(
        "long",
        208,
        30,
        200,
        5,
        annotated=150,
        every=10,
        eval_samples=4,
        sft={"training.learning_rate": 2e-3, "training.batch_size": 32, "training.epochs": 2},
    ),
}


class Level:
    """Makes and locates the files of a level. `execute` runs an mmprm command and returns its exit code."""

    def __init__(
        self, folder: Path, settings: LevelSettings, sizes: Sizes, execute: Callable[[list[str], Path], int]
    ) -> None:
        self._folder, self._settings, self._sizes, self._execute = folder, settings, sizes, execute

    @property
    def policy(self) -> str:
        """Return the initial policy."""
        return "tiny" if self._settings.sft is None else str(self._folder / "sft" / "policy")

    @property
    def prm(self) -> Path:
        """Return the folder of the PRM."""
        return self._folder / "train" / "prm"

    def problems(self, split: str) -> Path:
        """Return the problem file of a split."""
        return self._folder / f"{split}.jsonl"

    def sets(self) -> dict[str, Any]:
        """Return the keys of `mmprm rl` that all runs of the level share."""
        sizes = self._sizes
        return {
            "problems.path": self.problems("train"),
            "held_out.path": self.problems("test"),
            "engine.model": self.policy,
            "sampling.max_tokens": self._settings.max_tokens,
            "batch.prompts": sizes.prompts,
            "batch.group_size": sizes.group_size,
            "steps": sizes.steps or self._settings.steps,
            "eval_every": sizes.every or self._settings.every,
            "eval_samples": sizes.eval_samples or self._settings.eval_samples,
            "save_every": 0,
            "trainer.optimization.learning_rate": RATE,
            "ray_address": "local",
        }

    def annotation_tokens(self) -> int:
        """Return the number of tokens that were generated for the labels of the PRM."""
        return json.loads((self._folder / "annotate" / "summary.json").read_text())["tokens"]

    def prepare(self, with_prm: bool) -> None:
        """Make the problems, the policy, and, if needed, the PRM, unless they exist."""
        held_out = self._sizes.held_out or self._settings.held_out
        for split, count in (("train", self._sizes.train), ("test", held_out)):
            self._write_problems(split, count)
        if self._settings.sft is not None and not Path(self.policy).is_dir():
            self._fine_tune(self._settings.sft)
        if with_prm and not self.prm.is_dir():
            self._train_prm()

    def _write_problems(self, split: str, count: int) -> None:
        if not self.problems(split).exists():
            made = make_problems(count, SEEDS_OF[split], split, self._settings.name)
            write_problems(self.problems(split), [tiny.problem for tiny in made])

    def _fine_tune(self, settings: Mapping[str, Any]) -> None:
        solved = self.problems("solved")
        options = ["--count", str(self._sizes.solved), "--split", "annotate", "--level", self._settings.name]
        options += ["--solutions", "--mistakes", "--output", str(solved)]
        if not solved.exists():
            self._command("tiny", ["problems", *options], {})
        fixed = {"data.path": solved, "held_out": "null", "output": self._folder / "sft", "training.save_every": 50}
        self._command("sft", _config("sft"), fixed | dict(settings))

    def _train_prm(self) -> None:
        annotated = self._sizes.annotated
        self._write_problems("annotate", min(self._settings.annotated or annotated, annotated))
        folder, labels = self._folder, self._folder / "labels.parquet"
        annotation = {
            "output": folder / "annotate",
            "problems.path": self.problems("annotate"),
            "engine.model": self.policy,
            "sampling.max_tokens": self._settings.max_tokens,
            "search.max_rollouts": self._sizes.max_rollouts,
            "ray_address": "local",
        }
        self._command("annotate", _config("annotate"), annotation)
        self._command("labels", [], {"store": folder / "annotate", "output": labels})
        training = {"model": self.policy, "labels": labels, "output": folder / "train", "training.save_every": 20}
        self._command("train", _config("train"), training)

    def _command(self, command: str, options: list[str], sets: Mapping[str, Any]) -> None:
        log = self._folder / f"{command}.log"
        keys = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        code = self._execute([command, *options, *keys], log)
        if code:
            raise RuntimeError(f"mmprm {command} for {self._folder} ended with exit code {code}; see {log}")


def _config(command: str) -> list[str]:
    return ["--config", str(ROOT / "configs" / command / "tiny.yaml")]
