"""Evaluate a process reward model: how well it finds incorrect steps, and how much reranking with it helps.

processbench, visualprocessbench, prmbench and steps score solutions with known errors; labels compares the soft
labels of `mmprm labels` with human judgments or the ground truth of the built-in toy world; bon reads the output of
`mmprm rerank`. Each writes its metrics as JSON to the output folder, where report.html shows all of them. policy runs a
policy on a benchmark and reports its accuracy; sokoban plays levels with a policy; compare shows the results of several
policies next to each other.

Examples:
  mmprm eval processbench gsm8k.json math.json --set scorer.prm=runs/demo/train/prm --set development=gsm8k
  mmprm eval visualprocessbench test.jsonl --set scorer.prm=runs/demo/train/prm --set threshold=0.85
  mmprm eval prmbench prmbench/*.jsonl --set scorer.prm=runs/demo/train/prm --set threshold=0.5
  mmprm eval steps prm800k.jsonl --set format=prm800k --set scorer.prm=runs/demo/train/prm
  mmprm eval labels runs/k12/labels.parquet --set truth=annotated.jsonl
  mmprm eval bon runs/rerank/candidates.jsonl
  mmprm eval policy AI4Math/MathVista --set benchmark=mathvista --set engine.model=runs/rl/policy
  mmprm eval sokoban runs/sokoban/test.jsonl --set engine.model=runs/sokoban/policy --set engine.images_per_prompt=10
  mmprm eval compare runs/eval-base runs/eval-sft runs/eval-rl
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from mmprm.cli.eval_policy import evaluate_policy
from mmprm.cli.eval_sokoban import SokobanEvalConfig, evaluate_sokoban_policy, sokoban_table
from mmprm.cli.shared.jsonl import output
from mmprm.cli.shared.options import add_config_options, load_config
from mmprm.config import Config, PathText
from mmprm.data.rows import read_file
from mmprm.errors import ConfigError, DataError, UnknownScoresError
from mmprm.evaluation.aggregators import described
from mmprm.evaluation.best_of_n import BestOfN, evaluate_best_of_n
from mmprm.evaluation.compare import CompareConfig, Comparison, compare_policies
from mmprm.evaluation.label_quality import judged_labels, known_from
from mmprm.evaluation.labeled import DATASETS, LabeledSolution, MetricName, Options, read_labeled
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.evaluation.policy_scores import PolicyScores
from mmprm.evaluation.prm_evaluation import PrmEvaluation, ScoredSolution, judge
from mmprm.halving import score_unless_unknown
from mmprm.labels.formats import LABEL_FORMATS
from mmprm.labels.parquet import read_parquet
from mmprm.report.page import write_page
from mmprm.report.prm_evaluation import prm_evaluation_page
from mmprm.report.tables import best_of_n_table, comparison_table, policy_table, prm_evaluation_table
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer, scorer_info
from mmprm.selection.candidates import read_groups
from mmprm.tiny.sokoban_scores import SokobanMetrics
from mmprm.types import StepScores

_CHUNK = 2000
"""Number of solutions scored at once, large enough to form batches of similar length."""


class MeasureConfig(Config):
    """Holds the settings shared by all evaluations of step scores."""

    output: PathText = "runs/eval"
    """Folder for the metrics (one JSON file per data set and name) and report.html."""
    name: str = Field("", pattern=r"^[\w.+-]*$")
    """Name of the scorer. Results with different names are kept side by side, and report.html compares them."""
    format: str = "prm800k"
    """Format of files with step labels: prm800k, trl, math-shepherd, visualprm, mm-prm or openrlhf."""
    label_threshold: float = Field(0.0, ge=0, lt=1)
    """Threshold for soft step labels: steps with a label above it count as correct."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Score below which a step is predicted to be incorrect. By default, it is chosen on the development split or, with
    development=0, read from the PRM's prm.json."""
    development: Annotated[float, Field(ge=0, lt=1)] | str = 0.2
    """Fraction of the problems held out to choose the threshold, or the name of a data source (such as gsm8k) to choose
    it on. A named source stays in the metrics, as gsm8k does in ProcessBench's protocol."""
    bins: int = Field(10, ge=1)
    """Number of bins in the reliability curve."""
    seed: int = 0
    """Random seed of the development split and the bootstrap intervals."""


class PrmEvalConfig(MeasureConfig):
    """Configures the evaluations that run a process reward model."""

    scorer: ScorerConfig
    """Process reward model or thinking judge, and the settings for running it."""
    image_root: PathText | None = None
    """Base folder for relative image paths; by default the folder of the input file."""


class LabelQualityConfig(MeasureConfig):
    """Configures `mmprm eval labels`."""

    truth: PathText
    """File with human step labels (see format), or "tiny" for the ground truth of the built-in toy world. The file's
    solutions may be the same as those in the labels, or others that begin with the same steps."""


class BestOfNConfig(Config):
    """Configures `mmprm eval bon`."""

    output: PathText = "runs/eval"
    """Folder for the metrics (bon.json) and report.html."""
    aggregators: tuple[str, ...] = tuple(AGGREGATORS)
    """Aggregators of step scores to compare."""
    seed: int = 0
    """Random seed of the bootstrap intervals."""


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm eval`."""
    _, model, measure = _KINDS[arguments.kind]
    config = load_config(arguments, model)
    result = measure(arguments.kind, arguments.files, config)
    folder = Path(config.output)
    name = f"policy-{result.benchmark}" if isinstance(result, PolicyScores) else arguments.kind
    if isinstance(result, PrmEvaluation) and result.name:
        name = f"{arguments.kind}-{result.name}"
    with output(folder / f"{name}.json") as out:
        out.write(TypeAdapter(type(result)).dump_json(result, indent=2).decode() + "\n")
    if type(result) in _TABLES:
        print(_TABLES[type(result)](result))
        print(f"see {folder / f'{name}.json'}")
        return
    write_page(folder / "report.html", prm_evaluation_page(*_results(folder)))
    print(best_of_n_table(result) if isinstance(result, BestOfN) else prm_evaluation_table(result))
    print(f"see {folder / 'report.html'}")


def _best_of_n(kind: str, files: Sequence[Path], config: BestOfNConfig) -> BestOfN:
    rows = itertools.chain.from_iterable(map(read_file, files))
    return evaluate_best_of_n(read_groups(rows), config.aggregators, config.seed)


def _compared(kind: str, folders: Sequence[Path], config: CompareConfig) -> Comparison:
    return compare_policies(folders, config)


def _judge_scores(kind: str, files: Sequence[Path], config: PrmEvalConfig) -> PrmEvaluation:
    labeled = _labeled(kind, files, config, config.image_root)
    info = scorer_info(config.scorer)
    _check_threshold(config, info.threshold)
    judged, costs = _scored(config.scorer, labeled)
    if not judged:
        raise DataError(
            f"{', '.join(map(str, files))}: the judge's verdicts on every solution are unknown; raise "
            "scorer.judge.sampling.max_tokens, or check scorer.judge.verdict_format"
        )
    whole = [(item, scores) for item, scores in judged if len(scores.scores) == len(item.solution.steps)]
    if len(whole) < len(judged):
        print(f"note: {len(judged) - len(whole)} solutions exceed the PRM's context and are left out", file=sys.stderr)
    if not whole:
        raise DataError(
            f"{', '.join(map(str, files))}: every solution exceeds the PRM's context; give shorter solutions, or a PRM "
            "with a longer context"
        )
    measured = _measured(
        kind,
        whole,
        config,
        info.threshold,
        scored_by=config.scorer.described,
        aggregator=described(info.aggregator, info) if info.aggregator else "",
    )
    return replace(measured, **costs)


def _scored(config: ScorerConfig, labeled: Sequence[LabeledSolution]) -> tuple[list[ScoredSolution], dict[str, Any]]:
    """Return the solutions with their scores, the time taken, and the costs of a thinking judge, if it is one.

    Solutions about which its verdicts are unknown are left out and counted.
    """
    scorer = open_scorer(config)
    scored: list[ScoredSolution] = []
    tokens: list[int] = []
    unknown = 0
    started = time.perf_counter()
    try:
        for start in range(0, len(labeled), _CHUNK):
            part = labeled[start : start + _CHUNK]
            answers = score_unless_unknown(scorer, [item.solution for item in part])
            scored += [(item, each) for item, each in zip(part, answers, strict=True) if isinstance(each, StepScores)]
            unknown += sum(isinstance(answer, UnknownScoresError) for answer in answers)
            tokens += [answer.tokens for answer in answers if answer.tokens is not None]
        seconds = time.perf_counter() - started
    finally:
        scorer.close()
    costs = {"unknown": unknown, "tokens": sum(tokens)} if tokens else {}
    return scored, {"scored": len(labeled), "seconds": round(seconds, 3), **costs}


def _judge_labels(kind: str, files: Sequence[Path], config: LabelQualityConfig) -> PrmEvaluation:
    _check_threshold(config, None)
    if config.truth == "tiny":
        from mmprm.tiny.truth import errorless_so_far as known
    else:
        known = known_from(_labeled("steps", [Path(config.truth)], config, None))
    judged = [item for file in files for item in judged_labels(read_parquet(file), known, file.stem)]
    if not judged:
        raise DataError(
            f"truth={config.truth}: contains none of the labeled steps; its questions and steps must equal those of "
            "the labels, so write it with mmprm labels export"
        )
    return _measured(kind, judged, config, None, scored_by=", ".join(map(str, files)))


def _check_threshold(config: MeasureConfig, stored: float | None) -> None:
    if config.threshold is None and config.development == 0 and stored is None:
        raise ConfigError(
            "threshold: prm.json has none and development=0; set threshold, or set development to a share of the "
            "problems"
        )


def _measured(
    kind: str, judged: Sequence[ScoredSolution], config: MeasureConfig, stored: float | None, **by: str
) -> PrmEvaluation:
    """Compute the metrics at the configured threshold, the stored one, or one chosen on a development split.

    The `stored` threshold applies if none is configured and there is no development split to choose one on.
    """
    measured = judge(
        kind,
        METRIC_OF[kind],
        judged,
        threshold=stored if config.threshold is None and config.development == 0 else config.threshold,
        development=config.development,
        seed=config.seed,
        bins=config.bins,
        **by,
    )
    return replace(measured, name=config.name)


def _labeled(kind: str, files: Sequence[Path], config: MeasureConfig, image_root: str | None) -> list[LabeledSolution]:
    if config.format not in LABEL_FORMATS:
        raise ConfigError(f"format={config.format!r} must be one of {', '.join(LABEL_FORMATS)}; set one of these")
    options = Options(config.format, config.label_threshold)
    labeled = [
        item
        for file in files
        for item in read_labeled(kind, read_file(file), Path(image_root or file.parent), file.stem, options)
    ]
    if not labeled:
        raise DataError(
            f"{', '.join(map(str, files))}: no solution has a judged step; check format={config.format} against the "
            "file"
        )
    return labeled


def _results(folder: Path) -> tuple[list[PrmEvaluation], BestOfN | None]:
    """Read the results of all evaluations stored in the output folder."""

    def read(file: Path, kind: type) -> Any:
        try:
            return TypeAdapter(kind).validate_json(file.read_bytes()) if file.exists() else None
        except ValidationError as error:
            raise DataError(
                f"{file}: was not written by mmprm eval; remove it or choose another output ({error})"
            ) from error

    files = (file for name in METRIC_OF for file in (folder / f"{name}.json", *sorted(folder.glob(f"{name}-*.json"))))
    evaluations = [read(file, PrmEvaluation) for file in files]
    return [result for result in evaluations if result is not None], read(folder / "bon.json", BestOfN)


METRIC_OF: dict[str, MetricName] = {name: dataset.metric for name, dataset in DATASETS.items()} | {"labels": "macro_f1"}

_TABLES: dict[type, Callable[[Any], str]] = {
    PolicyScores: policy_table,
    Comparison: comparison_table,
    SokobanMetrics: sokoban_table,
}
"""Tables of results that are not part of report.html."""

_INPUTS = {
    "labels": "Parquet of mmprm labels",
    "policy": "JSON lines, a JSON list, Parquet or a hub id",
    "sokoban": "levels: JSON lines, a JSON list or Parquet",
    "compare": "output folder of mmprm eval policy, one per policy; the first is the baseline",
}

_KINDS: dict[
    str, tuple[str, type[Config], Callable[..., PrmEvaluation | BestOfN | PolicyScores | Comparison | SokobanMetrics]]
] = {
    "processbench": ("first errors: F1 by file, and its average", PrmEvalConfig, _judge_scores),
    "visualprocessbench": (
        "steps of multimodal solutions: macro F1, pooled and by source",
        PrmEvalConfig,
        _judge_scores,
    ),
    "prmbench": (
        "steps of PRMBench: PRM score, overall and by category",
        PrmEvalConfig,
        _judge_scores,
    ),
    "steps": ("steps in the format of PRM800K and others: macro F1", PrmEvalConfig, _judge_scores),
    "labels": (
        "soft labels against human judgments or the built-in toy world's ground truth",
        LabelQualityConfig,
        _judge_labels,
    ),
    "bon": ("accuracy by N of every selector with every aggregator", BestOfNConfig, _best_of_n),
    "policy": ("a policy's accuracy on a benchmark, overall and by subject", PolicyEvalConfig, evaluate_policy),
    "sokoban": ("a policy's solve rate and MageBench score in Sokoban", SokobanEvalConfig, evaluate_sokoban_policy),
    "compare": ("changes in the accuracy of policies, by benchmark", CompareConfig, _compared),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to the parser."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    examples = {line.split()[2]: line for line in (__doc__ or "").splitlines() if line.startswith("  mmprm eval ")}
    for name, (summary, model, _) in _KINDS.items():
        kind = kinds.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n{examples[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        form = _INPUTS.get(name, "JSON lines, or a JSON list")
        kind.add_argument("files", metavar="FILE", type=Path, nargs="+", help=form)
        add_config_options(kind, model)
