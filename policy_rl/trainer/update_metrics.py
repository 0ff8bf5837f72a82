"""Accumulate the metrics of an update over micro-batches and ranks.

Shapes: N response of a micro-batch, T token.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mmprm.training.ranks import Ranks
from policy_rl.algorithms.importance import mismatch
from policy_rl.algorithms.losses import LossMetrics


class Tally:
    """Accumulates the sums and maxima of an update's metrics.

    Tensors stay on their device until the end, so that no micro-batch waits for the previous one.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, Tensor] = {}

    def add(
        self,
        loss_metrics: LossMetrics,
        entropy_NT: Tensor,
        mask_NT: Tensor,
        old_NT: Tensor,
        engine_NT: Tensor | None,
        value: Tensor | None,
        has_reference: bool,
    ) -> None:
        """Add the metrics of one micro-batch."""
        totals, sums = dict(loss_metrics.terms), dict(loss_metrics.sums) | {"entropy": entropy_NT[mask_NT].sum()}
        largest = {"log_ratio_max": loss_metrics.log_ratio_max, "log_ratio_min": -loss_metrics.log_ratio_min}
        if not has_reference:
            del totals["kl"], sums["kl_ref"], sums["kl_clamped"]
        if value is not None:
            totals["value_loss"] = value.detach()
        if engine_NT is not None:
            differences, largest["mismatch_max"] = mismatch(old_NT, engine_NT, mask_NT)
            sums |= {f"mismatch_{name}": differences[name] for name in ("absolute", "signed")}
        for kept, new in ((self._totals, totals), (self._sums, sums)):
            kept |= {name: kept.get(name, 0) + tensor.double() for name, tensor in new.items()}
        self._largest |= {
            name: torch.maximum(self._largest.get(name, tensor), tensor) for name, tensor in largest.items()
        }

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Reduce the metrics of the update over all ranks. Every rank must call it.

        They are:

        - loss terms before their coefficients: surrogate, drift, kl, value_loss;
        - fractions of tokens: clip_fraction, ratio_clamped, kl_clamped, importance_masked;
        - means per token: kl_old (k3 of old to new), kl_ref (k3 of new to reference), entropy, mismatch_absolute and
          mismatch_signed (old minus engine, in nats);
        - extremes: mismatch_max, log_ratio_min, log_ratio_max;
        - the number of tokens.
        """
        own = [
            {name: tensor.item() for name, tensor in part.items()} for part in (self._totals, self._sums, self._largest)
        ]
        totals, sums, largest = Counter(), Counter(), {}
        for their_totals, their_sums, their_largest in ranks.gather(own):
            for kept, new in ((totals, their_totals), (sums, their_sums)):
                for name, value in new.items():
                    kept[name] += value
            for name, value in their_largest.items():
                largest[name] = max(largest.get(name, value), value)
        tokens = sums.pop("tokens")
        means = {name: total / tokens for name, total in sums.items()}
        means["clip_fraction"] = means.pop("clipped")
        largest["log_ratio_min"] = -largest["log_ratio_min"]
        return {**totals, **means, **largest, "tokens": tokens}
