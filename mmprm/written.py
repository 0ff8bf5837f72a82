"""Parse hand-written YAML such that each value keeps its source text until the type of its key is known.

YAML 1.1 reads yes, no, on and off as booleans, 1:30 as 90, 010 as 8, 2024-01-01 as a date, and 1e-5 as text. Here, only
null, booleans and numbers of YAML 1.2's core schema are not text (null ~, true false, 10 0x1F 0o17, 1.5 1e-5 .inf).
Even these are read as text if the key has type text: `tokens.no: no`, `system: 010`.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

_NULL, _BOOL, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "merge"))
_PATTERNS = (
    (_NULL, r"^(?:~|null|Null|NULL|)$"),
    (_BOOL, r"^(?:true|True|TRUE|false|False|FALSE)$"),
    (_INT, r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    ),
    (_MERGE, r"^<<$"),
)


@dataclass(frozen=True, slots=True)
class Written:
    """Holds a YAML value that is not a string, together with its source text."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


def read_text(text: str) -> Any:
    """Parse a YAML document into mappings, lists, strings and Written values. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)  # _Loader is a SafeLoader


def read_set(text: str) -> Any:
    """Parse the value in `--set key=value` as YAML, keeping its source text for keys of type string."""
    if not text:
        return ""
    try:
        value = read_text(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and text.lstrip()[:1] in ('"', "'"):
        return value
    return Written(value.value if isinstance(value, Written) else value, text)


def resolved(value: Any, kind: Any) -> Any:
    """Replace each Written in `value` with its value or its source text, whichever matches the type annotation
    `kind`."""
    kinds = _kinds(kind)
    if isinstance(value, Written):
        if not _takes(value.value, kinds) and (str in kinds or value.text in _literals(kinds)):
            return value.text
        return resolved(value.value, kind)
    if isinstance(value, Mapping):
        model = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if model is not None:
            fields = model.model_fields
            return {
                key: resolved(each, fields[key].annotation if key in fields else Any) for key, each in value.items()
            }
        inner = next((get_args(each)[1] for each in kinds if get_origin(each) is dict), Any)
        return {key: resolved(each, inner) for key, each in value.items()}
    if isinstance(value, list):
        inner = next((get_args(each)[0] for each in kinds if get_origin(each) in _LISTS), Any)
        return [resolved(each, inner) for each in value]
    return value


_LISTS = (list, tuple, set, frozenset)


def _kinds(kind: Any) -> list[Any]:
    """Return the members of a union type, with Annotated removed."""
    if get_origin(kind) is Annotated:
        return _kinds(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [each for member in get_args(kind) for each in _kinds(member)]
    return [kind]


def _literals(kinds: list[Any]) -> list[Any]:
    return [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _takes(value: Any, kinds: list[Any]) -> bool:
    """Return whether any of the types accepts this value without conversion."""
    if Any in kinds or any(type(value) is type(each) and value == each for each in _literals(kinds)):
        return True
    if value is None:
        return type(None) in kinds
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, int | float):
        return int in kinds or float in kinds
    if isinstance(value, list):
        return any(kind in _LISTS or get_origin(kind) in _LISTS for kind in kinds)
    if isinstance(value, dict):
        return any(
            kind is dict or get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))
            for kind in kinds
        )
    return False


class _Loader(yaml.SafeLoader):
    """Loads YAML mappings with string keys only, rejecting duplicate keys, which YAML would otherwise drop silently."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping node, rejecting duplicate keys. Raises ConstructorError for a duplicate key."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != _MERGE and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice; remove one", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        """Construct a mapping, rejecting keys that are not scalars. Raises ConstructorError for a key that is not a
        scalar."""
        self.flatten_mapping(node)
        if odd := next((key for key, _ in node.value if not isinstance(key, yaml.ScalarNode)), None):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text; quote it", odd.start_mark)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_READERS = {
    _NULL: lambda text: None,
    _BOOL: lambda text: text.lower() == "true",
    _INT: lambda text: int(text, 0) if text[:2].lower() in ("0x", "0o") else int(text),
    _FLOAT: _number,
}


def _construct(loader: _Loader, node: yaml.ScalarNode) -> Written:
    try:
        return Written(_READERS[node.tag](node.value), node.value)
    except ValueError as error:  # raised for an invalid value with an explicit tag, such as !!int x
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


for _tag, _pattern in _PATTERNS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), None)
for _tag in _READERS:
    _Loader.add_constructor(_tag, _construct)
