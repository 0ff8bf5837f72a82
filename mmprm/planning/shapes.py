"""Read the shape of a model to train, its parameters by part and its layers, from config.json alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from mmprm.backbone.freeze import PARTS
from mmprm.errors import ConfigError
from mmprm.planning.architectures import published
from mmprm.planning.memory import Layers
from mmprm.prm.train import TrainConfig, prepare

_EMBEDDINGS = r"(embed_tokens|lm_head)\."


@dataclass(frozen=True, slots=True)
class Shape:
    """Describes a model. `parts` maps a name to (trained, frozen) parameters; `largest` counts its largest tensor."""

    parts: dict[str, tuple[int, int]]
    largest: int
    language: Layers
    vision: Layers | None
    vision_tokens: float
    """Number of vision tower tokens per image token of the language model."""
    vision_length: float
    """Number of tokens that attend to each other in the vision tower."""

    @property
    def trained(self) -> int:
        """Return the number of trained parameters."""
        return sum(trained for trained, _ in self.parts.values())

    @property
    def frozen(self) -> int:
        """Return the number of frozen parameters."""
        return sum(frozen for _, frozen in self.parts.values())


def shape_of(config: TrainConfig) -> Shape:
    """Build the model on the meta device, frozen and adapted as training does, without creating weights."""
    model_config = _model_config(config.base)
    pictures = type(model_config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    with torch.device("meta"):
        kind = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
        backbone = kind.from_config(model_config)
        prepare(_Sketch(backbone), config)
    parts = {part: [0, 0] for part in (*PARTS, "embeddings")}
    sizes = [0]
    for name, parameter in backbone.named_parameters():
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "language")
        part = "embeddings" if re.search(_EMBEDDINGS, name) else part
        parts[part][not parameter.requires_grad] += parameter.numel()
        sizes.append(parameter.numel())
    text = model_config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_attention_heads
    vision, tokens, length = _vision(model_config)
    return Shape(
        parts={part: (trained, frozen) for part, (trained, frozen) in parts.items() if trained or frozen},
        largest=max(sizes),
        language=Layers(text.num_hidden_layers, text.hidden_size, heads * size, text.intermediate_size, heads, True),
        vision=vision,
        vision_tokens=tokens,
        vision_length=length,
    )


class _Sketch(nn.Module):
    """Provides what `prepare` needs of a StepJudge; the token ids are arbitrary, because they do not change sizes."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone, self.marker_id, self.judgement_ids = backbone, 0, [1, 2]


def _model_config(base: str) -> Any:
    try:
        return AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        shape = published(base)
        if shape is None:
            raise ConfigError(
                f"base={base}: config.json not found ({str(error).splitlines()[0]}); give a folder that contains it, "
                "weights are not needed"
            ) from error
        values = {key: value for key, value in shape.items() if key != "model_type"}
        return CONFIG_MAPPING[shape["model_type"]](**values)


def _vision(model_config: Any) -> tuple[Layers | None, float, float]:
    """Return (layers, vision tokens per image token, tokens that attend to each other)."""
    vision = getattr(model_config, "vision_config", None)
    if vision is None:
        return None, 0.0, 0.0
    if model_config.model_type == "internvl":
        heads, depth = vision.num_attention_heads, vision.num_hidden_layers
        tile = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1]) + 1
        layers = Layers(depth, vision.hidden_size, vision.hidden_size, vision.intermediate_size, heads, False)
        return layers, tile / model_config.image_seq_length, float(tile)
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL names its hidden size embed_dim
    inner = getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio)
    gated = model_config.model_type == "qwen2_5_vl"
    merged = float(vision.spatial_merge_size**2)
    window = getattr(vision, "window_size", None)
    length = (window // vision.patch_size) ** 2 if window else 1024
    return Layers(vision.depth, hidden, hidden, inner, vision.num_heads, gated), merged, float(length)
