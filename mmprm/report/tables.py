"""Format results as text tables for an 80-column terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mmprm.evaluation.best_of_n import OWN, BestOfN
from mmprm.evaluation.compare import Comparison
from mmprm.evaluation.policy_scores import PolicyScores, Score
from mmprm.evaluation.prm_evaluation import METRICS, PrmEvaluation
from mmprm.metrics import Interval
from mmprm.selection.accuracy import AccuracyAtN


def prm_evaluation_table(result: PrmEvaluation) -> str:
    """Format a PRM evaluation: one row per source, the average, the pooled result, the threshold and the
    calibration."""
    parts = METRICS[result.metric].parts
    several = len(result.sources) > 1
    entries = [*result.sources.items(), *([("all together", result.pooled)] if several else [])]
    width = max(len(name) for name, _ in entries)
    widths = {part: len(part) + 2 for part in parts}
    lines = [
        f"{'source':<{width}}{METRICS[result.metric].title:>22}"
        + "".join(f"{part:>{widths[part]}}" for part in parts)
        + f"{'solutions':>11}"
    ]
    for name, metrics in entries:
        values = "".join(
            f"{'–' if value is None else format(value.value, '.3f'):>{widths[part]}}"
            for part, value in metrics.parts.items()
        )
        lines.append(f"{name:<{width}}{cell(metrics.f1):>22}{values}{metrics.solutions:>11,}")
    if several:
        lines.insert(-1, f"{'average':<{width}}{cell(result.average):>22}")
    lines += [f"{group:<{width}}{cell(f1):>22}" for group, f1 in result.groups.items()]
    auc = "" if result.auc is None else f", AUC {result.auc:.3f}"
    lines.append(f"threshold {result.threshold:.3f}, {result.threshold_from}")
    lines.append(f"calibration error {result.ece:.3f}{auc}")
    if result.aggregator:
        lines.append(f"aggregator {result.aggregator}")
    if result.tokens is not None:
        lines.append(f"{result.unknown:,} solutions unknown and left out, {result.tokens:,} tokens of the judge")
    return "\n".join(lines)


def best_of_n_table(result: BestOfN) -> str:
    """Format best-of-N accuracy with one row per selector or, if its choice depends on the aggregator, per aggregator.

    Intervals are shown for the largest N.
    """
    points = result.accuracy[result.best]
    others = [(name, name, points) for name in points[-1].accuracy if name not in OWN]
    own = [(f"{name}, {key}", name, result.accuracy[key]) for name in OWN for key in result.accuracy]
    width = max(len(label) for label, *_ in (*others, *own))
    lines = [f"{'selector':<{width}}{_sizes(points)}"]
    for label, name, series in (*others, *own):
        last = series[-1].accuracy[name]
        lines.append(f"{label:<{width}}{_by_n(series, name)}  [{last.low:.3f}, {last.high:.3f}]")
    lines.append(f"{result.problems} problems; best-of-{result.samples} is highest with {result.best}")
    return "\n".join(lines)


def policy_table(result: PolicyScores) -> str:
    """Format a policy's accuracy per group and the benchmark's aggregate scores, for each grading stage.

    The numbers of omitted questions follow.
    """
    width = max(9, *(len(name) for scores in result.scores.values() for name in scores))
    lines = []
    for stage, scores in result.scores.items():
        counted = f"{'correct':>9}{'incorrect':>11}{'unknown':>9}"
        lines.append(f"{stage:<{width}}{'correct / all':>22}{'of known':>10}{counted}")
        for name, score in scores.items():
            known = "–" if score.of_known is None else f"{score.of_known.value:.3f}"
            counts = f"{score.correct:>9,}{score.incorrect:>11,}{score.unknown:>9,}"
            lines.append(f"{name:<{width}}{cell(score.accuracy):>22}{known:>10}{counts}")
        if result.samples > 1:
            lines += _samples_lines(scores["all"], result.samples)
        lines += [f"  {name}: {value:.3f}" for name, value in result.official[stage].items()]
    each = f" × {result.samples}" if result.samples > 1 else ""
    failed = f"{len(result.failed):,} could not be sampled and count as incorrect, " if result.failed else ""
    lines.append(
        f"{result.questions:,} questions{each}, {result.tokens:.0f} tokens per response, {result.cut:,} cut at the "
        f"limit; {failed}{result.left_out:,} rows not part of the benchmark"
    )
    return "\n".join(lines)


def comparison_table(result: Comparison) -> str:
    """Format a comparison with one row per benchmark and policy, followed by the policies' means over benchmarks."""
    names, policies = [*result.benchmarks, "mean"], result.policies
    first, second = max(9, *map(len, names)), max(len("policy"), *map(len, policies))
    lines = [f"{'benchmark':<{first}}  {'policy':<{second}}{'correct / all':>22}{'change':>24}"]
    for name, compared in result.benchmarks.items():
        rows = zip(policies, compared.accuracy, compared.change, strict=True)
        for number, (policy, accuracy, change) in enumerate(rows):
            shown = "" if number else name
            lines.append(f"{shown:<{first}}  {policy:<{second}}{cell(accuracy):>22}{cell(change, '+.3f'):>24}".rstrip())
    means = [fmean(compared.accuracy[n].value for compared in result.benchmarks.values()) for n in range(len(policies))]
    for policy, value in zip(policies, means, strict=True):
        lines.append(f"{'mean':<{first}}  {policy:<{second}}{value:>8.3f}{'':>14}{value - means[0]:>+10.3f}")
    lines.append(f"stage {result.stage}; changes are from {policies[0]}, on the same questions")
    lines += [f"left out: {name} has no result in {', '.join(folders)}" for name, folders in result.left_out.items()]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _samples_lines(score: Score, samples: int) -> list[str]:
    """Format the mean over samples (which is pass@1), pass@k and majority-vote accuracy over all questions."""
    named = [(f"avg@{samples}", score.accuracy), *((f"pass@{k}", value) for k, value in score.pass_at.items())]
    return [f"  {name:<9}{cell(value)}" for name, value in [*named, ("majority", score.majority)]]


def selector_table(points: Sequence[AccuracyAtN]) -> str:
    """Format each selector's accuracy by N, and its paired difference from a random choice at the largest N."""
    lines = [f"{'selector':<9}{_sizes(points)}   minus random"]
    for name, gain in points[-1].minus_random.items():
        lines.append(f"{name:<9}{_by_n(points, name)}   {cell(gain, '+.3f')}")
    return "\n".join(lines)


def cell(interval: Interval | None, style: str = ".3f") -> str:
    """Format an interval as `value [low, high]`, or as a dash if it is None."""
    if interval is None:
        return "–"
    return f"{interval.value:{style}} [{interval.low:{style}}, {interval.high:{style}}]"


def _sizes(points: Sequence[AccuracyAtN]) -> str:
    return "".join(f"{f'N={point.n}':>7}" for point in points)


def _by_n(points: Sequence[AccuracyAtN], name: str) -> str:
    return "".join(f"{point.accuracy[name].value:>7.3f}" for point in points)
