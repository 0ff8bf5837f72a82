"""Estimate the bytes per GPU and the FLOPs of training with closed-form formulas.

Symbols: Ψ parameters, N GPUs, L layers, H hidden size, A = heads · head size, I intermediate size, V vocabulary size,
T tokens of a micro-batch, S its longest sequence, e bytes per weight (2 in bf16, 4 in float32).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]
Offload = Literal["none", "optimizer", "all"]

REDUCE_BUCKET = 500_000_000
"""Maximum number of elements that DeepSpeed reduces at once (reduce_bucket_size)."""
LIVE_PARAMETERS = 1_000_000_000
"""Maximum number of parameters that ZeRO-3 keeps gathered at once (stage3_max_live_parameters)."""
UPDATED_AT_ONCE = 1_000_000_000
"""Maximum number of elements per rank that ZeRO-3 updates at once (sub_group_size)."""
LOGITS_IN_WORK = 2**26
"""Maximum number of logits that a policy computes at once; equals policy_rl.trainer.output_layer.LOGITS_AT_ONCE."""


@dataclass(frozen=True, slots=True)
class States:
    """Holds the bytes per rank of weights, gradients and optimizer states, on the GPU and in CPU memory.

    `host` is the part in CPU memory. All are occupied during the whole run.
    """

    weights: float
    gradients: float
    optimizer: float
    host: float

    @property
    def on_gpu(self) -> float:
        """Return the total number of bytes of weights, gradients and optimizer states in GPU memory."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, slots=True)
class Layers:
    """Describes a stack of transformer layers.

    A `gated` MLP has a gate projection in addition to its two matrices. With experts, `intermediate` is the total size
    of a token's `routed` experts.
    """

    count: int
    hidden: int
    attention: int
    intermediate: int
    heads: int
    gated: bool
    key_value_heads: int = 0
    """Number of key-value heads; needed for the key-value cache and, with `normalizes_heads`, for the activations."""
    normalizes_heads: bool = False
    """Whether queries and keys are normalized per head, as in Qwen3."""
    experts: int = 0
    routed: int = 0

    @property
    def key_value(self) -> int:
        """Return the total width of the key heads, which equals that of the value heads."""
        return self.key_value_heads * self.attention // self.heads


def width(precision: Precision) -> int:
    """Return the width of a weight in bytes: 2 in bf16, 4 in float32."""
    return 2 if precision == "bf16" else 4


def states(trained: int, frozen: int, gpus: int, stage: int, precision: Precision, offload: Offload) -> States:
    """Return the bytes per rank of weights, gradients and AdamW states for Ψ parameters on N GPUs, by ZeRO stage:

        stage 0   eΨ + 4Ψ + KΨ          stage 2   eΨ + (4 + K)Ψ / N
        stage 1   eΨ + 4Ψ + KΨ / N      stage 3   (e + 4 + K)Ψ / N

    See Rajbhandari et al. (2020), ZeRO, section 5. A weight takes e bytes. A gradient takes 4 bytes, because gradients
    are accumulated in float32 (in the paper, e bytes). K = 12 bytes hold float32 copies of weights, momentum and
    variance; K = 8 in float32 at stage 0, where DeepSpeed copies no weights. Frozen parameters have only weights.
    Offloading moves these K bytes to CPU memory, together with a float32 copy of the gradients; at stage 3, and at
    stage 2 in float32, it moves the gradients themselves. `all` also moves the weights.
    """
    e = width(precision)
    k = 8 if precision == "fp32" and stage == 0 else 12
    weights = e * (trained + frozen) / (gpus if stage == 3 else 1)
    gradients = 4 * trained / (gpus if stage >= 2 else 1)
    optimizer = k * trained / (gpus if stage >= 1 else 1)
    if offload == "none":
        return States(weights, gradients, optimizer, 0.0)
    host = optimizer + (4 * trained / gpus)
    if stage == 3 or (stage == 2 and precision == "fp32"):
        host, gradients = host + (gradients if stage == 3 else 0), 0.0
    if offload == "all":
        host, weights = host + weights, 0.0
    return States(weights, gradients, 0.0, host)


def saved_by_a_layer(layers: Layers, longest: int, precision: Precision) -> float:
    """Return the bytes per token that a Llama or Qwen2 layer saves for the backward pass, without the attention matrix:

    2(4 + 2e)H    two norms: input in float32, normalized, output     8    their root mean squares
    4eA           query, key, value (repeated for all heads), output  4h   log-sum of exponentials, h heads
    4eI           gate, its activation, up, product                   eS   mask (2eI without gate)

    H, A, I, S and e are defined at the top of this module. If queries and keys are normalized per head, with keys of
    total width K in G heads, add (4 + e)(A + K) + 4(h + G). With E experts, of which a token uses k, add 2ekH (their
    inputs and outputs) + 4E + (32 + e)k (routing).
    """
    e = width(precision)
    feed_forward = (4 if layers.gated else 2) * e * layers.intermediate
    norms = 2 * (4 + 2 * e) * layers.hidden + 8
    if layers.normalizes_heads:
        norms += (4 + e) * (layers.attention + layers.key_value) + 4 * (layers.heads + layers.key_value_heads)
    if layers.experts:
        feed_forward += 2 * e * layers.routed * layers.hidden + 4 * layers.experts + (32 + e) * layers.routed
    return norms + 4 * e * layers.attention + feed_forward + 4 * layers.heads + e * longest


def kept_activations(layers: Layers, tokens: int, longest: int, precision: Precision, checkpointing: bool) -> float:
    """Return the bytes of activations that all layers keep from the forward to the backward pass of T tokens.

    These are the saved tensors of all layers or, with checkpointing, eH per token and layer. Both cases add 8H per
    token around the stack (final norm, embeddings).
    """
    e = width(precision)
    layer = e * layers.hidden if checkpointing else saved_by_a_layer(layers, longest, precision)
    return tokens * (layers.count * layer + 8 * layers.hidden)


def working_activations(layers: Layers, tokens: int, longest: int, precision: Precision, checkpointing: bool) -> float:
    """Return the bytes that a layer's backward pass on T tokens needs beyond `kept_activations`.

    These are the layer's gradients, 3eI per token, and, with checkpointing, its saved tensors.
    """
    saved = saved_by_a_layer(layers, longest, precision) if checkpointing else 0.0
    return tokens * (saved + 3 * width(precision) * layers.intermediate)


def output_layer(
    rows: int,
    hidden: int,
    tokens: int,
    precision: Precision,
    float32: bool = True,
    backward: bool = True,
    trained: bool = True,
) -> float:
    """Return the peak bytes for computing log-probabilities of T tokens over a vocabulary of V tokens.

    Chunks of the vocabulary have n = min(V, 2²⁶ / T) rows, and two tensors of Tn logits exist at once. The backward
    pass adds the gradients of the hidden states (4TH), of the matrix (eVH, if it is trained), and of a chunk before
    rounding (4nH). If bf16 is multiplied in float32, each of the two is a sum of products, the second of which takes as
    much again.
    """
    chunk = min(rows, max(1, LOGITS_IN_WORK // tokens))
    logits = 2 * 4 * tokens * chunk
    if not backward:
        return logits
    copies = 2 if float32 and precision == "bf16" else 1
    matrix = width(precision) * rows * hidden if trained else 0
    return logits + copies * 4 * hidden * (tokens + chunk) + matrix


def key_value_bytes(layers: Layers, tensor_parallel: int, size: int) -> float:
    """Return the bytes per token and GPU of a key-value cache with `size` bytes per element.

    It has 2L · key heads · head size elements; with more GPUs than key heads, each GPU holds one head.
    """
    heads = max(1.0, layers.key_value_heads / tensor_parallel)
    return 2 * layers.count * heads * (layers.attention / layers.heads) * size


def forward_only(layers: Layers, tokens: int, precision: Precision) -> float:
    """Return the peak bytes of a layer that saves nothing for the backward pass, as in a frozen vision tower.

    These are the residual, a norm's input in float32 and its output, and the larger of two parts: query, key, value and
    output, or the MLP (2I, or 3I with a gate).
    """
    e = width(precision)
    inner = max(4 * layers.attention, (3 if layers.gated else 2) * layers.intermediate)
    return tokens * (e * (2 * layers.hidden + inner) + 4 * layers.hidden)


def buffers(
    trained: int, frozen: int, largest: int, gpus: int, stage: int, precision: Precision, offload: Offload
) -> tuple[float, float]:
    """Return the bytes of temporary memory, excluding activations, for the backward pass and for the optimizer update.

    Backward: the bucket being reduced and its result, and the gradient of the largest tensor before it is reduced.
    ZeRO-2 also holds a rank's share of a micro-batch's gradients in addition to their sum; ZeRO-3 prefetches up to 10⁹
    elements and the largest tensor. Update: a copy of the gradients, at stage 3 at most 10⁹ elements at a time; none if
    the update runs on the CPU, in float32 at stage 0, and in bf16 at stages 1 and 2.
    """
    e = width(precision)
    backward = e * (2 * min(REDUCE_BUCKET, trained) + largest)
    if stage == 2:
        backward += e * trained / gpus
    if stage == 3:
        backward += e * (min(LIVE_PARAMETERS, trained + frozen) + largest)
    own = trained / (gpus if stage >= 1 else 1)
    update = 4 * (min(UPDATED_AT_ONCE, own) if stage == 3 else own)
    if offload != "none" or (precision, stage) in {("fp32", 0), ("bf16", 1), ("bf16", 2)}:
        update = 0.0
    return backward, update


def matrix_operations(parameters: int, tokens: float, passes: int) -> float:
    """Return the FLOPs of all matrix multiplications: 2ΨT per pass, with Ψ parameters and T tokens.

    There is 1 forward pass, 2 backward (1 if these weights are frozen but earlier ones are not), and 1 more if
    activations are recomputed. Training thus takes 6ΨT (Kaplan et al. 2020, section 2.1).
    """
    return 2.0 * parameters * tokens * passes


def attention_operations(layers: Layers, lengths: Iterable[tuple[float, float]], causal: bool, passes: int) -> float:
    """Return the attention FLOPs: 4·L·A·S² per pass over a sequence of length S (L layers, attention width A), or half
    that if causal.

    The count covers the attention scores and the weighted sums of values. `lengths` holds pairs (number of sequences,
    S).
    """
    squares = sum(count * length * length for count, length in lengths)
    return 4.0 * layers.count * layers.attention * squares * passes * (0.5 if causal else 1.0)


def gpu_hours(operations: float, peak: float, utilization: float) -> float:
    """Convert FLOPs to GPU-hours at `peak` FLOP/s per GPU and a given model FLOPs utilization (MFU)."""
    return operations / (peak * utilization) / 3600
