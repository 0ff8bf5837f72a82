"""Test how the cause of a process's death is found in its log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmprm.worker_logs import cause_of_death, last_exception

CORE = "(EngineCore pid=77) ERROR 11-26 18:00:01 [core.py:1200] "
WORKER = "(Worker_TP0 pid=79) ERROR 11-26 18:00:00 [multiproc_executor.py:750] "
REASON = "ValueError: To serve at least one request with the model's max seq len (512), 0.02 GiB is needed"
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


def test_the_exception_of_an_engine_core_is_found_below_its_prefixes() -> None:
    lines = ["EngineCore failed to start.", "Traceback (most recent call last):", '  File "x.py", line 1', REASON]
    assert last_exception("\n".join(CORE + line for line in lines)) == REASON


def test_the_cause_is_the_workers_exception() -> None:
    pointer = "Exception: WorkerProc initialization failed due to an exception. See stack trace for root cause."
    text = (
        f"{WORKER}Traceback (most recent call last):\n{WORKER}{MEMORY}\n{CORE}Traceback\n{CORE}{pointer}\n{pointer}\n"
    )
    assert last_exception(text) == MEMORY


def test_a_multiline_exception_is_complete() -> None:
    text = (
        "Traceback (most recent call last):\npydantic.ValidationError: 1 error\n  key: wrong\n\nProcess EngineCore:\n"
    )
    assert last_exception(text) == "pydantic.ValidationError: 1 error\n  key: wrong"


def test_an_exception_ends_at_the_next_log_entry() -> None:
    other = "(EngineCore pid=77) ERROR 11-26 18:00:02 [multiproc_executor.py:301] "
    text = f"{CORE}{REASON}\n{CORE}See the documentation.\n{other}Worker proc VllmWorker-0 died unexpectedly\n"
    assert last_exception(text) == f"{REASON}\nSee the documentation."


def test_without_an_exception_the_last_lines_are_shown() -> None:
    text = "\n".join(f"line {number}" for number in range(20)) + "\nKilled\n"
    assert last_exception(text).splitlines() == [*(f"line {number}" for number in range(13, 20)), "Killed"]
    assert last_exception("\n\n") == ""


def test_only_new_lines_of_a_child_are_read(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "from mmprm.worker_logs import cause_since, log_position\n"
        "print('KeyError: old', file=sys.stderr, flush=True)\n"
        "start = log_position()\n"
        "assert cause_since(start) == ''\n"
        "subprocess.run([sys.executable, '-c', 'raise ValueError(3)'])\n"
        "print(cause_since(start))\n"
    )
    log = tmp_path / "worker.err"
    with log.open("w") as err:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=err, text=True, check=True)
    assert done.stdout.strip() == f"ValueError: 3; its log is {log} on {os.uname().nodename}"


STARTING = """
import subprocess, sys
from mmprm.errors import SetupError
from mmprm.worker_logs import explained_start

def start(text):
    try:
        with explained_start("m", "scorer", SetupError):
            subprocess.run([sys.executable, "-c", "raise MemoryError('no space')"])
            raise Exception(text)
    except Exception as error:
        print(type(error).__name__, error)

start("WorkerProc initialization failed. See stack trace for root cause.")
start("an error of its own")
"""


def test_an_error_that_refers_to_another_process_includes_its_error(tmp_path: Path) -> None:
    """This occurs with a tensor-parallel scorer, whose workers are separate processes."""
    log = tmp_path / "worker.err"
    with log.open("w") as err:
        done = subprocess.run(
            [sys.executable, "-c", STARTING], stdout=subprocess.PIPE, stderr=err, text=True, check=True
        )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"SetupError m: the scorer did not start (MemoryError: no space; its log is {log} on ")
    assert second == "Exception an error of its own"


def test_without_a_log_the_error_itself_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", STARTING], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SetupError m: the scorer did not start (WorkerProc initialization failed.")


def test_a_terminal_has_no_position(tmp_path: Path) -> None:
    code = "from mmprm.worker_logs import cause_since, log_position; print(repr(cause_since(log_position())))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "''"


def test_the_log_of_a_dead_worker_is_found_by_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    log = tmp_path / "worker-ab-01000000-77.err"
    log.write_text("Fatal Python error: Segmentation fault\n")
    (tmp_path / "worker-cd-01000000-7.err").write_text("other\n")
    earlier = tmp_path / "worker-aa-01000000-77.err"  # log of a process with the same id
    earlier.write_text("ValueError: earlier\n")
    os.utime(earlier, (1, 1))
    node = SimpleNamespace(get_logs_dir_path=lambda: str(tmp_path), node_ip_address="10.0.0.1")
    monkeypatch.setattr(worker, "_global_node", node)
    message = "The actor died unexpectedly.\n\tclass_name: RolloutEngine\n\tpid: 77\n\tip: 10.0.0.1"
    found = cause_of_death(message)
    assert found == f"Fatal Python error: Segmentation fault; its log is {log} on {os.uname().nodename}"
    assert cause_of_death("The actor died. pid: 78") == ""
    assert cause_of_death(message.replace("10.0.0.1", "10.0.0.2")) == "", "log of another machine"
    assert cause_of_death("The actor never ran.") == ""
