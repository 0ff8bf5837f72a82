"""How problems and batches are written as bytes: compressed JSON, from which the same values come back."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mmprm.types import Batch, Counts, Picture, Problem, Rollout, Steps, Verdict


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A Batch as the store keeps it; a worker packs what it drew, so that the driver only writes it."""

    problem_id: str
    state: bytes
    """Key of its prefix of `depth` steps."""
    depth: int
    first_draw: int
    counts: Counts
    token_count: int
    reasons: tuple[tuple[str, str], ...]
    """("unknown" or "unsplit", reason) of each rollout that has one."""
    rollouts: bytes


def count_verdicts(rollouts: Iterable[Rollout]) -> Counts:
    tally = Counter(rollout.verdict for rollout in rollouts)
    return Counts(tally[Verdict.CORRECT], tally[Verdict.INCORRECT], tally[Verdict.UNKNOWN])


def state_key(steps: Steps) -> bytes:
    return hashlib.sha256(json.dumps(steps).encode()).digest()[:16]


def pack_batch(batch: Batch) -> PackedBatch:
    unknown = (
        ("unknown", rollout.reason or "no reason given")
        for rollout in batch.rollouts
        if rollout.verdict is Verdict.UNKNOWN
    )
    unsplit = (("unsplit", rollout.unsplit) for rollout in batch.rollouts if rollout.unsplit is not None)
    return PackedBatch(
        problem_id=batch.problem_id,
        state=state_key(batch.steps),
        depth=len(batch.steps),
        first_draw=batch.first_draw,
        counts=count_verdicts(batch.rollouts),
        token_count=sum(rollout.token_count for rollout in batch.rollouts),
        reasons=(*unknown, *unsplit),
        rollouts=_pack_rollouts(batch),
    )


def _pack_rollouts(batch: Batch) -> bytes:
    """A split rollout's text is its steps joined, so it is written only where there are none."""
    rollouts = [
        [
            rollout.text if rollout.unsplit is not None else rollout.steps,
            int(rollout.verdict),
            rollout.token_count,
            rollout.unsplit,
            rollout.reason,
        ]
        for rollout in batch.rollouts
    ]
    return _pack([batch.steps, rollouts])


def unpack_batch(problem_id: str, first_draw: int, blob: bytes) -> Batch:
    steps, rollouts = _unpack(blob)
    return Batch(problem_id, tuple(steps), first_draw, tuple(_rollout(*rollout) for rollout in rollouts))


def _rollout(written: str | list[str], verdict: int, token_count: int, unsplit: str | None, reason: str) -> Rollout:
    steps = () if isinstance(written, str) else tuple(written)
    text = written if isinstance(written, str) else "".join(written)
    return Rollout(steps, Verdict(verdict), token_count, text, unsplit, reason)


def pack_problem(problem: Problem) -> bytes:
    pictures = [
        {"path": picture.path} if picture.data is None else {"data": base64.b64encode(picture.data).decode()}
        for picture in problem.pictures
    ]
    return _pack([problem.question, problem.answer, pictures, problem.choices, problem.solution])


def unpack_problem(problem_id: str, blob: bytes) -> Problem:
    question, answer, pictures, choices, solution = _unpack(blob)
    return Problem(
        id=problem_id,
        question=question,
        answer=answer,
        pictures=tuple(
            Picture(path=picture["path"]) if "path" in picture else Picture(data=base64.b64decode(picture["data"]))
            for picture in pictures
        ),
        choices=tuple(choices),
        solution=solution,
    )


def _pack(content: Any) -> bytes:
    # Level 1: half the size for a tenth of the time of the default, and the driver packs every batch of a campaign.
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


def _unpack(blob: bytes) -> Any:
    return json.loads(zlib.decompress(blob))
