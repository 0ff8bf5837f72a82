"""Provide a training engine without a model, to test the training loop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.loop import fit
from mmprm.training.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


class ScriptedEngine:
    """Counts its steps, skips those in `bad`, and sends this process a SIGTERM after `ask_at` steps."""

    learning_rate = 0.1
    ask_with = signal.SIGTERM

    def __init__(self, bad: Sequence[int] = (), ask_at: int = 0) -> None:
        self.ranks, self.deepspeed, self.skipped = ALONE, self, False
        self._bad, self._ask_at, self.steps = bad, ask_at, 0

    def step(self, losses: Any, denominator: float) -> tuple[float, float | None]:
        list(losses)
        self.steps += 1
        self.skipped = self.steps in self._bad
        if self.steps == self._ask_at:
            os.kill(os.getpid(), self.ask_with)
        return (float("nan") if self.skipped else 1.0 / self.steps), None

    def save_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "weights.pt").write_bytes(b"w" * self.steps)

    def load_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        self.steps = (Path(folder) / tag / "weights.pt").stat().st_size


class NoTask:
    lengths, terms = [1] * 8, [1] * 8

    def collate(self, samples: Sequence[int]) -> Sequence[int]:
        return samples

    def loss_sum(self, model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(())

    def evaluate(self, engine: Engine) -> dict[str, float]:
        return {"loss": 0.5}


def run(folder: Path, engine: ScriptedEngine, **training: Any) -> dict[str, float]:
    """Train for 8 steps of one sample."""
    return fit(NoTask(), engine, TrainingConfig(batch_size=1, log_every=100, **training), folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]
