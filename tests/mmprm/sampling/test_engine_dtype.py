"""Test engine.dtype=auto: the rule per device, what a run records, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcts.config import CampaignConfig
from mcts.dtype import with_settled_dtype
from mmprm.cli import doctor
from mmprm.sampling import dtype
from mmprm.sampling.config import EngineConfig, LocalEngineConfig
from mmprm.sampling.dtype import Device, engine_dtype, fastest_dtype, with_dtype
from mmprm.trees.store import Store

NEW_CPU, NEW_GPU, OLD_GPU = Device("CPU", bf16=True, avx512=True), Device("GPU", bf16=True), Device("GPU", bf16=False)
OLD_CPU, OLDER_CPU = Device("CPU", bf16=False, avx512=True), Device("CPU", bf16=False)


@pytest.fixture
def old_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "this_device", lambda: OLD_CPU)
    monkeypatch.setenv("RAY_ADDRESS", "local")


def model_folder(folder: Path, hidden_size: int) -> str:
    folder.mkdir(exist_ok=True)
    config = {"model_type": "llama", "hidden_size": hidden_size, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("device", "hidden_size", "expected"),
    [
        (NEW_GPU, 8192, "bfloat16"),
        (OLD_GPU, 128, "float16"),
        (NEW_CPU, 128, "bfloat16"),
        (NEW_CPU, 8192, "bfloat16"),
        (OLD_CPU, 575, "bfloat16"),
        (OLD_CPU, 576, "float32"),
        (OLD_CPU, None, "float32"),
        (OLDER_CPU, 128, "float32"),
        (OLDER_CPU, 8192, "float32"),
    ],
)
def test_the_table_of_devices(device: Device, hidden_size: int | None, expected: str) -> None:
    assert fastest_dtype(device, hidden_size) == expected


@pytest.mark.parametrize(
    ("line", "bf16", "avx512"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True, True),
        ("flags\t\t: fpu avx512f amx_bf16", True, True),
        ("flags\t\t: fpu avx512f avx512_vnni", False, True),
        ("flags\t\t: fpu avx avx2", False, False),
        ("Features\t: fp asimd bf16 i8mm", True, False),
        ("Features\t: fp asimd svebf16x", False, False),
        ("model name\t: a bf16 accelerator with avx512f", False, False),
    ],
)
def test_instruction_sets_are_read_from_the_flags(line: str, bf16: bool, avx512: bool) -> None:
    assert Device.cpu(f"processor\t: 0\n{line}\nbugs\t\t: none\n") == Device("CPU", bf16, avx512)


@pytest.mark.usefixtures("old_cpu")
def test_the_hidden_size_decides_on_a_cpu_without_bf16(tmp_path: Path) -> None:
    wide, narrow = model_folder(tmp_path / "wide", 576), model_folder(tmp_path / "narrow", 128)
    assert engine_dtype(LocalEngineConfig(model=wide)) == "float32"
    assert engine_dtype(LocalEngineConfig(model=narrow)) == "bfloat16"
    assert engine_dtype(LocalEngineConfig(model=wide, dtype="float16")) == "float16"


@pytest.mark.usefixtures("old_cpu")
def test_a_command_prints_which_data_type_and_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    engine = with_dtype(EngineConfig(model="mine"), model_folder=model_folder(tmp_path, 576))
    assert (engine.dtype, engine.model) == ("float32", "mine")
    printed = "engine.dtype=auto: float32 (CPU without bf16 instructions, hidden size 576)\n"
    assert capsys.readouterr().err == printed
    assert with_dtype(engine).dtype == "float32"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("old_cpu")
def test_cluster_machines_are_not_assumed_to_equal_this_one(capsys: pytest.CaptureFixture) -> None:
    assert with_dtype(EngineConfig(model="mine"), "10.0.0.1:6379").dtype == "bfloat16"
    assert "set engine.dtype=float16" in capsys.readouterr().err


@pytest.mark.usefixtures("old_cpu")
def test_a_resumed_campaign_keeps_its_data_type(tmp_path: Path) -> None:
    settings = {"problems": {"path": "p.jsonl"}, "output": str(tmp_path / "run")}
    engine = {"model": model_folder(tmp_path / "model", 576)}
    elsewhere = CampaignConfig(engine=engine | {"dtype": "bfloat16"}, **settings)
    asked = CampaignConfig(engine=engine, **settings)
    assert with_settled_dtype(asked, None).engine.dtype == "float32"
    Store.create_or_open(tmp_path / "run" / "trees.sqlite", elsewhere.resume_key()).close()
    assert with_settled_dtype(asked, None).resume_key() == elsewhere.resume_key()


def test_servers_keep_the_recorded_data_type_of_earlier_runs() -> None:
    served = EngineConfig(model="mine", servers={"urls": ["http://localhost:8000"]})
    assert with_dtype(served).dtype == "bfloat16"


def test_doctor_names_the_data_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, "this_device", lambda: OLD_CPU)
    old = doctor.engine_data_type().found
    assert old == "float32 from hidden size 576, bfloat16 below (CPU without bf16 instructions)"
    monkeypatch.setattr(dtype, "this_device", lambda: OLDER_CPU)
    assert doctor.engine_data_type().found == "float32 (CPU without bf16 and AVX-512 instructions)"
    monkeypatch.setattr(dtype, "this_device", lambda: OLD_GPU)
    assert doctor.engine_data_type().found == "float16 (GPU without bf16 instructions)"
