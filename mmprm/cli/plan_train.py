"""Estimate a training run from the shapes of its model: parameters, memory per GPU, steps, GPU-hours.

Needs no weights and no GPU: config.json of the base is read from its folder or the hub's cache, and the models of the
shipped configurations are built in. Exits with 2 if the run does not fit, and reports what would.

Example:
  mmprm plan train --config configs/train/internvl3-38b.yaml --gpus 16 --gpu-memory 80 --paths 200000
"""

from __future__ import annotations

import argparse

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.errors import ConfigError
from mmprm.prm.train import TrainConfig
from mmprm.tiny.model import weights_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--gpus", type=int, default=8, help="ranks (8)")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="GIB", help="memory of a GPU (80)")
    parser.add_argument("--paths", type=int, help="paths to train on, for steps and GPU-hours")
    parser.add_argument("--path-tokens", type=int, default=2048, help="mean tokens of a path, picture included (2048)")
    parser.add_argument("--tflops", type=float, default=989, help="dense bf16 peak of a GPU (989, an H100; A100: 312)")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the peak that training reaches (0.35)")
    add_config_options(parser, TrainConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm plan train`."""
    from mmprm.planning.plan import memory_of, plan_text, run_of, run_text, ways_to_fit
    from mmprm.planning.shapes import shape_of

    for name, least in (("gpus", 1), ("gpu_memory", 1), ("paths", 1), ("path_tokens", 1), ("tflops", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}={value} must be at least {least}")
    if not 0 < arguments.mfu <= 1:
        raise ConfigError(f"--mfu={arguments.mfu} must lie in (0, 1]; large dense models reach 0.3 to 0.5")
    config = load_config(arguments, TrainConfig)
    if config.base == "tiny":
        config = config.model_copy(update={"base": str(weights_path())})
    gpus, gib = arguments.gpus, arguments.gpu_memory
    shape = shape_of(config)
    memory = memory_of(shape, config, gpus, gib)
    print(plan_text(shape, memory, config, gpus))
    if arguments.paths is None:
        batch, tokens = config.training.batch_size, arguments.path_tokens
        print(f"\n{batch * tokens:,} tokens a step: {batch:,} paths of {tokens:,}; --paths tells steps and GPU-hours")
    else:
        peak, mfu = arguments.tflops * 1e12, arguments.mfu
        expected = run_of(shape, config, gpus, arguments.paths, arguments.path_tokens, peak, mfu)
        print(f"\n{run_text(expected, arguments.paths, arguments.path_tokens, gpus, mfu)}")
    if not memory.fits:
        ways = ways_to_fit(config, gpus, gib)
        raise ConfigError(
            f"{memory.total / 2**30:.1f} GiB do not fit into {memory.usable / 2**30:.1f} usable ones of a GPU; "
            + (f"what would: {'; '.join(ways)}" if ways else "nothing here would: take a smaller model")
        )
