from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from mmprm.config import Config, PathText, build, load, override, read_yaml
from mmprm.errors import ConfigError


class Tokens(Config):
    yes: str = "Yes"
    """Yes."""
    no: str = "No"
    """No."""


class Settings(Config):
    tokens: Tokens = Tokens()
    """Tokens."""
    system: str | None = None
    """System."""
    folder: PathText = "."
    """Folder."""
    rate: float = 1.0
    """Rate."""
    count: int = 1
    """Count."""
    compile: bool | None = None
    """Compile."""
    mode: Literal["on", "off", "auto"] = "auto"
    """Mode."""
    names: tuple[str, ...] = ()
    """Names."""
    options: dict[str, Any] | None = None
    """Options."""


def set_(*sets: str) -> Settings:
    return load(Settings, sets=sets)


def written(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return load(Settings, file)


def test_yes_no_on_and_off_stay_text(tmp_path: Path) -> None:
    found = written(tmp_path, 'tokens:\n  yes: "+"\n  no: "-"\nmode: off\nsystem: on\n')
    assert (found.tokens, found.mode, found.system) == (Tokens(yes="+", no="-"), "off", "on")
    assert set_('tokens={yes: "+", no: "-"}').tokens == Tokens(yes="+", no="-")
    assert set_("tokens.no=-", "tokens.yes=yes").tokens == Tokens(yes="yes", no="-")


@pytest.mark.parametrize(
    "text",
    ["yes", "No", "true", "False", "null", "~", "1:30", "010", "1_000", "1e-5", "0x1F", "2024-01-01", ".inf", "-", "="],
)
def test_a_text_key_keeps_the_written_form(text: str, tmp_path: Path) -> None:
    assert set_(f"tokens.yes={text}").tokens.yes == text
    if text != "-":  # in a file it begins a list
        assert written(tmp_path, f"tokens: {{yes: {text}}}\nnames: [{text}]").tokens.yes == text
        assert written(tmp_path, f"names: [{text}, b]").names == (text, "b")


@pytest.mark.parametrize(
    "text",
    ["Note: think", "[unclosed", "{question}", "a # b", "'a' and 'b'", "first\nsecond", "*bold*", "%", "@x", " x "],
)
def test_set_takes_any_text_as_it_is(text: str) -> None:
    assert set_(f"system={text}").system == text


def test_quotes_around_the_whole_value_are_yaml_quotes() -> None:
    assert set_(r'system="a\n"').system == "a\n"
    assert set_("system='no'").system == "no"
    assert (set_("system=null").system, set_("system=").system) == (None, "")


def test_numbers_and_booleans_keep_their_types() -> None:
    found = set_("rate=1e-5", "count=010", "compile=yes", "options={a: no, b: 1e-3, c: true, d: [1, null], 5: x}")
    assert (found.rate, found.count, found.compile) == (1e-5, 10, True)
    assert found.options == {"a": "no", "b": 1e-3, "c": True, "d": [1, None], "5": "x"}
    assert (set_("compile=off").compile, set_("compile=null").compile, set_("count=1_000").count) == (False, None, 1000)
    assert (set_("count=0x10").count, set_("count=0o17").count) == (16, 15)
    assert set_("options={a: .inf, b: -.Inf}").options == {"a": float("inf"), "b": -float("inf")}


def test_an_invalid_value_is_quoted_as_written() -> None:
    with pytest.raises(ConfigError, match="count='1:30'"):
        set_("count=1:30")
    with pytest.raises(ConfigError, match="mode='maybe'"):
        set_("mode=maybe")


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'rate' occurs twice(.|\n)*line 2"):
        written(tmp_path, "rate: 1\nrate: 2\n")
    merged = written(tmp_path, "options: {base: &base {a: 1, b: 2}, other: {<<: *base, b: 3}}")
    assert merged.options == {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}


def test_overrides_are_merged_before_validation(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("tokens: {yes: 1.50}\n", encoding="utf-8")
    values = override(read_yaml(file), ["tokens.no=0"])
    assert build(Settings, values).tokens == Tokens(yes="1.50", no="0")


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert set_("folder=~/x").folder == "/home/someone/x"
