"""Test that every shipped configuration is planned without a network and fits the GPUs that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmprm.cli.main import main
from mmprm.planning.parts import TABLE_WIDTH

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SERVED = {"annotate", "rerank", "search"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_fits_the_gpus_that_it_names(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a plan uses the network"))
    kind = file.parent.name
    assert main(["plan", "serve" if kind in SERVED else kind, "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "GiB per GPU, estimated" in shown
    assert max(map(len, shown.splitlines())) <= TABLE_WIDTH
    for phases in re.findall(r"^  total +([\d. ]+)\n +usable +([\d. ]+?)   of", shown, re.MULTILINE):
        totals, usable = (list(map(float, row.split())) for row in phases)
        assert all(total <= most for total, most in zip(totals, usable, strict=True))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_names_its_gpus_unless_it_runs_on_a_cpu(file: Path) -> None:
    if file.stem.endswith("tiny"):
        return
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    parts = [next(iter(stage.values())) for stage in values.get("stages", ())] or [values]
    for part in parts:
        assert part["hardware"]["gpus"] >= 1
        ranks = part.get("trainer", {}).get("ranks", 0)
        assert ranks <= part["hardware"]["gpus"]


@pytest.mark.parametrize("kind", ["train", "sft", "rl", "stages", "serve", "annotate"])
def test_help_has_examples(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", kind, "--help"])
    assert f"mmprm plan {kind} --" in capsys.readouterr().out
