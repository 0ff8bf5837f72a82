"""Send new weights from the trainer to running engines, and verify that they arrived.

On every rank of the trainer, after an update (rank 0 gets the result, the others None):

    probe = probe_logprobs(model, probe_token_ids)            # RolloutPool.probe_token_ids
    published = transfer.publish(ModelWeights(model, dtype), version, probe)

In the driver: `await pool.load_weights(published)`. This verifies:

- each tensor passed to vLLM's load_weights has the checksum of the trainer's tensor, whatever the transport;
- every parameter of the engine's model received all of its elements, and all caches are empty;
- the engine's log-probabilities on the probe equal the trainer's within `WeightsConfig.tolerance`,
  and have changed if the trainer's changed by more than MOVED.

Checksums compare bits, so they are exact in any dtype. They do not cover what vLLM makes of a tensor (fused with
others, packed for the CPU); the probe does, up to the rounding of the engine's and the trainer's kernels.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmprm.backbone.experts import stored_tensors
from mmprm.errors import TrainingError
from mmprm.training import sharding
from policy_rl.weights.checksum import checksum
from policy_rl.weights.config import WeightsConfig

SHARED_MEMORY = Path("/dev/shm")
BUCKET_BYTES = 2**30
"""Approximate maximum size of a weight file in bytes. No more than this is buffered in memory at once."""
KEPT_VERSIONS = 2
"""Number of versions to keep on disk: the replacement for a dead engine may still be reading the previous version."""


@dataclass(frozen=True, slots=True)
class Published:
    """Describes a published version of the weights, which the engines can load.

    `folder` holds their files, or is None if the engines already have them in memory. `probe` holds the trainer's
    log-probabilities on the probe; `checksums` maps the name of each tensor in the files to its checksum.
    """

    version: int
    tensors: int
    bytes: int
    folder: str | None
    probe: tuple[float, ...]
    checksums: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        location = f" in {self.folder}" if self.folder else ""
        return f"weights of version {self.version} ({self.tensors} tensors, {self.bytes / 1e6:.1f} MB{location})"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describes a checkpoint tensor by its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Return the size of the whole tensor in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class ModelWeights:
    """Iterates over the checkpoint tensors of `model`, one at a time, in the engines' dtype.

    ZeRO-3 shards are gathered and LoRA is merged per tensor; tied tensors are yielded once. Every rank must iterate.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype

    def metadata(self) -> list[TensorInfo]:
        """Return name, dtype and shape of each tensor that iteration yields, without gathering the tensors."""
        return [
            TensorInfo(stored, self._dtype, tuple(part.shape))
            for name, tensor, _ in self._checkpoint_tensors()
            for stored, part in self._stored(name, torch.empty(_whole_shape(tensor), device="meta"))
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor, lora in self._checkpoint_tensors():
            with torch.no_grad(), sharding.whole([tensor, *(lora.parameters() if lora is not None else ())]):
                whole = tensor
                if lora is not None:
                    for adapter in lora.active_adapters:
                        whole = whole + lora.get_delta_weight(adapter).to(whole.dtype)
                # Copy, because gathered parameters are released before the next tensor is yielded.
                whole = whole.detach().to(self._dtype, copy=True)
            yield from self._stored(name, whole)

    def _stored(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Return the (name, tensor) pairs that a checkpoint stores for a parameter: one, or several for a layer's
        experts."""
        return stored_tensors(self._model, name, tensor).items()

    def _checkpoint_tensors(self) -> Iterator[tuple[str, Tensor, Any]]:
        """Yield (name in a checkpoint, tensor, LoRA layer to merge into it or None)."""
        for name, tensor in self._model.named_parameters():
            if ".lora_" in name or ".modules_to_save." in name:
                continue
            lora = None
            if name.endswith(".base_layer.weight"):
                lora = self._model.get_submodule(name.removesuffix(".base_layer.weight"))
            yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), tensor, lora


def _whole_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


class Transfer(Protocol):
    """Defines the trainer's side of a weight transfer. `RolloutPool.load_weights` is the engines' side."""

    def publish(self, weights: ModelWeights, version: int, probe: tuple[float, ...]) -> Published | None:
        """Send or store the weights for the engines. Every rank calls it; rank 0 gets the result, the others None."""
        ...

    def close(self) -> None:
        """Release the files or connections of the transfer."""
        ...


class FileTransfer:
    """Writes weights from rank 0 as safetensors files in `folder`, usually in shared memory.

    Each version's folder is written atomically; other content of `folder` is left unchanged.
    """

    def __init__(self, folder: Path, is_main: bool = True) -> None:
        self._folder, self._is_main = folder, is_main
        if is_main:
            remove_versions(folder)  # left by a run that was killed

    def publish(self, weights: ModelWeights, version: int, probe: tuple[float, ...]) -> Published | None:
        """Write the weights to a new folder, and delete all but the KEPT_VERSIONS newest versions."""
        if not self._is_main:
            for _ in weights:  # take part in gathering the shards
                pass
            return None
        final, temporary = self._folder / f"version-{version:08d}", self._folder / f".version-{version:08d}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            checksums, size = _write_buckets(weights, temporary, version)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            for old in sorted(self._folder.glob("version-*"))[:-KEPT_VERSIONS]:
                shutil.rmtree(old)
        except OSError as error:
            raise TrainingError(
                f"weights of version {version} cannot be written to {final}: {error}; "
                "free space there, or set weights.folder to a folder that trainer and engines share"
            ) from error
        return Published(version, len(checksums), size, str(final), probe, checksums)

    def close(self) -> None:
        """Delete the files of all versions."""
        if self._is_main:
            remove_versions(self._folder)


def remove_versions(folder: Path) -> None:
    """Delete the files that FileTransfer wrote to `folder`, and the folder itself if it is then empty."""
    for pattern in ("version-*", ".version-*.tmp"):
        for version in folder.glob(pattern):
            shutil.rmtree(version, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def shared_folder(config: WeightsConfig, run_folder: Path) -> Path:
    """Return the folder for this run's weight files: below `weights.folder`, or by default in shared memory."""
    base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else run_folder
    if config.folder is not None:
        base = Path(config.folder)
    run = hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:16]
    return base / f"mmprm-weights-{run}"


def _write_buckets(weights: Iterable[tuple[str, Tensor]], folder: Path, version: int) -> tuple[dict[str, int], int]:
    """Write the weights to files of about BUCKET_BYTES; return (checksums by tensor name, bytes written)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    bucket: dict[str, Tensor] = {}
    checksums: dict[str, int] = {}
    total = in_bucket = files = 0

    def flush() -> None:
        nonlocal bucket, in_bucket, files
        try:
            save_file(bucket, folder / f"{files:05d}.safetensors", metadata={"version": str(version)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        bucket, in_bucket, files = {}, 0, files + 1

    for name, tensor in weights:
        assert name not in checksums, f"{name} is sent twice"
        bucket[name] = tensor.cpu().contiguous()
        checksums[name] = int(checksum(bucket[name]))
        total, in_bucket = total + tensor.nbytes, in_bucket + tensor.nbytes
        if in_bucket >= BUCKET_BYTES:
            flush()
    if bucket:
        flush()
    return checksums, total
