"""Choose which parts of a model are trained: freeze parameters, add adapters, checkpoint activations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from mmprm.backbone.freeze import PARTS
from mmprm.config import Config
from mmprm.errors import ConfigError
from mmprm.training.lora import LoraConfig, add_adapters


class TrainableConfig(Config):
    """Configures which weights of a model are trained."""

    frozen: tuple[str, ...] = ()
    """Parts to freeze (vision, audio, projector, language), or regular expressions for parameter names to freeze."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights, and merge them into the saved model. A PRM also trains the rows
    of its marker, Yes and No. null: train everything that is not frozen."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory but takes about a third more time."""


def prepare_training(
    backbone: PreTrainedModel,
    config: TrainableConfig,
    input_rows: Sequence[int] = (),
    output_rows: Sequence[int] = (),
) -> None:
    """Freeze the parameters matched by `frozen`, and add the adapters of `lora`.

    With adapters, the given rows of the embeddings and of the output layer are trained as well. Raises ConfigError if a
    pattern matches nothing, if adapters match the output layer, or if nothing is left to train.
    """
    _freeze(backbone, config.frozen)
    if config.lora is not None:
        add_adapters(backbone, config.lora, input_rows, output_rows)
    if config.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    backbone.train()


def _freeze(backbone: nn.Module, patterns: Sequence[str]) -> None:
    parameters = dict(backbone.named_parameters())
    for pattern in patterns:
        names = [name for name in parameters if re.search(PARTS.get(pattern, pattern), name)]
        if not names:
            begin = ", ".join(sorted({".".join(name.split(".")[:2]) for name in parameters}))
            raise ConfigError(
                f"frozen: {pattern!r} matches no parameter; use one of {', '.join(PARTS)}, or a regular expression for "
                f"parameter names, which begin with {begin}"
            )
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("frozen leaves no trainable parameter; remove a part from it")
