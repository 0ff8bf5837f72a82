"""Test log-probabilities in chunks of the vocabulary: values and gradients of the naive form, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from policy_rl.trainer import output_layer
from policy_rl.trainer.output_layer import token_logprobs

BANNED = [0, 2]


def make_layer(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, bias and tokens that are not banned; logits have standard deviation 4."""
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(tokens, hidden, generator=generator)
    weight_VH = torch.randn(vocabulary, hidden, generator=generator) * 4 / hidden**0.5
    bias_V = torch.randn(vocabulary, generator=generator)
    token_M = torch.randint(3, vocabulary, (tokens,), generator=generator)
    return hidden_MH.to(dtype), weight_VH.to(dtype), bias_V.to(dtype), token_M


def naive(
    hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, token_M: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and entropies from all logits at once, by autograd."""
    logits_MV = hidden_MH @ weight_VH.T + (0 if bias_V is None else bias_V)
    logits_MV = logits_MV.index_fill(1, torch.tensor(BANNED), -1e30) / temperature
    logprobs_MV = logits_MV.log_softmax(dim=1)
    return logprobs_MV.gather(1, token_M[:, None])[:, 0], -(logprobs_MV.exp() * logprobs_MV).sum(dim=1)


def gradients(function: Any, *tensors: Tensor, bonus: float = 0.0, **options: Any) -> list[Tensor]:
    """Return the log-probabilities and entropies, and the gradients of a weighted sum of both."""
    *floats, token_M = tensors
    floats = [tensor.clone().requires_grad_() for tensor in floats]
    logprobs_M, entropy_M = function(*floats, token_M, **options)
    weight_M = torch.randn(len(token_M), generator=torch.Generator().manual_seed(1))
    (logprobs_M * weight_M + bonus * entropy_M * weight_M.flip(0)).sum().backward()
    return [logprobs_M.detach(), entropy_M.detach(), *(tensor.grad for tensor in floats)]


@pytest.mark.parametrize("bonus", [0.0, 0.7])
@pytest.mark.parametrize("at_once", [2**26, 1000, 23])
def test_chunks_equal_all_logits_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int, bonus: float) -> None:
    """The chunks are one, two of 43 and 7 tokens, or 50 of one token, two of which contain only a banned token."""
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", at_once)
    layer = make_layer(23, 8, 50, torch.float32)
    found = gradients(token_logprobs, *layer, bonus=bonus, temperature=0.8, banned=BANNED)
    expected = gradients(naive, *layer, bonus=bonus, temperature=0.8)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not found[3][BANNED].any()


def test_gradients_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 20)
    *floats, token_M = make_layer(5, 3, 11, torch.float64)

    def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(*tensors, token_M, 0.7, BANNED)

    assert torch.autograd.gradcheck(both, [tensor.requires_grad_() for tensor in floats])


def test_two_tokens_by_hand() -> None:
    """Logits 0 and ln 3 have probabilities 1/4 and 3/4; the gradient of log π(first) for W is (3/4, −3/4) · h."""
    weight_VH = torch.tensor([[0.0], [0.5 * torch.log(torch.tensor(3.0))]], requires_grad=True)
    logprobs_M, entropy_M = token_logprobs(torch.tensor([[2.0]]), weight_VH, None, torch.tensor([0]))
    (by_entropy_VH,) = torch.autograd.grad(entropy_M.sum(), weight_VH, retain_graph=True)
    logprobs_M.sum().backward()
    assert logprobs_M.exp().item() == pytest.approx(0.25)
    assert entropy_M.item() == pytest.approx(0.562335, abs=1e-6)
    assert weight_VH.grad.flatten().tolist() == pytest.approx([1.5, -1.5])
    # −p·(ln p + H)·h: 0.25 · 0.823959 · 2, and the opposite, because both logits rise together without effect.
    assert by_entropy_VH.flatten().tolist() == pytest.approx([0.411980, -0.411980], abs=1e-5)


def test_frozen_inputs_have_no_gradient() -> None:
    """The weight is frozen, as with adapters, or nothing requires a gradient, as in a reference model."""
    hidden_MH, weight_VH, bias_V, token_M = make_layer(4, 3, 6, torch.float32)
    hidden_MH.requires_grad_()
    logprobs_M, _ = token_logprobs(hidden_MH, weight_VH, bias_V, token_M)
    logprobs_M.sum().backward()
    assert (weight_VH.grad, bias_V.grad) == (None, None)
    assert hidden_MH.grad.abs().max() > 0.1
    assert not token_logprobs(hidden_MH.detach(), weight_VH, bias_V, token_M)[0].requires_grad


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def test_bfloat16_gradients_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 4,096 tokens in 8 chunks, the gradient differs from the exact one only by its own rounding.

    Summing gradients of token chunks in bfloat16 is off by several times as much.
    """
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 4096 * 32)
    layer = make_layer(4096, 32, 256, torch.bfloat16)
    exact = gradients(naive, *(tensor.double() if tensor.is_floating_point() else tensor for tensor in layer))
    found = gradients(token_logprobs, *layer, banned=BANNED)
    assert found[0].dtype == torch.float32
    assert [gradient.dtype for gradient in found[2:]] == [torch.bfloat16] * 3
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=2e-5)
    for ours, theirs in zip(found[2:], exact[2:], strict=True):
        assert relative_error(ours, theirs) <= 1.05 * relative_error(theirs.bfloat16(), theirs)
    added_up_VH = torch.zeros(256, 32, dtype=torch.bfloat16)
    for part in range(0, 4096, 110):  # 37 chunks of tokens
        own = slice(part, part + 110)
        p_NV = torch.softmax(logits(layer, own), dim=1)
        p_NV.sub_(torch.nn.functional.one_hot(layer[3][own], 256)).mul_(weights(own)[:, None])
        added_up_VH += (-p_NV.T @ layer[0][own].float()).bfloat16()
    assert relative_error(added_up_VH, exact[3]) > 2 * relative_error(found[3], exact[3])


def logits(layer: tuple[Tensor, ...], own: slice) -> Tensor:
    hidden_MH, weight_VH, bias_V, _ = layer
    logits_MV = hidden_MH[own].float() @ weight_VH.float().T + bias_V.float()
    return logits_MV.index_fill(1, torch.tensor(BANNED), -1e30)


def weights(own: slice) -> Tensor:
    return torch.randn(4096, generator=torch.Generator().manual_seed(1))[own]


def test_bfloat16_logits_are_off_by_hundredths() -> None:
    """Compared with float64, float32_logits differ only by rounding, while bfloat16 logits are off by hundredths."""
    layer = make_layer(200, 256, 4000, torch.bfloat16)
    exact_M = naive(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in layer))[0]
    error_M, rounded_M = (
        (token_logprobs(*layer, banned=BANNED, float32_logits=float32)[0].double() - exact_M).abs()
        for float32 in (True, False)
    )
    assert error_M.max() < 2e-5
    assert rounded_M.mean() > 0.01
    assert rounded_M.max() > 0.04


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest new float32 tensor."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each.dtype == torch.float32:
                self.elements = max(self.elements, each.numel())
        return result


def test_neither_all_logits_nor_a_float32_matrix_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 64 tokens, a vocabulary of 1,024 and hidden size 128, the hidden states are the largest tensor."""
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 4096)
    layer = make_layer(64, 128, 1024, torch.bfloat16)
    with Largest() as largest:
        gradients(token_logprobs, *layer, banned=BANNED)
    assert largest.elements == 64 * 128
