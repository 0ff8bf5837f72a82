"""Test that every key listed by `--help` accepts some value other than its default."""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from mmprm.cli.main import COMMANDS
from mmprm.config import Config, build, describe, override
from mmprm.errors import ConfigError
from policy_rl.checks.early import check_early
from policy_rl.config import RLConfig

VALUES: list[Any] = [
    *(True, False, 0, 1, 2, 3, 64, 2**26, 2**30, 0.2, 0.5, 0.9, 2.5),
    *("x", "min", "{question}", "json:loads", "http://localhost:1", __file__),
    *(["x"], [0, 1], [0.5, 0.5], ["http://localhost:1"], {}, {"x": 1}, {"x": "x"}, {"accuracy": {"min": 0.1}}),
    *({"teacher": "x"}, {"low": 0.5, "high": 2}),
    *([{"path": "json:loads"}], [{"steps": 1, "group_size": 2, "max_tokens": 3}]),
]
PRM, SERVER = {"prm": "x"}, {"backend": "server", "server": {"urls": ["http://localhost:1"]}}
JUDGE = {"model": "x", "client": {"urls": ["http://localhost:1"]}}
THINKING = {"engine": {"model": "x"}, "chains": 2, "sampling": {"max_tokens": 2}, "request": "{question}{steps}"}
THINKS = {"backend": "judge", "judge": THINKING}
THINKS_ON_SERVER = {
    "backend": "judge",
    "judge": THINKING | {"engine": {"model": "x", "servers": {"urls": ["http://localhost:1"]}}},
}
POLICY = {"grader": {"judge": JUDGE | {"calibration": "x"}}}
SCORERS = [{"scorer": each} for each in (PRM, SERVER, THINKS, THINKS_ON_SERVER)]
SERVED_POLICY = {"engine": {"model": "x", "servers": {"urls": ["http://localhost:1"]}}}
EPISODES = {"environment": {"path": "gymnasium:x"}, "prompt": {"preset": "plain"}}
BEAM = {"strategy": "beam"}
ZERO_3 = {"zero_stage": 3}
GAE = {"advantage": {"estimator": "gae"}, "process": {"scorer": PRM}, "credit": {"mode": "step_gae"}}
BOTH = {"process": {"scorer": PRM}, "credit": {"source": "both"}, "rollouts": {"branching": {"choose": "undecided"}}}
TRAINING = str(Path(__file__).parents[3] / "configs" / "train" / "tiny.yaml")
REFRESHED = {
    "process": {"scorer": PRM, "refresh": {"train": TRAINING}},
    "rollouts": {"branching": {"store": True}},
}
FILTERED = {"filter": {}, "adora": {}, "trainer": {"loss": {"importance_cap": 2}, "lora": {}, "optimization": ZERO_3}}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "BridgeConfig": [POLICY | {"seer": each, "reasoner": each} for each in ({"engine": {"model": "x"}}, SERVED_POLICY)],
    "CampaignConfig": [POLICY, SERVED_POLICY, {"solutions": {"path": "x"}}, EPISODES],
    "CritiquesConfig": [{"teacher": each["judge"]} for each in (THINKS, THINKS_ON_SERVER)],
    "ConsensusConfig": [{"judge": JUDGE}, *SCORERS],
    "GraderConfig": [POLICY["grader"]],
    "ExportConfig": [{"format": "trl"}],
    "ImportConfig": [{"format": "prm800k"}],
    "GuidedSearchConfig": [
        POLICY | {"scorer": PRM, "search": BEAM},
        SERVED_POLICY | {"scorer": SERVER},
        *SCORERS,
        EPISODES | {"scorer": PRM},
    ],
    "PolicyEvalConfig": [POLICY | {"sampling": {"temperature": 0.5}, "extractor": JUDGE}, SERVED_POLICY],
    "PrmEvalConfig": SCORERS,
    "RLConfig": [
        POLICY | FILTERED | {"process": {"scorer": PRM}, "held_out": {"path": "x"}},
        GAE,
        {"process": {"scorer": THINKS_ON_SERVER}},
        {"process": {"scorer": SERVER}, "trainer": {"loss": {"importance_cap": 2}}},
        {"rewards": {"format": "think", "truncated": "penalize"}},
        {"trainer": {"loss": {"importance_mask": {"low": 0.5, "high": 5}}, "distillation": {"teacher": "y"}}},
        BOTH,
        REFRESHED,
        EPISODES | {"credit": {"source": "gigpo"}},
        EPISODES | {"credit": {"source": "environment"}},
        {"process": {"scorer": PRM}, "credit": {"mode": "scalar"}},
        {"process": {"scorer": PRM}, "credit": {"mode": "return_to_go", "transform": "clip"}},
    ],
    "RerankConfig": [POLICY | {"scorer": PRM}, SERVED_POLICY | {"scorer": SERVER}, *SCORERS],
    "ScoreConfig": SCORERS,
    "ServeConfig": [{"scorer": PRM, "without_key": True}, {"scorer": THINKS}, {"scorer": THINKS_ON_SERVER}],
    "SftConfig": [{"held_out": {"path": "x"}, "lora": {}, "training": ZERO_3}],
    "TrainConfig": [{"lora": {}, "training": ZERO_3}],
}
"""Settings beside the required ones in which keys may be set that need others."""
ENTRIES = ("rewards.functions.", "schedule.", "monitor.alarms.")
"""Groups that describe the entries of a list or a mapping, which are set as a whole."""


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def configurations() -> list[type[Config]]:
    found = {}
    for name in COMMANDS:
        parser = argparse.ArgumentParser(epilog="")
        importlib.import_module(f"mmprm.cli.{name}").add_arguments(parser)
        for each in parsers(parser):
            model = getattr(each, "config_model", None)
            if model is not None:
                found[model.__name__] = model
    return [found[name] for name in sorted(found)]


def value_of(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def value_at(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def literals(model: type[Config], key: str) -> list[Any]:
    """Return the values listed by a key's annotation."""
    *path, last = key.split(".")
    for name in path:
        kind = model.model_fields[name].annotation
        model = next(each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, Config))
    kinds = [model.model_fields[last].annotation]
    values = []
    while kinds:
        kind = kinds.pop()
        values += [] if isinstance(kind, type) else [each for each in get_args(kind) if isinstance(each, str | int)]
        kinds += [each for each in get_args(kind) if not isinstance(each, str | int)]
    return values


def accepts(model: type[Config], settings: dict[str, Any], key: str, value: Any, default: str) -> bool:
    values = copy.deepcopy(settings)
    override(values, [f"{key}="])
    inner = values
    *path, last = key.split(".")
    for name in path:
        inner = inner[name]
    inner[last] = value
    try:
        config = build(model, values)
        if isinstance(config, RLConfig):
            check_early(config)
    except ConfigError:
        return False
    return str(value_of(config, key)) != default


def settings_of(model: type[Config]) -> list[dict[str, Any]]:
    """Return valid settings for a configuration: its required keys plus those in SETTINGS."""
    fields = model.model_fields.items()
    required = [name for name, field in fields if field.is_required()]
    known = {"engine": {"model": "x"}, "problems": {"path": "x"}, "data": {"path": "x"}}
    settings = [{name: known.get(name, "x") for name in required} | more for more in SETTINGS.get(model.__name__, [{}])]
    for each in settings:
        build(model, copy.deepcopy(each))
    return settings


@pytest.mark.parametrize("model", configurations(), ids=lambda model: model.__name__)
def test_every_key_accepts_another_value(model: type[Config]) -> None:
    settings = settings_of(model)
    refused = [
        key
        for key, default, _ in describe(model)
        if not key.startswith(ENTRIES)
        and not any(
            accepts(model, each, key, value, default)
            for each in settings
            for value in [*literals(model, key), *VALUES, value_at(each, key)]
        )
    ]
    assert refused == []


class _WithADeadKey(Config):
    live: int = 1
    dead: None = None


def test_a_key_without_another_value_is_found() -> None:
    assert accepts(_WithADeadKey, {}, "live", 2, "1")
    assert not any(accepts(_WithADeadKey, {}, "dead", value, "None") for value in VALUES)
