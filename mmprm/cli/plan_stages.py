"""Estimate the memory per GPU and node of every stage in an `mmprm stages` file.

Each stage is planned as by `mmprm plan sft` or `mmprm plan rl`. If a stage does not fit, the command exits with code 2.
Models written by earlier stages are assumed to be as large as the model that the first stage starts from.

Example:
  mmprm plan stages --config configs/stages/vision-r1.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprm.cli import plan_rl, plan_sft
from mmprm.cli.plan_shared import report_plan
from mmprm.cli.plan_train import train_changes
from mmprm.errors import ConfigError
from mmprm.planning.parts import MemoryPlan
from mmprm.planning.shapes import shape_text
from policy_rl.config import RLConfig
from policy_rl.sft.train import SftConfig
from policy_rl.stages import read_stages

StageConfig = SftConfig | RLConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument("--config", metavar="FILE", required=True, help="YAML file with output and stages")
    parser.add_argument(
        "--set", metavar="N.KEY=VALUE", action="append", default=[], help="override a key of stage N; repeatable"
    )
    plan_rl.add_prompt_option(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan stages`."""
    refused = []
    for number, config in enumerate(stage_configs(arguments.config, arguments.set), start=1):
        rl = isinstance(config, RLConfig)
        shape = plan_rl.rl_shape(config) if rl else plan_sft.sft_shape(config)
        print(shape_text(f"stage {number} ({'rl' if rl else 'sft'})", shape), end="\n\n")
        try:
            _report_stage(arguments, number, config)
        except ConfigError as error:
            refused.append(f"stage {number}: {error}")
        print()
    if refused:
        raise ConfigError("\n".join(refused))


def _report_stage(arguments: argparse.Namespace, number: int, config: StageConfig) -> None:
    tokens = plan_rl.longest_prompt(arguments, config) if isinstance(config, RLConfig) else plan_rl.PROMPT_TOKENS

    def plan_with(more: Sequence[str]) -> MemoryPlan:
        sets = [*arguments.set, *(f"{number}.{change}" for change in more)]
        return plan_stage(stage_configs(arguments.config, sets)[number - 1], tokens)

    changes = plan_rl.rl_changes(config, tokens) if isinstance(config, RLConfig) else train_changes(config)
    report_plan(plan_stage(config, tokens), plan_with, changes)


def stage_configs(path: str, sets: Sequence[str] = ()) -> list[StageConfig]:
    """Load the configurations of all stages, assuming that models written by earlier stages have the first model's
    shape."""
    stages = read_stages(path, sets)
    first = stages[0].config
    base = first.engine.model if isinstance(first, RLConfig) else first.model
    base = first.hardware.shapes.get(base, base)
    written = {str(stage.policy): base for stage in stages}
    configs = []
    for stage in stages:
        hardware = stage.config.hardware
        hardware = hardware.model_copy(update={"shapes": written | hardware.shapes})
        configs.append(stage.config.model_copy(update={"hardware": hardware}))
    return configs


def plan_stage(config: StageConfig, prompt_tokens: int = plan_rl.PROMPT_TOKENS) -> MemoryPlan:
    """Estimate the memory of a stage."""
    return plan_rl.plan_rl(config, prompt_tokens) if isinstance(config, RLConfig) else plan_sft.plan_sft(config)
