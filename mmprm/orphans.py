"""Clean up after this process even if it is killed, using a helper process that waits for its exit.

orphans.remove(folder)         # shared-memory files, which would keep occupying memory
orphans.stop_children()        # the processes started so far, and their descendants

The helper starts at the first call. It does nothing if this process exits by itself, with any exit code. This file is
also the helper's program, so it imports only the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_DONE = b"done"
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 5.0

_helper: subprocess.Popen[bytes] | None = None


def remove(folder: Path) -> None:
    """Tell the helper to remove `folder` when this process dies. `folder` does not need to exist yet."""
    _tell(f"folder {folder.resolve()}".encode())


def stop_children() -> None:
    """Tell the helper to stop this process's current descendants and all their descendants when this process dies.

    Each descendant's process id is sent, because a child may die with this process, and the helper could then no longer
    find that child's own children.
    """
    for pid in _descendants({os.getpid()}) - {os.getpid()}:
        _tell(f"process {pid} {_started(pid)}".encode())


def _tell(wish: bytes) -> None:
    global _helper
    if _helper is None:
        _helper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # otherwise a reader of the killed command's output waits for the helper
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal signals the whole process group
        )
        atexit.register(_end, os.getpid())
    assert _helper.stdin is not None
    with contextlib.suppress(OSError):  # a dead helper must not end the run
        _helper.stdin.write(wish + b"\n")
        _helper.stdin.flush()


def _end(owner: int) -> None:
    if os.getpid() == owner:
        _tell(_DONE)


def _children(pids: set[int]) -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (fields := _stat(int(folder.name))) and int(fields[1]) in pids:
            found.add(int(folder.name))
    return found


def _descendants(pids: set[int]) -> set[int]:
    found, latest = set(pids), set(pids)
    while latest := _children(latest) - found:
        found |= latest
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields after the process name in /proc/PID/stat, or [] if there is no such process.

    The process name itself may contain any characters.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    """Return a process's start time, or "" if there is no such process.

    The start time distinguishes it from a later process with the same PID.
    """
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _wait(parent: int) -> tuple[list[bytes], dict[int, str]]:
    """Wait for the process `parent` to exit; return its requests, and the PIDs and start times of the processes to
    stop.

    Exits if `parent` reports that there is nothing left to do. The process trees are recorded while they exist, because
    processes are reparented when their parent exits.
    """
    text, closed = b"", False
    family: dict[int, str] = {}
    while True:
        alive = os.getppid() == parent
        if closed:
            time.sleep(_POLL_SECONDS if alive else 0)
        elif select.select([0], [], [], _POLL_SECONDS if alive else 0)[0]:
            chunk = os.read(0, 65536)
            text, closed = text + chunk, not chunk
            continue
        wishes = text.split(b"\n")[:-1]
        if _DONE in wishes:
            raise SystemExit
        family |= {pid: _started(pid) for pid in _descendants(_roots(wishes)) if pid != os.getpid()}
        if not alive:
            return wishes, family


def _roots(wishes: list[bytes]) -> set[int]:
    processes = [wish.split() for wish in wishes if wish.startswith(b"process ")]
    started = {int(pid): start[0].decode() for _, pid, *start in processes if start}
    return {pid for pid, start in started.items() if _started(pid) == start}


def _clean(wishes: list[bytes], living: dict[int, str]) -> None:
    folders = [wish.removeprefix(b"folder ") for wish in wishes if wish.startswith(b"folder ")]
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, 0.0)):
        end = time.monotonic() + seconds
        for pid, start in living.items():
            if start and _started(pid) == start:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        while time.monotonic() < end and any(start and _started(pid) == start for pid, start in living.items()):
            time.sleep(0.1)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _clean(*_wait(int(sys.argv[1])))
