"""Build the tokenizer of the tiny policy (about 140 tokens, ChatML) and its Qwen2.5-VL processor.

Words that belong together are one token. In particular, `blue=` is one token, so the token that asks for a digit also
names the cell. Otherwise a model of this size does not learn to read an image within minutes. Printable ASCII is
covered character by character, so any English text can be encoded.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from mmprm.tiny.image import CELL, COLORS
from mmprm.tiny.world import HEAD, OPERATORS, TAIL

PAD = "<|endoftext|>"
END = "<|im_end|>"
UNKNOWN = "<|unknown|>"
SPECIAL = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", UNKNOWN)
WORDS = (
    *("system", "user", "assistant", "Question:", "Process:", "Yes", "No"),
    *("<step>", "</step>", "<answer>", "</answer>", "<think>", "</think>"),
    *(HEAD, TAIL, *(f" {operator} " for operator in OPERATORS)),
    *COLORS,
    *(f"{color}=" for color in COLORS),
)
CHARACTERS = (*string.digits, *string.ascii_letters, *string.punctuation, " ", "\n", "×")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(extra_words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build the tiny policy's tokenizer with its chat template, and with a token for each extra word."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS, *CHARACTERS, *extra_words))}
    words = sorted((*WORDS, *extra_words), key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    pattern = Regex("|".join([*map(re.escape, words), r"[\s\S]"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[token for token in SPECIAL if token not in (PAD, END, UNKNOWN)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor(extra_words: Sequence[str] = ()) -> Qwen2_5_VLProcessor:
    """Build the Qwen2.5-VL processor that uses the tiny policy's tokenizer."""
    pixels = {"shortest_edge": CELL * CELL, "longest_edge": 64 * CELL * CELL}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=CELL // 2, merge_size=2, temporal_patch_size=2),
        tokenizer=build_tokenizer(extra_words),
        video_processor=Qwen2VLVideoProcessor(size=pixels, patch_size=CELL // 2, merge_size=2, temporal_patch_size=2),
        chat_template=CHAT_TEMPLATE,
    )
