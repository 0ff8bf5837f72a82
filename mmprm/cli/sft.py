"""Train a policy on conversations or solutions, with the loss on the assistant's turns only.

Examples:
  mmprm sft --config configs/sft/tiny.yaml
  torchrun --nproc_per_node 8 -m mmprm sft --config configs/sft/mm-policy-8b.yaml --set data.path=solutions.jsonl

When run again with the same output, the command resumes from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import os

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import model_path
from policy_rl.sft.train import SftConfig, train_sft


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, SftConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm sft`."""
    config = load_config(arguments, SftConfig)
    config = config.model_copy(update={"model": model_path(config.model)})
    summary = train_sft(config)
    if os.environ.get("RANK", "0") == "0":
        values = ", ".join(f"{name} {value:.4g}" for name, value in summary.evaluation.items())
        print(
            f"{summary.policy}: {summary.steps:,} steps in {summary.seconds:.0f} s on {summary.samples:,} samples "
            f"({summary.tokens:,} tokens); {summary.too_long:,} too long; held out: {values or 'none'}"
        )
