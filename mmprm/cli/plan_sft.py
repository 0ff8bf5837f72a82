"""Estimate the memory of supervised fine-tuning per GPU and node.

Needs no weights, no GPU, and no network; see `mmprm plan train --help`.

Examples:
  mmprm plan sft --config configs/sft/mm-policy-8b.yaml
  mmprm plan sft --config configs/sft/mm-policy-8b.yaml --set model=Qwen/Qwen3-VL-8B-Instruct --set hardware.gpus=4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprm.cli.plan_shared import model_shape, report_plan, trainer_settings
from mmprm.cli.plan_train import train_changes
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import load
from mmprm.planning.parts import MemoryPlan
from mmprm.planning.shapes import Shape, shape_text
from mmprm.planning.trainer import training_plan
from policy_rl.sft.train import SftConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, SftConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan sft`."""
    config = load_config(arguments, SftConfig)
    print(shape_text(config.model, sft_shape(config)), end="\n\n")

    def plan_with(more: Sequence[str]) -> MemoryPlan:
        return plan_sft(load(SftConfig, arguments.config, [*arguments.set, *more]))

    report_plan(plan_sft(config), plan_with, train_changes(config))


def sft_shape(config: SftConfig) -> Shape:
    """Return the layer sizes and parameter counts of the model to train."""
    return model_shape(config.model, config.hardware, "model", config.frozen, config.lora)


def plan_sft(config: SftConfig) -> MemoryPlan:
    """Estimate the memory of a configured SFT run."""
    hardware = config.hardware
    trainer = trainer_settings(config.training, hardware.gpus, config.max_length, config.gradient_checkpointing)
    gpu, host = hardware.gpu_memory_gib, hardware.host_memory_gib
    return training_plan(sft_shape(config), trainer, gpu, hardware.nodes, host)
