"""Test weight transfer: files, checksums, transports, and the probe."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmprm.errors import ConfigError, TrainingError
from policy_rl.weights.config import WeightsConfig, transport_of
from policy_rl.weights.probe import ProbeCheck, probe_logprobs
from policy_rl.weights.transfer import FileTransfer, ModelWeights, Published, shared_folder
from policy_rl.weights.worker import read_weights

torch.set_num_threads(1)

PROBE = (-1.0, -2.0, -3.0)
PUBLISHED = Published(1, 2, 40, "/dev/shm/x", PROBE)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.norm = nn.LayerNorm(3)
        self.head.weight = self.embed.weight


def test_tied_tensors_come_once_as_copies_in_the_engines_format():
    model = Tied()
    sent = dict(ModelWeights(model, torch.bfloat16))
    assert sorted(sent) == ["embed.weight", "norm.bias", "norm.weight"]
    assert torch.equal(sent["embed.weight"], model.embed.weight.to(torch.bfloat16))
    same = dict(ModelWeights(model, torch.float32))["embed.weight"]
    same += 1
    assert not torch.equal(same, model.embed.weight), "the published tensors are copies"
    assert [(info.name, info.dtype, info.shape) for info in ModelWeights(model, torch.bfloat16).metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()
    ]


def test_lora_is_merged_under_the_names_of_the_checkpoint():
    from peft import LoraConfig, get_peft_model

    plain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    names = [name for name, _ in plain.named_parameters()]
    model = get_peft_model(plain, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    sent = dict(ModelWeights(model, torch.float32))
    assert sorted(sent) == sorted(names)
    input_N4 = torch.randn(7, 4)
    merged = nn.functional.linear(input_N4, sent["0.weight"], sent["0.bias"]).relu()
    merged = nn.functional.linear(merged, sent["2.weight"], sent["2.bias"])
    assert torch.allclose(merged, model(input_N4), atol=1e-6)
    assert not torch.allclose(sent["0.weight"], model.base_model.model[0].base_layer.weight)


def test_files_hold_the_weights_and_their_version(tmp_path, monkeypatch):
    monkeypatch.setattr("policy_rl.weights.transfer.BUCKET_BYTES", 40)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    published = FileTransfer(tmp_path / "w").publish(ModelWeights(model, torch.float32), 7, PROBE)
    assert (published.version, published.tensors, published.bytes, published.probe) == (
        7,
        4,
        4 * (12 + 3 + 6 + 2),
        PROBE,
    )
    files = sorted((tmp_path / "w" / "version-00000007").iterdir())
    assert len(files) == 2, "a bucket ends as soon as it is full"
    assert list(load_file(files[0])) == ["0.weight"]
    counted = [0, 0]
    read = dict(read_weights(files[0].parent, 7, published.checksums, counted))
    assert counted == [4, published.bytes]
    assert all(torch.equal(read[name], parameter) for name, parameter in model.named_parameters())
    with pytest.raises(TrainingError, match="contains weights of version 7, not 8"):
        list(read_weights(files[0].parent, 8, published.checksums, [0, 0]))


def test_slightly_older_weights_are_detected(tmp_path):
    """One bit of one tensor differs, which no probe would detect."""
    model, transfer = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).bfloat16(), FileTransfer(tmp_path / "w")
    old = transfer.publish(ModelWeights(model, torch.bfloat16), 1, PROBE)
    with torch.no_grad():
        model[1].weight.view(torch.int16)[5, 7] += 1
    new = transfer.publish(ModelWeights(model, torch.bfloat16), 2, PROBE)
    stale = load_file(f"{old.folder}/00000.safetensors")
    save_file(stale, f"{new.folder}/00000.safetensors", metadata={"version": "2"})
    with pytest.raises(TrainingError, match=r"1\.weight is not the tensor that the trainer wrote for version 2"):
        list(read_weights(Path(new.folder), 2, new.checksums, [0, 0]))
    assert len(list(read_weights(Path(old.folder), 1, old.checksums, [0, 0]))) == 4


def test_an_engine_without_the_shared_folder_names_the_path(tmp_path):
    with pytest.raises(
        TrainingError, match=r"/elsewhere: this engine's machine, .* set weights\.folder to a folder on"
    ):
        list(read_weights(tmp_path / "elsewhere", 1, {}, [0, 0]))


def test_two_versions_are_kept_and_none_after_the_run(tmp_path):
    left = tmp_path / "w" / "version-00000099"
    left.mkdir(parents=True)
    transfer, model = FileTransfer(tmp_path / "w"), nn.Linear(2, 2)
    assert not left.exists(), "a killed run's weights must not fill the memory"
    for version in (1, 2, 3, 3):
        transfer.publish(ModelWeights(model, torch.float32), version, ())
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == ["version-00000002", "version-00000003"]
    transfer.close()
    assert not (tmp_path / "w").exists()


def test_other_files_in_a_users_folder_are_kept(tmp_path, monkeypatch):
    """Two runs share a weights.folder that also contains other files."""
    own = tmp_path / "home"
    own.mkdir()
    (own / "thesis.txt").write_text("precious")
    (own / "version-1").mkdir()
    model, config = ModelWeights(nn.Linear(2, 2), torch.float32), WeightsConfig(folder=str(own))
    one, other = (FileTransfer(shared_folder(config, tmp_path / name)) for name in ("a", "b"))
    folders = [Path(transfer.publish(model, 1, ()).folder) for transfer in (one, other)]
    (folders[0].parent / "notes.txt").write_text("kept")
    FileTransfer(shared_folder(config, tmp_path / "b"))
    assert [folder.exists() for folder in folders] == [True, False]
    one.close()
    assert sorted(str(path.relative_to(own)) for path in own.rglob("*")) == sorted(
        ["thesis.txt", "version-1", folders[0].parent.name, f"{folders[0].parent.name}/notes.txt"]
    )


def test_ranks_but_the_first_gather_and_write_nothing(tmp_path):
    seen = []

    def weights():
        for name, tensor in ModelWeights(nn.Linear(2, 2), torch.float32):
            seen.append(name)
            yield name, tensor

    assert FileTransfer(tmp_path / "w", is_main=False).publish(weights(), 1, ()) is None
    assert seen == ["weight", "bias"]
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"version 1 cannot be written to .*set weights.folder"):
        FileTransfer(tmp_path / "file" / "w").publish(ModelWeights(nn.Linear(2, 2), torch.float32), 1, ())


def test_each_run_has_its_own_folder_in_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("policy_rl.weights.transfer.SHARED_MEMORY", tmp_path)
    one, other = (shared_folder(WeightsConfig(), tmp_path / name) for name in ("a", "b"))
    assert one.parent == other.parent == tmp_path
    assert one != other
    assert one == shared_folder(WeightsConfig(), tmp_path / "b" / ".." / "a")
    assert shared_folder(WeightsConfig(folder="/x"), tmp_path / "a") == Path("/x") / one.name
    monkeypatch.setattr("policy_rl.weights.transfer.SHARED_MEMORY", tmp_path / "none")
    assert shared_folder(WeightsConfig(), tmp_path / "a") == tmp_path / "a" / one.name


@pytest.mark.parametrize(
    ("gpu", "colocated", "found"),
    [(False, False, "file"), (False, True, "file"), (True, False, "nccl"), (True, True, "ipc")],
)
def test_the_transport_that_reaches_the_engines(gpu, colocated, found):
    assert transport_of(WeightsConfig(), gpu, colocated) == found
    assert transport_of(WeightsConfig(transport="file"), gpu, colocated) == "file"


@pytest.mark.parametrize(("transport", "colocated"), [("nccl", True), ("ipc", False)])
def test_a_transport_that_cannot_reach_them_is_refused(transport, colocated):
    """NCCL does not allow two ranks on one GPU, and CUDA IPC does not work across GPUs."""
    with pytest.raises(ConfigError, match=f"weights.transport={transport} does not reach .*; use .* or file"):
        transport_of(WeightsConfig(transport=transport), True, colocated)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_transport_between_gpus_needs_them(transport):
    with pytest.raises(ConfigError, match=f"weights.transport={transport} needs GPUs"):
        transport_of(WeightsConfig(transport=transport), False, transport == "ipc")


def test_probe_of_the_trainer_is_the_next_tokens_log_probability():
    class Model(nn.Module):
        """Assigns P(v after token t) ∝ exp(v·t)."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input_ids, use_cache):
            logits = self.scale * input_ids[..., None] * torch.arange(3.0)
            return type("Output", (), {"logits": logits})

    got = probe_logprobs(Model(), (1, 2, 0))
    total = [sum(math.exp(v * t) for v in range(3)) for t in (1, 2)]
    assert got == pytest.approx([2 - math.log(total[0]), 0 - math.log(total[1])])


class TestProbe:
    def test_near_answers_pass_and_far_ones_do_not(self):
        assert ProbeCheck("engine 1", 0.2).check(PUBLISHED, (-1.1, -2.0, -2.9)) == pytest.approx(0.2 / 3)
        with pytest.raises(TrainingError, match=r"engine 1 .* version 1 .* by 0.3000 nats"):
            ProbeCheck("engine 1", 0.2).check(PUBLISHED, (-1.9, -2.0, -3.0))

    def test_nan_does_not_pass(self):
        with pytest.raises(TrainingError):
            ProbeCheck("engine 1", 0.2).check(PUBLISHED, (math.nan, -2.0, -3.0))

    def test_an_engine_that_stays_while_the_trainer_moves_is_found(self):
        """The engine's answer is within the tolerance, but exactly equals its previous one."""
        check = ProbeCheck("engine 1", 0.2)
        check.check(PUBLISHED, PROBE)
        check.check(replace(PUBLISHED, version=2, probe=(-1.006, -2.0, -3.0)), PROBE)
        with pytest.raises(TrainingError, match=r"still computes with version 1: .* changed by 0.0120 .* version 3"):
            check.check(replace(PUBLISHED, version=3, probe=(-1.012, -2.0, -3.0)), PROBE)

    def test_an_engine_that_moves_too_passes(self):
        check = ProbeCheck("engine 1", 0.2)
        for version in range(1, 30):
            moved = (-1.0 - version / 50, -2.0, -3.0)
            assert check.check(replace(PUBLISHED, version=version, probe=moved), moved) == 0
