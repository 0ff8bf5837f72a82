"""Provide engines, a trainer and a grader without a model, to test the RL loop. Answers are derived from content."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprm.config import build
from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.collector import Collector
from policy_rl.config import RLConfig
from policy_rl.loop import Loop
from policy_rl.rollouts.evaluate import evaluate
from policy_rl.trainer.batch import Limits
from policy_rl.types import Group, Response, TrainingSample
from policy_rl.weights.transfer import Published

PROBLEMS = [Problem(f"p{number}", f"question {number}", "right") for number in range(10)]
WORDS = ("right", "wrong", "wrong")

Write = Callable[[Problem, random.Random], str]


def make_config(output: Path, **changes: Any) -> RLConfig:
    values = {
        "output": str(output),
        "problems": {"path": "unused.jsonl"},
        "engine": {"model": "unused", "dtype": "bfloat16"},  # the data type that earlier runs store
        "batch": {"prompts": 4, "group_size": 3},
        "steps": 6,
    }
    return build(RLConfig, values | changes)


def write(problem: Problem, rng: random.Random) -> str:
    return rng.choice(WORDS)


class ScriptedPool:
    """Answers sample i with `write(problem, Random(seed + i))`, in 2 to 5 tokens.

    `asked` holds (problem, n, seed, version, max_tokens) per request; `during_update` counts samples taken while the
    trainer updates. Problem "refused" is rejected.
    """

    probe_token_ids = (1, 2)

    def __init__(self, write: Write = write) -> None:
        self.version, self._write = 0, write
        self.asked: list[tuple[str, int, int, int, int | None]] = []
        self.events: list[str] = []
        self.trainer: ScriptedTrainer | None = None
        self.during_update = 0
        self.finish_reason = "stop"

    async def sample(
        self, problem: Problem, n: int, seed: int, version: int | None, max_tokens: int | None = None
    ) -> Group:
        version = self.version if version is None else version
        assert version == self.version
        self.asked.append((problem.id, n, seed, version, max_tokens))
        await asyncio.sleep(random.random() / 200)  # groups end in any order
        self.during_update += self.trainer is not None and self.trainer.busy
        if problem.id == "refused":
            raise SamplingError("problem refused: longer than the maximum context length")
        return Group(problem, tuple(self._response(problem, seed + i) for i in range(n)), version, 7)

    def _response(self, problem: Problem, seed: int) -> Response:
        rng = random.Random(seed)
        text, length = self._write(problem, rng), rng.randint(2, 5)
        ids = tuple(rng.randint(10, 99) for _ in range(length))
        return Response(text, ids, tuple(-rng.random() for _ in ids), self.finish_reason)

    async def load_weights(self, published: Published) -> float:
        self.events.append("load")
        self.version = published.version
        return 0.0

    async def sleep(self) -> None:
        self.events.append("sleep")

    async def wake(self) -> None:
        self.events.append("wake")

    async def until_lost(self) -> EngineStoppedError:
        await asyncio.Event().wait()


class ScriptedTrainer:
    """Keeps a hash of all updates as its weights.

    `calls` lists the calls, and `progress` the completed fraction of the run at each update.
    """

    def __init__(self, delay: float = 0.0) -> None:
        self.weights, self.updates, self.busy = "", 0, False
        self.calls: list[str] = []
        self.batches: list[list[TrainingSample]] = []
        self.progress: list[float | None] = []
        self._delay = delay

    def log_probs(self, samples: Sequence[TrainingSample], reference_only: bool = False) -> list[TrainingSample]:
        self.calls.append(f"log_probs reference_only={reference_only}")
        zeros = [np.zeros(len(each.token_ids), dtype=np.float32) for each in samples]
        return [
            replace(each, ref=zero - 1, **({"old": zero, "values": zero} if not reference_only else {}))
            for each, zero in zip(samples, zeros, strict=True)
        ]

    def update(self, samples: Sequence[TrainingSample], progress: float | None = None) -> dict[str, float]:
        import time

        self.progress.append(progress)

        self.busy = True
        time.sleep(self._delay)
        self.busy = False
        self.calls.append("update")
        self.batches.append(list(samples))
        self.updates += 1
        seen = [
            (
                e.problem.id,
                e.group,
                tuple(e.token_ids.tolist()),
                e.advantages.tolist(),
                e.engine.tolist(),
                e.old is None,
            )
            for e in samples
        ]
        self.weights = hashlib.sha256(f"{self.weights}{seen}".encode()).hexdigest()
        return {"loss": 0.0, "seconds": self._delay, "responses": float(len(samples)), "entropy": 1.0}

    def publish(self, version: int, probe_token_ids: Sequence[int], dtype: torch.dtype) -> Published:
        self.calls.append("publish")
        return Published(version, 1, 1, "folder", (0.0,))

    def release_memory(self) -> None:
        self.calls.append("release_memory")

    def save(self, folder: Path, extra: dict[str, Any], keep: int) -> None:
        self.calls.append(f"save {extra['step']}")
        checkpoint = folder / f"step-{extra['step']:08d}"
        checkpoint.mkdir(parents=True)
        size = (checkpoint / "extra.json").write_text(json.dumps(extra))
        state = {"weights": self.weights, "updates": self.updates, "files": {"extra.json": size}}
        state |= {"identity": {}, "step": extra["step"]}
        (checkpoint / "state.json").write_text(json.dumps(state))

    def resume(self, folder: Path) -> dict[str, Any] | None:
        checkpoints = sorted(folder.glob("step-*"))
        if not checkpoints:
            return None
        state = json.loads((checkpoints[-1] / "state.json").read_text())
        self.weights, self.updates = state["weights"], state["updates"]
        return json.loads((checkpoints[-1] / "extra.json").read_text())

    def save_model(self, folder: Path) -> None:
        folder.mkdir(parents=True)


class ScriptedGrader:
    """Grades `right` as correct, `wrong` as incorrect, and everything else as unknown."""

    async def grade(self, problem: Problem, response: str) -> Grading:
        verdicts = {"right": Verdict.CORRECT, "wrong": Verdict.INCORRECT}
        return Grading(verdicts.get(response, Verdict.UNKNOWN), response, "scripted")


def make_loop(
    config: RLConfig,
    pool: ScriptedPool | None = None,
    trainer: Any = None,
    problems: Sequence[Problem] = PROBLEMS,
    process: Any = None,
    check: Any = None,
    held_out: Sequence[Problem] = (),
    grader: Any = None,
    cutter: Any = None,
    trees: Any = None,
    refresh: Any = None,
) -> Loop:
    pool, grader, trainer = pool or ScriptedPool(), grader or ScriptedGrader(), trainer or ScriptedTrainer()
    pool.trainer = trainer if isinstance(trainer, ScriptedTrainer) else None
    check = check or Limits(1000, frozenset()).check
    collector = Collector(config, problems, pool, grader, check, process, cutter=cutter)

    async def measure():
        return await evaluate(pool, grader, held_out, 2, config.seed)

    evaluation = measure if held_out else None
    total = config.total_steps(len(problems))
    return Loop(config, total, pool, trainer, collector, evaluation, trees=trees, refresh=refresh)


WEIGHED = {"loss": {"importance_cap": 2.0}}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "filter": {"filter": {"low": 0.3, "high": 0.6, "rounds": 4}, "trainer": WEIGHED},
    "ahead": {"one_step_ahead": True, "trainer": WEIGHED},
    "updates": {"batch": {"prompts": 4, "group_size": 3, "updates": 2}},
    "filter with updates": {
        "filter": {"low": 0.3, "high": 0.6, "rounds": 1},
        "batch": {"prompts": 4, "group_size": 3, "updates": 2},
        "trainer": WEIGHED,
    },
}


def metrics_of(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "overhead", "vision_calls")  # a resumed run computes features again
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines if line["kind"] == kind]
