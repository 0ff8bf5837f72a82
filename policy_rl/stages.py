"""Run the training stages listed in a YAML file, in order. Each starts from the policy of the previous stage.

    output: runs/vision-r1
    stages:
      - sft: {model: Qwen/Qwen2.5-VL-7B-Instruct, data: {path: cold-start.json}}
      - rl: {problems: {path: train.jsonl}, …}

Stage N is stored in OUTPUT/stage-N-KIND, with its configuration in stage.yaml. Each stage runs as a separate command,
so no memory or process groups remain for the next one. A stage whose policy is already saved is skipped.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmprm.config import Config, build, override, read_yaml
from mmprm.errors import ConfigError, TrainingError
from mmprm.written import resolved
from policy_rl.checks.early import check_early
from policy_rl.config import RLConfig
from policy_rl.run_folder import lacks_evaluation
from policy_rl.sft.train import SftConfig

Command = Sequence[str]

_INTERRUPTED, _TERMINATED = 130, 143
"""Exit codes of a stage stopped by Ctrl-C and by SIGTERM, respectively."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Describes a kind of stage: its configuration class, and the dotted key of its initial model."""

    config: type[Config]
    model: str


KINDS = {"sft": Kind(SftConfig, "model"), "rl": Kind(RLConfig, "engine.model")}


@dataclass(frozen=True, slots=True)
class Stage:
    """Describes a stage: its number (from 1), kind, folder, raw values, and validated configuration."""

    number: int
    kind: str
    folder: Path
    values: dict[str, Any]
    config: Config

    @property
    def name(self) -> str:
        """Return the stage's name for messages."""
        return f"stage {self.number} ({self.kind})"

    @property
    def policy(self) -> Path:
        """Return the folder of the stage's trained policy."""
        return self.folder / "policy"


def read_stages(path: str | Path, sets: Sequence[str] = ()) -> list[Stage]:
    """Read the stages from a file, and validate all of them before the first one runs.

    `sets` are overrides: `output=…`, or `N.key=value` for a key of stage N, counted from 1.
    """
    values = read_yaml(Path(path))
    numbered = [item for item in sets if item.partition(".")[0].isdecimal()]
    override(values, [item for item in sets if item not in numbered])
    if values.keys() != {"output", "stages"} or not isinstance(values["stages"], list) or not values["stages"]:
        raise ConfigError(
            f"{path}: must contain output and stages (a list), got {', '.join(values) or 'nothing'}; add what is "
            "missing, and move other keys into their stage"
        )
    by_stage: dict[int, list[str]] = {}
    for item in numbered:
        number, _, rest = item.partition(".")
        by_stage.setdefault(int(number), []).append(rest)
    unknown = by_stage.keys() - range(1, len(values["stages"]) + 1)
    if unknown:
        raise ConfigError(
            f"--set {min(unknown)}.…: {path} has no stage {min(unknown)}; use 1 to {len(values['stages'])}"
        )
    output = Path(str(values["output"])).expanduser()
    stages: list[Stage] = []
    for number, given in enumerate(values["stages"], start=1):
        before = stages[-1] if stages else None
        stages.append(_stage(number, given, by_stage.get(number, ()), output, before, path))
    return stages


def run_stages(
    path: str | Path, sets: Sequence[str] = (), launch: Callable[[Command], int] | None = None
) -> Path | None:
    """Run the unfinished stages; return the last stage's policy folder, or None if SIGTERM stopped a stage.

    The same call resumes a stopped stage. `launch` runs a command and returns its exit code.
    """
    _check_alone(path)
    stages = read_stages(path, sets)
    for stage in stages:
        if stage.policy.is_dir() and not (isinstance(stage.config, RLConfig) and lacks_evaluation(stage.config)):
            _check_same(stage)
            print(f"{stage.name}: skipped, its policy is saved in {stage.policy}", flush=True)
            continue
        file = _write_file(stage)
        print(f"{stage.name}: {file}", flush=True)
        code = (launch or _launch)(command(stage.kind, file))
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        if code not in (0, _TERMINATED):
            raise TrainingError(
                f"{stage.name} of {path} ended with exit code {code}, see above; fix the cause and run the same "
                "command again to resume from there"
            )
        if not stage.policy.is_dir():
            print(f"{stage.name}: stopped; run the same command again to resume", flush=True)
            return None
    return stages[-1].policy


def write_stage_files(path: str | Path, sets: Sequence[str] = ()) -> list[Path]:
    """Write a configuration file for each stage whose policy does not exist yet, and return the paths of the files."""
    return [_write_file(stage) for stage in read_stages(path, sets) if not stage.policy.is_dir()]


def command(kind: str, file: Path) -> Command:
    """Return the command line of a stage. SFT runs one rank per GPU of this machine; RL starts its own processes."""
    import torch

    ranks = torch.cuda.device_count() if kind == "sft" else 1
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *torchrun, "-m", "mmprm", kind, "--config", str(file)]


def _stage(number: int, given: Any, sets: Sequence[str], output: Path, before: Stage | None, path: str | Path) -> Stage:
    source = f"{path}: stage {number}"
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in KINDS:
        raise ConfigError(f"{source}: must be one of {', '.join(KINDS)} with its keys; write it like `sft: {{…}}`")
    ((kind, values),) = given.items()
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: {kind} must contain keys and values, got {type(values).__name__}; give its keys")
    folder, model = output / f"stage-{number}-{kind}", KINDS[kind].model
    own = {"output": str(folder)} | ({model: str(before.policy)} if before else {})
    values = override(copy.deepcopy(values), sets)  # copied, because YAML anchors may share values between stages
    for key in own:
        if _holds(values, key):
            raise ConfigError(f"{source}: leave {key} out; it is derived from output and the previous stage")
    override(values, [f"{key}={json.dumps(value)}" for key, value in own.items()])
    config = build(KINDS[kind].config, values, source)
    if isinstance(config, RLConfig):
        try:
            check_early(config)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
    return Stage(number, kind, folder, values, config)


def _holds(values: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _check_same(stage: Stage) -> None:
    """Raise ConfigError if the stage in the folder was finished with a different configuration.

    Otherwise its policy would be mistaken for the result of this configuration.
    """
    if not _file(stage).exists():
        return
    there = build(KINDS[stage.kind].config, read_yaml(_file(stage)), str(_file(stage)))
    left, right = there.model_dump(mode="json"), stage.config.model_dump(mode="json")
    differing = [key for key in left if left[key] != right[key]]
    if differing:
        raise ConfigError(
            f"{stage.name}: was finished with another {', '.join(differing)} ({_file(stage)}); restore these settings, "
            "choose another output, or remove its folder and those of later stages"
        )


def _check_alone(path: str | Path) -> None:
    """Raise ConfigError if torchrun runs this command, because every rank would then run all stages."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{path}: mmprm stages starts torchrun itself, so it must not run under torchrun; start it once, without "
            "torchrun, and for an SFT stage on several machines, first run `mmprm stages --files-only` and then "
            "`torchrun … -m mmprm sft --config OUTPUT/stage-N-sft/stage.yaml` on each machine"
        )


def _write_file(stage: Stage) -> Path:
    stage.folder.mkdir(parents=True, exist_ok=True)
    plain = resolved(stage.values, type(stage.config))
    _file(stage).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return _file(stage)


def _file(stage: Stage) -> Path:
    return stage.folder / "stage.yaml"


def _launch(command: Command) -> int:
    """Run a command and return its exit code; forward SIGTERM and Ctrl-C so that it can save and exit."""
    with subprocess.Popen(command, start_new_session=True) as child:  # otherwise a terminal's Ctrl-C reaches it twice
        before = {
            number: signal.signal(number, lambda number, _: child.send_signal(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
