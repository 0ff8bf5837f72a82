"""Test commands that run in an actor: exit code, log, and the end of a command whose parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policy_rl.rewards.command_actor import CommandActor, last_line

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
PARENT = f"""
import sys
from policy_rl.rewards.command_actor import CommandActor
CommandActor(1).run([sys.executable, "-c", {SLEEP!r}], sys.argv[1])
"""


def test_the_exit_code_and_the_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == "no output"
    assert CommandActor(2).run([sys.executable, "-c", "print('one')"], str(log)) == 0
    assert CommandActor(2).run([sys.executable, "-c", "import sys; sys.exit('two')"], str(log)) == 1
    assert log.read_text() == "one\ntwo\n", "an attempt does not erase the output of the one before"
    assert last_line(log) == "two"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_command_ends_with_its_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log)])
    try:
        _until(lambda: log.is_file() and log.read_text().strip() != "")
        command = int(log.read_text())
        assert _is_alive(command)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _until(lambda: not _is_alive(command))


def _until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition is never met"
        time.sleep(0.05)


def _is_alive(process: int) -> bool:
    """Return whether a process runs; a zombie, whose parent has not collected it yet, does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
