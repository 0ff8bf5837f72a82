"""Compute token log-probabilities and entropies from hidden states without materializing all logits.

The vocabulary is split into chunks. Each pass reads each chunk of the output layer's matrix once and computes its
logits for all tokens together. The chunk's gradient is one product over all tokens, accumulated in float32 and rounded
once to the matrix's dtype. The backward pass recomputes the logits.

Shapes: M response token (of all responses), H hidden, V vocabulary, N token of one chunk of the vocabulary, C chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**26
"""Maximum number of logits to materialize at a time, in the forward and in the backward pass."""


def token_logprobs(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    token_M: Tensor,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    float32_logits: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (log π(token)_M, entropy_M in nats) in float32 or better, for π = softmax((W·h + b) / temperature).

    Banned tokens have probability 0. With `float32_logits`, products with W are computed
    in float32 from the same tensors: bfloat16 rounds a logit of 16 to a multiple of 1/8, which changes
    log-probabilities by hundredths of a nat.

    Only the logits of one chunk, LOGITS_AT_ONCE / M vocabulary entries, exist at a time.
    """
    layer = _Layer(temperature, tuple(banned), float32_logits)
    return _TokenLogprobs.apply(hidden_MH, weight_VH, bias_V, token_M, layer)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a tensor to float32, or return it unchanged if its dtype is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _Layer(NamedTuple):
    temperature: float
    banned: tuple[int, ...]
    float32: bool

    def logits(self, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, chunk: slice) -> Tensor:
        """Return logits_MN for a chunk of the vocabulary, in float32 or better."""
        logits_MN = at_least_float32(_product(hidden_MH, weight_VH[chunk].T, self.float32))
        if bias_V is not None:
            logits_MN += bias_V[chunk]
        logits_MN /= self.temperature
        # Not −∞, because its product with a probability of 0 would make the entropy NaN.
        logits_MN[:, self.banned_in(chunk)] = torch.finfo(logits_MN.dtype).min
        return logits_MN

    def banned_in(self, chunk: slice) -> list[int]:
        """Return the column indices of the banned tokens within a chunk."""
        return [token - chunk.start for token in self.banned if chunk.start <= token < chunk.stop]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, token_M: Tensor, layer: _Layer
    ) -> tuple[Tensor, Tensor]:
        chosen_M = hidden_MH.new_zeros(len(token_M), dtype=torch.promote_types(hidden_MH.dtype, torch.float32))
        sizes, entropies = [], []
        for chunk in _chunks(len(token_M), len(weight_VH)):
            logits_MN = layer.logits(hidden_MH, weight_VH, bias_V, chunk)
            inside_M, column_M = _within(token_M, chunk)
            chosen_M += logits_MN.gather(1, column_M[:, None])[:, 0] * inside_M
            sizes.append(logits_MN.logsumexp(dim=1))
            logits_MN -= sizes[-1][:, None]
            entropies.append(-logits_MN.exp().mul_(logits_MN).sum(dim=1))
        size_CM = torch.stack(sizes)
        total_M = size_CM.logsumexp(dim=0)
        share_CM = (size_CM - total_M).exp()
        # Chain rule of entropy: H(chunk) + E[H(token | chunk)].
        entropy_M = (torch.special.entr(share_CM) + share_CM * torch.stack(entropies)).sum(dim=0)
        ctx.layer = layer
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, token_M, total_M, entropy_M)
        ctx.set_materialize_grads(False)  # entropies without a loss of their own cost nothing
        return chosen_M - total_M, entropy_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor | None, by_entropy_M: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute the gradients from ∂ log p(token) / ∂ l = onehot(token) − p and ∂H / ∂ l = −p·(log p + H).

        Here l = (W·h + b) / temperature are the logits, p = softmax(l), and H is the entropy of p.
        """
        hidden_MH, weight_VH, bias_V, token_M, total_M, entropy_M = ctx.saved_tensors
        layer = ctx.layer
        scale_M = torch.zeros_like(total_M) if gradient_M is None else gradient_M / layer.temperature
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        hidden_gradient_MH = torch.zeros_like(hidden_MH, dtype=total_M.dtype) if needs_hidden else None
        weight_gradient_VH = torch.empty_like(weight_VH) if needs_weight else None
        bias_gradient_V = torch.empty_like(bias_V) if needs_bias else None
        tensor_cores = layer.float32 and _bfloat16_on_gpu(hidden_MH, weight_VH)
        own_MH = _factor(hidden_MH, layer.float32 and not tensor_cores) if needs_weight else hidden_MH
        for chunk in _chunks(len(token_M), len(weight_VH)):
            logits_MN = layer.logits(hidden_MH, weight_VH, bias_V, chunk)
            inside_M, column_M = _within(token_M, chunk)
            logits_MN -= total_M[:, None]
            pull_MN = scale_M[:, None]
            if by_entropy_M is not None:
                # In place: at most two tensors of a chunk's logits exist at a time.
                pull_MN = (logits_MN + entropy_M[:, None]).mul_(by_entropy_M[:, None] / layer.temperature)
                pull_MN += scale_M[:, None]
            gradient_MN = logits_MN.exp_().mul_(-pull_MN)
            gradient_MN.scatter_add_(1, column_M[:, None], (scale_M * inside_M)[:, None])
            gradient_MN[:, layer.banned_in(chunk)] = 0
            if needs_bias:
                bias_gradient_V[chunk] = gradient_MN.sum(dim=0)
            if tensor_cores:
                parts = _bfloat16_parts(gradient_MN)
            else:
                parts = [gradient_MN if layer.float32 else gradient_MN.to(weight_VH.dtype)]
            if needs_hidden:
                _add_products(hidden_gradient_MH, parts, weight_VH[chunk], layer.float32)
            if needs_weight:
                sum_NH = torch.zeros_like(weight_VH[chunk], dtype=total_M.dtype)
                weight_gradient_VH[chunk] = _add_products(
                    sum_NH, [part_MN.T for part_MN in parts], own_MH, layer.float32
                )
            del logits_MN, pull_MN, gradient_MN, parts  # before the logits of the next chunk exist
        hidden_gradient_MH = None if hidden_gradient_MH is None else hidden_gradient_MH.to(hidden_MH.dtype)
        return hidden_gradient_MH, weight_gradient_VH, bias_gradient_V, None, None


def _chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Split the vocabulary into chunks whose logits for all tokens have at most LOGITS_AT_ONCE elements."""
    size = max(1, LOGITS_AT_ONCE // max(1, tokens))
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


def _within(token_M: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return a mask of the tokens in the chunk of the vocabulary, and the column of each token in the chunk.

    The column of a token outside the chunk is valid but meaningless.
    """
    inside_M = (token_M >= chunk.start) & (token_M < chunk.stop)
    return inside_M, (token_M - chunk.start).clamp(0, chunk.stop - chunk.start - 1)


def _product(left_MH: Tensor, right_HN: Tensor, float32: bool) -> Tensor:
    """Return left @ right. With `float32`, in float32 or better: terms are exact and accumulated in float32."""
    if float32 and _bfloat16_on_gpu(left_MH, right_HN):
        return torch.mm(left_MH, right_HN, out_dtype=torch.float32)  # a product of two bfloat16 is exact in float32
    return _factor(left_MH, float32) @ _factor(right_HN, float32)


def _add_products(total: Tensor, lefts: Sequence[Tensor], right: Tensor, float32: bool) -> Tensor:
    """Add left @ right to `total` for each left factor, one product at a time, and return `total`."""
    for left in lefts:
        total += _product(left, right, float32)
    return total


def _bfloat16_on_gpu(left: Tensor, right: Tensor) -> bool:
    """Return whether a GPU can multiply the tensors as bfloat16 and accumulate the products in float32."""
    return left.is_cuda and left.dtype == right.dtype == torch.bfloat16


def _bfloat16_parts(gradient_MN: Tensor) -> list[Tensor]:
    """Split a float32 tensor, which is overwritten, into two bfloat16 tensors whose sum has 16 bits of its mantissa.

    Two bfloat16 products take less time on a GPU than one float32 product, which cannot use tensor cores.
    """
    high_MN = gradient_MN.bfloat16()
    return [high_MN, gradient_MN.sub_(high_MN).bfloat16()]


def _factor(tensor: Tensor, float32: bool) -> Tensor:
    return at_least_float32(tensor) if float32 else tensor
