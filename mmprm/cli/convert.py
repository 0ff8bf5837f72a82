"""Convert a checkpoint: an older InternVL to its native transformers class, or a trained PRM to another tool's format.

A checkpoint of mmprm rl, sft or train (RUN/checkpoints/step-…, or RUN for its newest one) becomes a plain model folder,
regardless of the number of ranks and the ZeRO stage that wrote it. checkpoints/best is the checkpoint with the best
evaluation (keep_best).

Examples:
  mmprm convert runs/rl/checkpoints/step-00000040 models/policy-40
  mmprm convert models/InternVL2_5-8B models/InternVL2_5-8B-hf
  mmprm convert models/MM-PRM models/MM-PRM-hf
  mmprm convert runs/text/train/prm models/text-prm --format qwen
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmprm.errors import CheckpointError
from mmprm.prm.info import INFO_FILE
from mmprm.weights import model_errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of an internvl_chat model, a checkpoint of a run, or with --format a PRM",
    )
    parser.add_argument("target", metavar="TARGET", help="folder to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("native", "mm-prm", "qwen", "trl"),
        default="native",
        help="native (default): transformers' InternVL class; the other formats need a PRM written by mmprm train",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm convert`."""
    if not Path(arguments.source).exists():
        raise CheckpointError(
            f"{arguments.source}: does not exist; give a model folder or a checkpoint (RUN/checkpoints/step-…)"
        )
    if arguments.format == "native":
        from mmprm.training.checkpoints import is_checkpoint

        (_to_model if is_checkpoint(Path(arguments.source)) else _to_native)(arguments)
        return
    from mmprm.convert.export import export_prm

    with model_errors(arguments.source):
        info = export_prm(arguments.source, arguments.target, arguments.format)
    print(f"{arguments.target}: {info.format}, marker {info.tokens.marker!r}")
    if info.aggregator is None:
        print("aggregator and threshold are not chosen yet; run mmprm rerank --choose-aggregator and mmprm eval")


def _to_model(arguments: argparse.Namespace) -> None:
    from mmprm.prm.trained import convert_checkpoint

    found = convert_checkpoint(arguments.source, arguments.target)
    print(f"{arguments.target}: the {found.kind} after step {found.step} ({found.checkpoint})")


def _to_native(arguments: argparse.Namespace) -> None:
    from mmprm.convert.internvl_chat import convert_internvl_chat

    with model_errors(arguments.source):
        config = convert_internvl_chat(arguments.source, arguments.target)
    judge = (Path(arguments.target) / INFO_FILE).is_file()
    print(
        f"{arguments.target}: {config.architectures[0]}, {config.text_config.model_type}, "
        f"{config.vision_config.num_hidden_layers} vision layers"
        + (f"; a process reward model ({INFO_FILE})" if judge else "")
    )
