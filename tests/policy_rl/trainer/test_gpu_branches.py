"""Test branches that only run on a GPU: the product of the output layer, and memory for colocated engines."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmprm.training.ranks import Ranks
from policy_rl.trainer import trainer as trainer_module
from policy_rl.trainer.output_layer import _product
from policy_rl.trainer.trainer import Trainer


def test_bfloat16_products_on_a_gpu_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors are not copied to float32."""
    seen: list[Any] = []
    monkeypatch.setattr(torch, "mm", lambda *factors, **options: seen.append((factors, options)))
    left, right = (SimpleNamespace(is_cuda=True, dtype=torch.bfloat16) for _ in range(2))
    _product(left, right, float32=True)
    assert seen == [((left, right), {"out_dtype": torch.float32})]


def test_the_cache_is_freed_after_weights_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(trainer_module, "probe_logprobs", lambda *_: None)
    monkeypatch.setattr(trainer_module, "ModelWeights", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("freed"))
    trainer = Trainer.__new__(Trainer)
    trainer.ranks = Ranks(0, 1, torch.device("cuda"))
    trainer._engine = SimpleNamespace(inference=nullcontext)
    trainer._policy = SimpleNamespace(backbone=None)
    trainer._transfer = SimpleNamespace(publish=lambda *_: events.append("sent"))
    trainer.publish(1, [1, 2], torch.bfloat16)
    assert events == ["sent", "freed"]


@pytest.mark.parametrize(("device", "calls"), [("cuda", 1), ("cpu", 0)])
def test_a_trainer_frees_its_cache_on_a_gpu(device: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(None))
    trainer = Trainer.__new__(Trainer)
    trainer.ranks = Ranks(0, 1, torch.device(device))
    trainer.release_memory()
    assert len(freed) == calls
