"""Run the parts of a benchmark one after the other, and store each result before the next part begins."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
Results = dict[str, Any]


class Part(NamedTuple):
    """Holds a part: the function that measures it, and its target in words and as a predicate on the results.

    The results have a `value`, the headline metric. If it is None, the target is missed.
    """

    measure: Callable[[Any], Results]
    bar: str
    is_met: Callable[[Results], bool]


def parts_parser(description: str, parts: Iterable[str], policy: Path) -> argparse.ArgumentParser:
    """Return the command-line parser of a benchmark in parts, with `policy` as the default policy."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts), help="parts to measure")
    parser.add_argument("--small", action="store_true", help="test every part with tiny runs, in a folder of their own")
    parser.add_argument("--policy", type=Path, default=policy)
    parser.add_argument("--folder", type=Path, help="folder for the runs; by default, one in runs/")
    parser.add_argument("--output", type=Path, help="file for the results; with --small, one in the folder")
    return parser


def folder_and_output(arguments: argparse.Namespace, runs: str, results: str) -> tuple[Path, Path]:
    """Create the folder of the runs, by default runs/`runs`, and return it with the file of the results."""
    folder = arguments.folder or ROOT / "runs" / (f"{runs}-small" if arguments.small else runs)
    folder.mkdir(parents=True, exist_ok=True)
    output = arguments.output or (folder if arguments.small else ROOT / "benchmarks" / "results") / results
    return folder, output


def run_parts(parts: Mapping[str, Part], names: Iterable[str], bench: Any, output: Path, small: bool) -> None:
    """Measure parts and merge each result into the file `output`: the value under its name, the rest in `details`."""
    for name in names:
        part = parts[name]
        found = part.measure(bench)
        met = found["value"] is not None and part.is_met(found)
        print(json.dumps({name: found}, indent=2), "met" if met else f"MISSED ({part.bar})", flush=True)
        results = json.loads(output.read_text()) if output.exists() else {}
        results["machine"] = machine()
        results[name] = found.pop("value")
        results.setdefault("details", {})[name] = found | {"bar": part.bar, "met": met, "small": small}
        output.write_text(json.dumps(results, indent=2) + "\n")


def run_mmprm(command: list[str], log: Path) -> int:
    """Run an mmprm command and return its exit code; what it prints goes to `log`."""
    print(f"{time.strftime('%H:%M:%S')}  {log.stem}", flush=True)
    with log.open("w") as file:
        return subprocess.run(
            [sys.executable, "-m", "mmprm", *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        ).returncode
