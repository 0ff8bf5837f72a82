"""Run several trainings one after the other: supervised and reinforcement learning, each from the last one's policy.

The file holds `output` and `stages`, a list of `sft: …` and `rl: …` with the keys of `mmprm sft` and `mmprm rl`. Stage
N lies in OUTPUT/stage-N-KIND; the model that it begins with is the policy of the stage before it. Started again,
finished stages are passed over, and the one that was stopped goes on.

Examples:
  mmprm stages --config configs/stages/vision-r1.yaml
  mmprm stages --config configs/stages/vision-r1.yaml --set output=runs/try --set 2.steps=10
"""

from __future__ import annotations

import argparse

from policy_rl.stages import run_stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file with output and stages")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="N.KEY=VALUE",
        action="append",
        default=[],
        help="override a key of stage N, or output; repeatable",
    )


def run(arguments: argparse.Namespace) -> None:
    policy = run_stages(arguments.config, arguments.overrides)
    if policy is not None:
        print(f"{policy}: the policy of the last stage")
