"""Test batches, schedule and metrics log of a training run, without an engine."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprm.config import build, load
from mmprm.errors import ConfigError
from mmprm.prm.train import TrainConfig
from mmprm.training.batches import MicroBatch, epoch_batches, micro_batches, one_ahead
from mmprm.training.config import TrainingConfig
from mmprm.training.engine import learning_rate_share
from mmprm.training.metrics_log import MetricsLog

CONFIGS = Path(__file__).parents[3] / "configs" / "train"


def test_an_epoch_uses_each_sample_once_in_nearly_equal_batches() -> None:
    batches = epoch_batches(10, 4, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [3, 3, 4]
    assert sorted(sample for batch in batches for sample in batch) == list(range(10))
    assert batches == epoch_batches(10, 4, seed=0, epoch=0)
    assert batches != epoch_batches(10, 4, seed=0, epoch=1)
    assert batches != epoch_batches(10, 4, seed=1, epoch=0)


def test_micro_batches_by_hand() -> None:
    """The budget is 20: [9, 8] would be padded to 27 with one more; adding 2 to [5, 4, 4] would pad it to 5."""
    lengths = [4, 9, 2, 8, 5, 4]
    assert micro_batches(range(6), lengths, 20, ranks=1) == [
        (MicroBatch((1, 3)),),
        (MicroBatch((4, 0, 5)),),
        (MicroBatch((2,)),),
    ]
    two = micro_batches(range(6), lengths, 15, ranks=2)
    assert two == [(MicroBatch((1,)), MicroBatch((3,))), (MicroBatch((4, 0, 5)), MicroBatch((2,)))]


def test_idle_ranks_repeat_a_sample_with_weight_zero() -> None:
    assert micro_batches([7], [0] * 7 + [5], 20, ranks=2) == [(MicroBatch((7,)), MicroBatch((7,), is_padding=True))]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 5))
def test_any_plan(lengths: list[int], budget: int, ranks: int) -> None:
    rows = micro_batches(range(len(lengths)), lengths, budget, ranks)
    micros = [micro for row in rows for micro in row]
    assert {len(row) for row in rows} == {ranks}
    assert sorted(s for micro in micros if not micro.is_padding for s in micro.samples) == list(range(len(lengths)))
    assert sum(micro.is_padding for micro in micros) < ranks
    for micro in micros:
        longest = max(lengths[sample] for sample in micro.samples)
        assert len(micro.samples) == 1 or longest * len(micro.samples) <= budget
        assert all(3 * longest <= 4 * lengths[sample] for sample in micro.samples)


def test_one_ahead_keeps_the_order_and_prepares_the_next_item() -> None:
    second = threading.Event()
    results = one_ahead([lambda: "a", lambda: second.set() or "b", lambda: "c"])
    assert next(results) == "a"
    assert second.wait(60)
    assert list(results) == ["b", "c"]
    assert list(one_ahead([])) == []


def shares(total: int, **keys: Any) -> list[float]:
    config = build(TrainingConfig, keys)
    return [learning_rate_share(step, total, config) for step in range(total + 1)]


def test_cosine_with_warmup() -> None:
    """Over 10 steps, 2 of them warm-up: 1/3, 2/3, then 1 at step 2, halfway at step 6, and the final value after the
    last.
    """
    share = shares(10, warmup=0.2, final_learning_rate=0.1)
    assert share[:3] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert share[6] == pytest.approx(0.1 + 0.9 * 0.5)
    assert share[10] == pytest.approx(0.1)
    assert share[2:] == sorted(share[2:], reverse=True)


def test_linear_decay() -> None:
    """Without warm-up, the rate falls by 1/8 per step to 0; with one step of warm-up, from 1 at step 1 to 0.2 over 8
    steps.
    """
    assert shares(8, warmup=0.0, learning_rate_decay="linear") == pytest.approx([1 - step / 8 for step in range(9)])
    share = shares(9, warmup=0.1, final_learning_rate=0.2, learning_rate_decay="linear")
    assert share == pytest.approx([0.5, *(1 - 0.1 * step for step in range(9))])


def test_cosine_and_linear_meet_at_the_ends_and_in_the_middle() -> None:
    cosine, linear = (shares(12, warmup=0.0, learning_rate_decay=decay) for decay in ("cosine", "linear"))
    assert [cosine[step] for step in (0, 6, 12)] == pytest.approx([linear[step] for step in (0, 6, 12)])
    assert all(left > right for left, right in zip(cosine[1:6], linear[1:6], strict=True))
    assert all(left < right for left, right in zip(cosine[7:12], linear[7:12], strict=True))


def test_a_resumed_log_holds_each_step_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": float(step)}, shown=False, total=4)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    log = MetricsLog(tmp_path, 2)
    log.write("train", 3, {"loss": float("nan")}, shown=False, total=4)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, None)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_an_unknown_key_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"training.zero_stag does not exist; did you mean training.zero_stage"):
        load(TrainConfig, CONFIGS / "tiny.yaml", ["training.zero_stag=1"])
