"""Run a batch so that a faulty item fails alone."""

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
    """Return one result per item, in order.

    If `run` raises one of `errors` for a batch, both of its halves run again. An item that fails alone has the result
    `failed(item, error)`. Another item runs at most 1 + log2(len(items)) times.
    """
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
