"""Run TRL's RLOO trainer on problems of a JSONL file, with answers graded by mmprm's grader.

`trl_rloo.py MODEL PROBLEMS PROMPTS GROUP_SIZE STEPS BATCH MAX_TOKENS LEARNING_RATE SEED` runs in a separate process
with TRL on the path (`make trl`). BATCH is per_device_train_batch_size and switches gradient checkpointing off; 0 keeps
TRL's defaults for both. The problems are the first PROMPTS × STEPS of the file. It prints one JSON line. Per step, it
holds the total seconds, the seconds of forward, backward and optimizer, the mean reward and the mean tokens per
response. It also holds the number of tokens in the longest row.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

from datasets import Dataset, Image, List
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from mmprm.grading.symbolic import SymbolicGrader
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig, messages
from mmprm.rendering import render
from mmprm.types import Problem, Verdict

REWARD = {Verdict.CORRECT: 1.0, Verdict.INCORRECT: 0.0, Verdict.UNKNOWN: None}
PROMPT = PromptConfig(preset="plain")


class Clock(TrainerCallback):
    """Measures the duration of each training step.

    `seconds` starts at the end of the previous step, to include data loading. `update_seconds` starts at the beginning
    of the step and excludes `preparing`, the time in which TRL samples and scores.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.update_seconds: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began, self.preparing = time.perf_counter(), 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.ended)
        self.update_seconds.append(now - self.began - self.preparing)
        self.ended = now


class TimedTrainer(RLOOTrainer):
    clock: Clock
    longest = 0

    def _prepare_inputs(self, inputs: Any) -> Any:
        began = time.perf_counter()
        prepared = super()._prepare_inputs(inputs)
        self.clock.preparing += time.perf_counter() - began
        self.longest = max(self.longest, prepared["prompt_ids"].shape[1] + prepared["completion_ids"].shape[1])
        return prepared


def main() -> None:
    folder, path, prompts, group_size, steps, batch, max_tokens, learning_rate, seed = sys.argv[1:]
    problems = load_problems(ProblemsConfig(path=path, limit=int(prompts) * int(steps)))
    by_id = {problem.id: problem for problem in problems}
    processor = AutoProcessor.from_pretrained(folder, padding_side="left")
    grader = SymbolicGrader()

    def correct(completions: list[Any], id: list[str], **_: Any) -> list[float | None]:
        answers = [(by_id[name], each[0]["content"]) for name, each in zip(id, completions, strict=True)]
        return [REWARD[grading.verdict] for grading in grader.grade_many(answers)]

    rows = int(batch) or RLOOConfig.per_device_train_batch_size
    tuned = {"per_device_train_batch_size": rows, "gradient_checkpointing": False} if int(batch) else {}
    with tempfile.TemporaryDirectory() as output:
        arguments = RLOOConfig(
            output_dir=output,
            max_steps=int(steps),
            gradient_accumulation_steps=int(prompts) * int(group_size) // rows,
            num_generations=int(group_size),
            max_completion_length=int(max_tokens),
            learning_rate=float(learning_rate),
            lr_scheduler_type="constant",
            beta=0.0,  # no KL penalty, so TRL loads no reference model
            seed=int(seed),
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **tuned,
        )
        clock = Clock()
        trainer = TimedTrainer(
            model=AutoModelForImageTextToText.from_pretrained(folder, dtype="float32"),
            reward_funcs=correct,
            args=arguments,
            train_dataset=_dataset(problems),
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.clock = clock
        _check_prompt(trainer, problems[0])
        trainer.train()
    grader.close()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    found = {"seconds": clock.seconds, "update_seconds": clock.update_seconds, "longest": trainer.longest}
    found |= {"reward": [entry["reward"] for entry in logged]}
    found |= {"tokens": [entry["completions/mean_length"] for entry in logged]}
    print(json.dumps(found))


def _dataset(problems: list[Problem]) -> Dataset:
    rows = [
        {
            "id": problem.id,
            "prompt": [{"role": "user", "content": problem.question}],
            "images": [image.path for image in problem.images],
        }
        for problem in problems
    ]
    return Dataset.from_list(rows).cast_column("images", List(Image()))


def _check_prompt(trainer: TimedTrainer, problem: Problem) -> None:
    """Check that TRL's prompt equals the prompt of `mmprm rl`."""
    text = render(trainer.processing_class, problem, "", PROMPT)
    row = trainer.train_dataset[0]
    parts = messages(problem, PROMPT)[0]["content"]
    assert [part["type"] for part in parts] == ["image", "text"]
    assert parts[1]["text"] == row["prompt"][0]["content"]
    (ours,) = trainer.processing_class(text=[text], images=row["images"])["input_ids"]
    chat = [{"role": "user", "content": [{"type": "image", "image": row["images"][0]}, parts[1]]}]
    (theirs,), _, _ = trainer._tokenize_prompts([chat])
    assert list(ours) == list(theirs), "TRL uses a different prompt"


if __name__ == "__main__":
    main()
