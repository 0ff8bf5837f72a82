"""Define the sizes, prompts and files that the parts of the benchmark share, and run mmprm commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.types import Problem

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".real-model" / "SmolLM2-135M-Instruct"
CONFIGS = Path(__file__).parent / "configs"
FORM = "numbered"
"""Step format of all parts but sft and rollouts, which measure both."""
PROMPTS = {
    "tags": PromptConfig(preset="plain", system="Solve the problem. Put each step in step tags."),
    "numbered": PromptConfig(preset="plain", system="Solve the problem in numbered steps."),
}
"""Prompts of the two step formats. The system turn tells the policy which one to use."""
FAMILIAR = "familiar-"
"""Prefix of the problem files of dev and test problems in the wordings of the problems to annotate."""
MAX_TOKENS = 160
TEMPERATURE = 0.7
QUIET_LOAD = 0.7
"""Load average at or below which a machine counts as quiet when a part starts."""

Results = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Configures the numbers of problems, samples and tokens. `SMALL` runs every part in minutes, to test them."""

    solutions: int = 1000
    held_out: int = 60
    annotated: int = 800
    compared: int = 100
    max_rollouts: int = 96
    fresh: int = 128
    states: int = 150
    method_tokens: int = 150_000
    flat_problems: int = 60
    dev: int = 60
    test: int = 300
    samples: int = 16
    judged_samples: int = 4
    pass_samples: int = 8
    rl_steps: int = 20
    rl_prompts: int = 4
    rl_held_out: int = 100


SMALL = Sizes(
    solutions=16,
    held_out=8,
    annotated=16,
    compared=12,
    max_rollouts=48,
    fresh=8,
    states=8,
    method_tokens=12_000,
    flat_problems=4,
    dev=8,
    test=16,
    samples=4,
    pass_samples=4,
    rl_steps=2,
    rl_prompts=4,
    rl_held_out=8,
)


@dataclass(frozen=True)
class Workspace:
    """Describes one benchmark run: its working folder, base model and sizes."""

    folder: Path
    model: Path
    sizes: Sizes

    @property
    def policy(self) -> Path:
        """Return the folder of the fine-tuned policy."""
        return self.folder / "sft" / "policy"

    def problems(self, split: str) -> Path:
        return self.folder / "data" / f"{split}.jsonl"

    def first_problems(self, count: int, name: str) -> Path:
        """Write the first `count` problems to annotate to a file of their own, and return its path."""
        lines = self.problems("annotate").read_text(encoding="utf-8").splitlines(keepends=True)
        path = self.problems(name)
        path.write_text("".join(lines[:count]), encoding="utf-8")
        return path

    def load(self, split: str) -> dict[str, Problem]:
        """Load the problems of a split by id."""
        return {each.id: each for each in load_problems(ProblemsConfig(path=str(self.problems(split))))}


def sampling_sets(workspace: Workspace, policy: Path | None = None, form: str = FORM) -> dict[str, Any]:
    """Return the settings that all commands use for the policy."""
    prompt = {f"prompt.{key}": value for key, value in PROMPTS[form].model_dump(exclude_defaults=True).items()}
    return {
        "engine.model": policy or workspace.policy,
        "engine.max_model_len": 512,
        "sampling.temperature": TEMPERATURE,
        "sampling.max_tokens": MAX_TOKENS,
        "step_format": form,
        "ray_address": "local",
        **prompt,
    }


def run_command(command: str, config: str | None, sets: Mapping[str, Any], *options: str) -> float:
    """Run an mmprm command with a configuration of this benchmark and overridden keys; return its seconds."""
    arguments = [sys.executable, "-m", "mmprm", command, *options]
    arguments += ["--config", str(CONFIGS / config)] if config else []
    arguments += [part for key, value in sets.items() for part in ("--set", f"{key}={text_of(value)}")]
    begun = time.perf_counter()
    subprocess.run(arguments, check=True, cwd=ROOT)
    return time.perf_counter() - begun


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_quiet() -> bool:
    """Return whether the machine is idle enough for meaningful timings."""
    return os.getloadavg()[0] <= QUIET_LOAD


def text_of(value: Any) -> str:
    """Format a value for `--set key=value`."""
    return json.dumps(value) if isinstance(value, str | dict | list | bool) or value is None else str(value)
