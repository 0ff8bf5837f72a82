"""Estimate a run's GPU and CPU memory, or the duration of an annotation campaign, before the run starts.

`annotate` estimates a campaign's time from a pilot run; `serve` estimates the memory of its engines. All kinds except
`annotate` estimate memory from a configuration alone, without
weights, GPU, or network. They exit with code 2 if the run does not fit the GPUs given in `hardware`.

Examples:
  mmprm plan rl --config configs/rl/mm-eureka-7b.yaml
  mmprm plan sft --config configs/sft/mm-policy-8b.yaml --set hardware.gpus=4
  mmprm plan train --config configs/train/internvl3-38b.yaml --paths 200000
  mmprm plan stages --config configs/stages/vision-r1.yaml
  mmprm plan serve --config configs/search/internvl3-8b.yaml
  mmprm plan annotate --problems 10000 --pilot runs/pilot --engines 64
"""

from __future__ import annotations

import argparse
import importlib

_KINDS = ("annotate", "train", "sft", "rl", "stages", "serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    plans = parser.add_subparsers(dest="plan", metavar="|".join(_KINDS), required=True)
    for name in _KINDS:
        module = importlib.import_module(f"mmprm.cli.plan_{name}")
        summary, _, rest = (module.__doc__ or "").partition("\n")
        plan = plans.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=rest.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(plan)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan`."""
    importlib.import_module(f"mmprm.cli.plan_{arguments.plan}").run(arguments)
