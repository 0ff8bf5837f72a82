"""Write problems of the built-in toy worlds, critiques of solutions or levels of Sokoban, or train policies.

Examples:
  mmprm tiny problems --output runs/tiny/annotate.jsonl --count 200 --split annotate
  mmprm tiny problems --output runs/tiny/long.jsonl --count 200 --split train --level long
  mmprm tiny sokoban --output runs/sokoban/levels.jsonl --count 200 --size 6 --boxes 2
  mmprm tiny critiques --output runs/tiny/critiques --count 4000 --split train
  mmprm tiny train --output runs/tiny/policy --set seed=1
  mmprm tiny sokoban-policy --output runs/sokoban/policy
  mmprm tiny omni --output runs/omni/clips.jsonl --count 200 --solutions
  mmprm tiny omni-policy --output runs/omni/policy

`critiques` writes rows to teach the policy to judge solutions: kept.jsonl for mmprm sft, problems.jsonl for mmprm rl,
and solutions.jsonl for mmprm eval processbench.

`omni` writes short clips with sound, whose emotion follows from what moves and from the tone; `omni-policy` trains a
policy on such clips, and `sokoban-policy` one that plays Sokoban. Their keys are listed last. The other keys below
apply to `train`, which takes about half an hour on 2 free cores. The two mistake rates also apply to `critiques` and,
with `--mistakes`, to `problems`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from mmprm.cli.shared.options import add_config_options, key_table, load_config
from mmprm.config import build
from mmprm.errors import CheckpointError, DataError
from mmprm.tiny.config import OmniTrainConfig, SokobanTrainConfig, TinyTrainConfig
from mmprm.tiny.world import NO_MISTAKES, OPERATION_WEIGHTS, SPLITS, Mistakes, make_problems, solve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    parser.add_argument(
        "action", choices=("problems", "critiques", "sokoban", "omni", "train", "sokoban-policy", "omni-policy")
    )
    parser.add_argument("--output", required=True, type=Path, help="JSONL file of the problems, or folder")
    parser.add_argument("--count", type=int, default=200, help="problems, critiques, sokoban: their number (200)")
    parser.add_argument(
        "--split", choices=tuple(SPLITS), default="annotate", help="which of the disjoint splits (annotate)"
    )
    parser.add_argument(
        "--level",
        choices=tuple(OPERATION_WEIGHTS),
        default="short",
        help="problems: 1 to 4 operations, or 8 to 14 (short)",
    )
    parser.add_argument(
        "--solutions",
        action="store_true",
        help="problems, sokoban, omni: add a correct solution, for mmprm sft",
    )
    parser.add_argument(
        "--mistakes",
        action="store_true",
        help="problems: with --solutions, make mistakes in them at the rates mistake_rate and hard_mistake_rate",
    )
    parser.add_argument(
        "--play",
        action="store_true",
        help="sokoban: write episodes that the solver plays in the levels, as conversations for mmprm sft; with "
        "--mistakes, 60%% of them with mistakes",
    )
    parser.add_argument("--size", type=int, default=6, help="sokoban: rows and columns, with the outer walls (6)")
    parser.add_argument("--boxes", type=int, default=2, help="sokoban: boxes per level (2)")
    parser.add_argument("--seed", type=int, default=0, help="problems, critiques, sokoban: seed (0)")
    add_config_options(parser, TinyTrainConfig)
    parser.epilog = f"{parser.epilog}\n\nkeys of sokoban-policy:\n{key_table(SokobanTrainConfig)}"
    parser.epilog += f"\n\nkeys of omni-policy:\n{key_table(OmniTrainConfig)}"


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm tiny`."""
    actions = {
        "problems": _problems,
        "critiques": _critiques,
        "sokoban": _sokoban,
        "train": _train,
        "sokoban-policy": _sokoban_policy,
        "omni": _omni,
        "omni-policy": _omni_policy,
    }
    actions[arguments.action](arguments)


def _problems(arguments: argparse.Namespace) -> None:
    from mmprm.problems import write_problems

    if arguments.count < 1:
        raise DataError(f"--count={arguments.count} must be at least 1; raise it")
    path = arguments.output if arguments.output.suffix == ".jsonl" else arguments.output / "problems.jsonl"
    if arguments.mistakes and not arguments.solutions:
        raise DataError("--mistakes needs --solutions, in which the mistakes are made; add it, or leave --mistakes out")
    config = load_config(arguments, TinyTrainConfig)
    mistakes = Mistakes(config.mistake_rate, config.hard_mistake_rate) if arguments.mistakes else NO_MISTAKES
    made = make_problems(arguments.count, arguments.seed, arguments.split, arguments.level)
    rng = random.Random(f"solutions/{arguments.seed}")
    solved = {tiny.problem.id: {"solution": "".join(solve(tiny, rng, mistakes))} for tiny in made}
    solved = solved if arguments.solutions else {}
    write_problems(path, [tiny.problem for tiny in made], solved)
    print(f"{len(made)} problems of the {arguments.split} split written to {path}")


def _critiques(arguments: argparse.Namespace) -> None:
    from mmprm.critiques.build import build_critiques
    from mmprm.critiques.config import CritiquesConfig
    from mmprm.tiny.critiques import JUDGE, WorldTeacher, make_labeled, write_labeled

    folder, config = arguments.output, load_config(arguments, TinyTrainConfig)
    mistakes = Mistakes(config.mistake_rate, config.hard_mistake_rate)
    write_labeled(folder, make_labeled(arguments.count, arguments.seed, arguments.split, mistakes))
    engine = {"model": f"world {mistakes}"}  # the cache must not mix teachers
    teacher = JUDGE | {"engine": engine, "cache": str(folder / "replies.sqlite"), "seed": arguments.seed, "chains": 4}
    asked = {"labels": str(folder / "labels.parquet"), "output": str(folder), "teacher": teacher}
    counts = build_critiques(build(CritiquesConfig, asked), WorldTeacher(mistakes))
    print(f"{counts.kept} critiques of {counts.solutions} solutions, and files for mmprm rl and eval, are in {folder}")


def _sokoban(arguments: argparse.Namespace) -> None:
    from mmprm.problems import write_problems
    from mmprm.tiny.sokoban_problems import make_sokoban_problems

    for name, least in (("count", 1), ("size", 5), ("boxes", 1)):
        if getattr(arguments, name) < least:
            raise DataError(f"--{name}={getattr(arguments, name)} must be at least {least}; raise it")
    path = arguments.output if arguments.output.suffix == ".jsonl" else arguments.output / "levels.jsonl"
    count, seed, split = arguments.count, arguments.seed, arguments.split
    levels = make_sokoban_problems(count, seed, split, arguments.size, arguments.boxes, arguments.solutions)
    if arguments.play:
        from mmprm.tiny.sokoban_play import write_play

        write_play(path, levels, seed, SokobanTrainConfig().mistake_rate if arguments.mistakes else 0.0)
        print(f"{count} episodes of the {split} split written to {path}")
        return
    write_problems(path, levels)
    print(f"{count} Sokoban levels of the {split} split written to {path}")


def _train(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, TinyTrainConfig)
    _make_folder(arguments)
    from mmprm.tiny.pretrain import train

    _show(arguments, train(config, arguments.output))


def _sokoban_policy(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, SokobanTrainConfig)
    _make_folder(arguments)
    from mmprm.tiny.sokoban_policy import train_sokoban

    _show(arguments, train_sokoban(config, arguments.output))


def _omni(arguments: argparse.Namespace) -> None:
    from mmprm.problems import write_problems
    from mmprm.tiny.omni_world import make_omni_problems, solve_clip

    if arguments.count < 1:
        raise DataError(f"--count={arguments.count} must be at least 1; raise it")
    path = arguments.output if arguments.output.suffix == ".jsonl" else arguments.output / "clips.jsonl"
    made = make_omni_problems(arguments.count, arguments.seed, arguments.split)
    rng = random.Random(f"solutions/{arguments.seed}")
    solved = {each.problem.id: {"solution": "".join(solve_clip(each, rng))} for each in made if arguments.solutions}
    write_problems(path, [each.problem for each in made], solved)
    print(f"{len(made)} clips of the {arguments.split} split written to {path}")


def _omni_policy(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, OmniTrainConfig)
    _make_folder(arguments)
    from mmprm.tiny.omni_policy import train_omni

    _show(arguments, train_omni(config, arguments.output))


def _make_folder(arguments: argparse.Namespace) -> None:
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"--output {arguments.output}: cannot be created as a folder ({error.strerror}); choose another path"
        ) from error


def _show(arguments: argparse.Namespace, metrics: dict[str, Any]) -> None:
    shown = [f"  {name}: {value:.3f}" for name, value in metrics.items() if isinstance(value, float)]
    print("\n".join([f"policy written to {arguments.output} after {metrics['train_seconds']} s", *shown]))
