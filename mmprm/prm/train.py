"""`mmprm train`: labelled paths and a base model become a process reward model."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from mmprm.config import Config
from mmprm.errors import ConfigError, DataError
from mmprm.labels.parquet import read_parquet
from mmprm.prm.data import PrmTask, Sample, TargetConfig, make_samples
from mmprm.prm.info import PrmTokens
from mmprm.prm.model import Prm, initialise_prm, save_prm
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import Engine
from mmprm.training.loop import fit, step_count
from mmprm.training.ranks import Ranks, join_ranks


class TrainConfig(Config):
    base: str
    """Model to begin with: a folder, a hub id such as Qwen/Qwen2.5-VL-7B-Instruct, or tiny (the embedded policy)."""
    labels: str
    """Parquet file that mmprm labels wrote; its train split is trained on, its dev split evaluated."""
    output: str
    """Run folder: the model in prm/, checkpoints/, metrics.jsonl, tensorboard/. A run that is there goes on."""
    tokens: PrmTokens = PrmTokens()
    """Marker and judgement tokens."""
    add_missing_tokens: bool = False
    """Add Yes and No to a vocabulary that lacks them as single tokens."""
    target: TargetConfig = TargetConfig()
    """What the counts of a step make its target."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter names that stay as they are, for example the vision tower's."""
    max_length: int = Field(4096, ge=1)
    """Paths of more tokens are left out of training and counted."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation, batches, sharding, checkpoints."""


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """`evaluation` holds the last loss and AUC on held-out trees; `labels` are those trained on, once an epoch."""

    prm: Path
    steps: int
    samples: int
    labels: int
    too_long: int
    seconds: float
    evaluation: dict[str, float]


def train_prm(config: TrainConfig) -> TrainSummary:
    """Train on one process, or as one of the ranks that torchrun started; every rank returns the summary."""
    started = time.perf_counter()
    ranks = join_ranks()
    torch.manual_seed(config.training.seed + ranks.rank)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    prm = initialise_prm(config.base, config.tokens, config.add_missing_tokens, dtype)
    prepare(prm.model, config)
    (train, too_long), (held_out, _) = _samples(config, prm)
    _check_pictures(train + held_out, config, ranks)
    total = step_count(len(train), config.training)
    engine = Engine(prm.model, config.training, total, ranks)
    task = PrmTask(prm.renderer, train, held_out, config.training.micro_batch_tokens, ranks.device)
    if ranks.is_main:
        print(f"{len(train):,} paths, {sum(task.terms):,} labels, {total:,} steps on {ranks.count} ranks", flush=True)
    output = Path(config.output)
    evaluation = fit(task, engine, config.training, output, _origin(config))
    weights = engine.weights("backbone.")
    if ranks.is_main:
        settings = {**config.target.model_dump(), "file": Path(config.labels).name}
        info = prm.info.model_copy(update={"labels": settings})
        save_prm(output / "prm", Prm(prm.model, prm.renderer, info), weights)
    ranks.barrier()
    seconds = time.perf_counter() - started
    return TrainSummary(output / "prm", total, len(train), sum(task.terms), too_long, seconds, evaluation)


def _origin(config: TrainConfig) -> dict[str, Any]:
    """What else decides the weights: with another base, other labels or other targets a run does not go on."""
    kept = config.model_dump(mode="json", exclude={"labels", "output", "training", "gradient_checkpointing"})
    return kept | {"labels": hashlib.sha256(Path(config.labels).read_bytes()).hexdigest()[:16]}


def prepare(model: nn.Module, config: TrainConfig) -> None:
    """Freeze what `frozen` names. Raises ConfigError for a pattern without a match, and when nothing is left."""
    parameters = dict(model.backbone.named_parameters())
    for pattern in config.frozen:
        names = [name for name in parameters if re.search(pattern, name)]
        if not names:
            shown = ", ".join(sorted({".".join(name.split(".")[:2]) for name in parameters}))
            raise ConfigError(f"frozen: {pattern!r} matches no parameter; they begin with {shown}")
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen: leaves nothing to train; freeze less")
    if config.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()


def _samples(config: TrainConfig, prm: Prm) -> list[tuple[list[Sample], int]]:
    """(samples, number of those left out as too long) of the train and the dev split."""
    examples = read_parquet(config.labels)
    parts = []
    for split in ("train", "dev"):
        chosen = [example for example in examples if example.split == split]
        samples = make_samples(chosen, prm.renderer, config.target)
        kept = [sample for sample in samples if sample.length <= config.max_length]
        parts.append((kept, len(samples) - len(kept)))
    if not parts[0][0]:
        raise DataError(
            f"{config.labels}: its train split has no labelled path of at most {config.max_length} tokens; "
            "raise max_length or give more labels"
        )
    return parts


def _check_pictures(samples: list[Sample], config: TrainConfig, ranks: Ranks) -> None:
    """Under ZeRO-3 the ranks gather weights together, so all must run the vision tower or none."""
    kinds = {bool(sample.solution.problem.pictures) for sample in samples}
    if config.training.zero_stage == 3 and ranks.count > 1 and len(kinds) > 1:
        raise ConfigError(
            "training.zero_stage=3 cannot mix problems with and without pictures on several ranks, which would wait "
            "for each other; use stage 2, or one kind of problem"
        )
