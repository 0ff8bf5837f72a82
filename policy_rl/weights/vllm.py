"""Send weights from GPU to GPU with vLLM's weight transfer: NCCL broadcast (nccl) or CUDA IPC on one GPU (ipc)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmprm import actors
from mmprm.errors import EngineStoppedError, TrainingError
from policy_rl.weights.checksum import checksum
from policy_rl.weights.transfer import ModelWeights, Published, TensorInfo


class VllmTransfer:
    """Transfers weights with vLLM's protocol: `publish` already loads them into the engines.

    `RolloutPool.load_weights` then clears the engines' caches and checks the probe. `engines` is `RolloutPool.engines`.
    Tensors are sent in packed buffers as they are gathered, so the whole model is never in memory at once.
    """

    def __init__(
        self,
        backend: Literal["nccl", "ipc"],
        engines: Sequence[Any],
        workers_each: int,
        rank: int,
        timeout_seconds: float,
    ) -> None:
        self._backend, self._rank = backend, rank
        self._client = EngineClient(engines, workers_each, timeout_seconds)
        self._weights: ModelWeights | None = None
        self._sender: Any = None

    def publish(self, weights: ModelWeights, version: int, probe: tuple[float, ...]) -> Published | None:
        """Send the weights to the engines, which load them. Every rank calls it; only rank 0 gets a result."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self._weights = weights
        self._client.version, self._client.sent = version, {}
        if self._sender is None:
            self._sender = WeightTransferTrainerFactory.trainer_init(
                self._init_info(), client=self._client, source=self._source()
            )
        self._sender.send_weights()
        if self._rank != 0:
            return None
        tensors = weights.metadata()
        return Published(version, len(tensors), sum(tensor.bytes for tensor in tensors), None, probe)

    def close(self) -> None:
        """Shut down vLLM's weight sender."""
        if self._sender is not None:
            self._sender.shutdown()

    def _init_info(self) -> Any:
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            size = packed_buffer_bytes(self._weights.metadata())
            return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=size, rank=self._rank)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        return NCCLTrainerInitInfo(get_ip(), get_open_port(), 1 + self._client.workers, rank=self._rank)

    def _source(self) -> Any:
        from vllm.distributed.weight_transfer import ParamMeta, WeightSource

        transfer = self

        class Source(WeightSource):
            def metadata(self) -> list[ParamMeta]:
                return [ParamMeta(tensor.name, tensor.dtype, tensor.shape) for tensor in transfer._weights.metadata()]

            def __iter__(self) -> Iterator[tuple[str, Tensor]]:
                for name, tensor in transfer._weights:
                    if transfer._rank == 0:
                        transfer._client.sent[name] = checksum(tensor)
                    yield name, tensor

        return Source()


def packed_buffer_bytes(tensors: Sequence[TensorInfo]) -> int:
    """Return the size in bytes of vLLM's ipc buffer, which must hold the largest tensor."""
    from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

    return max([DEFAULT_PACKED_BUFFER_SIZE_BYTES, *(tensor.bytes for tensor in tensors)])


class EngineClient:
    """Implements vLLM's VLLMWeightSyncClient for several engines.

    Each engine has its own worker ranks, and every call has a timeout.
    """

    def __init__(self, engines: Sequence[Any], workers_each: int, timeout_seconds: float) -> None:
        self._engines, self._workers_each, self._timeout_seconds = engines, workers_each, timeout_seconds
        self.version = 0
        self.sent: dict[str, Tensor] = {}
        """Checksums of the tensors of the current version, on the trainer's device."""

    @property
    def workers(self) -> int:
        """Return the total number of vLLM workers in all engines."""
        return len(self._engines) * self._workers_each

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Initialize weight transfer in all engines. With nccl, each gets the rank of its first worker."""
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:  # the trainer's rank 0 comes first
            infos = [info | {"rank_offset": 1 + position * self._workers_each} for position, info in enumerate(infos)]
        self._each("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        """Begin a weight update in all engines."""
        self._each("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """Tell all engines to receive the tensors."""
        self._each("receive_weights", [{"update_info": update_info}] * len(self._engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Check in all engines that the weights are complete and equal to the trainer's, and finish the update."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM packs, and so the checksums are computed, on streams of its own
        sums = {name: int(value) for name, value in self.sent.items()}
        self._each("check_weights_received", [{"checksums": sums, "version": self.version}] * len(self._engines))
        for method in ("check_weights_complete", "finish_weight_update", "renew_tied_weights"):
            self._each(method)

    def _each(self, method: str, arguments: Sequence[dict[str, Any]] | None = None) -> None:
        arguments = arguments or [{}] * len(self._engines)
        calls = [
            engine.worker_call.remote(method, argument)
            for engine, argument in zip(self._engines, arguments, strict=True)
        ]
        try:
            actors.wait_all(
                calls,
                f"{method} of {len(calls)} engines (weights of version {self.version})",
                self._timeout_seconds,
                "raise weights.timeout_seconds if they only need longer",
                TrainingError,
            )
        except EngineStoppedError as error:
            raise TrainingError(
                f"an engine failed while the weights of version {self.version} were sent to it: {error}; run the same "
                "command again to resume from the last checkpoint"
            ) from None
