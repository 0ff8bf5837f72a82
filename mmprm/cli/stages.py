"""Run several training stages (SFT or RL) in sequence, each starting from the previous stage's policy.

The file holds `output` and `stages`, a list of `sft: …` and `rl: …` with the keys of `mmprm sft` and `mmprm rl`. Stage
N is stored in OUTPUT/stage-N-KIND and starts from the policy of the previous stage. When the command is run again,
finished stages are skipped and the interrupted one resumes.

Examples:
  mmprm stages --config configs/stages/vision-r1.yaml
  mmprm stages --config configs/stages/vision-r1.yaml --set output=runs/try --set 2.steps=10
"""

from __future__ import annotations

import argparse

from policy_rl.stages import run_stages, write_stage_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file with output and stages")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="N.KEY=VALUE",
        action="append",
        default=[],
        help="override a key of stage N, or output; repeatable",
    )
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="write the configuration of each unfinished stage to OUTPUT/stage-N-KIND/stage.yaml, and run nothing",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm stages`."""
    if arguments.files_only:
        print(*write_stage_files(arguments.config, arguments.overrides), sep="\n")
        return
    policy = run_stages(arguments.config, arguments.overrides)
    if policy is not None:
        print(f"{policy}: the policy of the last stage")
