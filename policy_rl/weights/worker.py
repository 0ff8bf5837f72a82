"""Load new weights in a vLLM worker, through a mixin for its worker class (worker_extension_cls).

vLLM loads the tensors that match its model and at most warns about missing ones. Here, a parameter that does not
receive all of its elements is an error, and so is a tensor whose bits are not those that the trainer sent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmprm.errors import TrainingError
from policy_rl.weights.checksum import checksum

NAMED_IN_ERROR = 5


class WeightLoading:
    """Extends a vLLM worker with methods that load new weights."""

    vllm_config: Any
    model_runner: Any

    def load_weight_files(self, folder: str, version: int, checksums: Mapping[str, int]) -> tuple[int, int]:
        """Load the weight files of a version; return (number of tensors, bytes in the files)."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        counted = [0, 0]
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            try:
                model.load_weights(read_weights(Path(folder), version, checksums, counted))
                self.check_weights_complete()
            finally:  # even after an error, so that a later load can complete
                finalize_layerwise_reload(model, self.vllm_config.model_config)
            self.renew_tied_weights()
        self.model_runner.reset_lora_state()
        return counted[0], counted[1]

    def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receive tensors with vLLM's update_weights, and keep their checksums for `check_weights_received`."""
        model = self.model_runner.get_model()
        received = vars(self).setdefault("received_checksums", {})
        load = model.load_weights

        def counted(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                received[name] = checksum(tensor)
                yield name, tensor

        # vLLM's update_weights calls load_weights itself, so wrap it on the instance to see every tensor.
        model.load_weights = lambda weights: load(counted(weights))
        try:
            self.update_weights(update_info)
        finally:
            del model.load_weights  # restores the method of the class

    def check_weights_received(self, checksums: Mapping[str, int], version: int) -> None:
        """Raise TrainingError unless the tensors received since the last call have the trainer's checksums."""
        received = {name: int(value) for name, value in vars(self).pop("received_checksums", {}).items()}
        wrong = sorted(name for name in checksums | received if received.get(name) != checksums.get(name))
        if wrong:
            named = ", ".join(wrong[:NAMED_IN_ERROR])
            raise TrainingError(
                f"{len(wrong)} of {len(checksums)} tensors of the weights of version {version} arrived with other bits "
                f"than the trainer sent, or not at all: {named}; run the same command again to resume from the last "
                "checkpoint; if it repeats, set weights.transport=file, and check GPUs and network"
            )

    def check_weights_complete(self) -> None:
        """Raise TrainingError if a parameter did not receive all of its elements.

        Call it after all tensors are loaded, before vLLM finishes the update.
        """
        short = incomplete_parameters(self.model_runner.get_model())
        if short:
            named = ", ".join(short[:NAMED_IN_ERROR])
            raise TrainingError(
                f"new weights leave {len(short)} layers of the engine's model incomplete: {named}; "
                "run the same command again to resume from the last checkpoint; if it repeats, the trainer's model is "
                "not the one that the engine started from"
            )

    def renew_tied_weights(self) -> None:
        """Rebuild the packed weights of layers that share their weight with the embedding.

        Such a layer is not loaded itself, and on CPU it computes with a packed copy of the weight, which vLLM does not
        rebuild.
        """
        for layer in tied_layers(self.model_runner.get_model()):
            layer.quant_method.process_weights_after_loading(layer)


def read_weights(
    folder: Path, version: int, checksums: Mapping[str, int], counted: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) from all weight files. `counted` accumulates [number of tensors, bytes].

    Raises TrainingError if a tensor's checksum is wrong, or if this machine cannot access the folder.
    """
    from safetensors import safe_open

    if not folder.is_dir():
        raise TrainingError(
            f"{folder}: this engine's machine, {socket.gethostname()}, cannot access this folder, which the trainer "
            "wrote on another machine; set weights.folder to a folder on shared storage"
        )
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("version")
            if found != str(version):
                raise TrainingError(
                    f"{path}: contains weights of version {found}, not {version}; set weights.folder to a folder that "
                    "no other run uses"
                )
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if int(checksum(tensor)) != checksums.get(name):
                    raise TrainingError(
                        f"{path}: {name} is not the tensor that the trainer wrote for version {version}: their "
                        "checksums differ; set weights.folder to a folder that no other run or machine uses"
                    )
                counted[0], counted[1] = counted[0] + 1, counted[1] + tensor.nbytes
                yield name, tensor


def incomplete_parameters(model: nn.Module) -> list[str]:
    """List the layers whose parameters have not received all of their elements in vLLM's current weight load.

    vLLM counts the loaded elements per layer and finishes a layer once all have arrived. Some layers that it leaves
    unfinished are complete: layers without parameters; attention layers, whose scales keep their values; embeddings
    padded beyond the vocabulary; tied layers.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

    tied = set(map(id, tied_layers(model)))
    short = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or not layer._parameters or id(layer) in tied or is_deferred_attention_layer(layer):
            continue
        wanted = sum(get_tensor_load_numel(tensor) for tensor in layer._parameters.values() if tensor is not None)
        if isinstance(layer, VocabParallelEmbedding):
            wanted = layer.num_org_embeddings_per_partition * layer.embedding_dim
        if info.load_numel < wanted:
            short.append(f"{name} ({info.load_numel} of {wanted} elements)")
    return short


def tied_layers(model: nn.Module) -> list[nn.Module]:
    """Return the embedding and output layers that share their weight with an earlier one."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    seen, tied = set(), []
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            # During a load, vLLM stores a layer's own tensors separately.
            kept = get_layerwise_info(layer).kernel_tensors
            weight = id(kept[0]["weight"] if kept is not None else layer.weight)
            if weight in seen:
                tied.append(layer)
            seen.add(weight)
    return tied
