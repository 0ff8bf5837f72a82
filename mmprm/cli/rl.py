"""Train a policy by reinforcement learning with outcome rewards and a PRM's process rewards.

Examples:
  mmprm rl --config configs/rl/tiny.yaml
  mmprm rl --config configs/rl/tiny.yaml --set trainer.loss.surrogate=cpgd --set output=runs/tiny/cpgd

When run again with the same output, the command resumes from the newest checkpoint; a finished run is left unchanged.
"""

from __future__ import annotations

import argparse

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.cli.shared.policy import model_path
from policy_rl.config import RLConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, RLConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm rl`."""
    config = load_config(arguments, RLConfig)
    engine = config.engine.model_copy(update={"model": model_path(config.engine.model)})
    config = config.model_copy(update={"engine": engine})
    from policy_rl.run import train_policy

    summary = train_policy(config)
    if not summary.finished:
        return
    words = [f"{summary.policy}: the policy after step {summary.steps}"]
    for name, found in (("before", summary.before), ("after", summary.after)):
        if found is not None:
            share = found.pass_at_1
            words.append(f"pass@1 {name} {share.value:.3f} ({share.low:.3f} to {share.high:.3f})")
    print("; ".join(words))
