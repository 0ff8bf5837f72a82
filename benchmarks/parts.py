"""Run the parts of a benchmark one after the other, and store each result before the next part begins."""

from __future__ import annotations

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
