"""Check whether a run folder belongs to the configured run and whether that run is finished, and write its report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprm.config import differing_keys, with_current_names
from mmprm.errors import CheckpointError, MmprmError
from mmprm.prm.trained import convert_checkpoint
from mmprm.report.rollouts import ROLLOUTS_FILE, SAMPLES_FILE, write_rollouts
from mmprm.report.training import METRICS_FILE, read_metrics, write_training_report
from mmprm.training.checkpoints import read_extra
from mmprm.types import Problem
from policy_rl.collector import problems_fingerprint
from policy_rl.config import RLConfig
from policy_rl.rollouts.evaluate import Evaluation
from policy_rl.trainer.resume_key import current_run_key


@dataclass(frozen=True, slots=True)
class Summary:
    """Summarizes an RL run: completed steps, final policy and evaluations.

    `steps` of `total` steps are done. `finished` is False if SIGTERM stopped the run after it was saved. `policy` is
    the folder of the final policy, or None if the run is not finished. `before` and `after` are the evaluations before
    the first and after the last step, or None if they were not run in this call.
    """

    steps: int
    total: int
    finished: bool
    policy: Path | None
    before: Evaluation | None
    after: Evaluation | None


def summary_without_training(config: RLConfig, total: int, problems: Sequence[Problem]) -> Summary | None:
    """Return the summary of a finished run, or None if there is still something to train or evaluate.

    A run is finished once its policy is saved and evaluated. Raises CheckpointError if the folder belongs to a
    different run.
    """
    extra = read_extra(checkpoints_of(config))
    stops = extra is not None and _stops_here(config, total, extra)
    if extra is not None:
        asked = resume_key_of(config, total, problems_fingerprint(problems, config))
        if stops:
            asked |= {name: extra["identity"].get(name) for name in ("steps", "total_steps")}
        check_same(checkpoints_of(config), extra["identity"], asked)
    if not policy_of(config).is_dir():
        return _stopped(config, total) if stops else None
    if extra is None and not (Path(config.output) / METRICS_FILE).exists():
        raise CheckpointError(f"{policy_of(config)}: was not written by mmprm rl; choose another output")
    if lacks_evaluation(config) and not stops:
        return None
    print(f"{config.output}: this run is finished and is left unchanged; choose another output to train again")
    return Summary(total if extra is None else extra["step"], total, True, policy_of(config), None, None)


def _stops_here(config: RLConfig, total: int, extra: dict[str, Any]) -> bool:
    """Return whether `steps` was lowered to at most the number of completed steps, which ends the run.

    Raises CheckpointError if `steps` was lowered but exceeds the completed steps, because learning rates and schedules
    depend on the number of steps that the run was started with.
    """
    done, begun = extra["step"], extra["identity"].get("total_steps", total)
    if config.steps is None or total >= begun:
        return False
    if total > done:
        raise CheckpointError(
            f"steps={config.steps}: {config.output} has done {done} of its {begun} steps; set {done} or less to end it "
            f"there and write its policy, or {begun} to resume, as learning rates and schedules depend on that number"
        )
    return True


def _stopped(config: RLConfig, total: int) -> Summary:
    """Export the policy of step `total`, or of the newest checkpoint if that step's checkpoint has been deleted."""
    asked = checkpoints_of(config) / f"step-{total:08d}"
    found = convert_checkpoint(asked if asked.is_dir() else checkpoints_of(config), policy_of(config))
    print(
        f"{config.output}: ends with step {found.step}, as set by steps={config.steps}; its policy is "
        f"{policy_of(config)}"
    )
    return Summary(found.step, total, True, policy_of(config), None, None)


def lacks_evaluation(config: RLConfig) -> bool:
    """Return whether the newest checkpoint's step has no evaluation because the run was interrupted."""
    if config.held_out is None or (extra := read_extra(checkpoints_of(config))) is None:
        return False
    return not is_evaluated(Path(config.output), extra["step"])


def checkpoints_of(config: RLConfig) -> Path:
    """Return the checkpoint folder of a run."""
    return Path(config.output) / "checkpoints"


def policy_of(config: RLConfig) -> Path:
    """Return the folder of a run's final policy."""
    return Path(config.output) / "policy"


def resume_key_of(config: RLConfig, total: int, problems: str) -> dict[str, Any]:
    """Return the settings that must be unchanged for a run to be resumed. `problems` is the problems' fingerprint."""
    return config.resume_key() | {"total_steps": total, "problems": problems}


def check_same(checkpoints: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the changed keys, if the checkpoints belong to a different run."""
    differing = differing_keys(current_run_key(with_current_names(there), here), here)
    if differing:
        shown = ", ".join(f"{key} ({values})" for key, values in differing.items())
        raise CheckpointError(
            f"{checkpoints}: belongs to a run with different settings: {shown}; restore them or choose another output"
        )


def is_evaluated(output: Path, step: int) -> bool:
    """Return whether metrics.jsonl contains an evaluation of `step`."""
    return any(record["kind"] == "eval" and record["step"] == step for record in read_metrics(output / METRICS_FILE))


def report_run(output: Path, with_rollouts: bool = False) -> None:
    """Write the report of a run, and optionally the page of its rollouts; print errors instead of raising them.

    A failure to write them must neither end the run nor hide why the run ended.
    """
    try:
        if with_rollouts and (output / SAMPLES_FILE).is_file():
            write_rollouts(output / ROLLOUTS_FILE, output)
        write_training_report(output)
    except (MmprmError, OSError) as error:
        print(f"the report could not be written: {error}", file=sys.stderr, flush=True)
