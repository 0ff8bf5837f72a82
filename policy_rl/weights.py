"""New weights from the trainer into running engines, and the proof that they arrived.

Trainer, on every rank, after an update (all ranks must take part; those but rank 0 get None):

    probe = probe_logprobs(model, probe_token_ids)            # the ids that every RolloutPool tells
    published = transfer.publish(ModelWeights(model, dtype), version, probe)

Driver: `await pool.load_weights(published)`. What the engines then have proved: every file is that version's, every
parameter of the engine's model got all of its elements, nothing is left in a cache, and the engine's own
log-probabilities of the probe are the trainer's within `WeightsConfig.tolerance`, and changed if the trainer's did.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from mmprm.config import Config
from mmprm.errors import TrainingError

SHARED_MEMORY = Path("/dev/shm")
BUCKET_BYTES = 2**30
"""Size of one file: so much is held in memory at once, never the whole model."""
KEPT_VERSIONS = 2
"""An engine that is being replaced may still read the version before."""
PROBE_TEXT = "1 + 2 = 3, so x = 12 and y < 40; (x + y) / 2 is the answer."
MOVED = 1e-2
"""Nats by which the trainer's log-probabilities of the probe must have moved before an engine's must have, too."""
TOLERANCE = {"float32": 0.01, "bfloat16": 0.15, "float16": 0.05}
"""Mean |engine − trainer| in nats over the probe; several times what the number format alone gives."""


class WeightsConfig(Config):
    transport: Literal["auto", "file", "nccl", "ipc"] = "auto"
    """file: through safetensors files in shared memory, on any machine where trainer and engines share it; nccl: vLLM's
    broadcast from GPU to GPU; ipc: vLLM's, for trainer and engine on the same GPU. auto: file on CPU, nccl on GPU."""
    folder: str | None = None
    """transport=file: where the files lie; by default a folder of this run in /dev/shm, or in the run folder where
    there is none. Needs room for the weights of two versions."""
    timeout_s: float = Field(600, gt=0)
    """Longest wait for an engine to take in new weights."""
    tolerance: float | None = Field(None, gt=0)
    """Largest mean difference (nats) of the engines' log-probabilities of a probe text from the trainer's after a
    transfer; by default 0.01 for float32 engines, 0.05 for float16, 0.15 for bfloat16."""


@dataclass(frozen=True, slots=True)
class Published:
    """Weights after `version` updates, ready to be loaded. `folder` holds their files; None where they are in the
    engines' memory already. `probe` are the trainer's log-probabilities of the probe."""

    version: int
    tensors: int
    bytes: int
    folder: str | None
    probe: tuple[float, ...]

    def __str__(self) -> str:
        place = f" in {self.folder}" if self.folder else ""
        return f"weights of version {self.version} ({self.tensors} tensors, {self.bytes / 1e6:.1f} MB{place})"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class ModelWeights:
    """The tensors of a checkpoint of `model`, in the engines' number format, one at a time: shards are gathered
    (ZeRO 3) and LoRA is merged as each one comes, and tied tensors come once. Every rank must iterate."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[TensorInfo]:
        """What iteration yields, without gathering anything."""
        return [
            TensorInfo(name, self._dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
            for name, tensor, _ in self._checkpoint_tensors()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor, lora in self._checkpoint_tensors():
            with torch.no_grad(), _gathered([tensor, *(lora.parameters() if lora is not None else ())]):
                whole = tensor
                if lora is not None:
                    for adapter in lora.active_adapters:
                        whole = whole + lora.get_delta_weight(adapter).to(whole.dtype)
                # A copy, since what was gathered is gone when the next one is asked for.
                whole = whole.detach().to(self._dtype, copy=True)
            yield name, whole

    def _checkpoint_tensors(self) -> Iterator[tuple[str, Tensor, Any]]:
        """(name in a checkpoint, tensor, the LoRA layer to merge into it or None)."""
        for name, tensor in self._model.named_parameters():
            if ".lora_" in name or ".modules_to_save." in name:
                continue
            lora = None
            if name.endswith(".base_layer.weight"):
                lora = self._model.get_submodule(name.removesuffix(".base_layer.weight"))
            yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), tensor, lora


@contextlib.contextmanager
def _gathered(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Shards of ZeRO 3 become whole on every rank for as long as the block lasts."""
    if not any(hasattr(tensor, "ds_id") for tensor in tensors):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(tensors)):
        yield


class Transfer(Protocol):
    """The trainer's side; `RolloutPool.load_weights` is the engines'."""

    def publish(self, weights: ModelWeights, version: int, probe: tuple[float, ...]) -> Published | None:
        """Every rank calls it; rank 0 gets the result, the others None."""
        ...

    def close(self) -> None: ...


class FileTransfer:
    """Safetensors files in shared memory, written by rank 0. A version's folder is whole or not there."""

    def __init__(self, folder: Path, is_main: bool = True) -> None:
        self._folder, self._is_main = folder, is_main
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed

    def publish(self, weights: ModelWeights, version: int, probe: tuple[float, ...]) -> Published | None:
        if not self._is_main:
            for _ in weights:  # joins in gathering the shards
                pass
            return None
        final, temporary = self._folder / f"version-{version:08d}", self._folder / f".version-{version:08d}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            tensors, size = _write_buckets(weights, temporary, version)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in sorted(self._folder.glob("version-*"))[:-KEPT_VERSIONS]:
                shutil.rmtree(old)
        except OSError as error:
            raise TrainingError(
                f"weights of version {version} cannot be written to {final}: {error}; "
                "free space there, or set weights.folder to a place that trainer and engines share"
            ) from error
        return Published(version, tensors, size, str(final), probe)

    def close(self) -> None:
        if self._is_main:
            shutil.rmtree(self._folder, ignore_errors=True)


def shared_folder(config: WeightsConfig, run_folder: Path) -> Path:
    """`weights.folder`, or this run's own place in shared memory."""
    if config.folder is not None:
        return Path(config.folder)
    if not os.access(SHARED_MEMORY, os.W_OK):
        return run_folder / "weights"
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
    return SHARED_MEMORY / f"mmprm-weights-{run}"


def _write_buckets(weights: Iterable[tuple[str, Tensor]], folder: Path, version: int) -> tuple[int, int]:
    """(tensors, bytes) written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    bucket: dict[str, Tensor] = {}
    names: set[str] = set()
    total = in_bucket = files = 0

    def flush() -> None:
        nonlocal bucket, in_bucket, files
        try:
            save_file(bucket, folder / f"{files:05d}.safetensors", metadata={"version": str(version)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        bucket, in_bucket, files = {}, 0, files + 1

    for name, tensor in weights:
        assert name not in names, f"{name} is sent twice"
        names.add(name)
        bucket[name] = tensor.cpu().contiguous()
        total, in_bucket = total + tensor.nbytes, in_bucket + tensor.nbytes
        if in_bucket >= BUCKET_BYTES:
            flush()
    if bucket:
        flush()
    return len(names), total


def probe_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """The text whose log-probabilities engines and trainer compare; without pictures, so that it costs little."""
    return tuple(tokenizer.encode(PROBE_TEXT, add_special_tokens=False))


@torch.no_grad()
def probe_logprobs(model: nn.Module, token_ids: Sequence[int]) -> tuple[float, ...]:
    """log P(token i | tokens before it), i = 1, 2, …, at temperature 1. Every rank must call it under ZeRO 3."""
    ids_1T = torch.tensor([token_ids], device=next(model.parameters()).device)
    lp_1TV = model(input_ids=ids_1T, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
    return tuple(lp_1TV.gather(-1, ids_1T[:, 1:, None]).flatten().tolist())


class ProbeCheck:
    """One engine's answers to the probe, version by version."""

    def __init__(self, engine: str, tolerance: float) -> None:
        self._engine, self._tolerance = engine, tolerance
        self._changed: tuple[Published, tuple[float, ...]] | None = None

    def check(self, published: Published, answer: tuple[float, ...]) -> float:
        """Mean |engine − trainer| in nats. TrainingError where it is above the tolerance, or where the engine answers
        exactly what it did at an earlier version from which the trainer has moved."""
        assert len(answer) == len(published.probe), "trainer and engine have different probes"
        distance = _mean_difference(answer, published.probe)
        if not distance <= self._tolerance:  # also for NaN
            raise TrainingError(
                f"{self._engine} does not compute with the {published}: its log-probabilities of the probe differ from "
                f"the trainer's by {distance:.4f} nats on average (allowed: {self._tolerance}); if the number formats "
                "explain so much, raise weights.tolerance, or set engine.dtype=float32"
            )
        if self._changed is None or answer != self._changed[1]:
            self._changed = published, answer
        moved = max((abs(a - b) for a, b in zip(published.probe, self._changed[0].probe, strict=True)), default=0.0)
        if moved > MOVED:
            raise TrainingError(
                f"{self._engine} still computes with version {self._changed[0].version}: it answers the probe as then, "
                f"and the trainer's log-probabilities have moved by {moved:.4f} nats until version {published.version}"
            )
        return distance


def _mean_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
