"""Test that an RL run resumed on another machine keeps the data type of its engines."""

from __future__ import annotations

import pytest

from mmprm.config import build
from policy_rl import run
from policy_rl.config import RLConfig


@pytest.mark.parametrize(("asked", "expected"), [("auto", "float16"), ("float32", "float32")])
def test_auto_means_the_data_type_of_the_checkpoint(monkeypatch: pytest.MonkeyPatch, asked: str, expected: str) -> None:
    values = {"engine": {"model": "m", "dtype": asked}, "problems": {"path": "p.jsonl"}, "output": "o"}
    monkeypatch.setattr(run, "read_extra", lambda folder: {"identity": {"engine": {"dtype": "float16"}}})
    settled = run._with_settled_dtype(build(RLConfig, values))
    assert settled.engine.dtype == expected
    assert settled.resume_key()["engine"]["dtype"] == expected
