"""Test the text of token ids in several kinds of vocabulary, cut at step borders."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmprm.sampling.token_text import TokenText
from mmprm.steps import split
from mmprm.types import Tokens

END = "<|end|>"
PATTERNS = {
    "llama 3": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
TEXTS = {
    "tags": "<step>2×3=6。</step><step>So: 面積６€</step>\r\n\r\n<step>😀\t</step> \n<step></step>  <answer>6</answer>",
    "numbered": "步骤1：面积。\r\n步骤2：好😀。\n\n步骤3：结束 \n答案：6",
    "blank_lines": "We have:\r\n\r\n  - a 😀\r\n\r\n\t- b = 2   \n \n\n\nThus é 3。\n\n最后",
}


def byte_level(pattern: str, size: int = 700) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    return as_transformers(tokenizer)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer with ▁ for spaces and byte tokens for non-ASCII characters."""
    merges = [("s", "t"), ("st", "e"), ("ste", "p"), (">", "▁"), ("▁", "<"), (">", "<")]
    words = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *map(chr, range(33, 127)),
        "▁",
        *map("".join, merges),
    ]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return as_transformers(tokenizer)


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)


TOKENIZERS = {name: byte_level(pattern) for name, pattern in PATTERNS.items()}
TOKENIZERS |= {"single bytes": byte_level(PATTERNS["llama 3"], 257), "pieces": sentence_pieces()}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def ids_of(tokenizer: Any, text: str, cuts: int, rng: random.Random) -> list[int]:
    """Tokenize a text in pieces, which gives other ids than tokenizing the whole text."""
    positions = [0, *sorted(rng.sample(range(1, len(text)), cuts)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(positions)]
    return [index for piece in pieces for index in tokenizer.encode(piece, add_special_tokens=False)]


@each_tokenizer
@pytest.mark.parametrize("step_format", TEXTS)
def test_ids_plus_missing_text_equal_the_prefix(tokenizer: Any, step_format: Any) -> None:
    text, token_text, rng = TEXTS[step_format], TokenText(tokenizer), random.Random(step_format)
    for cuts in (0, 3, 12):
        tokens = token_text.tokens([*ids_of(tokenizer, text, cuts, rng), tokenizer.eos_token_id], text)
        assert tokens is not None
        end = 0
        for step in split(text, step_format).steps[:-1]:
            end += len(step)
            ids = tokens.ids[: tokens.whole_in(end)]
            rest = token_text.missing(ids, text[:end])
            assert tokenizer.decode(ids) + rest == text[:end]
            assert rest == "" or not token_text.missing(tokens.ids[: len(ids) + 1], text[:end]), "only whole tokens"


@each_tokenizer
def test_ids_that_end_inside_a_character_are_rejected(tokenizer: Any) -> None:
    token_text = TokenText(tokenizer)
    euro = tokenizer.encode("€😀ü", add_special_tokens=False)
    for length in range(len(euro) + 1):
        written = tokenizer.decode(euro[:length])
        rest = token_text.missing(euro[:length], "€😀ü")
        assert rest == (None if "�" in written else "€😀ü"[len(written) :])


def test_a_word_that_a_byte_level_vocabulary_contains_verbatim() -> None:
    tokenizer = byte_level(PATTERNS["llama 3"])
    tokenizer.convert_ids_to_tokens = lambda index: "步骤"
    assert TokenText(tokenizer).tokens([300], "步骤") == Tokens((300,), (2,))
