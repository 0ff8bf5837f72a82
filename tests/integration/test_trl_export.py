"""Test that TRL's own trainer takes a step on the trl export. `make trl` installs TRL in a separate folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprm.labels.export import ExportConfig, export_labels
from mmprm.labels.parquet import LabeledExample, write_parquet
from mmprm.types import Counts, LabeledPath, Problem

TRL = Path(__file__).parents[2] / ".venv-trl"

TRAIN = """
import json, sys
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForTokenClassification
from trl.experimental.prm import PRMConfig, PRMTrainer

data, tokenizer, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
torch.manual_seed(0)
model = Qwen2ForTokenClassification(Qwen2Config(
    vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, num_labels=2, pad_token_id=tokenizer.pad_token_id,
))
before = model.score.weight.detach().clone()
arguments = PRMConfig(
    output_dir=output, max_steps=1, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True, bf16=False,
    report_to=[], save_strategy="no", logging_steps=1, gradient_checkpointing=False,
)
trainer = PRMTrainer(
    model=model, args=arguments, processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files=data, split="train", cache_dir=output),
)
targets = [[label for label in row["labels"] if label != -100] for row in trainer.train_dataset]
result = trainer.train()
print(json.dumps({
    "steps": result.global_step,
    "loss": result.training_loss,
    "moved": (model.score.weight - before).abs().max().item(),
    "targets": targets,
}))
"""


@pytest.mark.integration
@pytest.mark.skipif(not TRL.is_dir(), reason="TRL is not here; make trl fetches it")
def test_trl_trains_a_step_on_the_export(tmp_path: Path, policy_folder: Path) -> None:
    examples = []
    for number in range(4):
        problem = Problem(f"p{number}", f"Left to right: red + blue = ? {number}", "7")
        path = LabeledPath(
            problem.id, ("red=3", "blue=4", "3+4=8", "8"), (Counts(15, 1), None, Counts(0, 16), None), False
        )
        examples.append(LabeledExample(problem, path, "train"))
    write_parquet(tmp_path / "labels.parquet", examples)
    export_labels(ExportConfig(labels=str(tmp_path / "labels.parquet"), output=str(tmp_path / "export"), format="trl"))
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "export" / "train.jsonl"), str(policy_folder)]
    # set by engines in this process
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    environment |= {"PYTHONPATH": str(TRL), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == 1
    assert result["targets"] == [[1, 0]] * 4, "0.9375 is 1 and not cast to 0; the merged step has one label"
    assert 0.3 < result["loss"] < 1.5, "two untrained classes: about ln 2"
    assert result["moved"] > 1e-3
