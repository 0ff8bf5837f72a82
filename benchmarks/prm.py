"""Measure training, scoring, serving and search with a PRM: `make bench-prm` writes benchmarks/results/prm.json.

train_vs_trl   labels trained per second relative to TRL's PRM trainer; largest loss difference over 20 identical steps
tree_packing   distinct labels trained per second, packed trees relative to one path per row
score          steps scored per second: vLLM relative to transformers, unbatched and batched; shared prefixes relative
               to separate ones
serve          the scoring server under load: errors, and whether its scores equal those of the offline scorer
search         beam search and best-of-N at equal numbers of generated tokens in the built-in toy world
demo           the demo's own metrics: F1 of first errors, accuracy, seconds of training

The benchmark uses the labels, trees and PRM of a demo run (`make demo`), and the metrics in its summary. Ratios are
medians of several rounds, with their minimum and maximum; all other measurements are in prm_details.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

from mmprm.problems import write_problems
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.tiny.world import Mistakes, make_problems, solve
from mmprm.types import Solution

ROOT = Path(__file__).parent.parent

Results = dict[str, Any]
BARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "train_vs_trl": (
        "ratio at least 1.2, max_loss_diff at most 0.001",
        lambda r: r["ratio"] >= 1.2 and r["max_loss_diff"] <= 1e-3,
    ),
    "tree_packing": ("ratio at least 3", lambda r: r["ratio"] >= 3),
    "score": (
        "vs_single at least 1.5, vs_batched at least 0.8, shared at least 3",
        lambda r: r["vs_single"] >= 1.5 and r["vs_batched"] >= 0.8 and r["shared"] >= 3,
    ),
    "serve": (
        "64 clients, at least 2,000 requests, errors 0, equal true",
        lambda r: r["clients"] == 64 and r["requests"] >= 2000 and not r["errors"] and r["equal"],
    ),
    "search": ("reported", lambda r: True),
    "demo": (
        "prm_step_f1 0.904 and accuracy.prm 0.758 within the interval, seconds_train below 35.4",
        lambda r: (
            r["prm_step_f1"]["low"] <= 0.904 <= r["prm_step_f1"]["high"]
            and r["accuracy.prm"]["low"] <= 0.758 <= r["accuracy.prm"]["high"]
            and r["seconds_train"] < 35.4
        ),
    ),
}
KEYS = {
    "train_vs_trl": ("ratio", "max_loss_diff"),
    "tree_packing": ("ratio",),
    "score": ("vs_single", "vs_batched", "shared"),
    "serve": ("clients", "requests", "errors", "equal"),
}


def train_vs_trl(demo: Path) -> Results:
    from prm_train import train_vs_trl

    return train_vs_trl(demo / "labels.parquet")


def tree_packing(demo: Path) -> Results:
    from prm_packing import tree_packing_ratio

    return tree_packing_ratio(demo / "labels.parquet")


def score(demo: Path, rounds: int = 3, problems: int = 64) -> Results:
    """Measure scoring speed on 16 solutions per problem, with images, in shuffled order."""
    from prm_packing import shared_scoring_ratio

    rng, prm = random.Random(0), str(demo / "train" / "prm")
    groups = [
        [Solution(tiny.problem, tuple(solve(tiny, rng, Mistakes(0.3, 0.3)))) for _ in range(16)]
        for tiny in make_problems(problems, 7, "train")
    ]
    flat = [solution for group in groups for solution in group]
    random.Random(1).shuffle(flat)
    steps = sum(len(solution.steps) for solution in flat)
    # Unbatched scoring is slow, so it is measured on an eighth of the solutions.
    few = flat[: len(flat) // 8]
    few_steps = sum(len(solution.steps) for solution in few)
    transformers = open_scorer(ScorerConfig(prm=prm))
    vllm = open_scorer(ScorerConfig(prm=prm, backend="vllm", kv_cache_gib=0.25))
    speeds: dict[str, list[float]] = {"vllm": [], "single": [], "batched": []}
    # Warm up first, so that one-time setup is not measured.
    for scorer in (transformers, vllm):
        scorer.score(flat[:32])
    for _ in range(rounds):
        for name, run, count in (
            ("vllm", lambda: vllm.score(flat), steps),
            ("single", lambda: [transformers.score([solution]) for solution in few], few_steps),
            ("batched", lambda: transformers.score(flat), steps),
        ):
            begun = time.perf_counter()
            run()
            speeds[name].append(count / (time.perf_counter() - begun))
    transformers.close()
    vllm.close()
    shared = shared_scoring_ratio(Path(prm), groups, rounds)
    ratios = {
        f"vs_{name}": [ours / other for ours, other in zip(speeds["vllm"], speeds[name], strict=True)]
        for name in ("single", "batched")
    }
    return {
        **{name: statistics.median(found) for name, found in ratios.items()},
        "shared": shared["ratio"],
        "spread": {name: [min(found), max(found)] for name, found in ratios.items()} | {"shared": shared["spread"]},
        "steps_per_second": {name: statistics.median(found) for name, found in speeds.items()} | shared["per_second"],
    }


def serve(demo: Path) -> Results:
    from prm_serve import serve_load

    return serve_load(str(demo / "train" / "prm"))


def search(demo: Path, problems: int = 200) -> Results:
    """Run `mmprm search` with its defaults for the built-in toy world, and compare it with best-of-N."""
    with tempfile.TemporaryDirectory(prefix="mmprm-bench-") as folder:
        made = [tiny.problem for tiny in make_problems(problems, 2000, "test")]
        write_problems(Path(folder) / "problems.jsonl", made)
        sets = [f"problems.path={folder}/problems.jsonl", f"scorer.prm={demo / 'train' / 'prm'}", f"output={folder}"]
        command = [sys.executable, "-m", "mmprm", "search", "--config", str(ROOT / "configs" / "search" / "tiny.yaml")]
        subprocess.run([*command, *(part for each in sets for part in ("--set", each))], check=True)
        metrics = json.loads((Path(folder) / "summary.json").read_text())
    equal = metrics["best_of_n_at_equal_tokens"]
    return {
        "problems": metrics["problems"],
        "tokens_per_problem": metrics["tokens_per_problem"],
        "beam": metrics["accuracy"],
        "n": equal["n"],
        "best_of_n": equal["accuracy"],
        "difference": equal["difference"],
    }


def demo_results(demo: Path) -> Results:
    """Read the metrics at the largest N from the demo's summary, without running anything."""
    summary = json.loads((demo / "summary.json").read_text())
    return {
        "prm_step_f1": summary["first_error"]["f1"],
        "accuracy.prm": summary["accuracy_at_n"][str(summary["accuracy_n"])]["prm"],
        "seconds_train": summary["seconds"]["train"],
    }


PARTS: dict[str, Callable[[Path], Results]] = {
    "train_vs_trl": train_vs_trl,
    "tree_packing": tree_packing,
    "score": score,
    "serve": serve,
    "search": search,
    "demo": demo_results,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, help="parts to measure; other results are kept"
    )
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo", help="folder of a demo run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "prm.json")
    arguments = parser.parse_args()
    assert (arguments.demo / "labels.parquet").exists(), f"{arguments.demo} contains no demo run; run make demo first"
    details_path = arguments.output.with_name(f"{arguments.output.stem}_details.json")
    results, details = (json.loads(p.read_text()) if p.exists() else {} for p in (arguments.output, details_path))
    for name in arguments.only:
        details[name] = PARTS[name](arguments.demo)
        results[name] = {key: details[name][key] for key in KEYS.get(name, details[name])}
        details["bars"] = {key: BARS[key][0] for key in PARTS if key in results}
        details["met"] = {key: bool(BARS[key][1](results[key])) for key in PARTS if key in results}
        details["machine"] = machine()
        for path, metrics in ((arguments.output, results), (details_path, details)):
            path.write_text(json.dumps(metrics, indent=2) + "\n")
        print(json.dumps({name: results[name]}, indent=2), "met" if details["met"][name] else "MISSED", flush=True)


if __name__ == "__main__":
    main()
