"""Test checksums of tensors, and that a worker verifies those of received tensors."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprm.errors import TrainingError
from policy_rl.weights import checksum as module
from policy_rl.weights.checksum import checksum
from policy_rl.weights.vllm import EngineClient, VllmTransfer
from policy_rl.weights.worker import WeightLoading

MASK = 2**64 - 1


def signed(value: int) -> int:
    value &= MASK
    return value - 2**64 if value >> 63 else value


def odd(index: int) -> int:
    """Compute a word's odd multiplier with Python integers, to check the tensor version and its signed shifts."""
    mixed = signed((index + 1) * 0x5851F42D4C957F2D)
    mixed = signed((mixed ^ (mixed >> 29)) * 0x2545F4914F6CDD1D)
    return (mixed ^ (mixed >> 32)) | 1


def by_hand(data: bytes, chunk: int) -> int:
    padded = data + bytes(-len(data) % 8)
    words = [int.from_bytes(padded[i : i + 8], "little", signed=True) for i in range(0, len(padded), 8)]
    total = sum(word * odd(i % chunk) * odd(i // chunk) for i, word in enumerate(words))
    return signed(total + len(data))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 33, 64])
def test_a_checksum_is_the_sum_of_weighted_words(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_WORDS", 3)
    data = bytes((7 * number + 1) % 256 for number in range(size))
    assert int(checksum(torch.tensor(list(data), dtype=torch.uint8))) == by_hand(data, 3)


def test_a_checksum_is_of_bytes_in_their_order() -> None:
    assert checksum(torch.tensor([1.0, 2.0])) != checksum(torch.tensor([2.0, 1.0]))
    assert checksum(torch.arange(6.0).view(2, 3).T) == checksum(torch.arange(6.0).view(2, 3).T.contiguous())
    assert checksum(torch.arange(10, dtype=torch.int16)[1:]) == checksum(torch.arange(1, 10, dtype=torch.int16))
    assert checksum(torch.zeros(2)) != checksum(torch.zeros(3))


@pytest.mark.parametrize("element", [0, 1, 499, 999])
@pytest.mark.parametrize("bit", [0, 7, 15])
def test_one_bit_changes_a_checksum(element: int, bit: int) -> None:
    tensor = torch.randn(1000).bfloat16()
    other = tensor.clone()
    flip = 1 << bit if bit < 15 else -(1 << 15)
    other.view(torch.int16)[element] ^= flip
    assert checksum(tensor) != checksum(other)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded.update(weights)


class Worker(WeightLoading):
    """Receives tensors like vLLM's worker, which passes them to the model's load_weights."""

    def __init__(self) -> None:
        self.model = Model()
        self.model_runner = SimpleNamespace(get_model=lambda: self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.model.load_weights(iter(update_info["tensors"]))


def sums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    return {name: int(checksum(tensor)) for name, tensor in tensors}


def test_a_worker_accepts_the_trainers_bits_in_several_chunks() -> None:
    worker, tensors = Worker(), [("a", torch.randn(3)), ("b", torch.randn(2, 2))]
    for version in (1, 2):
        for each in tensors:
            worker.receive_weights({"tensors": [each]})
        worker.check_weights_received(sums(tensors), version)
    assert list(worker.model.loaded) == ["a", "b"]


def test_a_worker_names_tensors_with_other_bits_and_missing_ones() -> None:
    worker, tensors = Worker(), [("a", torch.randn(3)), ("b", torch.randn(4).bfloat16()), ("c", torch.randn(1))]
    sent = sums(tensors)
    tensors[1][1].view(torch.int16)[2] += 1
    worker.receive_weights({"tensors": tensors[:2]})
    with pytest.raises(TrainingError, match=r"^2 of 3 tensors of the weights of version 5 .* b, c; run"):
        worker.check_weights_received(sent, 5)


def test_the_trainer_sends_its_checksums_before_the_update_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(EngineClient, "_each", lambda self, name, arguments=None: calls.append((name, arguments)))
    weights = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    transfer = VllmTransfer("nccl", ["engine 1", "engine 2"], 1, 0, 1.0)
    transfer._client.version, transfer._weights = 4, list(weights.items())
    assert [name for name, _ in transfer._source()] == ["w", "b"]
    transfer._client.finish_weight_update()
    assert calls[0] == ("check_weights_received", [{"checksums": sums(weights.items()), "version": 4}] * 2)
    assert [name for name, _ in calls[1:]] == ["check_weights_complete", "finish_weight_update", "renew_tied_weights"]
