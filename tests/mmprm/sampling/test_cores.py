"""Test that each engine on a machine gets a different core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm.sampling.cores import engine_cores


@pytest.fixture(autouse=True)
def _three_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 7})


def test_engines_that_run_together_have_different_cores() -> None:
    with engine_cores("one") as first, engine_cores("one") as second:
        assert (first, second) == ((4,), (5,))
        with engine_cores("one") as third:
            assert third == (7,)
        with engine_cores("one") as again:
            assert again == (7,), "the core of an engine that has stopped"


def test_more_engines_than_cores_share_one() -> None:
    with engine_cores("one"), engine_cores("one"), engine_cores("one"), engine_cores("one") as fourth:
        assert fourth[0] in (4, 5, 7)


def test_the_core_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    lines = (
        "import os, tempfile",
        f"tempfile.tempdir = {str(tmp_path)!r}",
        "os.sched_getaffinity = lambda _: {4, 5, 7}",
        "from mmprm.sampling.cores import engine_cores",
        "held = engine_cores('one'); print(held.__enter__(), flush=True)",
        "os.kill(os.getpid(), 9)",
    )
    died = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (died.returncode, died.stdout) == (-9, "(4,)\n")
    with engine_cores("one") as cores:
        assert cores == (4,)


@pytest.mark.parametrize(("setting", "cores"), [(None, ()), ((2, 3), (2, 3))])
def test_other_settings_stay(setting: tuple[int, ...] | None, cores: tuple[int, ...]) -> None:
    with engine_cores(setting) as found:
        assert found == cores
