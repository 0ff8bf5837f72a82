"""Test the GPU check: which results it keeps, and what the page shows for parts without a result."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import gpu

        yield gpu
    for name in ("gpu", "gpu_kernels", "gpu_setup"):
        sys.modules.pop(name, None)


def test_failures_and_other_devices_do_not_replace_results(gpu: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    for device, found in (
        ("A", {"seconds": 1}),
        ("B", {"failed": "no"}),
        ("A", {"failed": "no"}),
        ("B", {"seconds": 2}),
    ):
        gpu.add_result(path, device, "update", found)
    results = json.loads(path.read_text())
    assert {device: each["update"].get("seconds") for device, each in results.items()} == {"A": 1, "B": 2}
    assert "failed" not in results["B"]["update"]


def test_the_page_names_the_command_of_every_part_without_a_result(gpu: ModuleType) -> None:
    measured = {name for each in json.loads(gpu.RESULTS.read_text()).values() for name in each}
    page = (ROOT / "docs/gpu.md").read_text(encoding="utf-8").partition("## What has not been verified")[2]
    named = {part for line in re.findall(r"gpu\.py --only ([\w ]+)`", page) for part in line.split()}
    assert gpu.PARTS.keys() - measured <= named <= gpu.PARTS.keys()


def test_the_share_of_the_peak_counts_matrices_only(gpu: ModuleType) -> None:
    """23,349 tokens per second at 8 FLOPs per token and non-embedding parameter are 276 of 989 TFLOP/s."""
    update = json.loads(gpu.RESULTS.read_text())["NVIDIA H200"]["update"]
    matrices = update["parameters"] - 152_064 * 3584
    rate = update["response_tokens"] / update["seconds"][-1]
    assert update["share_of_peak"] == pytest.approx(8 * matrices * rate / 989e12, abs=0.001)
    assert update["mfu"] == pytest.approx(0.75 * update["share_of_peak"], abs=0.001)
