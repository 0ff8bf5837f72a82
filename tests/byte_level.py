"""Provide a small byte-level tokenizer that splits text like Qwen's, and texts in every step format."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|im_end|>"
TEXTS = {
    "tags, one after the other": ("tags", "<step>2×3=6.</step><step>So it is 6.</step><answer>6</answer>"),
    "tags, line by line": ("tags", "<step>2×3=6.</step>\n<step>So it is 6.</step>\n<answer>6</answer>"),
    "tags, blank lines": ("tags", "<step>\n2×3=6.\n</step>\n\n<step>\nSo it is 6.\n</step>\n\n<answer>6</answer>"),
    "blank lines": ("blank_lines", "The area is $2\\times 3$.\n\nSo it is 6.\n\nThe answer is \\boxed{6}"),
    "blank lines, indented": ("blank_lines", "We have:\n\n  - a = 1\n\n  - b = 2\n\nThus 3."),
    "blank lines, formulas": ("blank_lines", "We have\n\\[ x=1 \\]\n\nSo\n\n\\[ y=2 \\]\n\nDone."),
    "numbered": ("numbered", "Step 1: The area is 6.\nStep 2: Done.\nThe final answer is 6"),
    "numbered, headings": ("numbered", "### Step 1: Area\nIt is 6.\n\n### Step 2: End\nDone."),
}
"""Name → (markup, text)."""


def qwen_like() -> PreTrainedTokenizerFast:
    r"""Return a tokenizer in which every piece of the pre-tokenizer is one token, such as `><`, `>\n`, `.\n\n` and `
    -`.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for _, text in TEXTS.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)
