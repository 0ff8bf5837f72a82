"""Measure the system on clips with sound: `make bench-omni` writes benchmarks/results/omni.json.

mismatch   largest difference between the log-probabilities of engine and trainer after an image, audio, a video, and a
           video with its audio, in float32; other mixtures are reported
rl_gain    gain in accuracy on held-out clips of `mmprm rl` with outcome rewards alone, paired by clip
accuracy   greedy accuracy with video and audio, minus that with only one of them, whichever is higher; also for the
           policy after RL, if rl_gain has been measured
bon        accuracy of best-of-8 by a process reward model, minus that of the majority vote, on unseen clips, paired by
           clip; the model is trained on the labels of `mmprm annotate`

All parts but the first need a policy: mmprm tiny omni-policy --output runs/omni/policy

    python -m benchmarks.omni [--only mismatch] [--small] [--status]

Each run is an mmprm command in a separate process. An interrupted benchmark resumes with the missing runs, and the
commands themselves resume where they can.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts import ROOT, Part, Results, folder_and_output, parts_parser, run_mmprm, run_parts
from mmprm.metrics import Interval, bootstrap_mean
from mmprm.problems import write_problems
from mmprm.tiny.omni_world import make_omni_problems
from mmprm.tiny.world import WorldSplit

CONFIGS = ROOT / "configs"
RUNS = ("before", "rl", "after", "annotate", "labels", "train", "development", "bon")
"""Names of all runs."""
FOUR = ("image", "audio", "video", "video, then its audio")
"""Problems of the part mismatch that have a target."""


@dataclass(frozen=True)
class Sizes:
    """Configures the numbers of clips, samples and steps. SMALL tests every part with a few of each."""

    annotate: int = 600
    train: int = 1600
    dev: int = 100
    test: int = 300
    samples: int = 8
    prompts: int = 32
    group_size: int = 8
    steps: int = 40
    epochs: int = 6
    engines: int | None = None
    """Number of engines; by default one per core."""


FULL = Sizes()
SMALL = Sizes(16, 8, 6, 8, samples=4, prompts=4, group_size=4, steps=2, epochs=1, engines=1)


@dataclass(frozen=True)
class Bench:
    """Holds the folder, policy and sizes of the benchmark. `execute` runs an mmprm command and writes its log."""

    folder: Path
    policy: Path
    sizes: Sizes
    execute: Callable[[list[str], Path], int] = run_mmprm

    def clips(self, split: WorldSplit) -> Path:
        """Return the file with the clips of a split, after writing it if necessary."""
        path = self.folder / f"{split}.jsonl"
        if not path.exists():
            made = make_omni_problems(getattr(self.sizes, split), 0, split)
            write_problems(path, [each.problem for each in made])
        return path

    def run(self, name: str, command: Sequence[str], sets: Mapping[str, Any], reads: str | None = None) -> Path:
        """Return the output of a run, after making it if it has not finished with these keys.

        `reads` is the run whose output this one reads. An interrupted run with the same keys resumes; a run with other
        keys, or that reads a run with other keys, starts over.
        """
        output = self.folder / (f"{name}.parquet" if name == "labels" else name)
        words = [*command, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]
        key = words if reads is None else [*words, self._state(reads)["key"]]
        same = self._state(name).get("key") == key
        if same and self.is_done(name):
            return output
        if not same:
            shutil.rmtree(output, ignore_errors=True)
            self._path(name).write_text(json.dumps({"key": key}))
        began, log = time.perf_counter(), self.folder / f"{name}.log"
        code = self.execute([*words, "--set", f"output={output}"], log)
        if code:
            raise RuntimeError(f"{name} ended with exit code {code}; see {log}")
        done = {"key": key, "minutes": (time.perf_counter() - began) / 60}
        self._path(name).write_text(json.dumps(done))
        return output

    def is_done(self, name: str) -> bool:
        """Return whether a run has finished."""
        return "minutes" in self._state(name)

    def minutes(self, *names: str) -> float:
        """Return the total duration of finished runs, since they were last resumed."""
        return sum(self._state(name)["minutes"] for name in names)

    def rerank(
        self, name: str, split: WorldSplit, model: Path, scorer: str, reads: str | None = None, choosing: bool = False
    ) -> Path:
        """Return the output of `mmprm rerank` on the clips of a split; see `run`."""
        command = ["rerank", "--config", str(CONFIGS / "rerank" / "omni-tiny.yaml")]
        command += ["--choose-aggregator"] if choosing else []
        sets = self.sampling(split, model) | {"scorer": scorer, "samples": self.sizes.samples}
        return self.run(name, command, sets, reads)

    def sampling(self, split: WorldSplit, model: Path, engines: str = "workers") -> Results:
        """Return the keys of a command that samples about the clips of a split; `engines` is their number's key."""
        sets = {"problems.path": self.clips(split), "engine.model": model, "ray_address": "local"}
        return sets | ({} if self.sizes.engines is None else {engines: self.sizes.engines})

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.state.json"

    def _state(self, name: str) -> Results:
        path = self._path(name)
        return json.loads(path.read_text()) if path.exists() else {}


def mismatch(bench: Bench) -> Results:
    """Compare the log-probabilities of engine and trainer."""
    from benchmarks.omni_mismatch import measure_mismatch, write_policy

    folder = bench.folder / "mismatch-policy"
    if not (folder / "config.json").exists():
        write_policy(folder)
    found = measure_mismatch(folder)
    return {"value": max(found[name] for name in FOUR), "by_media": found}


def rl_gain(bench: Bench) -> Results:
    """Train by RL, and compare the accuracy on the same held-out clips before and after."""
    before = shares_correct(bench.rerank("before", "test", bench.policy, "null"))
    after = shares_correct(bench.rerank("after", "test", rl(bench) / "policy", "null", "rl"))
    gain = bootstrap_mean([after[clip] - before[clip] for clip in before], 0)
    return {
        "value": gain.value,
        "interval": [gain.low, gain.high],
        "before": sum(before.values()) / len(before),
        "after": sum(after.values()) / len(after),
        "clips": len(before),
        "minutes": bench.minutes("rl"),
    }


def rl(bench: Bench) -> Path:
    """Return the run of `mmprm rl`."""
    sizes = bench.sizes
    sets = bench.sampling("train", bench.policy, "rollouts.engines") | {
        "held_out.path": bench.clips("test"),
        "batch.prompts": sizes.prompts,
        "batch.group_size": sizes.group_size,
        "steps": sizes.steps,
        "eval_every": sizes.steps,
    }
    return bench.run("rl", ["rl", "--config", str(CONFIGS / "rl" / "omni-tiny.yaml")], sets)


def shares_correct(rerank: Path) -> dict[str, float]:
    """Return the share of correct samples per problem. An unknown verdict counts as incorrect."""
    verdicts: dict[str, list[bool]] = {}
    for line in (rerank / "candidates.jsonl").read_text().splitlines():
        row = json.loads(line)
        verdicts.setdefault(row["problem_id"], []).append(row["verdict"] == "correct")
    return {clip: sum(found) / len(found) for clip, found in verdicts.items()}


def accuracy(bench: Bench) -> Results:
    """Compare the accuracy with both video and audio to that with one of them."""
    found = needs_both(answers(bench.policy, bench.sizes.test))
    if bench.is_done("rl"):
        found["after_rl"] = needs_both(answers(rl(bench) / "policy", bench.sizes.test))
    return found


def answers(policy: Path, clips: int) -> dict[str, list[bool]]:
    """Return whether the policy's answers about test clips are correct, by condition; see correct_answers."""
    import torch

    from mmprm.backbone.load import load_backbone
    from mmprm.tiny.omni_policy import ClipCollator, correct_answers

    backbone, processor = load_backbone(str(policy), torch.float32)
    collator = ClipCollator(backbone.eval(), processor)
    return correct_answers(backbone, collator, make_omni_problems(clips, 0, "test"), 0)


def needs_both(correct: Mapping[str, Sequence[bool]]) -> Results:
    """Return accuracies, and the smaller of the differences between both modalities and one, with its interval."""
    both = correct["greedy_accuracy"]
    intervals: dict[str, Interval] = {
        name: bootstrap_mean([int(b) - int(one) for b, one in zip(both, correct[name], strict=True)], 0)
        for name in ("video_only", "audio_only")
    }
    smaller = min(intervals.values(), key=lambda each: each.value)
    shares = {name: sum(found) / len(found) for name, found in correct.items()}
    return {"value": smaller.value, "interval": [smaller.low, smaller.high], **shares, "clips": len(both)}


def bon(bench: Bench) -> Results:
    """Train a process reward model on labels of `mmprm annotate`, and choose among samples with it."""
    command = ["annotate", "--config", str(CONFIGS / "annotate" / "omni-tiny.yaml")]
    store = bench.run("annotate", command, bench.sampling("annotate", bench.policy))
    labels = bench.run("labels", ["labels"], {"store": store}, "annotate")
    sets = {"model": bench.policy, "labels": labels, "training.epochs": bench.sizes.epochs}
    command = ["train", "--config", str(CONFIGS / "train" / "omni-tiny.yaml")]
    scorer = f"{{prm: {bench.run('train', command, sets, 'labels') / 'prm'}}}"
    bench.rerank("development", "dev", bench.policy, scorer, "train", choosing=True)
    chosen = bench.rerank("bon", "test", bench.policy, scorer, "development")
    summary = json.loads((chosen / "summary.json").read_text())
    last = summary["accuracy_at_n"][-1]
    differences = last["minus_majority"]
    return {
        "value": differences["prm"]["value"],
        "interval": [differences["prm"]["low"], differences["prm"]["high"]],
        "weighted": differences["weighted"],
        "accuracy": summary["accuracy"],
        "n": last["n"],
        "aggregator": summary["aggregator"],
        "clips": summary["problems"],
        "minutes": bench.minutes("annotate", "labels", "train", "development", "bon"),
    }


PARTS = {
    "mismatch": Part(mismatch, "at most 1e-5", lambda found: found["value"] <= 1e-5),
    "rl_gain": Part(rl_gain, "interval above 0", lambda found: found["interval"][0] > 0),
    "accuracy": Part(accuracy, "at least 0.2", lambda found: found["value"] >= 0.2),
    "bon": Part(bon, "reported", lambda found: True),
}


def main() -> None:
    """Measure the parts and merge their results into the results file."""
    parser = parts_parser(__doc__, PARTS, ROOT / "runs" / "omni" / "policy")
    parser.add_argument("--status", action="store_true", help="show which runs are missing, and measure nothing")
    arguments = parser.parse_args()
    folder, output = folder_and_output(arguments, "bench-omni", "omni.json")
    bench = Bench(folder, arguments.policy, SMALL if arguments.small else FULL)
    if arguments.status:
        print("\n".join(f"{name}: {'done' if bench.is_done(name) else 'missing'}" for name in RUNS))
        return
    run_parts(PARTS, arguments.only, bench, output, arguments.small)


if __name__ == "__main__":
    main()
