"""Train on two ranks with a frozen vision tower, with and without the cache of image features.

Rank r writes `features.r.json`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reference_worker
import torch

from mmprm.backbone.image_features import feature_cache
from mmprm.backbone.trainable import TrainableConfig
from mmprm.prm.data import PrmSample
from mmprm.prm.formats import MmPrmFormat
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import initialize_prm
from mmprm.prm.packing import Marks
from mmprm.prm.task import PrmTask, make_rows
from mmprm.prm.train import prepare_model
from mmprm.prompts import PromptConfig
from mmprm.tiny.world import make_problems
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.ranks import join_ranks
from mmprm.training.sharding import loading_in_parts
from mmprm.types import Solution
from policy_rl.algorithms.losses import KlConfig, LossConfig
from policy_rl.trainer.config import TrainerConfig, UpdateConfig
from policy_rl.trainer.trainer import Trainer


def measure(model: str, stage: int, enabled: bool) -> dict[str, Any]:
    """Return this rank's log-probabilities, and loss, gradient norm and vision tower calls of two updates."""
    optimization = UpdateConfig(precision="fp32", zero_stage=stage, micro_batch_tokens=120)
    loss = LossConfig(kl=KlConfig(coefficient=0.1))
    config = TrainerConfig(ranks=2, loss=loss, optimization=optimization, frozen=("vision", "projector"))
    trainer = Trainer(model, config, PromptConfig(preset="plain"), 0.9, 10)
    assert trainer._policy.image_features.enabled
    trainer._policy.image_features.enabled = enabled
    samples = reference_worker.make_samples(trainer)
    own = trainer.log_probs(samples)
    found = {position: each for part in trainer.ranks.gather(own) for position, each in part.items()}
    ready = [
        replace(sample, old=found[n].old, ref=found[n].ref, advantages=np.full(len(sample.token_ids), 1.0 - n % 3))
        for n, sample in enumerate(samples)
    ]
    updates = [trainer.update(ready) for _ in range(2)]
    return {
        "old": {position: each.old.tolist() for position, each in own.items()},
        "ref": {position: each.ref.tolist() for position, each in own.items()},
        "updates": [[update[name] for name in ("loss", "gradient_norm")] for update in updates],
        "calls": [update["vision_calls"] for update in updates],
    }


def measure_prm(model: str, enabled: bool) -> dict[str, Any]:
    """Return losses, gradient norms and vision tower calls of a PRM that is trained for three epochs with ZeRO-3.

    Rank 1 meets the third problem only in the second epoch, when rank 0 has features of all its images.
    """
    ranks, config = join_ranks(), TrainingConfig(precision="fp32", zero_stage=3, learning_rate=1e-4)
    torch.manual_seed(0)
    with loading_in_parts(config):
        prm = initialize_prm(model, PrmTokens(), add_missing_tokens=True)
    prepare_model(prm.model, TrainableConfig(frozen=("vision", "projector")))
    cache = feature_cache(prm.model.backbone, ranks, config.zero_stage)
    assert cache.enabled
    cache.enabled = enabled
    prm.model.image_features = cache
    form, problems = MmPrmFormat(prm.processor, prm.info.tokens), make_problems(3, seed=0, split="train")
    solutions = [Solution(tiny.problem, ("1+1=2", "2+1=3")) for tiny in problems]
    samples = [PrmSample(each, (1.0, 0.0), (1.0, 1.0), *Marks(form)(each)) for each in solutions]
    rows = make_rows(samples, form, prm.model.backbone, "none", 1000)
    task, engine = PrmTask(rows, rows, 1000, ranks.device), Engine(prm.model, config, 3, ranks)
    updates, calls = [], []
    for own in ((0, 1), (0, 2), (0, 2)):
        batch = task.collate([own[ranks.rank]])
        before = cache.tower_calls
        updates.append(engine.step([lambda model, batch=batch: task.loss_sum(model, batch)], 4))
        calls.append(cache.tower_calls - before)
    return {"updates": updates, "calls": calls}


def main(model: str, folder: Path) -> None:
    """Write the results of ZeRO stages 2 and 3."""
    results = {f"{stage} {enabled}": measure(model, stage, enabled) for stage in (2, 3) for enabled in (False, True)}
    results |= {f"prm {enabled}": measure_prm(model, enabled) for enabled in (False, True)}
    (folder / f"features.{torch.distributed.get_rank()}.json").write_text(json.dumps(results), encoding="utf-8")
