"""Assign each engine on CPU a core that no other engine on the machine uses."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def engine_cores(cores: tuple[int, ...] | str | None) -> Iterator[tuple[int, ...]]:
    """Yield the CPU cores that `EngineConfig.cores` selects: one free core for "one", an empty tuple for None.

    A core that "one" selects is reserved on this machine until the `with` block or the process ends.
    """
    if cores != "one":
        yield tuple(cores or ())
        return
    with _free_core() as core:
        yield (core,)


@contextmanager
def _free_core() -> Iterator[int]:
    """Yield an available core that no engine of this user has reserved, or any core if all are reserved.

    Reservations are file locks, which the system releases when a process dies.
    """
    available = sorted(os.sched_getaffinity(0))
    folder = Path(tempfile.gettempdir(), f"mmprm-cores-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for core in available:
        with (folder / str(core)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield core
            return
    yield available[os.getpid() % len(available)]
