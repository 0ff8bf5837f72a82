"""Define the tiny Omni policy, a Qwen2.5-Omni thinker with about 1.2 million parameters, and its processor."""

from __future__ import annotations

from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from mmprm.backbone.omni import OmniForConditionalGeneration
from mmprm.data.media import SAMPLE_RATE
from mmprm.tiny.image import CELL
from mmprm.tiny.model import HIDDEN, POSITIONS, generation_settings, text_settings
from mmprm.tiny.omni_words import OMNI_WORDS
from mmprm.tiny.tokenizer import END, PAD, UNKNOWN, build_tokenizer

MEDIA_TOKENS = {
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "audio_token": "<|AUDIO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
"""Maps the names of Qwen2.5-Omni's special tokens to the tokens."""
PIXELS = {"min_pixels": CELL * CELL, "max_pixels": 16 * CELL * CELL}
"""Limits of frames and images to set with engine.min_pixels and engine.max_pixels. Without them, Qwen2.5-Omni's
processor scales every frame up to at least 128 tokens, whatever the checkpoint says."""
AUDIO_SECONDS = 8
MEL_BINS = 32

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_omni_processor() -> Qwen2_5OmniProcessor:
    """Build the processor with the tiny policy's tokenizer and the tokens of the clips' words and of media."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(OMNI_WORDS).backend_tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=MEDIA_TOKENS,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )
    shape = {"patch_size": CELL // 2, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": PIXELS["min_pixels"], "longest_edge": PIXELS["max_pixels"]}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **shape),
        video_processor=Qwen2VLVideoProcessor(size=size, **shape),
        feature_extractor=WhisperFeatureExtractor(
            feature_size=MEL_BINS, sampling_rate=SAMPLE_RATE, chunk_length=AUDIO_SECONDS, return_attention_mask=True
        ),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE,
    )


def build_omni_model(tokenizer: PreTrainedTokenizerFast) -> OmniForConditionalGeneration:
    """Build the model with random weights, drawn from torch's global random state."""
    token = tokenizer.convert_tokens_to_ids
    tower = 64
    config = Qwen2_5OmniThinkerConfig(
        text_config=text_settings(tokenizer),
        vision_config={
            "depth": 2,
            "hidden_size": tower,
            "intermediate_size": 2 * tower,
            "num_heads": 2,
            "patch_size": CELL // 2,
            "window_size": 4 * CELL,
            "fullatt_block_indexes": [1],
            "out_hidden_size": HIDDEN,
        },
        audio_config={
            "num_mel_bins": MEL_BINS,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * tower,
            "d_model": tower,
            "output_dim": HIDDEN,
        },
        image_token_index=token(MEDIA_TOKENS["image_token"]),
        video_token_index=token(MEDIA_TOKENS["video_token"]),
        audio_token_index=token(MEDIA_TOKENS["audio_token"]),
        vision_start_token_id=token(MEDIA_TOKENS["vision_bos_token"]),
        vision_end_token_id=token(MEDIA_TOKENS["vision_eos_token"]),
        audio_start_token_id=token(MEDIA_TOKENS["audio_bos_token"]),
        audio_end_token_id=token(MEDIA_TOKENS["audio_eos_token"]),
        user_token_id=token("user"),
        tie_word_embeddings=False,
    )
    model = OmniForConditionalGeneration(config)
    model.generation_config = generation_settings(tokenizer)
    return model
