"""Test the grader's worker processes: if one dies or fails, the next comparison is still decided."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm.errors import GradingError
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.types import Problem, Verdict

GOLD = r"\int_0^2 3x^2 dx"


def verdict(grader: SymbolicGrader, answer: str) -> Verdict:
    return grader.grade_many([(Problem("p", "Q", GOLD), f"<answer>{answer}</answer>")])[0].verdict


def test_a_killed_idle_worker_is_replaced() -> None:
    with SymbolicGrader() as grader:
        assert verdict(grader, "8") is Verdict.CORRECT
        for pid in grader._pool.pids():
            os.kill(pid, signal.SIGKILL)
        assert verdict(grader, "9") is Verdict.INCORRECT


def test_a_worker_that_cannot_start_is_an_error() -> None:
    with (
        SymbolicGrader(GraderConfig(memory_gib=0.05)) as grader,
        pytest.raises(GradingError, match=r"memory_gib=0\.05"),
    ):
        verdict(grader, "8")


def test_a_closed_grader_leaves_no_worker_running() -> None:
    with SymbolicGrader() as grader:
        verdict(grader, "8")
        pids = grader._pool.pids()
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_script_without_a_main_guard_grades(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from mmprm.grading.symbolic import SymbolicGrader\n"
        "from mmprm.types import Problem\n"
        "grader = SymbolicGrader()\n"
        f"print(grader.grade_many([(Problem('p', 'Q', {GOLD!r}), '<answer>8</answer>')])[0].verdict.name)\n"
        "grader.close()\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout.strip()) == (0, "CORRECT"), result.stderr
