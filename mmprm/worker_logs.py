"""Read the end of another process's log, so that an error can say why the process died.

start = log_position()                       # before an engine starts processes that inherit stderr
reason = cause_since(start)                  # "ValueError: …; its log is /tmp/ray/…/worker-….err on host"

with explained_start(model, "engine", SamplingError):      # both, around the start of an engine
    …
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TAIL_BYTES = 64 * 1024
TAIL_LINES = 8
"""Number of log lines to show if none of them contains an exception message."""
MAX_CHARACTERS = 2000
_STDERR = "/proc/self/fd/2"
_PREFIX = re.compile(r"^\([^)]* pid=\d+\) (?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^]]*\] ?)?")
"""Matches the prefix of vLLM's log lines: process, level, time and source."""
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?::.*)?$")
_POINTER = re.compile(r"root cause|stack trace", re.IGNORECASE)
"""Matches exceptions that only refer to another exception in the log."""
_PID = re.compile(r"\bpid: (\d+)")
_IP = re.compile(r"\bip: (\S+)")


def log_position() -> int | None:
    """Return the current size of the file to which stderr is redirected, or None if stderr is not a file."""
    try:
        status = os.stat(_STDERR)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def cause_since(position: int | None) -> str:
    """Return the last exception written to stderr after `position`, and the path of the log.

    Child processes inherit stderr from this process. Returns "" if stderr is not a file or nothing was written.
    """
    if position is None:
        return ""
    found = last_exception(_read(Path(_STDERR), position))
    return f"{found}; its log is {_named(os.path.realpath(_STDERR))}" if found else ""


@contextmanager
def explained_start(model: str, what: str, error_class: type[Exception]) -> Iterator[None]:
    """Replace vLLM's error for a failed child process with an `error_class` that states the cause found in the log.

    vLLM's own message only says "See root cause above" or "See stack trace for root cause", and is kept if the log does
    not contain the cause. `what` names the part that starts in the `with` block. Other errors are raised unchanged.
    """
    position = log_position()
    try:
        yield
    except Exception as error:
        if not _POINTER.search(str(error)):
            raise
        raise error_class(
            f"{model}: the {what} did not start ({cause_since(position) or error}); see its log, and check the machine "
            "with mmprm doctor"
        ) from error


def cause_of_death(message: str) -> str:
    """Return the last exception in the log of a dead Ray worker on this machine, and the path of the log.

    `message` is Ray's error text, which names the PID and the machine. Returns "" if it has no PID or names another
    machine.
    """
    process, machine = _PID.search(message), _IP.search(message)
    log = _log_of(int(process[1]), machine[1] if machine else None) if process else None
    found = last_exception(_read(log, 0)) if log else ""
    return f"{found}; its log is {_named(str(log))}" if found else ""


def last_exception(text: str) -> str:
    """Return the message of the last exception in a log, skipping exceptions that only refer to another one.

    Returns the last lines of the log if it has no exception.
    """
    lines = [_split_prefix(line) for line in text.splitlines()]
    starts = [number for number, (_, line) in enumerate(lines) if _EXCEPTION.match(line) and not _POINTER.search(line)]
    found = _paragraph(lines[starts[-1] :]) if starts else [line for _, line in lines]
    kept = [line for line in found if line][-TAIL_LINES:]
    return "\n".join(kept)[-MAX_CHARACTERS:]


def _split_prefix(line: str) -> tuple[str, str]:
    prefix = _PREFIX.match(line)
    return (prefix[0], line[prefix.end() :].rstrip()) if prefix else ("", line.rstrip())


def _paragraph(lines: list[tuple[str, str]]) -> list[str]:
    """Return the lines before the first empty line, the next traceback, or the next log entry (another prefix)."""
    paragraph = []
    for prefix, line in lines:
        if not line or prefix != lines[0][0] or line.startswith(("Traceback", "Process ")):
            break
        paragraph.append(line)
    return paragraph


def _read(path: Path, position: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(position, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _log_of(process: int, machine: str | None) -> Path | None:
    """Return the newest log of the Ray worker with PID `process`, or None if no such log exists on this machine."""
    from ray._private import worker

    node = worker._global_node
    if node is None or machine not in (None, node.node_ip_address):
        return None
    found = Path(node.get_logs_dir_path()).glob(f"worker-*-{process}.err")
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _named(path: str) -> str:
    return f"{path} on {socket.gethostname()}"
