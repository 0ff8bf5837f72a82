"""Define the strict, frozen base class of all configurations, and load them from YAML with `--set a.b=c` overrides."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from mmprm.errors import ConfigError
from mmprm.written import Written, read_set, read_text, resolved

RENAMED = {
    "base": "model",
    "doubt": "false_negative_rate",
    "embed_pictures": "embed_images",
    "heldout": "held_out",
    "images_root": "image_root",
    "layout": "benchmark",
    "least": "min",
    "markup": "step_format",
    "most": "max",
    "most_restarts": "max_restarts",
    "normalise_steps": "normalize_steps",
    "optimisation": "optimization",
    "out": "output",
    "pictures": "images",
    "pictures_per_prompt": "images_per_prompt",
    "place": "apply_to",
    "right_solutions": "correct_solutions",
    "run": "output",
    "sample_timeout_s": "sample_timeout_seconds",
    "score_timeout_s": "score_timeout_seconds",
    "seconds": "timeout_seconds",
    "shared": "min_shared_rollouts",
    "start_timeout_s": "start_timeout_seconds",
    "surprise": "prior_reset",
    "timeout_s": "timeout_seconds",
    "watch": "monitor",
    "width": "max_posterior_std",
    "worker_restarts": "max_restarts",
}
"""Maps version 0.1 keys to their current names, for error messages and for reading stored settings."""

FREE_MAPPINGS = frozenset({"arguments", "shapes", "template_options"})
"""Keys whose values are mappings with keys of the user's choice, which are not renamed."""

PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder path. A leading ~ is expanded here because shells do not expand it inside `--set key=~/x`."""


class Config(BaseModel):
    """Base class of all configurations: immutable, without unknown keys or non-finite numbers, and documented by field
    docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    absent: ClassVar[dict[str, str]] = {}
    """Maps keys that this group deliberately lacks to an explanation for the error message."""

    @model_validator(mode="before")
    @classmethod
    def _over_what_defaults_set(cls, values: Any) -> Any:
        """Fill in missing keys of nested configurations from the defaults of this class's fields.

        A field's default may differ from the defaults of the nested class; it applies to every key that is not given.
        """
        if not isinstance(values, dict):
            return values
        groups = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Config)}
        given = {name: values[name] for name in groups if isinstance(values.get(name), dict)}
        return values | {
            name: merged(groups[name].model_dump(exclude_unset=True), keys) for name, keys in given.items()
        }


C = TypeVar("C", bound=Config)

_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")


def load(model: type[C], file: str | Path | None = None, sets: Sequence[str] = ()) -> C:
    """Build `model` from an optional YAML file and `a.b=value` overrides, whose values are parsed as YAML."""
    values = override(read_yaml(Path(file)) if file is not None else {}, sets)
    return build(model, values, source=str(file) if file is not None else "configuration")


def override(values: dict[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=value` overrides to the nested dict `values` in place, and return the dict."""
    for item in sets:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise ConfigError(
                f"--set {item!r} must have the form key=value; write, for example, --set search.rollouts=16"
            )
        _assign(values, key.split("."), read_set(text), key)
    return values


def build(model: type[C], values: dict[str, Any], source: str = "configuration") -> C:
    """Validate `values` against `model`; raise ConfigError with one line per invalid key, each naming `source`."""
    _check_texts(values, "", source)
    try:
        return model.model_validate(resolved(values, model))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(model, item, source) for item in error.errors())) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping; return {} for an empty file."""
    try:
        values = read_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}; correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: must hold a mapping at the top level, got {type(values).__name__}; write key: value lines"
        )
    return values


def describe(model: type[Config], prefix: str = "", defaults: Config | None = None) -> list[tuple[str, str, str]]:
    """Return (key, default, documentation) of every leaf key for `--help`. `defaults` override the class defaults."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        value = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        nested = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Config)]
        if kind not in nested:  # a leaf, or an optional group of keys
            default = "required" if field.is_required() and defaults is None else str(value)
            rows.append((f"{prefix}{name}", default, " ".join((field.description or "").split())))
        for group in nested:
            rows += describe(group, f"{prefix}{name}.", value if isinstance(value, group) else None)
    return rows


def _check_texts(value: Any, key: str, source: str) -> None:
    """Raise ConfigError if any string contains a NUL character or a lone surrogate.

    YAML allows both, but paths and requests do not.
    """
    if isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_texts(inner, f"{key}.{name}".lstrip("."), source)
    elif isinstance(value, str) and _NO_TEXT.search(value):
        raise ConfigError(
            f"{source}: {key}={value!r} holds a NUL character or half of a surrogate pair, which are not valid text; "
            "remove it"
        )


def differing_keys(stored: dict[str, Any], asked: dict[str, Any]) -> dict[str, str]:
    """Return the keys whose values differ between two configurations, each with a text that quotes both values."""
    old, new = _flatten(stored), _flatten(json.loads(json.dumps(asked)))
    return {
        key: f"stored {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def with_current_names(stored: Any) -> Any:
    """Rename the version 0.1 keys of stored settings to their current names, except in FREE_MAPPINGS."""
    if isinstance(stored, list):
        return [with_current_names(value) for value in stored]
    if not isinstance(stored, dict):
        return stored
    return {
        RENAMED.get(key, key): value if key in FREE_MAPPINGS else with_current_names(value)
        for key, value in stored.items()
    }


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, inner in values.items()
        for key, value in _flatten(inner, f"{prefix}.{name}".lstrip(".")).items()
    }


def merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Deep-merge `given` over `defaults`."""
    both = {key: (defaults[key], given[key]) for key in defaults.keys() & given.keys()}
    groups = {key: merged(*pair) for key, pair in both.items() if all(isinstance(value, dict) for value in pair)}
    return defaults | given | groups


def _assign(values: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if isinstance(inner, Written) and isinstance(inner.value, dict):
            inner = values[name] = inner.value
        values = inner
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}: {name} is a value, not a group of keys; set {name} itself")
    values[path[-1]] = value


def _explain(model: type[Config], item: Any, source: str) -> str:
    if item["type"] == "extra_forbidden":
        *path, name = item["loc"]
        return f"{source}: {_explain_unknown(model, _without_types(path), name)}"
    key = ".".join(map(str, _without_types(item["loc"]))) or "(top)"
    if item["type"] == "missing":
        return f"{source}: {key} is required; set it in the file or with --set {key}=…"
    # The value of a group is not shown: it is long, and the message names the invalid key.
    prefix = f"{key}: " if isinstance(item["input"], dict) else f"{key}={item['input']!r}: "
    message = item["msg"]
    if item["type"] == "value_error":  # raised by a validator of mmprm, whose message already says what to do
        return f"{source}: {prefix.removeprefix('(top): ')}{message.removeprefix('Value error, ')}"
    return f"{source}: {prefix.removeprefix('(top): ')}{message}; correct the value"


def _without_types(location: Sequence[str | int]) -> list[str | int]:
    """Remove the types, such as tuple[str, ...], that pydantic adds to the location of an error in a union."""
    return [part for part in location if "[" not in str(part)]


def _explain_unknown(model: type[Config], path: Sequence[str | int], name: str) -> str:
    key = ".".join(map(str, [*path, name]))
    groups = _groups_at(model, path)
    for group in groups:
        if name in group.absent:
            return f"{key} does not exist: {group.absent[name]}"
    beside = {field for group in groups for field in group.model_fields}
    if RENAMED.get(name) in beside:
        return f"{key} is called {'.'.join([*map(str, path), RENAMED[name]])}; rename the key"
    known = [*(row[0] for row in describe(model)), *(".".join([*map(str, path), each]) for each in sorted(beside))]
    near = _nearest(key, known)
    return f"{key} does not exist" + (f"; did you mean {near}?" if near else "; --help lists the keys")


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """Return the known key most similar to `key`, or None if no known key ends in a similar name.

    A version 0.1 name matches only its current name.
    """
    name = key.rpartition(".")[2]
    names = {each.rpartition(".")[2] for each in known}
    similar = {RENAMED[name]} & names if name in RENAMED else difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    near = difflib.get_close_matches(key, [each for each in known if each.rpartition(".")[2] in similar], 1, cutoff=0.0)
    return near[0] if near else None


def _groups_at(model: type[Config], path: Sequence[str | int]) -> list[type[Config]]:
    """Return the configuration groups at `path`, or an empty list if it is not the path of a group.

    Groups may be in lists and mappings, whose indices and keys are part of the path.
    """
    groups, is_key = [model], False
    for name in path:
        if isinstance(name, int) or is_key:
            is_key = False
            continue
        fields = [group.model_fields[name] for group in groups if name in group.model_fields]
        groups = [group for field in fields for group in _groups(field.annotation)]
        is_key = any(get_origin(field.annotation) is dict for field in fields)
    return groups


def _groups(annotation: Any) -> list[type[Config]]:
    """Return the configuration groups in a type, such as `Group | None` or `tuple[Group, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [group for part in get_args(annotation) for group in _groups(part)]
