"""Judge the judge: how well a process reward model finds wrong steps, and what choosing by its scores gains.

processbench, visualprocessbench and steps score solutions whose steps people have judged; bon reads what `mmprm rerank`
left. Each writes its figures as JSON into the output folder, whose report.html shows all of them.

Examples:
  mmprm eval processbench gsm8k.json math.json --set scorer.prm=runs/demo/train/prm --set development=gsm8k
  mmprm eval visualprocessbench test.jsonl --set scorer.prm=runs/demo/train/prm --set threshold=0.85
  mmprm eval steps prm800k.jsonl --set format=prm800k --set scorer.prm=runs/demo/train/prm
  mmprm eval bon runs/rerank/candidates.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from mmprm.cli.jsonl import output, read_rows
from mmprm.cli.options import add_config_options, load_config
from mmprm.config import Config
from mmprm.errors import ConfigError, DataError
from mmprm.evaluation.best_of_n import OWN, BestOfN, evaluate_best_of_n, read_groups
from mmprm.evaluation.judging import FIGURES, Judged, Judging, judge
from mmprm.evaluation.labelled import DATASETS, Options, read_labelled
from mmprm.labels.formats import FORMATS
from mmprm.metrics import Interval
from mmprm.prm.info import read_info
from mmprm.report.judging import TITLES, judging_page
from mmprm.report.page import write_page
from mmprm.scoring.aggregate import AGGREGATORS
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer

CHUNK = 2000
"""Solutions scored together: enough for batches of similar length."""


class JudgeConfig(Config):
    output: str = "runs/eval"
    """Folder for the figures (JSON, by data set) and report.html."""
    scorer: ScorerConfig
    """The process reward model and how it runs."""
    format: str = "prm800k"
    """Of steps files: prm800k, trl, math-shepherd, visualprm, mm-prm or openrlhf."""
    label_threshold: float = Field(0.0, ge=0, lt=1)
    """Of steps files with soft labels: a step whose label is above it is right."""
    images_root: str | None = None
    """Folder of relative picture paths; by default that of the file."""
    threshold: float | None = Field(None, ge=0, le=1)
    """A step scored below it is claimed wrong; by default chosen on the development split. With development=0, the one
    in the PRM's prm.json."""
    development: Annotated[float, Field(ge=0, lt=1)] | str = 0.2
    """Share of the problems that choose the threshold and are left out of the figures; or the name of a source that
    chooses it and is measured too, as ProcessBench's own figures take it from gsm8k."""
    bins: int = Field(10, ge=1)
    """Bins of the reliability curve."""
    seed: int = 0
    """Of the development split and the bootstrap."""


class BestOfNConfig(Config):
    output: str = "runs/eval"
    """Folder for the figures (bon.json) and report.html."""
    aggregators: tuple[str, ...] = tuple(AGGREGATORS)
    """Those to compare."""
    seed: int = 0
    """Of the bootstrap."""


KINDS = {
    "processbench": ("first errors: F1 by file and their average", JudgeConfig),
    "visualprocessbench": ("steps beside pictures: macro F1 pooled and by source", JudgeConfig),
    "steps": ("steps in the form of PRM800K and others: macro F1", JudgeConfig),
    "bon": ("accuracy against N of every selector with every aggregator", BestOfNConfig),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, (summary, model) in KINDS.items():
        kind = kinds.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        kind.add_argument("files", metavar="FILE", type=Path, nargs="+", help="JSON lines, or a JSON list")
        add_config_options(kind, model)


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments, KINDS[arguments.kind][1])
    rows = itertools.chain.from_iterable(map(_rows, arguments.files))
    result = (
        evaluate_best_of_n(read_groups(rows), config.aggregators, config.seed)
        if arguments.kind == "bon"
        else _judge(arguments.kind, arguments.files, config)
    )
    folder = Path(config.output)
    with output(folder / f"{arguments.kind}.json") as out:
        out.write(TypeAdapter(type(result)).dump_json(result, indent=2).decode() + "\n")
    write_page(folder / "report.html", judging_page(*_results(folder)))
    print(best_of_n_table(result) if isinstance(result, BestOfN) else judging_table(result))
    print(f"see {folder / 'report.html'}")


def judging_table(result: Judging) -> str:
    """A line a source, their average, all together; then threshold and calibration."""
    parts = FIGURES[result.figure].parts
    lines = [
        f"{'source':<20}{TITLES[result.figure]:>22}" + "".join(f"{part:>10}" for part in parts) + f"{'solutions':>11}"
    ]
    entries = [*result.sources.items(), ("all together", result.pooled)]
    for name, figures in entries:
        values = "".join(
            f"{'–' if value is None else format(value.value, '.3f'):>10}" for value in figures.parts.values()
        )
        lines.append(f"{name:<20}{_cell(figures.f1):>22}{values}{figures.solutions:>11,}")
    if len(result.sources) > 1:
        lines.insert(-1, f"{'average':<20}{_cell(result.average):>22}")
    auc = "" if result.auc is None else f", AUC {result.auc:.3f}"
    lines.append(f"threshold {result.threshold:.3f} ({result.threshold_from}); calibration error {result.ece:.3f}{auc}")
    return "\n".join(lines)


def best_of_n_table(result: BestOfN) -> str:
    """A line a selector and, where it matters, aggregator: accuracy by N, with the interval at the largest."""
    points = result.accuracy[result.best]
    lines = [f"{'selector':<24}" + "".join(f"{f'N={point.n}':>8}" for point in points)]
    others = [(name, name, points) for name in points[-1].accuracy if name not in OWN]
    own = [(f"{name}, {key}", name, result.accuracy[key]) for name in OWN for key in result.accuracy]
    for label, name, series in [*others, *own]:
        values = "".join(f"{point.accuracy[name].value:>8.3f}" for point in series)
        last = series[-1].accuracy[name]
        lines.append(f"{label:<24}{values}   [{last.low:.3f}, {last.high:.3f}]")
    lines.append(f"{result.problems} problems; best-of-{result.samples} is highest with {result.best}")
    return "\n".join(lines)


def _judge(kind: str, files: Sequence[Path], config: JudgeConfig) -> Judging:
    if config.format not in FORMATS:
        raise ConfigError(f"format={config.format!r} must be one of {', '.join(FORMATS)}")
    options = Options(config.format, config.label_threshold)
    labelled = [
        item
        for file in files
        for item in read_labelled(kind, _rows(file), Path(config.images_root or file.parent), file.stem, options)
    ]
    if not labelled:
        raise DataError(f"{', '.join(map(str, files))}: no solution has a judged step")
    threshold = config.threshold
    if threshold is None and config.development == 0:
        threshold = read_info(config.scorer.prm).threshold
        if threshold is None:
            raise ConfigError(
                "threshold: prm.json holds none; set threshold, or development to a share of the problems"
            )
    scorer = open_scorer(config.scorer)
    judged: list[Judged] = []
    try:
        for start in range(0, len(labelled), CHUNK):
            part = labelled[start : start + CHUNK]
            judged += zip(part, scorer.score([item.solution for item in part]), strict=True)
    finally:
        scorer.close()
    return judge(
        kind,
        DATASETS[kind].figure,
        judged,
        prm=config.scorer.prm,
        threshold=threshold,
        development=config.development,
        seed=config.seed,
        bins=config.bins,
    )


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of JSON lines, or of a .json file that holds a list of them."""
    if file.suffix != ".json":
        yield from read_rows(file)
        return
    try:
        items = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: is not JSON: {error}") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{file}: must hold a list of objects; JSON lines need the suffix .jsonl")
    for number, item in enumerate(items, start=1):
        yield f"{file}: item {number}", item


def _results(folder: Path) -> tuple[list[Judging], BestOfN | None]:
    """What evaluations have left in the folder."""

    def read(name: str, kind: type) -> Any:
        file = folder / f"{name}.json"
        try:
            return TypeAdapter(kind).validate_json(file.read_bytes()) if file.exists() else None
        except ValidationError as error:
            raise DataError(f"{file}: is not what mmprm eval writes; remove it: {error}") from error

    judgings = [read(name, Judging) for name in DATASETS]
    return [result for result in judgings if result is not None], read("bon", BestOfN)


def _cell(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
