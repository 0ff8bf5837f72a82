"""Test that using a key of version 0.1 gives an error that names the current key."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from test_every_key_can_be_set import ENTRIES, configurations

from mmprm.config import FREE_MAPPINGS, RENAMED, Config, _groups, build, describe
from mmprm.errors import ConfigError


@cache
def keys() -> list[tuple[type[Config], str]]:
    """Return (configuration class, dotted key) for every key that can be set on its own."""
    return [(model, key) for model in configurations() for key, _, _ in describe(model) if not key.startswith(ENTRIES)]


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_the_error_names_the_current_key(old: str) -> None:
    found = [(model, key) for model, key in keys() if RENAMED[old] in key.split(".")]
    assert found, f"no command has a key {RENAMED[old]}"
    for model, key in found:
        parts = key.split(".")
        parts = parts[: parts.index(RENAMED[old]) + 1]
        former = ".".join([*parts[:-1], old])
        with pytest.raises(ConfigError) as caught:
            build(model, nested(former, None))
        assert f"configuration: {former} is called {'.'.join(parts)}; rename the key" in str(caught.value).splitlines()


def test_no_current_key_has_a_former_name() -> None:
    """Reading stored settings would rename such a key."""
    assert not [key for _, key in keys() if set(key.split(".")) & RENAMED.keys()]


def mappings(model: type[Config]) -> set[str]:
    """Return the names of the keys below `model` whose values are mappings, and not groups or mappings to groups."""
    found = set()
    for name, field in model.model_fields.items():
        groups = _groups(field.annotation)
        if not groups and "dict[" in str(field.annotation):
            found.add(name)
        found |= {each for group in groups for each in mappings(group)}
    return found


def test_keys_below_a_mapping_of_the_user_are_not_renamed() -> None:
    assert {name for model in configurations() for name in mappings(model)} == FREE_MAPPINGS
