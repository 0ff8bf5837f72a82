"""Compare a problem with the one that a run store holds under the same id."""

from __future__ import annotations

from mmprm.data.images import content_digest
from mmprm.data.media import clip_digest
from mmprm.types import Problem


def differing_fields(known: Problem, problem: Problem) -> list[str]:
    """Name the fields in which two problems differ. Paths may differ, and media with an unreadable file are equal."""
    differing = [name for name in ("question", "answer", "choices") if getattr(known, name) != getattr(problem, name)]
    before, here = list(map(content_digest, known.images)), list(map(content_digest, problem.images))
    if None not in before + here and before != here:
        differing.append("image")
    before, here = ([clip_digest(clip) for clip in (*each.videos, *each.audios)] for each in (known, problem))
    if None not in before + here and before != here:
        differing.append("video or audio")
    if known.given != problem.given:
        differing.append("given solution")
    columns = sorted(known.extra.keys() | problem.extra.keys())
    return differing + [name for name in columns if known.extra.get(name) != problem.extra.get(name)]
