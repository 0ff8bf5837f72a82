"""Write kept solutions as training rows, refused ones with their reasons, and the counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmprm.bridge.config import BridgeConfig
from mmprm.bridge.pipeline import KEPT_REASON, BridgedProblem
from mmprm.data.images import write_image
from mmprm.data.marks import IMAGE
from mmprm.files import whole_file
from mmprm.problems import write_problems
from mmprm.prompts import PromptConfig, messages

_THINK = PromptConfig(preset="think")


def write_rows_of(found: Sequence[BridgedProblem], config: BridgeConfig) -> dict[str, Any]:
    """Write kept.jsonl, refused.jsonl and summary.json to the output folder, and return the summary."""
    folder = Path(config.output)
    kept = [each for each in found if each.reason == KEPT_REASON]
    if config.form == "think":
        problems = [replace(each.problem, solution=each.solution) for each in kept]
        write_problems(folder / "kept.jsonl", problems, {each.problem.id: _columns(each, config) for each in kept})
    else:
        _write(folder / "kept.jsonl", [conversation(each, folder) | _columns(each, config) for each in kept])
    _write(folder / "refused.jsonl", [_refused(each) for each in found if each.reason != KEPT_REASON])
    summary = {
        "problems": len(found),
        "kept": len(kept),
        "repaired": sum(each.repairs > 0 for each in kept),
        "refused": dict(Counter(each.reason for each in found if each.reason != KEPT_REASON).most_common()),
    }
    with whole_file(folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def conversation(found: BridgedProblem, folder: Path) -> dict[str, Any]:
    """Return the ShareGPT form of a row; the human turn holds the problem in the format of the prompt preset
    `think`."""
    problem = found.problem
    (turn,) = messages(problem, _THINK)
    turns = [("human", user_text(turn)), ("gpt", found.solution)]
    return {
        "id": problem.id,
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "images": [write_image(image, folder) for image in problem.images],
    }


def user_text(turn: dict[str, Any]) -> str:
    """Return the text of a user turn in transformers' format, with an <image> mark in place of each image."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(IMAGE if part["type"] == "image" else part["text"] for part in content)


def _columns(found: BridgedProblem, config: BridgeConfig) -> dict[str, Any]:
    """Return the columns that describe how a row was produced; mmprm sft does not read them."""
    return {
        "bridge": {
            "description": found.description,
            "seer": config.seer.engine.model,
            "reasoner": config.reasoner.engine.model,
            "repairs": found.repairs,
        }
    }


def _refused(found: BridgedProblem) -> dict[str, Any]:
    texts = {"description": found.description, "thoughts": found.thoughts, "answer": found.answer}
    gold = {"id": found.problem.id, "question": found.problem.question, "gold": found.problem.answer}
    return {**gold, "reason": found.reason, "detail": found.detail, **texts}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with whole_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
