"""Test checksums of tensors sent through vLLM's packed broadcast and weight transfer engine, on CPU."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer import nccl_engine, packed_tensor

from mmprm.errors import TrainingError
from policy_rl.weights.checksum import checksum
from policy_rl.weights.vllm import VllmTransfer
from policy_rl.weights.worker import WeightLoading

BUFFER_BYTES = 64
SHAPES = {"embed": (5, 3), "odd": (3,), "wide": (7, 4), "scalar": ()}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded |= {name: tensor.clone() for name, tensor in weights}


class Wire:
    """Stands in for the process group: broadcasts arrive in order, with one bit flipped if `damage` is set."""

    def __init__(self) -> None:
        self.sent: deque[Tensor] = deque()
        self.sends, self.damage = True, False

    def broadcast(self, tensor: Tensor, src: int) -> None:
        if self.sends:
            self.sent.append(tensor.clone())
        else:
            tensor.copy_(self.sent.popleft())
            if self.damage:
                tensor[0] ^= 1


class Worker(WeightLoading):
    def __init__(self, wire: Wire) -> None:
        model = Model()
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        self.engine = nccl_engine.NCCLWeightTransferEngine.__new__(nccl_engine.NCCLWeightTransferEngine)
        vars(self.engine).update(model=model, model_update_group=wire, packed=True, device="cpu")
        vars(self.engine).update(packed_buffer_size_bytes=BUFFER_BYTES, packed_num_buffers=2)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.engine.receive_weights(nccl_engine.NCCLWeightTransferUpdateInfo(**update_info))


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Install the wire, and streams that complete all work at once."""
    stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(stream=lambda _: contextlib.nullcontext())
    names = {name: getattr(torch, name) for name in ("empty", "uint8", "cat", "split", "Tensor", "dtype")}
    monkeypatch.setattr(
        packed_tensor,
        "torch",
        SimpleNamespace(**names, cuda=cuda, accelerator=SimpleNamespace(current_device_index=lambda: 0)),
    )
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda _, count: (stream,) * count)
    return Wire()


def send(wire: Wire, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Broadcast as the trainer's rank 0 does, and return the checksums."""
    transfer = VllmTransfer("nccl", [], 1, 0, 1.0)
    transfer._weights = list(tensors.items())
    packed_tensor.packed_nccl_broadcast_producer(
        iter(transfer._source()), wire, 0, lambda item: item[1], BUFFER_BYTES, 2
    )
    wire.sends = False
    return {name: int(value) for name, value in transfer._client.sent.items()}


def info(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "names": list(tensors),
        "dtype_names": ["bfloat16"] * len(tensors),
        "shapes": [list(tensor.shape) for tensor in tensors.values()],
    }


def test_bits_survive_the_broadcast(wire: Wire) -> None:
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    sent, worker = send(wire, tensors), Worker(wire)
    assert sent == {name: int(checksum(tensor)) for name, tensor in tensors.items()}
    worker.receive_weights(info(tensors))
    worker.check_weights_received(sent, 1)
    loaded = worker.model_runner.get_model().loaded
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_one_changed_bit_is_found(wire: Wire) -> None:
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    sent, worker = send(wire, tensors), Worker(wire)
    wire.damage = True
    worker.receive_weights(info(tensors))
    with pytest.raises(TrainingError, match=r"^\d of 4 tensors of the weights of version 1 arrived with other bits"):
        worker.check_weights_received(sent, 1)
