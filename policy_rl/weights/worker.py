"""What a vLLM worker does with new weights; vLLM mixes it into its own worker class (worker_extension_cls).

vLLM loads what matches and at most warns about the rest. Here a parameter that did not get all of its elements is an
error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmprm.errors import TrainingError
from policy_rl.weights.transfer import checksum

NAMED_IN_ERROR = 5


class WeightLoading:
    vllm_config: Any
    model_runner: Any

    def load_weight_files(self, folder: str, version: int, checksums: Mapping[str, int]) -> tuple[int, int]:
        """Load every tensor of a version; returns how many, and their bytes, as they lay in the files."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        counted = [0, 0]
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            try:
                model.load_weights(read_weights(Path(folder), version, checksums, counted))
                self.check_weights_complete()
            finally:  # whatever came, so that a later load can be complete
                finalize_layerwise_reload(model, self.vllm_config.model_config)
            self.renew_tied_weights()
        self.model_runner.reset_lora_state()
        return counted[0], counted[1]

    def check_weights_complete(self) -> None:
        """After all tensors of an update are loaded, before vLLM finishes it."""
        short = incomplete_parameters(self.model_runner.get_model())
        if short:
            named = ", ".join(short[:NAMED_IN_ERROR])
            raise TrainingError(
                f"new weights leave {len(short)} layers of the engine's model incomplete: {named}; "
                "the trainer must send every tensor of the checkpoint, by its name there"
            )

    def renew_tied_weights(self) -> None:
        """A layer that shares its weight with the embedding is not loaded by itself, and on CPU it computes with a
        packed copy, which vLLM does not renew."""
        for layer in tied_layers(self.model_runner.get_model()):
            layer.quant_method.process_weights_after_loading(layer)


def read_weights(
    folder: Path, version: int, checksums: Mapping[str, int], counted: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all files, each the one that was written; `counted` becomes [tensors, bytes]."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("version")
            if found != str(version):
                raise TrainingError(f"{path}: holds weights of version {found}, not {version}")
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if checksum(tensor) != checksums.get(name):
                    raise TrainingError(
                        f"{path}: {name} is not the tensor that the trainer wrote for version {version}: their "
                        "checksums differ; does another run, or another machine, use this weights.folder?"
                    )
                counted[0], counted[1] = counted[0] + 1, counted[1] + tensor.nbytes
                yield name, tensor


def incomplete_parameters(model: nn.Module) -> list[str]:
    """Layers whose parameters did not get all of their elements in a load that vLLM has begun and not finished.

    vLLM counts the elements of each layer, and ends the layer when all have come. What is left may be: a layer without
    parameters; the scales of an attention layer, which keep their values; an embedding, padded beyond the vocabulary;
    a tied layer.
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
    """Embedding-like layers that share their weight with one that comes earlier."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    seen, tied = set(), []
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            # During a load, vLLM keeps a layer's own tensors aside.
            kept = get_layerwise_info(layer).kernel_tensors
            weight = id(kept[0]["weight"] if kept is not None else layer.weight)
            if weight in seen:
                tied.append(layer)
            seen.add(weight)
    return tied
