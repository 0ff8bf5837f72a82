"""Estimate PRM training: memory per GPU and node, steps, and GPU-hours.

Needs no weights, no GPU, and no network. config.json of the model is read from its folder or the hub's cache; the
models of the shipped configurations are built in. `hardware` describes the GPUs. If the run does not fit, the command
exits with code 2 and suggests changes with which it would fit.

Examples:
  mmprm plan train --config configs/train/internvl3-38b.yaml --paths 200000
  mmprm plan train --config configs/train/internvl3-8b.yaml --set hardware.gpus=4 --set hardware.gpu_memory_gib=139
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mmprm.cli.plan_shared import model_shape, more_gpus, report_plan, trainer_changes, trainer_settings
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import load
from mmprm.errors import ConfigError
from mmprm.planning.cost import cost_of, cost_text
from mmprm.planning.fitting import Changes
from mmprm.planning.parts import MemoryPlan
from mmprm.planning.shapes import Shape, shape_text
from mmprm.planning.trainer import training_plan
from mmprm.prm.train import TrainConfig

if TYPE_CHECKING:
    from policy_rl.sft.train import SftConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("--paths", type=int, help="number of paths to train on, for the steps and GPU-hours")
    parser.add_argument(
        "--path-tokens", type=int, default=2048, help="mean number of tokens per path, images included (2048)"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=989,
        help="dense bf16 peak per GPU in TFLOP/s (989 for an H100; 312 for an A100)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.28,
        help="share of the peak that training reaches, counting recomputed activations (0.28, measured on an H200)",
    )
    add_config_options(parser, TrainConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan train`."""
    _check(arguments)
    config = load_config(arguments, TrainConfig)
    shape = train_shape(config)
    print(shape_text(config.model, shape), end="\n\n")
    tokens, gpus = arguments.path_tokens, config.hardware.gpus
    if arguments.paths is None:
        batch = config.training.batch_size
        print(f"{batch * tokens:,} tokens per step: {batch:,} paths of {tokens:,}; add --paths for steps and GPU-hours")
    else:
        cost = cost_of(shape, config, gpus, arguments.paths, tokens, arguments.tflops * 1e12, arguments.mfu)
        print(cost_text(cost, arguments.paths, tokens, gpus, arguments.mfu))
    print()

    def plan_with(more: Sequence[str]) -> MemoryPlan:
        return plan_train(load(TrainConfig, arguments.config, [*arguments.set, *more]))

    report_plan(plan_train(config), plan_with, train_changes(config))


def train_shape(config: TrainConfig) -> Shape:
    """Return the layer sizes and parameter counts of the model to train."""
    return model_shape(config.model, config.hardware, "model", config.frozen, config.lora, judges=True)


def plan_train(config: TrainConfig) -> MemoryPlan:
    """Estimate the memory of a configured PRM training run."""
    hardware = config.hardware
    trainer = trainer_settings(
        config.training, hardware.gpus, config.max_length, config.gradient_checkpointing, reads_logits=False
    )
    gpu, host = hardware.gpu_memory_gib, hardware.host_memory_gib
    return training_plan(train_shape(config), trainer, gpu, hardware.nodes, host)


def train_changes(config: TrainConfig | SftConfig) -> Iterator[Changes]:
    """Yield configuration changes that save memory or add GPUs, cheapest first."""
    checkpointing = {} if config.gradient_checkpointing else {"gradient_checkpointing": True}
    lora = {} if config.lora else {"lora.rank": 16}
    yield from trainer_changes(config.training, "training", config.max_length, checkpointing, lora)
    yield from more_gpus(config.hardware)


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if an option is out of range."""
    for name in ("paths", "path_tokens", "tflops"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')}={value} must be a number of at least 1; correct it")
    if not 0 < arguments.mfu <= 1:
        raise ConfigError(f"--mfu={arguments.mfu} must lie in (0, 1]; use 0.2 to 0.4 for a large dense model")
