"""Run comparisons in worker processes, since they may hang, exhaust memory or crash. A failed worker is restarted.

Workers are independent programs, neither forks of this process (which may hold an engine and its threads) nor importers
of its main script.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from mmprm.errors import GradingError
from mmprm.grading.outcome import Outcome
from mmprm.grading.worker import KILLED_BY_TIMER, READY

START_SECONDS = 180
"""Startup timeout of a worker in seconds. Loading the symbolic library takes 1 s, but far longer on a busy, cold
machine."""


class LateError(Exception):
    """Raised when a comparison exceeds its time limit."""


class DiedError(Exception):
    """Raised when a worker dies during a comparison or cannot finish it."""


class WorkerPool:
    """Manages up to `size` workers, started on demand. Comparisons queue for a free worker in order."""

    def __init__(self, size: int, seconds: float, memory_bytes: int) -> None:
        self._arguments = seconds, memory_bytes
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="grading")
        self._local = threading.local()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def compare(self, gold: str, answer: str, labels: Sequence[Sequence[str]] = ()) -> Future[Outcome]:
        """Submit a comparison; its future raises LateError or DiedError, or, if no worker can start, GradingError."""
        return self._threads.submit(self._compare, {"gold": gold, "answer": answer, "labels": labels})

    def close(self) -> None:
        """Kill the workers; comparisons in flight end with DiedError."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def _compare(self, request: dict[str, object]) -> Outcome:
        worker = self._worker()
        try:
            return worker.ask(request)
        except _GoneError:  # killed from outside, possibly while idle, so this comparison is not the cause; retry once
            return self._worker().ask(request)

    def _worker(self) -> _Worker:
        """Return this thread's worker, starting a new one if it has exited."""
        worker: _Worker | None = getattr(self._local, "worker", None)
        if worker is not None and worker.process.poll() is None:
            return worker
        with self._lock:
            if self._closed:
                raise DiedError("closed")
            if worker is not None:
                self._workers.remove(worker)
                worker.kill()
            self._local.worker = None
            new = _Worker(*self._arguments)
            self._workers.append(new)
        self._local.worker = new
        new.wait_until_ready()
        return new


class _GoneError(DiedError):
    """Raised when a worker was killed from outside."""


class _Worker:
    """Runs one worker process and exchanges JSON lines with it."""

    def __init__(self, seconds: float, memory_bytes: int) -> None:
        self._seconds, self._memory_bytes = seconds, memory_bytes
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmprm.grading.worker", str(seconds), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )

    def wait_until_ready(self) -> None:
        """Wait until the worker has loaded the symbolic library. Raises GradingError if it cannot start."""
        line = self._read(START_SECONDS)
        if line and json.loads(line) == READY:
            return
        said = self._last_words()
        self.kill()
        raise GradingError(
            f"a grading worker cannot start (exit code {self.process.returncode}, memory_gib="
            f"{self._memory_bytes / 2**30:g}): {said}; it needs about 1 GiB of address space: raise grader.memory_gib, "
            "or repair the installation that the message names"
        )

    def ask(self, request: dict[str, object]) -> Outcome:
        """Return the outcome of a comparison; kill the worker if it does not reply. Raises LateError or DiedError."""
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        except (OSError, ValueError) as error:
            self.kill()
            raise _GoneError(str(error)) from error
        line = self._read(10 * self._seconds)
        if line is None:
            self.kill()
            raise LateError
        if not line:
            self.kill()
            code = self.process.returncode
            if code == KILLED_BY_TIMER:
                raise LateError
            raise (_GoneError if code == -signal.SIGKILL else DiedError)(f"worker died with exit code {code}")
        reply = json.loads(line)
        if "error" in reply:
            raise DiedError(f"comparison failed: {reply['error']}")
        return Outcome[reply["outcome"]]

    def kill(self) -> None:
        """Kill the process and close its streams."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            with suppress(OSError):
                stream.close()

    def _read(self, seconds: float) -> bytes | None:
        """Read one line, or return b"" if the worker has exited and None if it does not reply within `seconds`."""
        try:
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            line = self.process.stdout.readline() if ready else None
        except (OSError, ValueError):  # closed by another thread
            return b""
        if line == b"":
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        return line

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no error output"
