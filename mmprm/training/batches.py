"""Plan micro-batches in a deterministic order, with samples of similar length, a token budget, and balanced ranks.

All functions are pure functions of lengths and seeds, so any step can be planned without the steps before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Holds the indices of the samples in one rank's micro-batch.

    A padding micro-batch repeats other samples with weight 0, only to give all ranks the same number of micro-batches.
    """

    samples: tuple[int, ...]
    is_padding: bool = False


def epoch_batches(sample_count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle all samples by (seed, epoch), and split them into ceil(n / batch_size) batches of nearly equal size.

    Each batch is one optimizer step. Sizes are nearly equal because a short last batch would give its samples more
    weight.
    """
    order = list(range(sample_count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    count = -(-sample_count // batch_size)
    return [order[sample_count * i // count : sample_count * (i + 1) // count] for i in range(count)]


def micro_batches(
    samples: Iterable[int], lengths: Sequence[int], token_budget: int, ranks: int
) -> list[tuple[MicroBatch, ...]]:
    """Split samples into tuples of one micro-batch per rank, such that samples in a micro-batch have similar lengths.

    All ranks get the same number of micro-batches. Samples are sorted by length, and none is padded to more than 4/3 of
    its length. A micro-batch satisfies count × longest ≤ token_budget, except for a single sample that is longer.
    """
    groups: list[list[int]] = []
    for sample in sorted(samples, key=lambda sample: (-lengths[sample], sample)):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= token_budget and 3 * longest <= 4 * lengths[sample]:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    # Split the largest groups until all ranks have equally many; if that fails, add padding micro-batches.
    while len(groups) % ranks and any(len(group) > 1 for group in groups):
        position = max(range(len(groups)), key=lambda i: len(groups[i]))
        half = len(groups[position]) // 2
        groups[position : position + 1] = [groups[position][:half], groups[position][half:]]
    planned = [MicroBatch(tuple(group)) for group in groups]
    while len(planned) % ranks:
        planned.append(MicroBatch(planned[-1].samples[-1:], is_padding=True))
    return list(zip(*[iter(planned)] * ranks, strict=True))


def one_ahead(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of the tasks in order, while a background thread runs the next task."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = None
        for task in tasks:
            following = thread.submit(task)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
