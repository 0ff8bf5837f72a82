"""Compare token ids with text: find the end of each token, and the part of a prefix that the ids do not cover."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

from mmprm.types import Tokens


class TokenText:
    """Maps each token of a tokenizer to its bytes, so that token ids can be compared with text without decoding.

    Special tokens have no text. A tokenizer whose tokens do not simply concatenate to the text (SentencePiece at the
    beginning of a text) yields no Tokens there.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._literal = {index: str(token) for index, token in added.items()}
        self._special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._style = _style(tokenizer)
        self._bytes_of = functools.cache(self._bytes)

    def tokens(self, ids: Sequence[int], text: str, begin: int = 0) -> Tokens | None:
        """Return all tokens with their end offsets relative to character `begin`, or None if the ids do not spell
        `text`.

        The ids may extend beyond the text. Trailing special tokens are dropped; any other special token gives None,
        because a prefix contains only what its text shows.
        """
        ids = tuple(ids)
        while ids and ids[-1] in self._special:
            ids = ids[:-1]
        pieces = [self._bytes_of(index) for index in ids]
        written = b"".join(pieces)
        if not self._special.isdisjoint(ids) or not written.startswith(text.encode("utf-8", "surrogatepass")):
            return None
        ends = _character_ends(written, list(itertools.accumulate(map(len, pieces))))
        return Tokens(ids, tuple(end - begin for end in ends) if begin else ends)

    def missing(self, ids: Sequence[int], prefix: str) -> str | None:
        """Return the suffix of `prefix` that the ids do not cover.

        Returns None if the ids spell something else or end inside a character.
        """
        written = b"".join(map(self._bytes_of, ids))
        whole = prefix.encode("utf-8", "surrogatepass")
        rest = whole[len(written) :]
        if not whole.startswith(written) or (rest and _is_within_character(rest[0])):
            return None
        return rest.decode("utf-8", "surrogatepass")

    def _bytes(self, index: int) -> bytes:
        if index in self._special:
            return b""
        if index in self._literal:
            return self._literal[index].encode()
        token = self._tokenizer.convert_ids_to_tokens(index)
        if token is None:  # an embedding row beyond the vocabulary
            return b""
        if self._style == "bytes":
            alphabet = _byte_alphabet()
            if not alphabet.keys() >= set(token):  # words added to a vocabulary verbatim, which decode to themselves
                return token.encode()
            return bytes(alphabet[character] for character in token)
        if self._style == "pieces":
            if len(token) == 6 and token.startswith("<0x"):
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode()
        return self._tokenizer.decode([index]).encode()


def _style(tokenizer: Any) -> str:
    """Return how the vocabulary represents text: "bytes" (byte-level BPE), "pieces" (SentencePiece) or "text"."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False) if backend else ""
    if '"ByteLevel"' in decoder:
        return "bytes"
    return "pieces" if "ByteFallback" in decoder or "▁" in decoder else "text"


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Map each character in a byte-level BPE vocabulary to the byte that it represents. Printable Latin-1 bytes are
    represented by themselves, others by characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _is_within_character(byte: int) -> bool:
    """Return whether a byte is a UTF-8 continuation byte."""
    return byte & 0xC0 == 0x80


def _character_ends(written: bytes, ends: list[int]) -> tuple[int, ...]:
    """Convert the tokens' byte offsets to character offsets.

    An offset inside a character maps to the next offset at a character boundary.
    """
    if written.isascii():
        return tuple(ends)
    begins = [int(not _is_within_character(byte)) for byte in written]
    characters = [0, *itertools.accumulate(begins)]
    found: list[int] = []
    after = 0
    for end in reversed(ends):
        if end == len(written) or begins[end]:
            after = characters[end]
        found.append(after)
    return tuple(reversed(found))
