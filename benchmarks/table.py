"""Generate docs/benchmarks.md from benchmarks/results: `python benchmarks/table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

This page shows the latest results of each benchmark, with the target for each metric. `python benchmarks/table.py`
generates it from `benchmarks/results/*.json`. To run a benchmark yourself, use the command in its section.
Results depend on the machine, so each section names the machine that was used. Each ratio compares two runs on the same
machine in the same session. A range in parentheses after a median gives the minimum and the maximum over repeated runs.
[Doctor and demo](doctor-and-demo.md#results) lists the metrics of the demo, [GPU](gpu.md) lists measurements on a GPU,
and [experiments](experiments.md) describes approaches that did not work.
"""


def grading(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, bar in results["bars"].items():
        cases = f" ({results['n'][key]:,} cases)" if key in results["n"] else ""
        if isinstance(bar, dict):
            bounds = ", ".join(f"{name} at least {least}" for name, least in bar.items())
            yield f"`{key}`", "<br>".join(f"{name} {_shown(each)}" for name, each in results[key].items()), bounds
        elif key in results:
            yield f"`{key}`{cases}", _shown(results[key]), f"at least {bar}" if bar else "0"


def annotate(results: dict[str, Any], details: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key, bar in details["bars"].items():
        bar = f"{bar.replace(' %', '%')}: {'met' if details['met'][key] else 'missed'}"
        value, spread = results[key], results.get(f"{key}_spread")
        if isinstance(value, dict):
            yield f"`{key}`", "<br>".join(f"{name} {_shown(each)}" for name, each in value.items()), bar
        else:
            yield f"`{key}`", f"{_shown(value)} ({_shown(spread[0])} to {_shown(spread[1])})", bar
    for name in ("default", "fixed"):
        errors = [each["errors"][name] for each in details.get("rounds", [])]
        if errors:
            shown = [
                f"{key} {', '.join(_shown(each[key]) for each in errors)}" for key in ("rmse", "bias", "first_error")
            ]
            yield f"label errors per round, {name}", "<br>".join(shown), "reported"
    if "first_error_difference" in details:
        mean, low, high = details["first_error_difference"]
        searched = sum(each["errors"]["pairs"]["solutions"] for each in details["rounds"])
        yield (
            f"correct first errors, default minus fixed, {searched:,} solutions",
            f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
            "reported",
        )


def borders(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, metrics in results["ways"].items():
        met = "met" if metrics["inside_tokens_by_ids"] == 0 else "missed"
        shown = "<br>".join(f"{key} {_shown(value)}" for key, value in metrics.items())
        yield name, shown, f"inside_tokens_by_ids 0: {met}"


def parts(results: dict[str, Any], details: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield one table row per part, except for curves. Metrics with a target come before the others."""
    for key, bar in details["bars"].items():
        bar = f"{bar}: {'met' if details['met'][key] else 'missed'}" if not bar.startswith("reported") else bar
        more = {name: each for name, each in details[key].items() if name not in results[key]}
        shown = {name: each for name, each in (results[key] | more).items() if name != "curves"}
        yield f"`{key}`", "<br>".join(f"{name} {_list(value)}" for name, value in shown.items()), bar


def judges(results: dict[str, Any], details: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield one table row per part, with the spread of each median in parentheses."""
    for key, bar in details["bars"].items():
        values = results[key]
        shown = []
        for name, value in values.items():
            if not name.endswith("_spread"):
                spread = values.get(f"{name}_spread")
                shown.append(
                    f"{name} {_list(value)}" + (f" ({_list(spread[0])} to {_list(spread[1])})" if spread else "")
                )
        bar = f"{bar.replace(' %', '%')}: {'met' if details['met'][key] else 'missed'}"
        yield f"`{key}`", "<br>".join(shown), bar


def driver(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    low, high = results["total_spread"]
    for name, seconds in results["seconds"].items():
        if name == "total":
            met = "met" if results["met"] else "missed"
            yield name, f"{seconds:.2f} s ({low:.2f} to {high:.2f})", f"at most {results['bar']:g} s: {met}"
        else:
            yield name, f"{seconds:.2f} s", "reported"


def dtype(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for machine, found in results["machines"].items():
        for name, speeds in found["speeds"].items():
            shown = "<br>".join(f"{each} {_list(values)}" for each, values in speeds.items())
            unit = "GFLOP/s" if name.startswith("products") else "tokens/s"
            yield f"{machine.removesuffix(', one core per engine')}: {name}, {unit}", shown, "reported"


def peers(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for policy, rows in results["rows"].items():
        for name, row in rows.items():
            shown = "<br>".join(f"{key} {_list(value)}" for key, value in row.items())
            yield f"{policy}: {name}", shown, "reported"


AGENT_BARS = {
    "labels_auc": "at least 0.95",
    "first_error": "at least 0.9 on at least 60 levels",
    "prm_f1": "at least 0.8",
    "prm_value": "reported",
    "rl_gain": "at least 0.2, interval above 0, at most 15 minutes",
    "sample_ratio": "at most 0.67, and less than GiGPO",
    "mismatch": "at most 1e-4",
    "kill": "0",
}


def agents(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield one table row per metric, with its details except for curves."""
    for key, bar in AGENT_BARS.items():
        if key not in results:
            continue
        details = results["details"][key]
        shown = {"value": results[key]} | {name: each for name, each in details.items() if name != "curves"}
        met = "met" if shown.pop("met") else "missed"
        for name in ("small", "bar"):
            shown.pop(name, None)
        bar = bar if bar == "reported" else f"{bar}: {met}"
        yield f"`{key}`", "<br>".join(f"{name} {_list(value)}" for name, value in shown.items()), bar


def omni(results: dict[str, Any], _: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield one table row per part, whose target is stored with its results."""
    for key, details in results["details"].items():
        shown = {"value": results[key]} | {name: each for name, each in details.items() if name != "small"}
        bar, met = shown.pop("bar"), "met" if shown.pop("met") else "missed"
        bar = bar if bar == "reported" else f"{bar}: {met}"
        yield f"`{key}`", "<br>".join(f"{name} {_list(value)}" for name, value in shown.items()), bar


def _list(value: Any) -> str:
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return f"{_shown(value['value'])} ({_shown(value['low'])} to {_shown(value['high'])})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_list(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(f"({_list(each)})" if isinstance(each, list) else _list(each) for each in value)
    if value is None:
        return "none"
    return value if isinstance(value, str) else _shown(value)


BENCHMARKS = {
    "grading": (
        grading,
        "make bench-grading",
        "This benchmark grades answers that were derived from the reference answers of two problem files. Each "
        "reference answer is repeated as is (`repeat`), rewritten in an equivalent form (`rewritten`), replaced by "
        "that of another problem (`shuffled`), or changed in one numeral (`perturbed`). For `repeat` and `rewritten`, "
        "the table shows the fraction graded as correct; for `shuffled` and `perturbed`, it shows how many are "
        "wrongly graded as correct. `speed` is the grader's speed relative to Math-Verify's.",
    ),
    "annotate": (
        annotate,
        "make bench-annotate",
        "This benchmark annotates problems with the built-in policy, using one vLLM engine per core. `default` refers "
        "to the default settings of `mmprm annotate`; `fixed` refers to 16 rollouts per state. To measure label "
        "errors, each label is compared with a value that is estimated from 256 new rollouts.",
    ),
    "borders": (
        borders,
        "make bench-borders",
        "This benchmark measures how the value of a state changes if generation continues from the text of the prefix "
        "instead of its token IDs. All states end at a step boundary, and each value is computed from 256 rollouts. "
        "The policy has 0.9 M parameters and is trained on calculations; its byte-level vocabulary splits text in the "
        "same way as Qwen's. `difference` is the mean absolute difference between values from token IDs and values "
        "from text; `noise` is the mean absolute difference between two runs that both use token IDs.",
    ),
    "prm": (
        parts,
        "make bench-prm",
        "This benchmark measures the training and serving of a process reward model (PRM), scoring, and guided search, "
        "with the labels and the PRM of a demo run. The comparison with TRL 1.8.0 uses a text-only model of the same "
        "size. The spread of a ratio is the minimum and maximum over three rounds. Accuracies are given with 95% "
        "confidence intervals.",
    ),
    "rl": (
        parts,
        "make bench-rl",
        "This benchmark trains the built-in policy with 32 problems × 8 responses per step, with three seeds. pass@1 "
        "is measured at temperature 1 on 300 held-out problems with 8 samples per problem. `short` and `long` compare "
        "assignments of process reward on two levels of the world (`long` begins with a policy that was fine-tuned on "
        "long solutions, and has 200 held-out problems with 4 samples): `prm_speedup` is the number of generated "
        "tokens that outcome rewards alone need to reach their final accuracy, divided by that of the best process "
        "mode, the median of three fresh seeds (a seed in which the mode never reaches it, or in which outcome "
        "rewards do not improve, counts 0); `tree_speedup` is the same for credit from continuations. Among the "
        "process modes, `delta` credits a step with the value after it, `progress` with the change in value, and "
        "`value` with the outcome minus the value before it; `value_gae` also uses the values that follow a step "
        "(λ = 0.8). `progress_vs_value` is the final accuracy of `progress` minus that of `delta`, on the long level. "
        "In the comparison, TRL 1.8.0 generates responses with transformers. It runs with its default settings "
        "(`ratio`) and with tuned settings (`tuned_ratio`). With tuned settings, both systems process at most 8,192 "
        "tokens at a time in the update.",
    ),
    "judges": (
        judges,
        "make bench-judges",
        "This benchmark labels solutions of the built-in world, in which the correctness of each step is known, with "
        "the built-in policy as the completer; 60% of the solutions have an error. `adaptive` is `mmprm annotate "
        "--solutions` with its defaults, and `fixed` samples 16 rollouts from every prefix. `rollouts` are rollouts "
        "per solution, `accuracy` is the share of solutions whose first error (or absence of errors) is found, and "
        "`rollout_ratio_incorrect` counts only the solutions with an error. `malformed` gives a thinking judge 1,000 "
        "damaged and 1,000 truncated outputs in all verdict formats: `made_up` counts those that yielded a score, and "
        "`counted` those that were reported as unread. `thinking` teaches the built-in policy to judge solutions of "
        "its own world: first-error F1, generated tokens per solution, and unknown solutions of a process reward model "
        "(`prm`) and of thinking judges after SFT and after RL with 1 and 8 chains (`sft_1`, …, `rl_8`). An unknown "
        "solution counts as judged incorrectly. `chance` is the highest F1 of a judge that guesses.",
    ),
    "agents": (
        agents,
        "make bench-agents",
        "This benchmark labels moves of Sokoban (5 × 5 cells, one box) with a tiny policy that plays from images, "
        "and trains it with `mmprm rl`, with three seeds. `labels_auc`, `first_error`, and `prm_f1` compare labels "
        "(from at least 16 rollouts) and a PRM with an exact solver. `prm_value` is the AUC of the PRM for RL, "
        "which is trained on outcomes of rollouts of the levels of RL, against it. `rl_gain` is the gain in solve "
        "rate on held-out levels in 36 steps of 128 episodes, on one core. `sample_ratio` is the number of episodes "
        "that a method needs to reach the final solve rate of outcome rewards alone, relative to these (the median; "
        "none if at least two of three runs never reach it); the 14,400 rollouts on which the PRM for RL was trained "
        "are not counted. `mean_solve_rates` are those after 0, 12, 24, and 36 steps. `mismatch` is the largest "
        "difference between the log-probabilities of engine and trainer over episodes of 8 turns with images. The PRM "
        "of `prm_f1` is trained on labels from at least 8 shared rollouts.",
    ),
    "omni": (
        omni,
        "make bench-omni",
        "This benchmark runs the system on [clips with sound](tiny.md#clips-with-sound), with a tiny Qwen2.5-Omni "
        "policy. `mismatch` is the largest difference between the log-probabilities of engine and trainer after an "
        "image, audio, a video, and a video with its audio, for a policy with random weights in float32. `rl_gain` is "
        "the gain in accuracy on held-out clips, at temperature 1. `accuracy` is the greedy accuracy with video and "
        "audio minus that with only one of them, whichever is higher; `after_rl` is the same after RL. `bon` is the "
        "accuracy of best-of-8 by a process reward model minus that of the majority vote. Intervals are 95% intervals "
        "over clips.",
    ),
    "dtype": (
        dtype,
        "python benchmarks/engine_dtype.py",
        "This benchmark measures the speed of engines in float32 and bfloat16; the choice that `engine.dtype: auto` "
        "makes is based on the results. It uses the built-in policy (hidden size 128) and SmolLM2-135M (hidden size "
        "576). `at 16` means that 16 completions are generated at the same time. The rows `products` show the speed of "
        "only the matrix products of a decoder layer; here, `576 at 16` means hidden size 576 and 16 tokens. In the "
        "rows `no_bf16`, bf16 and AMX instructions are disabled, as on older CPUs; the AMD EPYC has neither these nor "
        "AVX-512. Speeds are per second of CPU time of one core, and values are medians of three rounds.",
    ),
    "peers": (
        peers,
        "python benchmarks/peers/mm_prm.py CHECKOUT",
        "This benchmark compares `mmprm annotate` to MM-PRM's original annotation code (`theirs`) on the same engines, "
        "problems, and sampling settings. The other rows show the search of mmprm with different values of "
        "`search.min_shared_rollouts`. A label is the value of a distinct prefix. `share_below_16_rollouts` is the "
        "fraction of labels that are based on fewer than 16 rollouts; in mmprm, these are rollouts of another state "
        "that pass through the prefix. `auc` is the AUC of the labels as predictions of whether all steps of the "
        "prefix are correct; `auc_below_16` and `auc_from_16` are computed on the labels with fewer than 16 rollouts "
        "and on the others. `load` is the machine's load average at the end of the run.",
    ),
    "driver": (
        driver,
        "python benchmarks/driver.py",
        "This benchmark measures the CPU time that the driver of `mmprm rl` needs for one training step with 1,024 "
        "responses of 4,096 tokens each. `cut` is the time for splitting responses into steps and mapping tokens to "
        "steps, `credit` the time for computing advantages, and `plan` the time for planning micro-batches. Other "
        "processes were running on the machine during the measurement.",
    ),
}


def page() -> str:
    parts = [INTRODUCTION]
    for name, (rows, command, what) in BENCHMARKS.items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        results = json.loads((RESULTS / f"{name}.json").read_text())
        more = RESULTS / f"{name}_details.json"
        details = json.loads(more.read_text()) if more.exists() else {}
        lines = [f"| {key} | {value} | {bar} |" for key, value, bar in rows(results, details)]
        parts.append(
            f"## {name}\n\n{what} Command: `{command}`. Machine: {_machine(results, details)}.\n\n"
            "| metric | measured | target |\n|---|---|---|\n" + "\n".join(lines) + "\n"
        )
        if "growth" in details:
            parts.append("![How cost grows](growth.png)\n")
        figures = [f"rl-{level}.png" for level in ("short", "long") if name == "rl" and level in results]
        parts += [f"![Learning curves]({figure})\n" for figure in figures]
    return "\n".join(parts)


def _machine(results: dict[str, Any], details: dict[str, Any]) -> str:
    """Return the machine of a benchmark, or each machine with its parts."""
    if "machines" in results:
        return "; ".join(results["machines"])
    if "machines" not in details:
        return details.get("machine") or results["machine"]
    machines: dict[str, list[str]] = {}
    for part, machine in details["machines"].items():
        machines.setdefault(machine, []).append(f"`{part}`")
    return "; ".join(f"{machine} ({', '.join(parts)})" for machine, parts in machines.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
