"""Run a command in a Ray actor, so that it uses the devices that Ray has assigned to the actor."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
"""Loaded here because loading it in a forked child could wait for a lock that another thread of the parent held."""


class CommandActor:
    """Runs commands. Without a GPU, a command uses `cores` CPU cores."""

    def __init__(self, cores: int) -> None:
        self._cores = cores

    def run(self, command: Sequence[str], log: str) -> int:
        """Run a command with its output appended to the file `log`; return the exit code.

        If this process dies, the command receives SIGTERM.
        """
        environment = dict(os.environ)
        if not environment.get("CUDA_VISIBLE_DEVICES"):
            environment["OMP_NUM_THREADS"] = str(self._cores)
        with Path(log).open("ab") as file:
            return subprocess.run(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_parent,
            ).returncode


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent dies, which a killed parent cannot do itself."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
