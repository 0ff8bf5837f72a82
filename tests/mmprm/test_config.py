from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from pydantic import Field

from mmprm.config import Config, PathText, build, describe, load, override, with_current_names
from mmprm.errors import ConfigError
from mmprm.evaluation.policy_config import PolicyEvalConfig
from mmprm.written import resolved


class Inner(Config):
    rate: float = 1.0
    """Rate."""


class Middle(Config):
    size: int = 1
    """Size."""
    inner: Inner = Inner()
    """Inner."""


class Outer(Config):
    middle: Middle = Middle(size=7, inner=Inner(rate=0.5))
    """Middle."""
    plain: Middle = Middle()
    """Plain."""


def test_setting_one_key_keeps_the_other_defaults_of_its_group() -> None:
    found = build(Outer, {"middle": {"size": 2}})
    assert (found.middle, found.plain) == (Middle(size=2, inner=Inner(rate=0.5)), Middle())
    assert build(Outer, {"middle": {"inner": {"rate": 3}}}).middle == Middle(size=7, inner=Inner(rate=3))
    assert build(Outer, {"middle": {"inner": {}}}).middle == Middle(size=7, inner=Inner(rate=0.5))
    assert build(Outer, {"middle": Middle()}).middle == Middle()
    assert build(Outer, {"plain": {"size": 2}}).plain == Middle(size=2)


def test_a_key_can_be_set_within_a_group_that_was_set_as_a_whole() -> None:
    values = override({}, ["engine={model: m, dtype: float32}", "engine.max_num_seqs=3"])
    assert resolved(values, Any) == {"engine": {"model": "m", "dtype": "float32", "max_num_seqs": 3}}


def test_help_shows_the_effective_defaults() -> None:
    defaults = {key: default for key, default, _ in describe(Outer)}
    assert defaults == {
        "middle.size": "7", "middle.inner.rate": "0.5", "plain.size": "1", "plain.inner.rate": "1.0"
    }  # fmt: skip
    whole = build(PolicyEvalConfig, {"benchmark": "mmk12", "engine": {"model": "m"}, "sampling": {"max_tokens": 8192}})
    assert (whole.sampling.temperature, whole.sampling.max_tokens, whole.prompt.preset) == (0, 8192, "think")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_must_be_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=f"configuration: middle.inner.rate={value}: Input should be a finite number"):
        build(Outer, {"middle": {"inner": {"rate": value}}})


def test_an_error_in_a_group_does_not_repeat_the_group() -> None:
    with pytest.raises(ConfigError) as raised:
        build(Outer, {"middle": {"size": "x"}})
    assert str(raised.value).startswith("configuration: middle.size='x': ")
    with pytest.raises(ConfigError) as raised:
        build(PolicyEvalConfig, {"benchmark": "mmk12", "engine": {"model": "m", "servers": {"urls": []}}})
    assert "{" not in str(raised.value)


@pytest.mark.parametrize("text", ["a\0b", "\ud83d"])
def test_a_value_that_is_not_text_is_rejected_with_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"configuration: client\.urls\.1=.* holds a NUL character or half"):
        build(PolicyEvalConfig, {"benchmark": "mmk12", "client": {"urls": ["http://a", text]}})
    with pytest.raises(ConfigError, match=r"engine\.model=.* remove it"):
        load(PolicyEvalConfig, sets=["benchmark=mmk12", f"engine.model={json.dumps(text)}"])


class Served(Config):
    timeout_seconds: float = 1.0


class Several(Config):
    listed: tuple[Served, ...] = ()
    optional: list[Served] | None = None


@pytest.mark.parametrize("group", ["listed", "optional"])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("timeout_s", r"1\.timeout_s is called {}\.1\.timeout_seconds; rename the key"),
        ("timeout_second", r"1\.timeout_second does not exist; did you mean {}\.1\.timeout_seconds\?"),
    ],
)
def test_an_unknown_key_in_a_list_of_groups_is_named(group: str, key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"{group}\\.{said.format(group)}"):
        build(Several, {group: [{}, {key: 2}]})


def test_earlier_names_in_lists_are_read() -> None:
    assert with_current_names({"a": [{"timeout_s": 1}, 2]}) == {"a": [{"timeout_seconds": 1}, 2]}


def test_keys_of_the_users_choice_keep_their_names() -> None:
    """For example, a chat template may have an option `layout`, and an environment an argument `width`."""
    stored = {"prompt": {"template_options": {"layout": "wide"}}, "environment": {"arguments": {"width": 5}}}
    assert with_current_names(stored) == stored


class Limits(Config):
    absent: ClassVar[dict[str, str]] = {"median": "a median is no limit; set min"}

    min: float | None = None
    start_timeout_seconds: float = 1.0


class Monitored(Config):
    alarms: dict[str, Limits] = Field(default_factory=dict)
    timeout_seconds: float = 1.0
    data: Limits = Limits()
    files: PathText | tuple[PathText, ...] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"median": 1}}, r"data\.median does not exist: a median is no limit; set min$"),
        ({"alarms": {"loss": {"median": 1}}}, r"alarms\.loss\.median does not exist: a median is no limit"),
        ({"alarms": {"loss": {"least": 1}}}, r"alarms\.loss\.least is called alarms\.loss\.min; rename the key$"),
        ({"data": {"timeout_s": 1}}, r"data\.timeout_s does not exist; did you mean timeout_seconds\?"),
        ({"data": {"top_p": 1}}, r"data\.top_p does not exist; --help lists the keys$"),
        ({"data[0]": 1}, r"configuration: data\[0\] does not exist; did you mean data\?"),
        ({"files": 5}, r"^configuration: files=5: .*\nconfiguration: files=5: .* valid tuple; correct the value$"),
    ],
)
def test_an_unknown_key_names_the_way_out(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Monitored, values)
