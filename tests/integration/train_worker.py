"""Run the jobs of a JSON file in sequence in one process per rank, because starting ranks takes most of the time.

A job {"config": FILE} runs `mmprm train`. Faults on its last rank are optional: "nan" lists steps whose loss is NaN,
and "sigterm" names the step before which the rank receives SIGTERM. A job {"config": FILE, "parts": FILE} records how
the model was loaded under ZeRO-3.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch
from torch import Tensor, nn

from mmprm.cli.main import main
from mmprm.config import load
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm
from mmprm.prm.train import TrainConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import join_ranks
from mmprm.training.sharding import loading_in_parts, whole

Losses = Iterable[Callable[[nn.Module], Tensor]]


def train(config: str, nan: Sequence[int] = (), sigterm: int = 0) -> int:
    calls, step = count(1), Engine.step
    faulty = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)

    def faulty_step(engine: Engine, losses: Losses, denominator: float) -> tuple[float, float | None]:
        call = next(calls)
        if call == sigterm and faulty:
            os.kill(os.getpid(), signal.SIGTERM)
        if call in nan and faulty:
            losses = (partial(poisoned, loss_sum) for loss_sum in losses)
        return step(engine, losses, denominator)

    with mock.patch.object(Engine, "step", faulty_step):
        try:
            return main(["train", "--config", config])
        except SystemExit as stopped:
            return int(stopped.code or 0)


def poisoned(loss_sum: Callable[[nn.Module], Tensor], model: nn.Module) -> Tensor:
    return loss_sum(model) * float("nan")


def load_parts(config: str, parts: str) -> int:
    """Load a model under ZeRO-3 and write how it was sharded.

    `kept` is the largest share of all elements that a rank holds, `whole` the largest share gathered at once while
    loading. `not_in_parts` names the weights that are not sharded, `different` those that differ from the checkpoint's.
    """
    ranks, settings = join_ranks(), load(TrainConfig, Path(config))
    gathered: list[int] = []
    enter = deepspeed.zero.GatheredParameters.__enter__

    def counting_enter(context: Any) -> Any:
        gathered.append(sum(parameter.ds_numel for parameter in context.params) if context.enabled else 0)
        return enter(context)

    with (
        loading_in_parts(settings.training),
        mock.patch.object(deepspeed.zero.GatheredParameters, "__enter__", counting_enter),
    ):
        model = initialize_prm(settings.model, PrmTokens()).model
    sharded = {name: p for name, p in model.named_parameters() if hasattr(p, "ds_id")}
    total = sum(parameter.ds_numel for parameter in sharded.values())
    kept = sum(parameter.ds_tensor.numel() + parameter.numel() for parameter in sharded.values())
    expected = dict(initialize_prm(settings.model, PrmTokens()).model.named_parameters())
    different = []
    for name, parameter in model.named_parameters():
        with whole([parameter]):
            if not torch.equal(parameter, expected[name]):
                different.append(name)
    found = {
        "kept": max(ranks.gather(kept / total)),
        "whole": max(ranks.gather(max(gathered) / total)),
        "not_in_parts": sorted(set(expected) - set(sharded)),
        "different": sorted({name for names in ranks.gather(different) for name in names}),
    }
    if ranks.is_main:
        Path(parts).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        code = load_parts(**job) if "parts" in job else train(**job)
        if code:
            sys.exit(code)
