"""Test the start offsets of tokens on random responses against decoding each run of tokens separately."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest

from policy_rl.rewards.token_begins import Pieces, _begins, step_of_tokens, token_begins
from tests.policy_rl.byte_tokenizers import byte_level, sentence_piece

PIECES = ["a", "b", " ", "é", "€", "😀", "<step>", "</step>", ">\n", "\n\n", "\ufffd"]
TOKENIZERS = [byte_level, lambda: byte_level(["</step>", ">\n", "é ", " b", "€é"]), sentence_piece]


def responses(tokenizer: object, rng: random.Random) -> list[list[int]]:
    """Return token ids of texts, of texts with one token replaced, and of random tokens."""
    written = tokenizer.encode("".join(rng.choices(PIECES, k=rng.randint(1, 25))), add_special_tokens=False)
    changed = list(written)
    changed[rng.randrange(len(changed))] = rng.randrange(len(tokenizer))
    return [written, changed, [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_offsets_equal_those_of_separately_decoded_runs(make) -> None:
    tokenizer, rng = make(), random.Random(0)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    pieces = Pieces(decode)
    found = 0
    for ids in (ids for _ in range(150) for ids in responses(tokenizer, rng)):
        text = decode(ids)
        expected = _begins(ids, text, decode, 0)
        begins_T = pieces.begins(np.array(ids), text)
        assert begins_T is None or begins_T.tolist() == expected
        found += begins_T is not None
        if expected is not None:
            assert token_begins(ids, text, decode, pieces).tolist() == expected
    assert found > 50


def test_another_text_is_refused() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a€b", add_special_tokens=False)
    pieces = Pieces(lambda ids: tokenizer.decode(list(ids)))
    assert pieces.begins(np.array(ids), "a€b").tolist() == [0, 1, 1, 1, 2]
    assert [pieces.begins(np.array(ids), text) for text in ("a€", "a€bc", "b€b", "a€ ")] == [None] * 4


def test_long_spans_are_not_cached() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("😀€😀", add_special_tokens=False)
    pieces = Pieces(lambda ids: tokenizer.decode(list(ids)))
    assert pieces.begins(np.array(ids), "😀€😀").tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert pieces._cached_span.cache_info().currsize == 0


def test_steps_of_tokens_by_bisection() -> None:
    rng = random.Random(0)
    for _ in range(200):
        steps = ["x" * rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
        given = rng.randint(0, len(steps[0]))
        begins = sorted(rng.randint(0, len("".join(steps)) - given) for _ in range(rng.randint(1, 30)))
        *inner, _ = accumulate(map(len, steps))
        first = [0, *(bisect_left(begins, border - given) for border in inner), len(begins)]
        expected = [step for step in range(len(steps)) for _ in range(first[step], first[step + 1])]
        assert step_of_tokens(steps, np.array(begins), given).tolist() == expected
