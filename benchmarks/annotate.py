"""What annotation costs and whether it can be trusted: `make bench-annotate` writes benchmarks/results/annotate.json.

saturation            generated tokens/s of a campaign over those of the same engines given all its requests at once
speedup_over_serial   distinct labels/s over those of one problem at a time with fixed K, on all cores
adaptive_token_ratio  tokens a distinct label over those with fixed K, both with many trees in flight
simulated             a campaign without a model, at scale
kill                  drivers and workers killed at random times

Each figure of the first three is the median of several rounds with other problems, beside it lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

RATIOS = ("saturation", "speedup_over_serial", "adaptive_token_ratio")
BARS = {
    "saturation": "at least 0.90",
    "speedup_over_serial": "at least 4",
    "adaptive_token_ratio": "at most 0.5",
    "simulated": "labels at least 700,000; rollouts_per_second at least 5,000; driver_peak_gib at most 2; "
    "restart_seconds at most 60",
    "kill": "kills at least 20; lost 0; double_counted 0; identical true",
}
PARTS = ("engine", "simulated", "kill", "growth")


def engine(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from annotate_engine import one_round

    rounds = []
    for number in range(arguments.rounds):
        rounds.append(one_round(folder, number, arguments.problems, arguments.serial_problems, arguments.max_rollouts))
        print(json.dumps(rounds[-1], indent=1), flush=True)
    figures: dict[str, Any] = {}
    for name in RATIOS:
        values = [each[name] for each in rounds]
        figures[name] = round(median(values), 3)
        figures[f"{name}_spread"] = [round(min(values), 3), round(max(values), 3)]
    return figures | {"errors": [each["errors"] for each in rounds], "rounds": rounds}


def profile_of(folder: Path) -> Path:
    """Recorded from a campaign of the embedded policy."""
    from annotate_engine import annotate
    from annotate_simulated import record_profile

    from mmprm.tiny.world import make_problems

    target = folder / "recorded"
    target.mkdir()
    run = annotate("default", [tiny.problem for tiny in make_problems(200, 99, "annotate")], target, 99, 64)
    record_profile(run.store, folder / "profile.json")
    return folder / "profile.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="measure these, keep the other figures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--serial-problems", type=int, default=24)
    parser.add_argument("--max-rollouts", type=int, default=320)
    parser.add_argument("--simulated-problems", type=int, default=10_000)
    parser.add_argument("--simulated-max-rollouts", type=int, default=640)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "annotate.json")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    folder = Path(tempfile.mkdtemp(prefix="mmprm-bench-"))
    try:
        if "engine" in arguments.only:
            results |= engine(folder, arguments)
        if set(arguments.only) - {"engine"}:
            import annotate_simulated

            profile = profile_of(folder)
            if "kill" in arguments.only:
                results["kill"] = annotate_simulated.kill(profile, folder / "kill", 24, 150, 640)
            if "growth" in arguments.only:
                results["growth"] = annotate_simulated.growth(profile, folder / "growth")
            if "simulated" in arguments.only:
                size = (arguments.simulated_problems, arguments.simulated_max_rollouts)
                results["simulated"] = annotate_simulated.simulated(profile, folder / "simulated", *size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results["bars"] = BARS
    results["machine"] = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
