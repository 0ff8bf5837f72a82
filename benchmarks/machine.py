"""Describe the machine on which a benchmark runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide how fast a CPU multiplies matrices."""


def machine() -> str:
    """Return the processor's name, instruction sets and cores, and Python's version."""
    text = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    words = set(text.split())
    instructions = " ".join(each for each in _INSTRUCTIONS if each in words)
    cores = f"{os.cpu_count()} cores"
    described = (name or platform.machine(), instructions, cores, f"Python {platform.python_version()}")
    return ", ".join(part for part in described if part)
