"""Define the columns of a labels file, which may be named as in an earlier version."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow

from mmprm.errors import DataError

SCHEMA = pyarrow.schema(
    [
        ("problem_id", pyarrow.string()),
        ("question", pyarrow.string()),
        ("answer", pyarrow.string()),
        ("images", pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))),
        ("steps", pyarrow.list_(pyarrow.string())),
        ("labels", pyarrow.list_(pyarrow.float32())),
        ("correct", pyarrow.list_(pyarrow.int32())),
        ("incorrect", pyarrow.list_(pyarrow.int32())),
        ("unknown", pyarrow.list_(pyarrow.int32())),
        ("complete", pyarrow.bool_()),
        ("split", pyarrow.string()),
        ("judge", pyarrow.list_(pyarrow.float32())),
        ("judged_by", pyarrow.string()),
        ("root_value", pyarrow.float64()),
        ("solution_id", pyarrow.string()),
        ("author", pyarrow.string()),
        ("disagreement", pyarrow.list_(pyarrow.float32())),
        (
            "observations",
            pyarrow.list_(pyarrow.list_(pyarrow.struct([("text", pyarrow.string()), ("image", pyarrow.binary())]))),
        ),
        (
            "videos",
            pyarrow.list_(
                pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string()), ("frames", pyarrow.int32())])
            ),
        ),
        ("audios", pyarrow.list_(pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))),
    ]
)
"""Arrow schema of a labels file, with one row per labeled path. `labels` are the values of the counts: correct /
(correct + incorrect), or an estimate corrected for the bias of a stopping rule. Labels and counts are null for
unlabeled steps. `judge` is null if there is no judge (see mmprm consensus), and for steps that it did not judge.
`root_value` is the value of the problem before its first step, null if unknown. `solution_id` and `author` are null
unless the path is a given solution; `disagreement` is null unless several completers labeled it. `observations` is null
unless the steps are turns of an episode; it holds what the policy saw before each turn, and what followed the last one,
as parts with a text or an image. `videos` and `audios` name files, which are not copied into the table; `frames` is the
number of sampled frames.
"""

EARLIER_NAMES = {"right": "correct", "wrong": "incorrect"}
"""Maps column names of version 0.1 to their current names."""
_OPTIONAL = {"judge", "judged_by", "root_value", "solution_id", "author", "disagreement"}
_OPTIONAL |= {"observations", "videos", "audios"}
"""Columns that a labels file may lack."""


def known_columns(names: Iterable[str], path: str | Path) -> list[str]:
    """Select the names that are columns of a labels file, in the current or an earlier version. Raises DataError if a
    column is missing."""
    known = [name for name in names if EARLIER_NAMES.get(name, name) in SCHEMA.names]
    missing = set(SCHEMA.names) - _OPTIONAL - {EARLIER_NAMES.get(name, name) for name in known}
    if missing:
        raise DataError(f"{path}: lacks the columns {', '.join(sorted(missing))}; write it with mmprm labels")
    return known
