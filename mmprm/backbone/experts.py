"""Store models in a layout that vLLM reads, where transformers' own differs: fused experts, and Qwen2.5-Omni.

transformers holds all experts of a layer as two tensors: gate_up_proj_E2IH and down_proj_EHI. Qwen3-VL-MoE is published
and stored with both transposed (E, H, 2I and E, I, H). The other types are stored with three matrices per expert.

Shapes: E expert, I intermediate, H hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mmprm.backbone.omni import THINKER, save_omni, stored_name

EXPERTS = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)$")
TRANSPOSED = ("qwen3_vl_moe",)
"""Model types whose published checkpoints hold transposed expert weights. Saving one with transformers transposes them
only if the model is sharded, and vLLM would misread the others."""


def stored_tensors(backbone: nn.Module, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Convert a model parameter to the tensors, by name, that a checkpoint stores for it."""
    config = getattr(backbone, "config", None)
    if config is not None and config.model_type == THINKER:
        return {stored_name(name): tensor}
    if not EXPERTS.search(name):
        return {name: tensor}
    if config is not None and config.model_type in TRANSPOSED:
        return {name: tensor.transpose(1, 2).contiguous()}
    return revert_weight_conversion(backbone, {name: tensor})


def save_backbone(backbone: PreTrainedModel, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write weights and configuration as a Hugging Face model folder that vLLM can read.

    `weights` is the state dict if it differs from the model's own.
    """
    if backbone.config.model_type == THINKER:
        save_omni(backbone, folder, backbone.state_dict() if weights is None else weights)
        return
    if backbone.config.model_type not in TRANSPOSED:
        backbone.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
        return
    weights = backbone.state_dict() if weights is None else weights
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stored |= stored_tensors(backbone, name, tensor)
    backbone.save_pretrained(folder, state_dict=stored, save_original_format=False)
