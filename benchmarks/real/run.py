"""Measure the whole pipeline on a real language model: `make bench-real` writes benchmarks/results/real.json.

sft        SmolLM2-135M-Instruct becomes a step-wise policy: pass@1 on held-out wordings, in two step formats
annotate   adaptive rollouts against a fixed number per state: tokens per distinct label
errors     errors of these labels against fresh rollouts (stored under annotate)
saturation tokens per second of the campaign, relative to all requests at once (stored under annotate)
labels     AUC of the labels against the truth of steps that state a number
prm        F1 of first errors on unseen problems, trained minus untrained
bon        PRM-weighted vote minus majority vote, and trained minus untrained, on unseen problems
methods    flat Monte Carlo, OmegaPRM with fixed K, and the defaults at equal tokens: labels, errors
method_prms  the PRM that is trained on the labels of each (stored under methods)
rl_outcome, rl_process  both arms of reinforcement learning (stored under rl)
rl         held-out accuracy after outcome-only and outcome + process training
rollouts   shares of rollouts that cannot be split, have no verdict, or were truncated

Each part reuses what is finished in the working folder, so an interrupted part resumes. Intervals are 95 % bootstrap
intervals over problems. Timings count only if the machine had no other work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.real import annotate, best_of_n, labels, methods, prm, rl, rollouts, saturation, sft
from benchmarks.real.workspace import MODEL, ROOT, SMALL, Results, Sizes, Workspace, is_quiet, read_json, write_json

PARTS: dict[str, Callable[[Workspace], Results]] = {
    "sft": sft.measure,
    "annotate": annotate.measure,
    "errors": annotate.measure_errors,
    "saturation": saturation.measure,
    "labels": labels.measure,
    "prm": prm.measure,
    "bon": best_of_n.measure,
    "methods": methods.measure,
    "method_prms": methods.measure_prms,
    "rl_outcome": rl.train_outcome,
    "rl_process": rl.train_process,
    "rl": rl.measure,
    "rollouts": rollouts.measure,
}
STORED_UNDER = {
    "errors": "annotate",
    "saturation": "annotate",
    "method_prms": "methods",
    "rl_outcome": "rl",
    "rl_process": "rl",
}
"""Keys of the results of parts that extend another part."""
BARS: dict[str, tuple[str, Callable[[Results], bool]]] = {
    "sft": ("pass@1 between 0.3 and 0.6", lambda r: 0.3 <= r["numbered"]["pass_at_1"]["value"] <= 0.6),
    "annotate": (
        "token_ratio at most 0.7 at an RMSE that is not above that of fixed (95%), saturation at least 0.90",
        lambda r: r.get("token_ratio", 1) <= 0.7 and _as_precise(r) and r.get("saturation", 0) >= 0.9,
    ),
    "labels": ("auc at least 0.85", lambda r: r["auc"] >= 0.85),
    "prm": (
        "first_error_f1 at least 0.15, interval above 0",
        lambda r: r["first_error_f1"] >= 0.15 and r["first_error_f1_interval"][0] > 0,
    ),
    "bon": (
        "at 8 and 16 samples, both intervals above 0",
        lambda r: all(
            r.get(f"{gain}_{size}_interval", [0])[0] > 0
            for gain in ("weighted_minus_majority", "trained_minus_untrained")
            for size in best_of_n.SIZES
        ),
    ),
    "methods": ("reported", lambda r: True),
    "rl": ("reported", lambda r: True),
    "rollouts": (
        "each share below 0.05",
        lambda r: max(r["unsplittable"], r["unknown"], r["truncated"]) < 0.05,
    ),
}


def _as_precise(annotate: Results) -> bool:
    return "rmse_differences" in annotate and annotate["rmse_differences"]["precise"]["low"] <= 0


def measure(name: str, workspace: Workspace, details: Results) -> None:
    """Measure one part, and record it with its seconds and whether the machine was quiet.

    The seconds of repeated calls add up, because a call resumes what earlier ones began.
    """
    quiet, begun = is_quiet(), time.perf_counter()
    found = PARTS[name](workspace)
    part = details.setdefault(key_of(name), {})
    seconds = part.get(f"{name}_seconds", 0.0) + time.perf_counter() - begun
    part.update(found | {f"{name}_seconds": seconds, f"{name}_quiet": quiet and part.get(f"{name}_quiet", True)})


def key_of(part: str) -> str:
    """Return the key under which a part's results are stored."""
    return STORED_UNDER.get(part, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to measure; other results are kept"
    )
    parser.add_argument("--small", action="store_true", help="run the parts at sizes that only test them")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model that SFT starts from")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: runs/real, or runs/real-small")
    parser.add_argument("--output", type=Path, help="results; default: benchmarks/results/real.json")
    arguments = parser.parse_args()
    work = arguments.work or ROOT / "runs" / ("real-small" if arguments.small else "real")
    results_folder = work if arguments.small else ROOT / "benchmarks" / "results"
    output = arguments.output or results_folder / "real.json"
    workspace = Workspace(work.resolve(), arguments.model.resolve(), SMALL if arguments.small else Sizes())
    sft.write_data(workspace)
    results = read_json(output)
    for name in arguments.only:
        measure(name, workspace, results)
        results["bars"] = {key: bar for key, (bar, _) in BARS.items() if key in results}
        results["met"] = {key: bool(is_met(results[key])) for key, (_, is_met) in BARS.items() if key in results}
        results["machine"] = machine()
        write_json(output, results)
        key = key_of(name)
        print(json.dumps({key: results[key]}, indent=2), "met" if results["met"][key] else "MISSED", flush=True)


if __name__ == "__main__":
    main()
