"""Test the tokens and targets that mmprm train uses after an import, for every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from mmprm.config import build
from mmprm.labels.importing import ImportConfig, import_labels
from mmprm.labels.parquet import read_parquet
from mmprm.labels.sources import LABEL_SOURCES
from mmprm.prm.data import make_samples
from mmprm.prm.info import PrmTokens
from mmprm.prm.mm_prm_format import Renderer
from mmprm.prm.targets import TargetConfig
from mmprm.tiny.tokenizer import build_tokenizer

QUESTION, FIRST, SECOND = "blue + red = ?", "5+3=8", "8-1=6"
TURNS = [("user", f"Question: {QUESTION}\n\n{FIRST}"), ("assistant", "Yes"), ("user", SECOND), ("assistant", "No")]


def _verdict(text: str) -> str:
    return f"<output>$\\boxed{{{text}}}$</output>" if text in ("Yes", "No") else text


def _rated(text: str, rating: int) -> dict[str, Any]:
    return {"completions": [{"text": text, "rating": rating}], "chosen_completion": 0, "human_completion": None}


def _turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


MARKED = f"{QUESTION} Step 1: {FIRST} ки\nStep 2: {SECOND} ки"
OPENING = f"### Question:\n{QUESTION}\n\n### Solution Process:\n{FIRST}"
STEPS = [{"step": FIRST, "num_mc_correct": 16, "num_mc_total": 16}, {"step": SECOND, "num_mc_correct": 0}]
RECORDS: dict[str, dict[str, Any]] = {
    "steps": {"question": QUESTION, "steps": [FIRST, SECOND], "labels": ["+", "-"]},
    "prm800k": {
        "question": {"problem": QUESTION},
        "label": {"steps": [_rated(FIRST, 1), _rated(SECOND, -1)], "finish_reason": "give_up"},
    },
    "math-shepherd": {"input": MARKED, "label": MARKED.replace("ки", "+", 1).replace("ки", "-"), "task": "MATH"},
    "visualprm": {"id": -1, "conversations": _turns(OPENING, "+", SECOND, "-")},
    "visualprm-raw": {"question": QUESTION, "steps_with_score": [STEPS[0], STEPS[1] | {"num_mc_total": 16}]},
    "mm-prm": {
        "id": "0",
        "conversations": [
            {"from": "human", "value": f"Question: {QUESTION}\nProcess: {FIRST}<prm>{SECOND}<prm>"},
            {"from": "gpt", "value": [1.0, 0.0]},
        ],
    },
    "trl": {"prompt": QUESTION, "completions": [FIRST, SECOND], "labels": [True, False]},
    "openrlhf": {"input": MARKED, "label": [1.0, 0.0]},
    "processbench": {"problem": QUESTION, "steps": [FIRST, SECOND], "label": 1},
    "visualprocessbench": {
        "question": QUESTION,
        "response": {"steps": [FIRST, SECOND], "process_correctness": [1, -1]},
    },
    "dualmath": {"instruction": f"Check it.\nQuestion:{QUESTION}", "output": f"{FIRST} <pos>\n{SECOND} <neg>"},
    "genprm": {"conversations": [{"role": role, "content": _verdict(text)} for role, text in TURNS]},
}
ASSISTANT = [
    *("Question:", " ", "blue", " + ", "red", " = ?", "\n", "Process:", " "),
    *("5", "+", "3", "=", "8", "<prm>", "8", "-", "1", "=", "6", "<prm>"),
]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<prm>", normalized=False)], special_tokens=True)
    return Renderer(tokenizer, PrmTokens())


def test_every_layout_has_a_record() -> None:
    assert RECORDS.keys() == LABEL_SOURCES.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_the_tokens_and_targets_of_a_layout(renderer: Renderer, tmp_path: Path, name: str) -> None:
    (tmp_path / "labels.jsonl").write_text(json.dumps(RECORDS[name], ensure_ascii=False), encoding="utf-8")
    keys = {"path": str(tmp_path / "labels.jsonl"), "format": name, "output": str(tmp_path / "labels.parquet")}
    import_labels(build(ImportConfig, keys))
    (sample,) = make_samples(read_parquet(tmp_path / "labels.parquet"), renderer, TargetConfig())
    tokens = renderer.processor.convert_ids_to_tokens(sample.ids.tolist())
    start = tokens.index("assistant") + 2
    assert tokens[start:] == [*ASSISTANT, "<|im_end|>", "\n"]
    assert [tokens[position] for position in sample.positions] == ["<prm>", "<prm>"]
    assert sample.targets == (1.0, 0.0)
    assert sample.weights == (1.0, 1.0)
