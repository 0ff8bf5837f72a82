"""Build a page for reviewing rows of `mmprm bridge` before training on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmprm.bridge.pipeline import KEPT_REASON, BridgedProblem
from mmprm.errors import DataError
from mmprm.report.images import inlined
from mmprm.report.page import document, escaped, table
from mmprm.types import ImageRef


def bridge_page(found: Sequence[BridgedProblem], summary: Mapping[str, Any], limit: int) -> str:
    """Build a page with the counts and at most `limit` kept rows, spread evenly over the file."""
    kept = [each for each in found if each.reason == KEPT_REASON]
    count = min(limit, len(kept))
    shown = [kept[index * len(kept) // count] for index in range(count)]
    counts = [("kept", summary["kept"]), *summary["refused"].items()]
    title = f"{summary['kept']:,} of {summary['problems']:,} problems kept"
    sections = [
        f"<header><h1>{title}</h1></header>",
        table(["result", "problems"], [[escaped(name), f"{number:,}"] for name, number in counts]),
        *map(_row, shown),
    ]
    return document("mmprm bridge", sections)


def _row(found: BridgedProblem) -> str:
    problem = found.problem
    texts = {
        "question": problem.question,
        "gold answer": problem.answer,
        "description (not trained on)": found.description,
        f"thoughts ({found.repairs} repairs)": found.thoughts,
        "answer": found.answer,
    }
    parts = "".join(f"<h3>{escaped(name)}</h3>{_text(text)}" for name, text in texts.items())
    return f"<section><h2>{escaped(problem.id)}</h2>{''.join(map(_image, problem.images))}{parts}</section>"


def _text(text: str) -> str:
    return f'<p style="white-space:pre-wrap">{escaped(text)}</p>'


def _image(image: ImageRef) -> str:
    try:
        return f'<img src="{inlined(image)[0]}" alt=""/>'
    except DataError as error:
        return _text(str(error))
