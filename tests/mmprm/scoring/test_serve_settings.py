"""Test the settings of mmprm serve: hosts, keys, and where a key is read from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmprm.cli.serve import ServeConfig
from mmprm.cli.serve import make_service as served_from
from mmprm.config import load
from mmprm.errors import ConfigError

KEY = "sk-secret"


def configured(*sets: str) -> ServeConfig:
    return load(ServeConfig, sets=["scorer.prm=p", *sets])


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "gpu1"])
def test_remote_access_needs_a_key(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"host=.* listens to other machines without an API key; set api_key_env or api_key_file"
    ):
        configured(f"host='{host}'")
    for way in ("api_key_env=K", "api_key_file=f", "without_key=true"):
        assert configured(f"host='{host}'", way).host == host


def test_loopback_needs_no_key() -> None:
    assert {configured(f"host='{host}'").host for host in ("127.0.0.1", "::1", "localhost")}
    assert configured().scorer.backend == "vllm"
    with pytest.raises(ConfigError, match="are both set; remove one"):
        configured("api_key_env=K", "api_key_file=f")
    with pytest.raises(ConfigError, match="in_flight must be at least solutions"):
        configured("limits.in_flight=10")


def test_the_key_comes_from_a_variable_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "prm.json").write_text('{"format": "mm-prm", "aggregator": "min"}')
    prm = f"scorer.prm={tmp_path}"
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert served_from(configured(prm, "api_key_env=MY_KEY")).key == KEY
    (tmp_path / "key").write_text(KEY + "\n")
    service = served_from(configured(prm, f"api_key_file={tmp_path / 'key'}"))
    assert (service.key, service.local_only) == (KEY, False)
    service = served_from(configured(prm))
    assert (service.key, service.local_only) == (None, True)
    monkeypatch.setenv("MY_KEY", "")
    (tmp_path / "key").write_text("sk-ä")
    for way in ("api_key_env=MY_KEY", f"api_key_file={tmp_path / 'key'}", f"api_key_file={tmp_path / 'none'}"):
        with pytest.raises(ConfigError, match="api_key_") as caught:
            served_from(configured(prm, way))
        assert "sk-" not in str(caught.value)
    with pytest.raises(ConfigError, match="image_root"):
        served_from(configured(prm, f"image_root={tmp_path / 'none'}"))
    (tmp_path / "prm.json").write_text('{"format": "mm-prm"}')
    with pytest.raises(ConfigError, match=r"aggregator is not set and prm\.json names none"):
        served_from(configured(prm))
