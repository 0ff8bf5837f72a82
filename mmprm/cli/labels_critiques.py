"""Let a teacher write critiques of labeled solutions, and keep those whose verdicts agree with the labels.

The output folder receives kept.jsonl (conversations for mmprm sft), refused.jsonl with the reasons, problems.jsonl (for
mmprm rl with the reward mmprm.critiques.rewards:verdict_agreement), and summary.json. Replies are cached, so a run that
resumes requests only the missing ones.

Examples:
  mmprm labels critiques --set labels=runs/k12/labels.parquet --set output=runs/critiques --set teacher.chains=4 \\
      --set teacher.engine.model=qwen3-vl-32b --set 'teacher.engine.servers.urls=[http://localhost:8000/v1]'
  mmprm sft --set model=Qwen/Qwen2.5-VL-7B-Instruct --set data.path=runs/critiques/kept.jsonl --set output=runs/judge
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.critiques.config import CritiquesConfig
from mmprm.critiques.rows import CritiqueCounts
from mmprm.preflight import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, CritiquesConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm labels critiques`."""
    from mmprm.critiques.build import build_critiques

    config = load_config(arguments, CritiquesConfig)
    check_output(config.output, "output")
    print("\n".join(critique_lines(config, build_critiques(config))))


def critique_lines(config: CritiquesConfig, counts: CritiqueCounts) -> Iterator[str]:
    """Format the counts of the critiques as lines of text."""
    folder = Path(config.output)
    yield f"{config.labels}: {counts.solutions:,} labeled solutions, {counts.with_error:,} with an incorrect step"
    if not config.ask_teacher:
        return
    yield (
        f"{folder / 'kept.jsonl'}: {counts.kept:,} of {counts.critiques:,} critiques kept, of "
        f"{counts.kept_solutions:,} solutions ({counts.kept_with_error:,} with an incorrect step); "
        f"{counts.tokens:,} tokens"
    )
    for reason, count in counts.refused.items():
        yield f"refused: {count:,} × {reason}"
