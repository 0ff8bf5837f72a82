"""Estimate the cost of a campaign from a pilot run, or that of a training run from its configuration.

Examples:
  mmprm plan annotate --problems 10000 --pilot runs/pilot --engines 64
  mmprm plan train --config configs/train/internvl3-38b.yaml --gpus 16 --paths 200000
"""

from __future__ import annotations

import argparse

from mmprm.cli import plan_annotate, plan_train

PLANS = {"annotate": plan_annotate, "train": plan_train}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    plans = parser.add_subparsers(dest="plan", metavar="annotate|train", required=True)
    for name, module in PLANS.items():
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
    PLANS[arguments.plan].run(arguments)
