"""Ask a judge about every labeled step, and add its answers to the labels file.

The judge is a process reward model or a thinking judge (`scorer`), or a vision-language model on a server that is asked
about each labeled prefix (`judge`). The output is the
labels file with two more columns: `judge`, one P(no error so far) per labeled step, and `judged_by`.

Examples:
  mmprm consensus --set labels=runs/k12/labels.parquet --set output=runs/k12/judged.parquet --set scorer.prm=runs/prm
  mmprm consensus --set labels=runs/k12/labels.parquet --set output=runs/k12/judged.parquet \\
    --set judge.model=qwen2.5-vl-72b --set 'judge.client.urls=[http://localhost:8000/v1]'
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import Config, PathText
from mmprm.errors import ConfigError
from mmprm.labels.checks import check_images_below
from mmprm.labels.consensus import AgreementCounts, AgreementRule, count_agreement, judge_with_scorer
from mmprm.labels.parquet import LabeledExample, read_metadata, read_parquet, write_parquet
from mmprm.labels.step_judge import StepJudge, StepJudgeConfig
from mmprm.scoring.config import ScorerConfig


class ConsensusConfig(Config):
    """Configures `mmprm consensus`."""

    labels: PathText
    """Parquet file of labeled paths written by `mmprm labels`."""
    output: PathText
    """Parquet file to write; may be the same file as `labels`."""
    scorer: ScorerConfig | None = None
    """Process reward model, or thinking judge (scorer.backend=judge), to use as the judge."""
    judge: StepJudgeConfig | None = None
    """Model on OpenAI-compatible servers to use as the judge."""
    image_root: PathText | None = None
    """Folder that must contain the image files named in `labels`; by default the folder of `labels` itself."""
    agreement: AgreementRule = AgreementRule()
    """Rule by which the summary decides whether a label and the judge agree."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    add_config_options(parser, ConsensusConfig)


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm consensus`."""
    config = load_config(arguments, ConsensusConfig)
    if (config.scorer is None) == (config.judge is None):
        raise ConfigError(
            "scorer and judge: exactly one of them must be set; for example, use --set scorer.prm=runs/train/prm"
        )
    examples = read_parquet(config.labels)
    root = Path(config.image_root or Path(config.labels).parent)
    check_images_below((example.problem for example in examples), root, config.labels)
    if config.judge is not None:
        examples, failures = asyncio.run(_ask(config.judge, examples))
    else:
        assert config.scorer is not None
        examples, failures = _score(config.scorer, examples)
    write_parquet(config.output, examples, read_metadata(config.labels))
    print(agreement_summary(count_agreement(examples, config.agreement)))
    for reason, count in failures.items():
        print(f"not judged: {count:,} ({reason})")
    print(f"{config.output}: {len(examples):,} paths")


def agreement_summary(counts: AgreementCounts) -> str:
    """Format the agreement counts as text."""
    both = counts.both_correct + counts.both_incorrect
    judged = both + counts.label_alone_correct + counts.judge_alone_correct
    return (
        f"{judged + counts.unjudged:,} labeled steps, {judged:,} judged; they agree on {_share(both, judged)}: "
        f"{counts.both_correct:,} correct, {counts.both_incorrect:,} incorrect; only the label says correct "
        f"{counts.label_alone_correct:,}, "
        f"only the judge says correct {counts.judge_alone_correct:,}\n"
        f"same first error (or none) on {_share(counts.paths_agreeing, counts.paths)} of the paths"
    )


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")


async def _ask(
    config: StepJudgeConfig, examples: Sequence[LabeledExample]
) -> tuple[list[LabeledExample], dict[str, int]]:
    async with StepJudge(config) as judge:
        return await judge.judge(examples), dict(judge.failures)


def _score(config: ScorerConfig, examples: Sequence[LabeledExample]) -> tuple[list[LabeledExample], dict[str, int]]:
    from mmprm.scoring.open import open_scorer

    costs: Counter[str] = Counter()
    scorer = open_scorer(config)
    try:
        judged = judge_with_scorer(examples, scorer, config.described, costs)
    finally:
        scorer.close()
    if costs["tokens"]:
        print(f"{costs['tokens']:,} tokens of the judge")
    return judged, {"paths about which its verdicts are unknown": costs["unknown"]} if costs["unknown"] else {}
