"""Split the episodes of a batch into the sequences that the model reads, and join what was computed for them.

An episode whose prompts all show every image is one row. If older images are left out, each turn is a row of its own,
because it had a prompt of its own.

Shapes: T token of an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from policy_rl.types import ARRAYS, TrainingSample

COMPUTED = ("old", "ref", "values", "teacher")
"""Fields of TrainingSample that Trainer.log_probs fills in."""


def split_rows(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Return one sample per row, in order. A sample without rows or with one row is returned as it is."""
    return [part for sample in samples for part in _parts(sample)]


def join_rows(samples: Sequence[TrainingSample], parts: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Return the samples with the arrays of COMPUTED that their parts have; `parts` are those of `split_rows`."""
    remaining = iter(parts)
    return [_joined(sample, [next(remaining) for _ in sample.rows or (None,)]) for sample in samples]


def _parts(sample: TrainingSample) -> Iterator[TrainingSample]:
    if len(sample.rows) < 2:
        yield sample
        return
    start = 0
    for row in sample.rows:
        own = slice(start, row.stop)
        arrays = {name: getattr(sample, name) for name in (*ARRAYS, "mask", "teacher")}
        cut = {name: None if array is None else array[own] for name, array in arrays.items()}
        yield replace(
            sample,
            token_ids=sample.token_ids[own],
            prompt_tokens=len(row.prompt_ids),
            rows=(replace(row, stop=row.stop - start),),
            **cut,
        )
        start = row.stop


def _joined(sample: TrainingSample, parts: Sequence[TrainingSample]) -> TrainingSample:
    if len(sample.rows) < 2:
        return parts[0]
    found = {name: [getattr(part, name) for part in parts] for name in COMPUTED}
    known = {name: arrays for name, arrays in found.items() if arrays[0] is not None}
    return replace(sample, **{name: np.concatenate(arrays) for name, arrays in known.items()})
