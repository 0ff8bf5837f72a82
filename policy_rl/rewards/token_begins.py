"""Find where each token begins in a response's text, and the step in which each token begins.

Shapes: T token of a response.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from mmprm.errors import TrainingError

CACHED = 2**18
"""Maximum number of token sequences whose text is cached, about the size of the largest vocabulary."""
CACHED_TOKENS = 4
"""Maximum number of tokens in a cached sequence: a UTF-8 character has at most four bytes."""
INCOMPLETE = "\ufffd"
"""Unicode replacement character, which tokenizers return for the bytes of an incomplete character."""
_NEW, _IN_SPAN = -2, -1

Decode = Callable[[Sequence[int]], str]


def caching(decode: Decode) -> Decode:
    """Return a decode function that caches the text of short token sequences."""
    cached = functools.lru_cache(CACHED)(decode)

    def decode_short(token_ids: Sequence[int]) -> str:
        return cached(tuple(token_ids)) if len(token_ids) <= CACHED_TOKENS else decode(token_ids)

    return decode_short


class Pieces:
    """Caches the text of tokens: of each single token and, for tokens with incomplete characters, of short spans."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._texts = np.zeros(0, dtype=object)
        self._lengths = np.zeros(0, dtype=np.int64)
        """Number of characters of each token: _NEW if not decoded yet, _IN_SPAN if it has an incomplete character."""
        self._cached_span = functools.lru_cache(CACHED)(self._span)

    def begins(self, ids_T: np.ndarray, text: str) -> np.ndarray | None:
        """Return the start offset of each token in `text`, or None if the decoded pieces do not add up to the text."""
        self._add(ids_T)
        texts_T, lengths_T = self._texts[ids_T], self._lengths[ids_T]
        in_spans = np.flatnonzero(lengths_T == _IN_SPAN)
        if len(in_spans):
            texts_T[in_spans], lengths_T[in_spans] = self._of_spans(ids_T, in_spans)
        if "".join(texts_T.tolist()) != text:
            return None
        return lengths_T.cumsum() - lengths_T

    def _add(self, ids_T: np.ndarray) -> None:
        """Decode the tokens that were not seen before."""
        missing = int(ids_T.max(initial=-1)) + 1 - len(self._texts)
        if missing > 0:
            self._texts = np.append(self._texts, np.full(missing, "", dtype=object))
            self._lengths = np.append(self._lengths, np.full(missing, _NEW))
        for token in np.unique(ids_T[self._lengths[ids_T] == _NEW]).tolist():
            text = self._decode([token])
            self._texts[token] = text
            self._lengths[token] = _IN_SPAN if INCOMPLETE in text else len(text)

    def _of_spans(self, ids_T: np.ndarray, in_spans: np.ndarray) -> tuple[list[str], list[int]]:
        """Return the texts and the character counts of the tokens at the indices `in_spans`.

        Neighbors form a span, whose whole text is assigned to its first token.
        """
        texts: list[str] = []
        lengths: list[int] = []
        ids = ids_T[in_spans].tolist()
        ends = np.flatnonzero(np.diff(in_spans, append=len(ids_T) + 1) > 1) + 1
        start = 0
        for stop in ends.tolist():
            span = tuple(ids[start:stop])
            of_span = self._cached_span(span) if len(span) <= CACHED_TOKENS else self._span(span)
            texts += of_span[0]
            lengths += of_span[1]
            start = stop
        return texts, lengths

    def _span(self, ids: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Decode a span of tokens; return the text and the number of characters of each token.

        The whole text is assigned to the first token. A token's characters are those up to the start of the next token.
        """
        text, begins, done = self._decode(ids), list[int](), 0
        while len(begins) < len(ids):
            run, end = _run(ids, len(begins), text, done, self._decode, 0)
            if end == done:  # no run of these tokens ends between characters, so the text depends on other tokens
                return ("",) * len(ids), (0,) * len(ids)
            begins += run
            done = end
        return (text, *("",) * (len(ids) - 1)), tuple(np.diff(begins, append=len(text)).tolist())


def token_begins(token_ids: Sequence[int], text: str, decode: Decode, pieces: Pieces | None = None) -> np.ndarray:
    """Return each token's start offset in `text`: the number of characters completed by the tokens before it.

    `text` must equal `decode(token_ids)`. Tokens are decoded in runs that begin and end between characters. If decoding
    a run depends on the tokens before it (SentencePiece drops a leading space, and garbles complete characters next to
    an incomplete one), the run is decoded with a few tokens of context, and if necessary with all of them.
    """
    begins_T = (Pieces(decode) if pieces is None else pieces).begins(np.asarray(token_ids, dtype=np.int64), text)
    if begins_T is not None:
        return begins_T
    ids = list(map(int, token_ids))
    for context in (0, 4, len(ids)):
        begins = _begins(ids, text, decode, context)
        if begins is not None:
            return np.array(begins, dtype=np.int64)
    raise TrainingError(
        f"the tokens of a response do not add up to its text {text[:80]!r}: this tokenizer changes text as it decodes; "
        "set clean_up_tokenization_spaces to false in its tokenizer_config.json"
    )


def step_of_tokens(steps: Sequence[str], begins_T: np.ndarray, given: int = 0) -> np.ndarray:
    """Return, for each token, the index of the step in which it starts. A token at the end belongs to the last step.

    The tokens are in text order. The first `given` characters of the steps are part of the prompt.
    """
    *inner, _ = accumulate(map(len, steps))
    first = np.searchsorted(begins_T, np.array(inner, dtype=np.int64) - given)
    counts = np.diff(first, prepend=0, append=len(begins_T))
    return np.repeat(np.arange(len(steps), dtype=np.int32), counts)


def _begins(token_ids: Sequence[int], text: str, decode: Decode, context: int) -> list[int] | None:
    """Compute token_begins by decoding runs of tokens together with up to `context` preceding tokens.

    Returns None if the runs do not add up to the text.
    """
    begins_T: list[int] = []
    done = 0
    while len(begins_T) < len(token_ids):
        run, done = _run(token_ids, len(begins_T), text, done, decode, context)
        begins_T += run
    return begins_T if done == len(text) else None


def _run(
    token_ids: Sequence[int], first: int, text: str, done: int, decode: Decode, context: int
) -> tuple[list[int], int]:
    """Find the shortest run of tokens that decodes to whole characters; return (start offsets, end offset).

    The run begins at token `first`, after `done` characters. If there is no such run, returns the offsets of all
    remaining tokens, and `done` unchanged.
    """
    start = max(0, first - context)
    head = decode(token_ids[start:first]) if context else ""
    begins_T: list[int] = []
    piece, complete = "", done
    for index in range(first, len(token_ids)):
        complete = max(complete, done + _shared(piece, text[done : done + len(piece)]))
        begins_T.append(complete)
        window = decode(token_ids[start : index + 1])
        piece = window[len(head) :] if window.startswith(head) else ""
        if window.startswith(head) and text.startswith(piece, done):
            return begins_T, done + len(piece)
    return begins_T, done


def _shared(left: str, right: str) -> int:
    """Return the length of the common prefix of two texts."""
    for length, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return length
    return min(len(left), len(right))
