"""Train low-rank adapters (LoRA) with peft, and merge them into the model's weights.

W' = W + (alpha / rank) · B A for the layers matched by `targets` (Hu et al. 2021). Single rows of the embeddings and of
the output layer, in particular those of new tokens, are trained directly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmprm.config import Config
from mmprm.errors import ConfigError
from mmprm.training.sharding import whole

LAYERS = r"^model\.(language_model\.)?layers\..*_proj$"
_ADAPTER = "default"


class LoraConfig(Config):
    rank: int = Field(16, ge=1)
    """Rank of the adapter's matrices A and B."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapter, whose output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability for the adapter's inputs."""
    targets: tuple[str, ...] = (LAYERS,)
    """Regular expressions for the names of linear layers that get an adapter. Default: all projections (*_proj) in the
    language model's layers."""


def add_adapters(
    backbone: PreTrainedModel, config: LoraConfig, input_rows: Sequence[int], output_rows: Sequence[int]
) -> None:
    """Add adapters in place, and freeze all other weights except the given rows of the embeddings and the output layer.

    Frozen layers get no adapter. The output of the model does not change. On several ranks, torch's random state must
    be equal. Raises ConfigError if no layer gets an adapter, or if the output layer would get one: only its weights are
    read, and its forward pass never runs.
    """
    import peft

    layers = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    named = {name for name in layers if any(re.search(pattern, name) for pattern in config.targets)}
    if not named:
        shown = ", ".join(sorted({re.sub(r"\.\d+\.", ".0.", name) for name in layers})[:12])
        raise ConfigError(
            f"lora.targets={list(config.targets)}: must match a linear layer; the layers are {shown}, …; correct the "
            "expressions"
        )
    targets = {name for name in named if backbone.get_submodule(name).weight.requires_grad}
    if not targets:
        raise ConfigError("lora.targets matches only frozen layers; remove a part from frozen, or choose other targets")
    embedding, output = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    names = {id(module): name for name, module in backbone.named_modules()}
    if names[id(output)] in named:
        raise ConfigError(
            f"lora.targets={list(config.targets)}: must not match the output layer {names[id(output)]}, where an "
            "adapter would not learn; name layers of the blocks, as the default does"
        )
    if embedding.weight is output.weight:  # tied weights are one table
        rows = {names[id(embedding)]: sorted({*input_rows, *output_rows})}
    else:
        rows = {names[id(embedding)]: sorted(set(input_rows)), names[id(output)]: sorted(set(output_rows))}
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        trainable_token_indices={table: chosen for table, chosen in rows.items() if chosen} or None,
    )
    with whole([embedding.weight, output.weight]):
        peft.inject_adapter_in_model(settings, backbone, adapter_name=_ADAPTER)


def plain_weights(backbone: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapters of `backbone` into `weights`, and return the state dict of the model without adapters.

    `weights` are full tensors. W + (alpha / rank) · B A is computed in float32 and rounded to W's type. Trained rows
    replace those of their table.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    copies: dict[int, Tensor] = {}  # tied tables stay tied
    plain = {re.sub(r"\.(token_adapter\.)?base_layer\.", ".", name): tensor for name, tensor in weights.items()}
    for name, module in backbone.named_modules():
        if isinstance(module, LoraLayer):
            a, b = (plain.pop(f"{name}.lora_{part}.{_ADAPTER}.weight").float() for part in "AB")
            weight = plain[f"{name}.weight"]
            plain[f"{name}.weight"] = (weight.float() + module.scaling[_ADAPTER] * (b @ a)).to(weight.dtype)
        elif isinstance(module, TrainableTokensLayer):
            table = f"{name.removesuffix('.token_adapter')}.weight"
            trained = plain.pop(f"{name}.trainable_tokens_delta.{_ADAPTER}")
            plain[table] = copies.setdefault(id(plain[table]), plain[table].clone())
            plain[table][module.token_indices[_ADAPTER]] = trained.to(plain[table].dtype)
    return plain
