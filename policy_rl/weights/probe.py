"""Verify that engines use the trainer's weights by comparing log-probabilities on a probe text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmprm.errors import TrainingError
from policy_rl.weights.transfer import Published

PROBE_TEXT = "1 + 2 = 3, so x = 12 and y < 40; (x + y) / 2 is the answer."


MOVED = 1e-2
"""If a probe token's log-probability in the trainer changes by more than this (in nats), the engine's must change
too."""


TOLERANCE = {"float32": 0.01, "bfloat16": 0.15, "float16": 0.05}
"""Default tolerance per dtype for the mean absolute difference between engine and trainer log-probabilities on the
probe, in nats."""


def probe_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokenize the probe text, on which engines and trainer are compared.

    It has no images, so the comparison is cheap.
    """
    return tuple(tokenizer.encode(PROBE_TEXT, add_special_tokens=False))


@torch.no_grad()
def probe_logprobs(model: nn.Module, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Return log P(token i | tokens before it), i = 1, 2, …, at temperature 1. Under ZeRO-3 every rank must call it."""
    ids_1T = torch.tensor([token_ids], device=next(model.parameters()).device)
    lp_1TV = model(input_ids=ids_1T, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
    return tuple(lp_1TV.gather(-1, ids_1T[:, 1:, None]).flatten().tolist())


class ProbeCheck:
    """Compares one engine's log-probabilities on the probe with the trainer's after each weight transfer."""

    def __init__(self, engine: str, tolerance: float) -> None:
        self._engine, self._tolerance = engine, tolerance
        self._changed: tuple[Published, tuple[float, ...]] | None = None

    def check(self, published: Published, answer: tuple[float, ...]) -> float:
        """Compare an engine's log-probabilities on the probe with the trainer's, after new weights were loaded.

        Returns the mean absolute difference in nats. Raises TrainingError if it exceeds the tolerance, or if the engine
        repeats its log-probabilities of an earlier version although the trainer's have since changed by more than
        MOVED.
        """
        assert len(answer) == len(published.probe), "trainer and engine have different probes"
        distance = _mean_difference(answer, published.probe)
        if not distance <= self._tolerance:  # negated, so that NaN is an error too
            raise TrainingError(
                f"{self._engine} does not compute with the {published}: its log-probabilities of the probe differ from "
                f"the trainer's by {distance:.4f} nats on average (allowed: {self._tolerance}); if the number formats "
                "explain the difference, raise weights.tolerance, or set engine.dtype=float32"
            )
        if self._changed is None or answer != self._changed[1]:
            self._changed = published, answer
        moved = max((abs(a - b) for a, b in zip(published.probe, self._changed[0].probe, strict=True)), default=0.0)
        if moved > MOVED:
            raise TrainingError(
                f"{self._engine} still computes with version {self._changed[0].version}: its answer to the probe is "
                f"unchanged, while the trainer's log-probabilities have changed by {moved:.4f} nats up to version "
                f"{published.version}; run the same command again to resume from the last checkpoint, with "
                "weights.transport=file"
            )
        return distance


def _mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
