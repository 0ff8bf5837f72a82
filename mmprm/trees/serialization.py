"""Serialize problems and batches to compressed JSON, such that deserializing restores them exactly.

A checksum at the end of the bytes covers the content and the database columns stored with it, so that damage is
detected. Older stores have no checksums; their bytes are validated by content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any

from mmprm.errors import DataError
from mmprm.types import (
    AudioRef,
    Batch,
    Counts,
    GivenSolution,
    ImageRef,
    MediaRef,
    Problem,
    Rollout,
    Steps,
    Verdict,
    VideoRef,
)

_SEAL = b"\0seal\0"
_DIGEST_BYTES = 8
BATCH_COLUMNS = "state, depth, first_draw, correct, incorrect, unknown, tokens, rollouts"
"""Names of the database columns of a batch; the column `first_draw` stores `StoredBatch.first_sample`."""


class DamagedError(ValueError):
    """Raised when stored bytes differ from the bytes that were written."""


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """Holds a Batch in serialized form.

    The worker that sampled the batch serializes it, so that the driver only has to write it.
    """

    problem_id: str
    state: bytes
    """Hash key of the prefix from which the batch was sampled. The prefix has `depth` steps."""
    depth: int
    first_sample: int
    counts: Counts
    token_count: int
    reasons: tuple[tuple[str, str], ...]
    """One ("unknown" or "unsplit", reason) pair for each rollout that has a reason."""
    rollouts: bytes

    @classmethod
    def of_row(cls, problem_id: str, row: tuple[Any, ...]) -> StoredBatch:
        """Build a StoredBatch from a database row with the columns BATCH_COLUMNS."""
        state, depth, first_sample, correct, incorrect, unknown, token_count, rollouts = row
        counts = Counts(correct, incorrect, unknown)
        return cls(problem_id, state, depth, first_sample, counts, token_count, (), rollouts)

    @property
    def name(self) -> str:
        """Return a description of the batch for error messages."""
        where = f"after {self.depth} step{'s' * (self.depth != 1)}" if self.depth else "of whole solutions"
        return f"the batch {where} from sample {self.first_sample} of problem {self.problem_id!r}"


def count_verdicts(rollouts: Iterable[Rollout]) -> Counts:
    """Return the number of rollouts with each verdict."""
    tally = Counter(rollout.verdict for rollout in rollouts)
    return Counts(tally[Verdict.CORRECT], tally[Verdict.INCORRECT], tally[Verdict.UNKNOWN])


def state_key(steps: Steps) -> bytes:
    """Return the 16-byte hash key of a prefix."""
    return hashlib.sha256(json.dumps(steps).encode()).digest()[:16]


def pack_batch(batch: Batch) -> StoredBatch:
    """Serialize a batch, with its totals as columns and with a checksum."""
    unknown = (
        ("unknown", rollout.reason or "no reason given")
        for rollout in batch.rollouts
        if rollout.verdict is Verdict.UNKNOWN
    )
    unsplit = (("unsplit", rollout.unsplit) for rollout in batch.rollouts if rollout.unsplit is not None)
    packed = StoredBatch(
        problem_id=batch.problem_id,
        state=state_key(batch.steps),
        depth=len(batch.steps),
        first_sample=batch.first_sample,
        counts=count_verdicts(batch.rollouts),
        token_count=sum(rollout.token_count for rollout in batch.rollouts),
        reasons=(*unknown, *unsplit),
        rollouts=_pack_rollouts(batch),
    )
    return replace(packed, rollouts=_sealed(packed.rollouts, *_columns(packed)))


def check_batch(packed: StoredBatch) -> None:
    """Raise DamagedError if the bytes or columns of a batch have changed since it was packed.

    A batch with a checksum is checked without deserializing it.
    """
    with _damaged_errors():
        sealed = _has_good_seal(packed.rollouts, *_columns(packed))
    if not sealed:
        open_batch(packed)


def open_batch(packed: StoredBatch) -> Batch:
    """Deserialize a batch. Raises DamagedError if it differs from what was packed."""
    with _damaged_errors():
        _has_good_seal(packed.rollouts, *_columns(packed))
        batch = unpack_batch(packed.problem_id, packed.first_sample, packed.rollouts)
        token_count = sum(rollout.token_count for rollout in batch.rollouts)
        found = (state_key(batch.steps), len(batch.steps), count_verdicts(batch.rollouts), token_count)
    if found != (packed.state, packed.depth, packed.counts, packed.token_count):
        raise DamagedError("its content does not match its columns")
    return batch


@contextmanager
def _damaged_errors() -> Iterator[None]:
    """Convert any exception to DamagedError, because decoding damaged bytes can raise errors of any type."""
    try:
        yield
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"{type(error).__name__}: {error}") from error


def _columns(packed: StoredBatch) -> tuple[Any, ...]:
    counts = packed.counts
    return (
        *(packed.problem_id, packed.state.hex(), packed.depth, packed.first_sample),
        *(counts.correct, counts.incorrect, counts.unknown, packed.token_count),
    )


def _sealed(content: bytes, *columns: Any) -> bytes:
    return content + _SEAL + _digest(content, columns)


def _has_good_seal(sealed: bytes, *columns: Any) -> bool:
    """Return whether the bytes end with a checksum; raise DamagedError if the checksum does not match."""
    content, seal = sealed[: -len(_SEAL) - _DIGEST_BYTES], sealed[-len(_SEAL) - _DIGEST_BYTES : -_DIGEST_BYTES]
    if seal != _SEAL:
        return False
    if _digest(content, columns) != sealed[-_DIGEST_BYTES:]:
        raise DamagedError("its checksum does not match")
    return True


def _digest(content: bytes, columns: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(content + json.dumps(columns).encode()).digest()[:_DIGEST_BYTES]


def _pack_rollouts(batch: Batch) -> bytes:
    """Serialize the rollouts of a batch.

    The text is stored only for unsplit rollouts; otherwise it is the concatenation of the steps.
    """
    rollouts = [
        [
            rollout.text if rollout.unsplit is not None else rollout.steps,
            int(rollout.verdict),
            rollout.token_count,
            rollout.unsplit,
            rollout.reason,
            *([rollout.step_ids] if rollout.step_ids else []),
        ]
        for rollout in batch.rollouts
    ]
    return _pack([batch.steps, rollouts])


def unpack_batch(problem_id: str, first_sample: int, blob: bytes) -> Batch:
    """Deserialize a batch without verifying its checksum."""
    steps, rollouts = _unpack(blob)
    return Batch(problem_id, tuple(steps), first_sample, tuple(_rollout(*rollout) for rollout in rollouts))


def _rollout(
    written: str | list[str],
    verdict: int,
    token_count: int,
    unsplit: str | None,
    reason: str,
    step_ids: Sequence[Sequence[int]] = (),
) -> Rollout:
    steps = () if isinstance(written, str) else tuple(written)
    text = written if isinstance(written, str) else "".join(written)
    return Rollout(steps, Verdict(verdict), token_count, text, unsplit, reason, tuple(map(tuple, step_ids)))


def pack_problem(problem: Problem) -> bytes:
    """Serialize a problem, with a checksum that also covers its id. Raises DataError if `extra` is not JSON."""
    images = list(map(_medium_cell, problem.images))
    videos = [_medium_cell(each) | {"frames": each.frames} for each in problem.videos]
    clips = [videos, list(map(_medium_cell, problem.audios))] if videos or problem.audios else None
    optional: list[Any] = [None if problem.given is None else astuple(problem.given), _extra(problem), clips]
    while optional and not optional[-1]:
        optional.pop()
    content = _pack([problem.question, problem.answer, images, problem.choices, problem.solution, *optional])
    return _sealed(content, problem.id)


def _medium_cell(ref: MediaRef) -> dict[str, Any]:
    return {"path": ref.path} if ref.data is None else {"data": base64.b64encode(ref.data).decode()}


def _medium_fields(cell: Mapping[str, Any]) -> dict[str, Any]:
    return dict(cell) if "path" in cell else {**cell, "data": base64.b64decode(cell["data"])}


def _extra(problem: Problem) -> dict[str, Any]:
    """Return the extra columns of a problem; raise DataError if JSON would not restore one of them exactly."""
    for name, value in problem.extra.items():
        try:
            exact = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            exact = False
        if not exact:
            raise DataError(
                f"problem {problem.id}: column {name!r} holds {type(value).__name__}, which a run cannot store; remove "
                "the column, or write it as text"
            )
    return dict(problem.extra)


def unpack_problem(problem_id: str, blob: bytes) -> Problem:
    """Deserialize a problem. Raises DamagedError if its bytes or its id differ from what was written."""
    with _damaged_errors():
        _has_good_seal(blob, problem_id)
        return _problem(problem_id, blob)


def _problem(problem_id: str, blob: bytes) -> Problem:
    question, answer, images, choices, solution, given, extra, clips = (*_unpack(blob), None, None, None)[:8]
    videos, audios = clips or ((), ())
    return Problem(
        id=problem_id,
        question=question,
        answer=answer,
        images=tuple(ImageRef(**_medium_fields(cell)) for cell in images),
        choices=tuple(choices),
        solution=solution,
        extra=extra or {},
        given=_given(*given) if given else None,
        videos=tuple(VideoRef(**_medium_fields(cell)) for cell in videos),
        audios=tuple(AudioRef(**_medium_fields(cell)) for cell in audios),
    )


def _given(problem_id: str, steps: Sequence[str], author: str | None, mode: str) -> GivenSolution:
    return GivenSolution(problem_id, tuple(steps), author, mode)


def _pack(content: Any) -> bytes:
    # Every batch of a campaign is packed, and level 1 halves the size in a tenth of the default level's
    # time.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


def _unpack(blob: bytes) -> Any:
    return json.loads(zlib.decompress(blob))
