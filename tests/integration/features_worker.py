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

from mmprm.prompts import PromptConfig
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


def main(model: str, folder: Path) -> None:
    """Write the results of ZeRO stages 2 and 3."""
    results = {f"{stage} {enabled}": measure(model, stage, enabled) for stage in (2, 3) for enabled in (False, True)}
    (folder / f"features.{torch.distributed.get_rank()}.json").write_text(json.dumps(results), encoding="utf-8")
