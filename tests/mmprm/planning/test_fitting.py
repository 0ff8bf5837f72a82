"""Changes that make a configuration fit: alone, combined, and none."""

from __future__ import annotations

from collections.abc import Callable

from mmprm.planning.fitting import Changes, spelled, ways_to_fit

CHANGES: list[Changes] = [{"a": 1}, {"a": 2}, {"b": True}, {"hardware.gpus": 16}, {"hardware.gpus": 32}]


def needs(**least: float) -> Callable[[Changes], bool]:
    """Return a check that every key has at least a value."""
    return lambda changes: all(changes.get(key.replace("_", "."), 0) >= value for key, value in least.items())


def test_every_key_that_suffices_is_named_with_its_first_value() -> None:
    enough = {"a": 2, "hardware.gpus": 16}
    found = ways_to_fit(lambda changes: any(changes.get(key, 0) >= least for key, least in enough.items()), CHANGES)
    assert found == ["--set a=2", "--set hardware.gpus=16"]


def test_settings_are_combined_before_gpus_are_added() -> None:
    assert ways_to_fit(needs(a=2, b=True), CHANGES) == ["--set a=2 --set b=true"]


def test_what_a_combination_does_not_need_is_left_out() -> None:
    assert ways_to_fit(needs(a=2, hardware_gpus=32), CHANGES) == ["--set a=2 --set hardware.gpus=32"]


def test_a_smaller_value_can_be_the_one_that_fits_in_a_pair() -> None:
    """As a share of the GPU: with 0.2 the cache is too small, so changes of one key must not exclude each other."""

    def fits(changes: Changes) -> bool:
        return changes.get("share") == 0.5 and "b" in changes

    assert ways_to_fit(fits, [{"share": 0.5}, {"share": 0.2}, {"b": True}]) == ["--set share=0.5 --set b=true"]


def test_all_changes_may_be_too_little() -> None:
    assert ways_to_fit(lambda _: False, CHANGES) == []
    assert spelled({"a": 2, "b": True, "c.d": 0.5}) == "--set a=2 --set b=true --set c.d=0.5"
