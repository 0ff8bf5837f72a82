"""Test that killing a driver also ends Ray's processes and actors and removes its shared memory files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

DRIVER = """
import os, sys, time
from pathlib import Path
import ray
from mmprm import actors, orphans

class Actor:
    def pid(self):
        return os.getpid()

orphans.remove(Path(sys.argv[1]))
actors.connect("local")
actor = ray.remote(Actor).remote()
print(ray.get(actor.pid.remote()), flush=True)
time.sleep(600)
"""


def living(mark: str) -> list[int]:
    """Return the processes with this mark in their environment, except zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_driver_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    folder, mark = tmp_path / "weights", f"MMPRM_TEST_MARK={tmp_path.name}-{os.getpid()}"
    folder.mkdir()
    name, _, value = mark.partition("=")
    environment = os.environ | {name: value}
    command = [sys.executable, "-c", DRIVER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        actor = int(driver.stdout.readline())
        assert actor in living(mark)
        driver.send_signal(number)
    # By themselves, Ray's agents would exit only after a minute.
    assert until(lambda: not living(mark) and not folder.exists(), 40), living(mark)
