"""Split failing batches in half, so that only the faulty items fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


def run_halving(
    items: Sequence[_Item],
    run: Callable[[Sequence[_Item]], Sequence[_Result]],
    failed: Callable[[_Item, Exception], _Result],
    errors: type[Exception],
) -> list[_Result]:
    """Call `run` on the items, halve each failing batch and retry both parts, and return one result per item, in order.

    If `run` raises one of `errors` for a batch, each half is run again. An item that fails by itself gets the result
    `failed(item, error)`. Every other item runs at most 1 + ⌈log2(len(items))⌉ times.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except errors as error:
        if len(items) == 1:
            return [failed(items[0], error)]
    middle = len(items) // 2
    return [
        *run_halving(items[:middle], run, failed, errors),
        *run_halving(items[middle:], run, failed, errors),
    ]
