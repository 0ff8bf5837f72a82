"""Test branches that only run on a GPU: the product of the output layer, and memory for colocated engines."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmprm.training.ranks import Ranks
from policy_rl.trainer import output_layer
from policy_rl.trainer import trainer as trainer_module
from policy_rl.trainer.output_layer import _bfloat16_parts, _product, token_logprobs
from policy_rl.trainer.trainer import Trainer


def test_bfloat16_products_on_a_gpu_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factors are not copied to float32."""
    seen: list[Any] = []
    monkeypatch.setattr(torch, "mm", lambda *factors, **options: seen.append((factors, options)))
    left, right = (SimpleNamespace(is_cuda=True, dtype=torch.bfloat16) for _ in range(2))
    _product(left, right, float32=True)
    assert seen == [((left, right), {"out_dtype": torch.float32})]


def test_gradients_on_a_gpu_use_bfloat16_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With products of bfloat16 tensors summed in float32, the gradients differ by less than 1e-4 before rounding."""
    generator = torch.Generator().manual_seed(0)
    hidden_MH, weight_VH = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 16), (50, 16)))
    token_M = torch.randint(50, (64,), generator=generator)
    factors: list[torch.dtype] = []

    def product(left: torch.Tensor, right: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        factors.extend([left.dtype, right.dtype])
        return left.to(out_dtype) @ right.to(out_dtype)

    def gradients() -> list[torch.Tensor]:
        tensors = [tensor.clone().requires_grad_() for tensor in (hidden_MH, weight_VH)]
        token_logprobs(*tensors, None, token_M)[0].sum().backward()
        return [tensor.grad for tensor in tensors]

    expected = gradients()
    monkeypatch.setattr(output_layer, "_bfloat16_on_gpu", lambda left, right: left.dtype == right.dtype)
    monkeypatch.setattr(torch, "mm", product)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=1e-4)  # one unit in the last place of bfloat16
    assert set(factors) == {torch.bfloat16}
    assert len(factors) == 2 * (2 + 4)  # logits twice, then two parts for each of the two gradients


def test_two_bfloat16_parts_have_sixteen_bits() -> None:
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    high, low = _bfloat16_parts(gradient.clone())
    assert (high.dtype, low.dtype) == (torch.bfloat16, torch.bfloat16)
    assert ((high.double() + low.double() - gradient) / gradient).abs().max() <= 2**-16
    assert ((high.double() - gradient) / gradient).abs().max() > 2**-10


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
