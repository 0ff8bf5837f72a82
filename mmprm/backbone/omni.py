"""Train the language part ("thinker") of Qwen2.5-Omni, which reads text, images, videos and audio.

Its modules have the names of Qwen2.5-VL's (model.visual, model.language_model, lm_head), beside model.audio_tower, so
the rest of mmprm treats both alike. A stored folder has the full model's layout, which vLLM reads: names that begin
with `thinker.`, and a config.json of the whole model. The speech part (talker, token2wav) is neither loaded nor stored.

A video's audio is a separate item after the video. Qwen2.5-Omni's interleaved form (use_audio_in_video) is not
supported: transformers and vLLM number its positions differently, so their log-probabilities differ by 1e-3.

Shapes: B row, T token, X axis of the positions, F feature of an image, video or audio token, H hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationMixin, Qwen2_5OmniConfig, Qwen2_5OmniThinkerConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniAudioEncoder,
    Qwen2_5OmniPreTrainedModelForConditionalGeneration,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerTextModel,
    Qwen2_5OmniVisionEncoder,
)

from mmprm.data.media import SAMPLE_RATE

OMNI = "qwen2_5_omni"
"""Model type in config.json of the whole model."""
THINKER = "qwen2_5_omni_thinker"
"""Model type of the part that is trained."""
STORED_NAMES = {
    "thinker.model.": "model.language_model.",
    "thinker.visual.": "model.visual.",
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.lm_head.": "lm_head.",
}
"""Maps the beginnings of the names in a checkpoint to those of the model's parameters."""
VISION_TENSORS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}
"""Maps the processor's tensors of patches to those of their grids: images, then videos."""
SPEECH_TOKENS = 152_064
"""Vocabulary size of the speech part that a stored config.json names; its default token ids are smaller."""
STAND_IN = "stand_in_"
"""Begins the names of tensors whose features are computed but not used."""


class OmniModel(Qwen2_5OmniPreTrainedModelForConditionalGeneration):
    """Computes hidden states of text, images, videos and audio."""

    config: Qwen2_5OmniThinkerConfig
    position_inputs = ("image_grid_thw", "video_grid_thw", "video_second_per_grid", "feature_attention_mask")
    """Names of the processor's tensors on which the positions depend."""

    def __init__(self, config: Qwen2_5OmniThinkerConfig) -> None:
        super().__init__(config)
        self.visual = Qwen2_5OmniVisionEncoder._from_config(config.vision_config)
        self.audio_tower = Qwen2_5OmniAudioEncoder._from_config(config.audio_config)
        self.language_model = Qwen2_5OmniThinkerTextModel._from_config(config.text_config)
        self.spatial_merge_size = config.vision_config.spatial_merge_size
        self.post_init()

    _features_of_images = Qwen2_5OmniThinkerForConditionalGeneration.get_image_features
    _features_of_audio = Qwen2_5OmniThinkerForConditionalGeneration.get_audio_features

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def media_ids(self) -> tuple[int, ...]:
        """Return the ids of the tokens that stand for images, videos and audio, in the order of their features."""
        return self.config.image_token_id, self.config.video_token_id, self.config.audio_token_id

    def get_image_features(self, return_dict: bool = True, **media: Tensor) -> Any:
        """Return the features of all media as `pooler_output`, a tuple with one tensor_FH: images, videos, audio.

        `media` holds the processor's tensors by name. A tower runs at most once, the vision tower first: under ZeRO-3,
        all ranks must gather the same weights in the same order. Stand-ins make a tower run that other ranks run; their
        features are not used.
        """
        stand_in = {name.removeprefix(STAND_IN): media[name] for name in media if name.startswith(STAND_IN)}
        used: list[Tensor] = []
        unused: list[Tensor] = []
        for features in (self._vision_features, self._audio_features):
            found_FH = features(media)
            if found_FH is not None:
                used.append(found_FH)
            elif (found_FH := features(stand_in)) is not None:
                unused.append(found_FH)
        table_FH = torch.cat(used)
        for unused_FH in unused:
            table_FH = table_FH + unused_FH.sum() * 0.0
        return SimpleNamespace(pooler_output=(table_FH,))

    def _vision_features(self, media: Mapping[str, Tensor]) -> Tensor | None:
        """Return the features of images, followed by those of videos, or None without either."""
        names = [(pixels, grids) for pixels, grids in VISION_TENSORS.items() if pixels in media]
        if not names:
            return None
        pixels = torch.cat([media[name] for name, _ in names])
        grids = torch.cat([media[name] for _, name in names])
        return torch.cat(self._features_of_images(pixels, grids, return_dict=True).pooler_output)

    def _audio_features(self, media: Mapping[str, Tensor]) -> Tensor | None:
        if "input_features" not in media:
            return None
        mask = media["feature_attention_mask"]
        features_FH: Tensor = self._features_of_audio(media["input_features"], mask, return_dict=True).last_hidden_state
        return features_FH

    def get_rope_index(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        mm_token_type_ids: Tensor | None = None,
        video_second_per_grid: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        **grids: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return position_XBT and the rope deltas, as transformers computes them from the processor's tensors."""
        return super().get_rope_index(
            input_ids,
            attention_mask=attention_mask,
            audio_seqlens=None if feature_attention_mask is None else feature_attention_mask.sum(dim=1),
            second_per_grids=video_second_per_grid,
            **grids,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **media: Tensor,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states.

        The features in `mm_encoder_outputs["image"]` are in the order of their tokens. Without them, those of `media`
        are computed.
        """
        embeds_BTH = self.get_input_embeddings()(input_ids)
        if position_ids is None and media:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            named = {name: media[name] for name in self.position_inputs if name in media}
            position_ids, _ = self.get_rope_index(input_ids, mask, **named)
        features_FH = None
        if mm_encoder_outputs is not None:
            features_FH = torch.cat(tuple(mm_encoder_outputs["image"].pooler_output))
        elif media:
            (table_FH,) = self.get_image_features(**media).pooler_output
            features_FH = table_FH[feature_order(input_ids, self.media_ids()).to(table_FH.device)]
        if features_FH is not None:
            here_BT = torch.isin(input_ids, torch.tensor(self.media_ids(), device=input_ids.device))
            assert int(here_BT.sum()) == len(features_FH), "one feature per token of an image, video or audio"
            features_FH = features_FH.to(embeds_BTH.device, embeds_BTH.dtype)
            embeds_BTH = embeds_BTH.masked_scatter(here_BT[..., None], features_FH)
        output: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=embeds_BTH, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache
        )
        return output


class OmniForConditionalGeneration(Qwen2_5OmniPreTrainedModelForConditionalGeneration, GenerationMixin):
    """Computes logits of text that follows text, images, videos and audio."""

    config: Qwen2_5OmniThinkerConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = (r"^talker\.", r"^token2wav\.")

    def __init__(self, config: Qwen2_5OmniThinkerConfig) -> None:
        super().__init__(config)
        self.model = OmniModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def forward(self, input_ids: Tensor, **inputs: Any) -> CausalLMOutputWithPast:
        """Return the logits; see OmniModel.forward."""
        hidden_BTH = self.model(input_ids=input_ids, **inputs).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_BTH))


def feature_order(input_ids: Tensor, media_ids: Sequence[int]) -> Tensor:
    """Return, for each media token in order, the index of its feature among features sorted by kind, then by token.

    For the kinds [video, audio, video], this is [0, 2, 1].
    """
    ids_F = input_ids.flatten()
    kind_F = torch.full_like(ids_F, -1)
    for kind, media_id in enumerate(media_ids):
        kind_F[ids_F == media_id] = kind
    return kind_F[kind_F >= 0].argsort(stable=True).argsort()


def stand_in_media(processor: Any) -> dict[str, Tensor]:
    """Return the processor's tensors of a minimal image and a short silence, which make both towers run."""
    image = Image.new("RGB", (28, 28))
    silence = np.zeros(SAMPLE_RATE // 4, dtype=np.float32)
    text = processor.image_token + processor.audio_token
    inputs = processor(text=[text], images=[image], audio=[silence], return_tensors="pt")
    return {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}


def with_stand_ins(media: Mapping[str, Tensor], stand_in: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the tensors of `stand_in`, under other names, for the tower that does not read any of the media."""
    seen = media.keys() & VISION_TENSORS.keys()
    names = [] if seen else ["pixel_values", "image_grid_thw"]
    names += [] if "input_features" in media else ["input_features", "feature_attention_mask"]
    return {**media, **{STAND_IN + name: stand_in[name] for name in names}}


def stored_name(name: str) -> str:
    """Return the name that a checkpoint gives a parameter, such as thinker.model.norm.weight."""
    for stored, own in STORED_NAMES.items():
        if name.startswith(own):
            return stored + name.removeprefix(own)
    raise AssertionError(f"{name} belongs to no stored part")


def key_mapping() -> dict[str, str]:
    """Return the patterns with which from_pretrained renames a checkpoint's tensors."""
    return {f"^{re.escape(stored)}": own for stored, own in STORED_NAMES.items()}


def save_omni(backbone: Any, folder: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights and configuration in the layout of the whole model, without its speech part."""
    from huggingface_hub import save_torch_state_dict

    tied = backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight
    stored = {
        stored_name(name): tensor.contiguous()
        for name, tensor in weights.items()
        if not (tied and name == "lm_head.weight")
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(stored, folder)
    config = _whole_config(backbone.config, next(iter(stored.values())).dtype, tied)
    config.architectures = ["Qwen2_5OmniModel"]
    config.save_pretrained(folder)
    if backbone.generation_config is not None:
        backbone.generation_config.save_pretrained(folder)


def _whole_config(thinker: Qwen2_5OmniThinkerConfig, dtype: torch.dtype, tied: bool) -> Qwen2_5OmniConfig:
    values = thinker.to_dict()
    values["text_config"]["tie_word_embeddings"] = tied  # vLLM reads it there, transformers in the thinker's own
    # The speech part is not stored, but transformers warns about token ids that exceed its vocabulary.
    talker = {"vocab_size": SPEECH_TOKENS}
    return Qwen2_5OmniConfig(thinker_config=values, talker_config=talker, enable_audio_output=False, dtype=dtype)
