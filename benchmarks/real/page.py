"""Write the results of the real-model benchmark into docs/real-model.md: `python -m benchmarks.real.page`.

The section "Results" is generated from benchmarks/results/real.json, and so is the figure docs/real-model.png.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.real.run import PARTS
from benchmarks.real.workspace import ROOT, Results, read_json

RESULTS = ROOT / "benchmarks" / "results" / "real.json"
PAGE = ROOT / "docs" / "real-model.md"
FIGURE = "real-model.png"
METHODS = {"flat": "flat Monte Carlo", "fixed": "OmegaPRM, K = 16", "adaptive": "mmprm"}
CURVES = {
    "oracle": ("any sample is correct", ":"),
    "weighted": ("vote weighted by the PRM", "-"),
    "prm": ("best by the PRM", "-"),
    "weighted_untrained": ("vote weighted by the untrained PRM", "--"),
    "majority": ("majority vote", "-"),
    "random": ("random sample", ":"),
}
"""Maps the selectors of the figure to labels and line styles."""


def main() -> None:
    results = read_json(RESULTS)
    if "bon" in results:
        draw(results, PAGE.with_name(FIGURE))
    PAGE.write_text(with_results(PAGE.read_text(encoding="utf-8"), section(results)), encoding="utf-8")


def with_results(page: str, text: str) -> str:
    """Replace the body of the section Results."""
    return re.sub(r"(?<=\n## Results\n).*?(?=\n## )", lambda _: f"\n{text}", page, count=1, flags=re.DOTALL)


def section(results: Results) -> str:
    """Return the tables, the figure and the example solutions as Markdown."""
    parts = [
        f"Machine: {results['machine']}. Intervals are 95% bootstrap intervals over problems.\n",
        table(("metric", "measured", "target"), metrics(results)),
    ]
    if "methods" in results:
        parts.append("At equal tokens, on the same engines and problems:\n")
        header = (
            "method",
            "problems",
            "labels",
            "tokens per label",
            "AUC of labels",
            "RMSE of labels",
            "F1 of its PRM",
        )
        parts.append(table(header, methods(results["methods"])))
    parts.append("Duration of each part:\n")
    parts.append(table(("part", "minutes", "nothing else was running"), durations(results)))
    if "bon" in results:
        parts.append(f"![Accuracy by number of samples, and F1 of first errors]({FIGURE})\n")
    if "examples" in results.get("prm", {}):
        parts.append("The first test problems with an incorrect solution, with the step scores of both PRMs:\n")
        parts += [solution(example) for example in results["prm"]["examples"]]
    return "\n".join(parts)


def table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(line)} |\n" for line in (header, *rows)]
    return "".join([lines[0], "|---" * len(header) + "|\n", *lines[1:]])


def metrics(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield (metric, value, target) of all parts that were measured."""
    if found := results.get("sft"):
        for form in ("tags", "numbered"):
            yield f"pass@1 after SFT, {form}", interval(found[form]["pass_at_1"]), "0.3 to 0.6"
    if found := results.get("annotate"):
        for name, ratio in found["token_ratios"].items():
            target = "at most 0.7" if name == "precise" else "reported"
            yield f"tokens per label, `{name}` over `fixed`", interval(ratio), target
        for name, each in found.get("errors", {}).items():
            yield f"RMSE of labels, `{name}`", interval(each["rmse"]), "reported"
        for name, difference in found.get("rmse_differences", {}).items():
            target = "interval not above 0" if name == "precise" else "reported"
            yield f"RMSE, `{name}` minus `fixed`", interval(difference), target
        if "saturation" in found:
            yield "tokens per second, relative to all requests at once", f"{found['saturation']:.2f}", "at least 0.90"
            yield "labels per core-hour", f"{found['labels_per_core_hour']:,.0f}", "reported"
    if found := results.get("labels"):
        yield "AUC of labels", shown(found["auc"], found["auc_interval"]), "at least 0.85"
        for name, each in found["auc_by_rollouts"].items():
            share = found["mix"][name]
            yield f"AUC of labels from {name} rollouts ({share:.0%})", interval(each) if each else "none", "reported"
    if found := results.get("prm"):
        yield "F1 of first errors, trained", interval(found["trained"]["f1"]), "reported"
        yield "F1 of first errors, untrained", interval(found["untrained"]["f1"]), "reported"
        difference = shown(found["first_error_f1"], found["first_error_f1_interval"])
        yield "F1, trained minus untrained", difference, "at least 0.15, interval above 0"
        yield "F1, trained minus untrained, new wordings", interval(found["reworded"]["difference"]), "reported"
    if found := results.get("bon"):
        names = {"weighted_minus_majority": "weighted vote minus majority", "trained_minus_untrained": "weighted vote"}
        for size in (8, 16):
            for key, name in names.items():
                end = ", trained minus untrained PRM" if key.startswith("trained") else ""
                value = shown(found[f"{key}_{size}"], found[f"{key}_{size}_interval"], signed=True)
                yield f"{name} at {size} samples{end}", value, "interval above 0"
    if "outcome_minus_before" in results.get("rl", {}):
        for key in ("before", "outcome", "process", "process_minus_outcome"):
            yield f"accuracy, RL: {key.replace('_', ' ')}", interval(results["rl"][key]), "reported"
    if found := results.get("rollouts"):
        for key in ("unsplittable", "unknown", "truncated"):
            yield f"rollouts that are {key}", f"{found[key]:.3f}", "below 0.05"


def methods(results: Results) -> Iterator[tuple[str, ...]]:
    for key, name in METHODS.items():
        row = results[key]
        f1 = results.get(f"{key}_prm", {}).get("f1")
        yield (
            name,
            str(row["problems"]),
            f"{row['labels']:,}",
            f"{row['tokens_per_label']:.0f}",
            interval(row["auc"]),
            interval(row["error"]["rmse"]),
            interval(f1) if f1 else "not measured",
        )


def durations(results: Results) -> Iterator[tuple[str, str, str]]:
    """Yield (part, minutes, whether the machine was quiet), with one row per campaign for annotate."""
    for part in results.values():
        if not isinstance(part, dict):
            continue
        for name in (name for name in PARTS if f"{name}_quiet" in part):
            quiet = "yes" if part[f"{name}_quiet"] else "no"
            if name != "annotate":
                yield f"`{name}`", f"{part[f'{name}_seconds'] / 60:.1f}", quiet
                continue
            for campaign, found in part["whole_campaigns"].items():
                what = f"{found['problems']} problems, {found['tokens']:,} tokens, {found['labels']:,} labels"
                yield f"`annotate`, `{campaign}` ({what})", f"{found['seconds'] / 60:.1f}", quiet


def solution(example: Results) -> str:
    """Return a problem and its steps, with truth and scores, as Markdown."""
    names = {True: "true", False: "false", None: "undecided"}
    rows = (
        (plain(step), names[true], f"{trained:.2f}", f"{untrained:.2f}")
        for step, true, trained, untrained in example["steps"]
    )
    told = f"> {example['question']} ({example['answer']})\n"
    return f"{told}\n{table(('step', 'truth', 'trained', 'untrained'), rows)}"


def plain(step: str) -> str:
    return re.sub(r"\s+", " ", step).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").strip()


def interval(found: Results) -> str:
    return shown(found["value"], (found["low"], found["high"]))


def shown(value: float, bounds: tuple[float, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value:{sign}.3f} ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})"


def draw(results: Results, path: Path) -> None:
    """Plot accuracy against the number of samples and, if measured, F1 of the PRMs and accuracy after RL."""
    from matplotlib.figure import Figure

    rl = results.get("rl", {})
    after = {key: rl[key] for key in ("before", "outcome", "process") if key in rl}
    points = {"F1 of first errors": prm_f1(results), "accuracy after RL": after}
    points = {label: values for label, values in points.items() if values}
    figure = Figure(figsize=(6 + 3 * len(points), 3.8), layout="constrained")
    panels = figure.subplots(1, 1 + len(points), width_ratios=(2, *[1] * len(points)), squeeze=False)[0]
    _curves(panels[0], results["bon"]["curve"])
    for axes, (label, values) in zip(panels[1:], points.items(), strict=True):
        _points(axes, values, label)
    for axes in panels:
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def prm_f1(results: Results) -> Results:
    """Return the F1 of the PRM before training, after it, and after training on the labels of each method."""
    found = {}
    if "prm" in results:
        found = {key: results["prm"][key]["f1"] for key in ("untrained", "trained")}
    methods = results.get("methods", {})
    return found | {name: methods[f"{key}_prm"]["f1"] for key, name in METHODS.items() if f"{key}_prm" in methods}


def _curves(axes, curve: Results) -> None:
    """Plot the accuracy of each way to choose an answer against the number of samples."""
    for number, (key, (label, style)) in enumerate(CURVES.items()):
        points = [(int(size), each[key]) for size, each in curve.items()]
        axes.plot(*zip(*points, strict=True), style, color=f"C{number}", marker="o", markersize=3, label=label)
    axes.set(xlabel="samples per problem", ylabel="accuracy", xscale="log")
    axes.set_xticks([int(size) for size in curve], list(curve))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def _points(axes, values: Results, ylabel: str) -> None:
    """Plot one point with its interval per name."""
    for number, (name, found) in enumerate(values.items()):
        below, above = found["value"] - found["low"], found["high"] - found["value"]
        axes.errorbar([name], [found["value"]], [[below], [above]], fmt="o", color=f"C{number}", capsize=4)
    axes.set(ylabel=ylabel)
    axes.margins(x=0.2)
    axes.tick_params(axis="x", labelsize=8, rotation=15)


if __name__ == "__main__":
    main()
