"""Measure labels and judges: `make bench-judges` writes benchmarks/results/judges.json.

given      labeling given solutions: rollouts per solution relative to 16 per step, and the share of correct first
           errors
malformed  scores that a thinking judge makes up for malformed outputs
thinking   a thinking judge after SFT and after RL, with 1 and 8 chains, beside a process reward model

Ratios and accuracies are medians of several rounds with different problems, with their minimum and maximum. All other
measurements are stored in judges_details.json. An interrupted part resumes after its last finished round or stage. The
stages of `thinking` are kept in the folder `--work`; delete it to measure again.
`--small` tests every part with a few solutions, whose results are meaningless.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

Results = dict[str, Any]
BARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "given": (
        "rollout_ratio at most 0.25; first errors correct no less often than with 16 per step (paired, 95 %)",
        lambda r: r["rollout_ratio"] <= 0.25 and r["accuracy_difference"]["high"] >= 0,
    ),
    "malformed": (
        "no score made up, all outputs counted, and all well-formed ones scored",
        lambda r: not r["made_up"] and r["counted"] == r["outputs"] and r["well_formed_scored"] == r["well_formed"],
    ),
    "thinking": (
        "SFT better than chance, RL no worse than SFT, and 8 chains no worse than 1 (95 %, the latter two paired)",
        lambda r: (
            r["sft_1"]["f1"]["low"] > r["chance"] and all(each["high"] >= 0 for each in r["differences"].values())
        ),
    ),
}


def given(arguments: argparse.Namespace, details: Results) -> Results:
    """Label given solutions adaptively and with 16 rollouts per step; return medians over the rounds."""
    from judges_given import one_round, open_completer, summarize

    from mmprm.metrics import bootstrap_mean

    if len(details.get("given_rounds", [])) >= arguments.rounds:
        del details["given_rounds"]
    rounds = details.setdefault("given_rounds", [])
    with closing(open_completer()) as completer:
        for number in range(len(rounds), arguments.rounds):
            with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as folder:
                rounds.append(one_round(Path(folder), number, arguments, completer))
            write(details_path(arguments.output), details)
    metrics: Results = {}
    for name, values in summarize(rounds).items():
        metrics[name] = round(median(values), 3)
        metrics[f"{name}_spread"] = [round(min(values), 3), round(max(values), 3)]
    surplus = [int(row["adaptive"][1]) - int(row["fixed"][1]) for each in rounds for row in each["rows"]]
    difference = bootstrap_mean(surplus, 0)
    metrics["accuracy_difference"] = {name: round(getattr(difference, name), 4) for name in ("value", "low", "high")}
    return metrics


def malformed(arguments: argparse.Namespace, details: Results) -> Results:
    """Judge malformed, cut-off, and well-formed outputs."""
    from judges_malformed import measure

    with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as folder:
        return measure(Path(folder))


def thinking(arguments: argparse.Namespace, details: Results) -> Results:
    """Train judges and a process reward model, and compare their first errors."""
    from judges_thinking import FULL, SMALL
    from judges_thinking import thinking as measure

    return measure(arguments.work, SMALL if arguments.small else FULL)


PARTS: dict[str, Callable[[argparse.Namespace, Results], Results]] = {
    "given": given,
    "malformed": malformed,
    "thinking": thinking,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to measure; other results are kept"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=120, help="number of solutions per round, one per problem")
    parser.add_argument("--small", action="store_true", help="test every part with a few solutions")
    parser.add_argument("--work", type=Path, help="folder for the trained models (runs/bench-judges)")
    parser.add_argument("--output", type=Path, help="file for the results; with --small, judges.json in that folder")
    arguments = _sized(parser.parse_args())
    results, details = read(arguments.output), read(details_path(arguments.output))
    from machine import machine

    for name in arguments.only:
        results[name] = PARTS[name](arguments, details)
        details.setdefault("machines", {})[name] = machine()
        _store(arguments.output, results, details)  # before the next part, which may take hours
    print(json.dumps(results, indent=2))
    for key, met in details["met"].items():
        print(f"{key:<24}{'met' if met else 'MISSED'}: {BARS[key][0]}")


def _sized(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fill in the folders, and reduce the sizes with --small."""
    arguments.work = arguments.work or ROOT / "runs" / ("bench-judges-small" if arguments.small else "bench-judges")
    results = arguments.work if arguments.small else ROOT / "benchmarks" / "results"
    arguments.output = arguments.output or results / "judges.json"
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.small:
        arguments.rounds, arguments.problems = 1, 4
    return arguments


def _store(path: Path, results: Results, details: Results) -> None:
    """Write the results so far, and whether they meet their bars."""
    measured = [key for key in BARS if key in results]
    details["bars"] = {key: BARS[key][0] for key in measured}
    details["met"] = {key: bool(BARS[key][1](results[key])) for key in measured}
    write(path, results)
    write(details_path(path), details)


def details_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_details.json")


def write(path: Path, metrics: Results) -> None:
    path.write_text(json.dumps(metrics, indent=2) + "\n")


def read(path: Path) -> Results:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
