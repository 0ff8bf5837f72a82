"""Run TRL's PRM trainer on a data file exported in TRL's format.

`trl_prm.py DATA MODEL SEPARATOR BATCH ACCUMULATE STEPS LEARNING_RATE ORDER` runs in a separate process with TRL on the
path (`make trl`). ORDER is a sampling strategy of transformers, sequential or group_by_length. It prints one JSON line:
loss and seconds of each optimizer step, and the number of labels in each row.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer, TrainerCallback
from trl.experimental.prm import PRMConfig, PRMTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.began = 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def main() -> None:
    data, folder, separator, batch, accumulate, steps, learning_rate, order = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype="float32")
    with tempfile.TemporaryDirectory() as output:
        arguments = PRMConfig(
            output_dir=output,
            max_steps=int(steps),
            train_sampling_strategy=order,
            per_device_train_batch_size=int(batch),
            gradient_accumulation_steps=int(accumulate),
            learning_rate=float(learning_rate),
            lr_scheduler_type="constant",
            weight_decay=0.05,
            adam_beta2=0.95,
            step_separator=separator,
            max_length=None,
            max_completion_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = PRMTrainer(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=load_dataset("json", data_files=data, split="train", cache_dir=output),
            callbacks=[clock],
        )
        labels = [sum(label != -100 for label in row["labels"]) for row in trainer.train_dataset]
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"losses": losses, "seconds": clock.seconds, "labels": labels}))


if __name__ == "__main__":
    main()
