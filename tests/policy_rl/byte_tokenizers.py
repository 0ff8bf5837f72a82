"""Build small tokenizers whose tokens can end inside a character, for tests of text offsets."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|im_end|>"


def byte_level(merges: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, plus one per text in `merges`, merged from the left."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = []
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    for text in merges:
        symbols = list(encode(text)[0][0])
        while len(symbols) > 1:
            left, right, *rest = symbols
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                pairs.append((left, right))
            symbols = [left + right, *rest]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def sentence_piece() -> PreTrainedTokenizerFast:
    """Return a tokenizer of characters, ▁ for spaces, and bytes for the rest; decoding drops the leading space."""
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz<>/=0123456789.\n"]
    vocabulary = {symbol: index for index, symbol in enumerate(["<unk>", *(f"<0x{n:02X}>" for n in range(256))])}
    vocabulary |= {symbol: index for index, symbol in enumerate(characters, start=len(vocabulary))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
