"""Test the changes proposed to make a configuration fit: single, combined, and none."""

from __future__ import annotations

from collections.abc import Callable

from mmprm.planning.fitting import Changes, spelled, ways_to_fit

CHANGES: list[Changes] = [{"a": 1}, {"a": 2}, {"b": True}, {"hardware.gpus": 16}, {"hardware.gpus": 32}]


def needs(**least: float) -> Callable[[Changes], bool]:
    """Return a check that every key has at least the given value."""
    return lambda changes: all(changes.get(key.replace("_", "."), 0) >= value for key, value in least.items())


def test_every_sufficient_key_is_named_with_its_first_value() -> None:
    enough = {"a": 2, "hardware.gpus": 16}
    found = ways_to_fit(lambda changes: any(changes.get(key, 0) >= least for key, least in enough.items()), CHANGES)
    assert found == [{"a": 2}, {"hardware.gpus": 16}]


def test_settings_are_combined_before_gpus_are_added() -> None:
    """A combination is proposed even if more GPUs would suffice, and then both are named."""
    assert ways_to_fit(needs(a=2, b=True), CHANGES) == [{"a": 2, "b": True}]
    both = needs(a=2, b=True)
    found = ways_to_fit(lambda changes: both(changes) or changes.get("hardware.gpus", 0) >= 32, CHANGES)
    assert found == [{"a": 2, "b": True}, {"hardware.gpus": 32}]


def test_a_combination_omits_unneeded_keys() -> None:
    assert ways_to_fit(needs(a=2, hardware_gpus=32), CHANGES) == [{"a": 2, "hardware.gpus": 32}]


def test_a_pair_may_need_the_smaller_value() -> None:
    """A share of 0.2 of the GPU leaves too little cache, so the candidates for one key must not exclude each other."""

    def fits(changes: Changes) -> bool:
        return changes.get("share") == 0.5 and "b" in changes

    assert ways_to_fit(fits, [{"share": 0.5}, {"share": 0.2}, {"b": True}]) == [{"share": 0.5, "b": True}]


def test_all_changes_together_may_not_suffice() -> None:
    assert ways_to_fit(lambda _: False, CHANGES) == []
    assert spelled({"a": 2, "b": True, "c.d": 0.5, "e": None}) == "--set a=2 --set b=true --set c.d=0.5 --set e=null"
