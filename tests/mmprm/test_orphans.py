from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import subprocess, sys, time
from pathlib import Path
from mmprm import orphans
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
orphans.remove(Path(sys.argv[1]))
orphans.stop_children()
print(child.pid, child.stdout.readline().strip(), flush=True)
sys.stdin.readline()
"""


TWO_GENERATIONS = """
import ctypes, signal, subprocess, sys
from mmprm import orphans
PR_SET_PDEATHSIG = 1
die_with_parent = lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
child = subprocess.Popen(
    ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
)
grandchild = child.stdout.readline().strip()
orphans.stop_children()
print(child.pid, grandchild, flush=True)
sys.stdin.readline()
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second one if it ends while its file is read
        return True


def until(condition: object, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("killed", [True, False])
def test_remains_of_a_killed_process_are_removed(tmp_path: Path, killed: bool) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "file").write_text("memory")
    command = [sys.executable, "-c", RUN, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        pids = [int(pid) for pid in run.stdout.readline().split()]
        if killed:
            run.send_signal(signal.SIGKILL)
    if killed:
        assert until(lambda: not folder.exists() and all(map(gone, pids)))
    else:  # it ended normally, so its files are kept
        time.sleep(1.5)
        assert folder.exists()
        assert not any(map(gone, pids))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_grandchildren_of_a_killed_process_are_stopped() -> None:
    """Ray's node server is such a child; its agents would outlive it by a minute."""
    command = [sys.executable, "-c", TWO_GENERATIONS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        pids = [int(pid) for pid in run.stdout.readline().split()]
        run.send_signal(signal.SIGKILL)
    assert until(lambda: all(map(gone, pids)))
