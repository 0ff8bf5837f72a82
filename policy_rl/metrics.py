"""Compute the metrics of a training step from its groups, updates and timings, and format its console line."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from policy_rl.config import RLConfig
from policy_rl.graded import GradedGroup
from policy_rl.monitor.alarms import hacking_metrics
from policy_rl.monitor.phrases import phrase_metrics
from policy_rl.rewards.prm_refresh import OF_REFRESH
from policy_rl.rollouts.collected import Collected
from policy_rl.types import Response

DROPS = ("refused", "few_known", "too_hard", "too_easy", "aborted", "unknown", "untrainable", "truncated")
SUMS = {"responses", "seconds", "tokens", "skipped", "vision_calls"}
LEAST, MOST = {"log_ratio_min"}, {"log_ratio_max", "mismatch_max"}
PER_TOKEN = {"entropy", "kl_old", "kl_ref", "clip_fraction", "ratio_clamped", "kl_clamped", "importance_masked"} | {
    f"mismatch_{name}" for name in ("absolute", "signed")
}
COMPUTING = ("generate", "score", "old", "update")
"""Phases of a step in which a model runs. The time of all other phases counts as overhead."""
OF_GROUPS = (
    *("groups", "carried", "rounds", *(f"dropped_{name}" for name in DROPS)),
    *("reward", "reward_length", "accuracy", "response_tokens", "truncated", "alike", "staleness", "partial"),
)
OF_SCORES = ("refused", "step_tokens", "longest_step")
"""Reward-hacking metrics that need process scores, in addition to all metrics whose names start with prm_."""
OF_UPDATES = (
    *("updates", "responses", "tokens", "advantage_size", "loss", "surrogate", "drift", "learning_rate", "skipped"),
    *("gradient_norm", "entropy", "kl_old", "clip_fraction", "ratio_clamped", "log_ratio_min", "log_ratio_max"),
    *("mismatch_absolute", "mismatch_signed", "mismatch_max", "vision_calls"),
)
OF_EPISODES = ("turns", "invalid_actions", "episode_return")
SHOWN = {
    "reward": "reward",
    "accuracy": "acc",
    "response_tokens": "length",
    "turns": "turns",
    "entropy": "entropy",
    "kl_old": "kl-old",
    "kl_ref": "kl",
    "clip_fraction": "clip",
    "log_ratio_min": "log-ratio min",
    "log_ratio_max": "max",
    "gradient_norm": "norm",
    "mismatch_absolute": "mismatch",
    "tokens_per_second": "tok/s",
}


class Timed:
    """Adds the duration of a `with` block, in seconds, to a counter."""

    def __init__(self, seconds: Counter[str], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._started


def metric_names(config: RLConfig) -> set[str]:
    """Return the names of the metrics logged for a step with at least one update."""
    names = {
        *OF_GROUPS,
        *OF_UPDATES,
        *hacking_metrics([], config.step_format),
        *phrase_metrics([], config.monitor.phrases),
        "probe_distance",
        "seconds",
        "overhead",
        "tokens_per_second",
        "generated_tokens",
    }
    optimization = config.trainer.optimization
    if config.trainer.ranks > 1 and optimization.precision == "fp32" and optimization.zero_stage == 0:
        names.discard("gradient_norm")
    if config.process is None:
        names = {name for name in names if name not in OF_SCORES and not name.startswith("prm_")}
    names |= {f"seconds_{name}" for name in (*COMPUTING, "sync", "other")}
    names |= {f"reward_{entry.path}" for entry in config.rewards.functions}
    names |= {"reward_format"} if config.rewards.format else set()
    names |= {"reward_truncated"} if config.rewards.truncated == "penalize" else set()
    names |= {"kl", "kl_ref", "kl_clamped"} if config.trainer.loss.kl.coefficient > 0 else set()
    names |= {"value_loss"} if config.has_critic else set()
    names |= {"teacher_kl"} if config.trainer.distillation else set()
    names |= set(describe_branches([], 0)) if config.rollouts.branching else set()
    names |= set(OF_REFRESH) if config.process and config.process.refresh else set()
    names |= set(OF_EPISODES) if config.environment else set()
    names |= {"importance_masked"} if config.trainer.loss.importance_mask else set()
    return names | ({"scored", "unscored", "alone"} if config.step_credit else set())


def describe_groups(collected: Collected, version: int) -> dict[str, float]:
    """Compute the metrics of a step's groups.

    Means over the responses that are trained on: reward, each of its parts (reward_NAME), accuracy, response_tokens,
    truncated, and partial (1 if new weights interrupted the response). Means over groups: alike (1 if all rewards are
    equal, so that there is no gradient without process reward) and staleness (weight updates since the first token of
    the group was sampled). Counts: dropped_REASON.
    """
    groups = collected.groups
    taking = [each for group in groups for each in group.responses if each.reward.total is not None]
    metrics = {"groups": float(len(groups)), "carried": float(collected.carried), "rounds": float(collected.rounds)}
    metrics |= {f"dropped_{name}": float(collected.dropped[name]) for name in DROPS}
    if not taking:
        return metrics
    names = dict.fromkeys(name for each in taking for name in each.reward.parts)
    parts = {name: [each.reward.parts.get(name) for each in taking] for name in names}
    known = {name: [value for value in values if value is not None] for name, values in parts.items()}
    metrics |= {f"reward_{name}": fmean(values) for name, values in known.items() if values and name != "accuracy"}
    metrics |= {
        "reward": fmean(each.reward.total for each in taking),
        "accuracy": fmean(known["accuracy"]) if known["accuracy"] else float("nan"),
        "response_tokens": fmean(each.response.token_count for each in taking),
        "truncated": fmean(each.response.finish_reason == "length" for each in taking),
        "partial": fmean(bool(each.response.segments) for each in taking),
        "alike": fmean(_alike(group) for group in groups),
        "staleness": fmean(version - group.version for group in groups),
    }
    return metrics


def describe_branches(groups: Sequence[GradedGroup], tokens: int) -> dict[str, float]:
    """Compute the metrics of continuations. Undefined means are NaN.

    branches: number of prefixes that were continued
    branch_tokens: number of tokens generated for this
    branch_value: mean reward of a prefix's continuations, averaged over prefixes
    branch_decided: fraction of prefixes whose continuations all have the same reward as the response itself
    branch_prm_error: mean distance between a prefix's PRM score and the fraction of its continuations that are correct
    """
    branches = [(group, branch) for group in groups for branch in group.branches]
    values, decided, errors = [], [], []
    for group, branch in branches:
        rewards = [each.reward.total for each in branch.known]
        if not rewards:
            continue
        values.append(fmean(rewards))
        decided.append(set(rewards) == {group.responses[branch.response].reward.total})
        if branch.score is not None:
            errors.append(abs(branch.score - fmean(each.correct for each in branch.known)))
    means = {"branch_value": values, "branch_decided": decided, "branch_prm_error": errors}
    return {
        "branches": float(len(branches)),
        "branch_tokens": float(tokens),
        **{name: fmean(found) if found else math.nan for name, found in means.items()},
    }


def kept_responses(groups: Sequence[GradedGroup]) -> list[Response]:
    """Return the responses with a known reward."""
    return [each.response for group in groups for each in group.responses if each.reward.total is not None]


def describe_episodes(responses: Sequence[Response]) -> dict[str, float]:
    """Compute the metrics of the responses that are episodes; return none if there is no such response.

    turns: mean number of turns per episode
    invalid_actions: fraction of turns whose text holds no valid action; NaN if the environment does not say so
    episode_return: mean undiscounted sum of the environment's rewards
    """
    episodes = [each.played.turns for each in responses if each.played is not None]
    if not episodes:
        return {}
    known = [turn.is_valid for turns in episodes for turn in turns if turn.is_valid is not None]
    return {
        "turns": fmean(map(len, episodes)),
        "invalid_actions": 1 - fmean(known) if known else math.nan,
        "episode_return": fmean(sum(turn.reward for turn in turns) for turns in episodes),
    }


def _alike(group: GradedGroup) -> bool:
    return len({each.reward.total for each in group.responses if each.reward.total is not None}) < 2


def merge_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the metrics of a step's optimizer updates.

    Sums counts, takes the minimum or maximum of extremes, weights means over tokens by tokens, and averages all others.
    Omits `seconds`, which `shares` reports.
    """
    tokens = [update["tokens"] for update in updates if "tokens" in update]
    names = dict.fromkeys(name for update in updates for name in update)
    merged = {"updates": float(len(updates))}
    for name in names:
        values = [update[name] for update in updates if name in update]
        fold = sum if name in SUMS else min if name in LEAST else max if name in MOST else fmean
        merged[name] = fmean(values, tokens) if name in PER_TOKEN and len(tokens) == len(values) else fold(values)
    merged.pop("seconds", None)
    return merged


def shares(seconds: Counter[str], collected: Collected, total: float, ahead: bool) -> dict[str, float]:
    """Return a step's time metrics: seconds per phase and in total, overhead, and generated tokens, also per second.

    The phases are generate: until the last response; score: waiting for grades and process scores after that; old,
    update: forward and backward passes and optimizer of the trainer; sync: sending weights to the engines; other: the
    rest, including call overhead. `overhead` is the fraction of the step in which no model ran. With `ahead`,
    generation runs in parallel with the update; generate is then the time that the step waited for it, and score is 0.
    """
    own = seconds["wait"] if ahead else collected.generating
    phases = {"generate": own, "score": 0.0 if ahead else collected.scoring}
    phases |= {name: seconds[name] for name in ("old", "update", "sync")}
    phases["other"] = max(0.0, total - sum(phases.values()))
    metrics = {f"seconds_{name}": value for name, value in phases.items()} | {"seconds": total}
    metrics["overhead"] = 1 - sum(phases[name] for name in COMPUTING) / total
    metrics["generated_tokens"] = float(collected.tokens)
    metrics["tokens_per_second"] = collected.tokens / collected.generating if collected.generating else 0.0
    return metrics


def console_line(step: int, total: int, metrics: Mapping[str, float]) -> str:
    """Format a step's metrics as one line for the console."""
    shown = [f"{word} {metrics[name]:.4g}" for name, word in SHOWN.items() if name in metrics]
    sources = {name.removeprefix("reward_"): metrics[name] for name in metrics if name.startswith("reward_")}
    sources["process"] = metrics.get("prm_score", math.nan)
    parts = [f"{name} {value:.4g}" for name, value in sources.items() if value and not math.isnan(value)]
    if shown and parts:
        shown[0] += f" ({', '.join(parts)})"
    dropped = [f"{metrics[f'dropped_{name}']:g} {name}" for name in DROPS if metrics.get(f"dropped_{name}")]
    phases = [f"{name} {metrics[f'seconds_{name}']:.1f}" for name in (*COMPUTING, "sync", "other")]
    drops = f"  dropped {', '.join(dropped)}" if dropped else ""
    return f"step {step}/{total}  {'  '.join(shown)}{drops}  {metrics['seconds']:.1f} s ({' '.join(phases)})"
