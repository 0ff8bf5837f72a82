"""Train a process reward model from labeled paths.

Examples:
  mmprm train --config configs/train/tiny.yaml --set labels=runs/demo/labels.parquet --set output=runs/demo/train
  torchrun --nproc_per_node 8 -m mmprm train --config configs/train/qwen2.5-vl-7b.yaml --set labels=… --set output=…
"""

from __future__ import annotations

import argparse
import os

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import model_path
from mmprm.prm.train import TrainConfig, train_prm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, TrainConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm train`."""
    config = load_config(arguments, TrainConfig)
    config = config.model_copy(update={"model": model_path(config.model)})
    summary = train_prm(config)
    if os.environ.get("RANK", "0") == "0":
        values = ", ".join(f"{name} {value:.4g}" for name, value in summary.evaluation.items())
        print(
            f"{summary.prm}: {summary.steps:,} steps in {summary.seconds:.0f} s on {summary.samples:,} samples, "
            f"{summary.labels:,} labels; {summary.too_long:,} samples too long; held out: {values or 'no dev split'}"
        )
