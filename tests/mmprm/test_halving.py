"""Test batch halving, which isolates a faulty item."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmprm.errors import DataError
from mmprm.halving import run_halving


def doubled(items: Sequence[int], seen: list[list[int]]) -> list[int]:
    seen.append(list(items))
    if any(item < 0 for item in items):
        raise DataError(f"{min(items)} is negative")
    return [2 * item for item in items]


def test_a_faulty_item_fails_alone() -> None:
    seen: list[list[int]] = []
    found = run_halving([1, 2, -3, 4], lambda items: doubled(items, seen), lambda item, error: str(error), DataError)
    assert found == [2, 4, "-3 is negative", 8]
    assert seen == [[1, 2, -3, 4], [1, 2], [-3, 4], [-3], [4]]


def test_a_batch_without_fault_runs_once() -> None:
    seen: list[list[int]] = []
    assert run_halving([1, 2], lambda items: doubled(items, seen), lambda *_: None, DataError) == [2, 4]
    assert seen == [[1, 2]]


def test_other_errors_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_halving([1, 2], lambda items: [1 // 0], lambda *_: None, DataError)


def test_no_items_are_not_run() -> None:
    assert run_halving([], lambda items: doubled([-1], []), lambda *_: None, DataError) == []


def test_an_item_runs_once_per_halving() -> None:
    seen: list[list[int]] = []
    run_halving([-1, 2, -3], lambda items: doubled(items, seen), lambda *_: None, DataError)
    assert sum(2 in batch for batch in seen) == 3
