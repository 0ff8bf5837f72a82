"""Compute a model's layer sizes and parameter counts from config.json alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmprm.backbone.freeze import PARTS
from mmprm.backbone.load import class_of
from mmprm.backbone.omni import THINKER
from mmprm.backbone.trainable import TrainableConfig, prepare_training
from mmprm.errors import ConfigError
from mmprm.model_limits import check_planning
from mmprm.planning.architectures import ARCHITECTURES, published
from mmprm.planning.memory import Layers
from mmprm.training.lora import LoraConfig

NO_SHAPES: Mapping[str, str] = MappingProxyType({})
TILES = 13
"""Maximum number of tiles that InternVL's processor cuts an image into, including the thumbnail."""
LARGEST_IMAGE = 16384
"""Maximum number of tokens per image of a Qwen-VL processor without `max_pixels`."""
LONGEST_AUDIO = 7500
"""Maximum number of tokens per recording of Qwen2.5-Omni: 300 seconds with 25 tokens each."""
_EMBEDDINGS = r"(embed_tokens|lm_head)\."
_EXPERTS = r"\.experts\."


@dataclass(frozen=True, slots=True)
class Tower:
    """Describes a vision tower: its layers, and how many tokens an image has. An audio tower is described likewise,
    with recordings as its images.

    `tokens` is the number of vision tokens per image token, that is, per position of an image in the language model.
    """

    layers: Layers
    tokens: float
    length: float
    """Number of vision tokens that attend to each other: one InternVL tile, one window or, for other models, an assumed
    1024. For audio, a window of two seconds."""
    features: int
    """Number of features per image token: one, plus one for each deepstack layer of Qwen3-VL."""
    largest: int
    """Maximum number of image tokens per image."""
    pixels: int | None
    """Number of pixels per image token, or None if the processor cuts images into tiles of a fixed size."""
    unsplit: int = 0
    """Number of parameters that vLLM replicates on every GPU under tensor parallelism: InternVL's attention layers, and
    the whole audio tower."""

    def image_tokens(self, max_pixels: int | None) -> int:
        """Return the maximum number of image tokens per image, taking `max_pixels` into account if it is set."""
        if self.pixels is None or max_pixels is None:
            return self.largest
        return min(self.largest, max(1, max_pixels // self.pixels))


@dataclass(frozen=True, slots=True)
class Shape:
    """Describes a model's layer sizes and parameter counts. `parts` holds (trained, frozen) parameter counts; `largest`
    is its largest tensor's size."""

    parts: dict[str, tuple[int, int]]
    largest: int
    rows: int
    """Number of rows of the output layer (the vocabulary size)."""
    context: int
    """Maximum sequence length in tokens."""
    unused: int
    """Number of expert parameters that are inactive for a given token."""
    language: Layers
    vision: Tower | None
    audio: Tower | None = None
    converted: int = 0
    """Number of parameters that transformers rearranges when it loads a checkpoint: the expert parameters. At ZeRO
    stage 3, every rank holds all of them in CPU memory while it loads."""

    @property
    def towers(self) -> dict[str, Tower]:
        """Return the towers by the part of the model that they are, "vision" or "audio".

        A token of the language model has features of at most one of them.
        """
        found = {"vision": self.vision, "audio": self.audio}
        return {part: tower for part, tower in found.items() if tower is not None}

    @property
    def trained(self) -> int:
        """Return the number of trained parameters."""
        return sum(trained for trained, _ in self.parts.values())

    @property
    def frozen(self) -> int:
        """Return the number of frozen parameters."""
        return sum(frozen for _, frozen in self.parts.values())

    @property
    def total(self) -> int:
        """Return the total number of parameters."""
        return self.trained + self.frozen

    @property
    def active(self) -> int:
        """Return the number of parameters that are active for a given token."""
        return self.total - self.unused

    def trains(self, part: str) -> bool:
        """Return whether a part of the model, such as "vision" or "embeddings", has any trained parameters."""
        return self.parts.get(part, (0, 0))[0] > 0


def shape_text(name: str, shape: Shape) -> str:
    """Format a model's parameter counts as a table."""
    lines = [f"{name}: parameters".ljust(40) + f"{'trained':>20}{'frozen':>20}"]
    rows = {**shape.parts, "total": (shape.trained, shape.frozen)}
    lines += [f"  {part:<38}{trained:>20,}{frozen:>20,}" for part, (trained, frozen) in rows.items()]
    if shape.unused:
        lines.append(f"  {'of these active per token':<38}{shape.active:>20,}")
    return "\n".join(lines)


@lru_cache(maxsize=64)
def shape_of(
    model: str,
    frozen: tuple[str, ...] = (),
    lora: LoraConfig | None = None,
    judges: bool = False,
    key: str = "model",
) -> Shape:
    """Return the layer sizes and parameter counts of a model, with parts frozen and adapters added as in training.

    The model is built on the meta device, without allocating weights. With adapters, a PRM (`judges`) also trains rows
    of its embeddings. `key` names the model's setting in error messages.
    """
    model_config = _model_config(model, key)
    check_planning(model, model_config.model_type, key)
    kind, own_config = class_of(model_config)
    with torch.device("meta"):
        backbone = getattr(kind, "from_config", kind)(own_config)
        # Any token ids will do, because only their number affects the sizes.
        input_rows, output_rows = ([0], [1, 2]) if judges else ([], [])
        prepare_training(backbone, TrainableConfig(frozen=frozen, lora=lora), input_rows, output_rows)
    parts = {part: [0, 0] for part in (*PARTS, "embeddings")}
    largest = in_experts = 0
    for name, parameter in backbone.named_parameters():
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "language")
        part = "embeddings" if re.search(_EMBEDDINGS, name) else part
        parts[part][not parameter.requires_grad] += parameter.numel()
        largest = max(largest, parameter.numel())
        in_experts += parameter.numel() if re.search(_EXPERTS, name) else 0
    text = own_config.get_text_config()
    language = _language(text, any("layers.0.self_attn.q_norm" in name for name in backbone.state_dict()))
    unused_share = 1 - language.routed / language.experts if language.experts else 0.0
    return Shape(
        parts={part: (trained, frozen) for part, (trained, frozen) in parts.items() if trained or frozen},
        largest=largest,
        rows=text.vocab_size,
        context=text.max_position_embeddings,
        unused=round(in_experts * unused_share),
        language=language,
        vision=_tower(own_config),
        audio=_audio_tower(own_config, backbone),
        converted=in_experts,
    )


def _model_config(model: str, key: str) -> Any:
    try:
        return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        shape = published(model)
        if shape is None:
            raise ConfigError(
                f"{key}={model}: config.json not found; give a folder that contains it (weights are not needed), or "
                f"name the published model that it will be like, such as --set 'hardware.shapes={{{model}: "
                f"Qwen2.5-VL-7B-Instruct}}' (built in: {', '.join(ARCHITECTURES)})"
            ) from error
        values = {key: value for key, value in shape.items() if key != "model_type"}
        return CONFIG_MAPPING[shape["model_type"]](**values)


def _language(text: Any, normalizes_heads: bool) -> Layers:
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    experts = getattr(text, "num_experts", 0) or 0
    routed = text.num_experts_per_tok if experts else 0
    return Layers(
        count=text.num_hidden_layers,
        hidden=text.hidden_size,
        attention=heads * size,
        intermediate=routed * text.moe_intermediate_size if experts else text.intermediate_size,
        heads=heads,
        gated=True,
        key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
        normalizes_heads=normalizes_heads,
        experts=experts,
        routed=routed,
    )


def _tower(model_config: Any) -> Tower | None:
    vision = getattr(model_config, "vision_config", None)
    if vision is None:
        return None
    if model_config.model_type == "internvl":
        heads, depth = vision.num_attention_heads, vision.num_hidden_layers
        tile = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1]) + 1
        layers = Layers(depth, vision.hidden_size, vision.hidden_size, vision.intermediate_size, heads, False)
        per_tile = model_config.image_seq_length
        attention = 4 * depth * vision.hidden_size**2
        return Tower(layers, tile / per_tile, float(tile), 1, TILES * per_tile, None, attention)
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL names its hidden size embed_dim
    inner = getattr(vision, "intermediate_size", None) or int(hidden * vision.mlp_ratio)
    gated = model_config.model_type in ("qwen2_5_vl", THINKER)
    layers = Layers(vision.depth, hidden, hidden, inner, vision.num_heads, gated)
    window = getattr(vision, "window_size", None)
    length = (window // vision.patch_size) ** 2 if window else 1024
    features = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    pixels = (vision.patch_size * vision.spatial_merge_size) ** 2
    return Tower(layers, float(vision.spatial_merge_size**2), float(length), features, LARGEST_IMAGE, pixels)


def _audio_tower(model_config: Any, backbone: Any) -> Tower | None:
    """Describe the audio tower of Qwen2.5-Omni. After its convolutions, a token has two positions, which are averaged
    after the layers. Two seconds, 2 · n_window frames of the spectrum or n_window positions, attend to each other."""
    audio = getattr(model_config, "audio_config", None)
    if audio is None:
        return None
    heads = audio.encoder_attention_heads
    layers = Layers(audio.encoder_layers, audio.d_model, audio.d_model, audio.encoder_ffn_dim, heads, False)
    whole = sum(parameter.numel() for parameter in backbone.model.audio_tower.parameters())
    return Tower(layers, 2.0, float(audio.n_window), 1, LONGEST_AUDIO, None, whole)
