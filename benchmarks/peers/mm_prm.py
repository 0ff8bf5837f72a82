"""Compare mmprm's annotation with MM-PRM's own code on the same engines and problems.

MM-PRM's code is not part of this repository. Clone it from its authors and name the folder:

python benchmarks/peers/mm_prm.py CHECKOUT [--problems 40] [--budget 600] [--only theirs default …]

Both sides get the same policy, engine settings (one engine per core), sampling and budget of rollouts per problem.
mm_prm_worker.py says what is adapted. A label is a distinct (problem, prefix) with rollouts; complete solutions are not
counted. Its AUC compares the label with whether every step of the prefix is correct, which the built-in world can tell.
Our rows differ in search.min_shared_rollouts: labels below 16 rollouts are shared, that is, they come from rollouts of
another state's batch that pass through the prefix.

Writes benchmarks/results/peers.json. The policy is the built-in one, or `--model` with `--problems-file`; the policy
must write its steps in <step> tags. Then there is no truth, and the AUC is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcts.campaign import run_campaign
from mcts.config import CampaignConfig
from mmprm.cli.demo import DEMO_PROMPT, SAMPLING
from mmprm.config import build
from mmprm.metrics import bootstrap, roc_auc
from mmprm.problems import ProblemsConfig, load_problems, write_problems
from mmprm.sampling.config import EngineConfig
from mmprm.sampling.dtype import engine_dtype
from mmprm.tiny.model import weights_path
from mmprm.tiny.truth import errorless_so_far
from mmprm.tiny.world import make_problems
from mmprm.trees.evidence import evidence
from mmprm.trees.store import Store
from mmprm.types import Problem

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
OURS = {
    "default": {},
    "min_shared_rollouts=8": {"min_shared_rollouts": 8},
    "min_shared_rollouts=12": {"min_shared_rollouts": 12},
    "min_shared_rollouts=16": {"min_shared_rollouts": 16},
    "min_shared_rollouts=null": {"min_shared_rollouts": None},
}
"""Search settings of each row of mmprm."""
MANY = 16
"""Minimum number of rollouts of a label to be counted as a label with many rollouts."""

Label = tuple[str, tuple[str, ...], float, int]
"""Represents a label as (problem id, steps, correct rollouts, incorrect rollouts)."""


def theirs(settings: dict[str, Any], folder: Path) -> tuple[list[Label], dict[str, Any]]:
    """Run MM-PRM's search in one process per core; return its labels and measurements."""
    path = folder / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    worker = str(Path(__file__).with_name("mm_prm_worker.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    begun = time.time()
    commands = [[sys.executable, worker, str(path), "--index", str(index)] for index in range(len(settings["cores"]))]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{settings['checkout']}: its search failed; see the error above")
    parts = [json.loads((folder / f"theirs-{index}.json").read_text()) for index in range(len(running))]
    labels = [
        (each["id"], tuple(label["steps"]), label["correct"] / label["rollouts"], label["rollouts"])
        for part in parts
        for each in part["searched"]
        for label in each["labels"]
    ]
    measured = {
        "tokens": sum(part["tokens"] for part in parts),
        "rollouts": sum(each["rollouts"] for part in parts for each in part["searched"]),
        "seconds": max(part["ended"] for part in parts) - min(part["begun"] for part in parts),
        "seconds_with_start": max(part["ended"] for part in parts) - begun,
    }
    return labels, measured


def ours(settings: dict[str, Any], folder: Path, search: dict[str, Any]) -> tuple[list[Label], dict[str, Any]]:
    """Run an mmprm campaign with the given search settings; return its labels and measurements."""
    values = {name: settings[name] for name in ("engine", "sampling", "prompt")}
    values |= {"output": str(folder), "problems": {"path": settings["problems"]}, "workers": len(settings["cores"])}
    config = build(CampaignConfig, values | {"search": {"max_rollouts": settings["budget"]} | search})
    begun = time.time()
    summary = run_campaign(config)
    store = Store.read(folder)
    labels = [
        (tree.problem_id, steps, counts.value, counts.known)
        for tree in store.trees()
        for steps, counts in evidence(tree, config.search).items()
        if steps
    ]
    store.close()
    measured = {
        "tokens": summary.tokens,
        "rollouts": summary.rollouts,
        "seconds": summary.seconds,
        "seconds_with_start": time.time() - begun,
    }
    return labels, measured


def row_of(labels: Sequence[Label], measured: dict[str, Any], problems: dict[str, Problem] | None) -> dict[str, Any]:
    """Return one row of the table. Without `problems`, the truth of the labels is unknown."""
    fewer = [label for label in labels if label[3] < MANY]
    row = {
        "labels": len(labels),
        "tokens_per_label": measured["tokens"] / len(labels),
        "labels_per_second": len(labels) / measured["seconds"],
        "labels_per_second_with_start": len(labels) / measured["seconds_with_start"],
        f"share_below_{MANY}_rollouts": len(fewer) / len(labels),
    }
    if problems is None:
        return row
    row["auc"] = auc(labels, problems)
    for name, some in ((f"auc_below_{MANY}", fewer), (f"auc_from_{MANY}", [*set(labels) - set(fewer)])):
        row |= {name: auc(some, problems)} if some else {}
    return row


def auc(labels: Sequence[Label], problems: dict[str, Problem]) -> dict[str, float]:
    """Return the AUC of the labels as predictions that the prefix is correct, with a 95 % interval over problems."""
    labels = sorted(labels)
    value_K = np.array([value for _, _, value, _ in labels])
    true_K = np.array([bool(errorless_so_far(problems[name], steps)[-1]) for name, steps, _, _ in labels])

    def statistic(items: Any) -> float:
        return math.nan if len(set(true_K[items])) < 2 else roc_auc(value_K[items], true_K[items])

    interval = bootstrap(statistic, [label[0] for label in labels], seed=0, resamples=1000)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def settings_of(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the settings that both systems share, and write the problem file for the built-in policy."""
    problems = arguments.problems_file
    if problems is None:
        problems = folder / "problems.jsonl"
        chosen = make_problems(arguments.problems, arguments.seed, "annotate")
        write_problems(problems, [tiny.problem for tiny in chosen])
    engine = EngineConfig(model=str(arguments.model or weights_path()), max_model_len=arguments.max_model_len)
    sampling = SAMPLING.model_copy(update={"max_tokens": arguments.max_tokens})
    return {
        "checkout": str(arguments.checkout.resolve()),
        "engine": {"model": engine.model, "max_model_len": engine.max_model_len, "dtype": engine_dtype(engine)},
        "sampling": sampling.model_dump(),
        "prompt": DEMO_PROMPT.model_dump() | {"preset": arguments.preset},
        "problems": str(problems),
        "budget": arguments.budget,
        "cores": sorted(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Run all rows that `--only` selects, and update the results file. Other rows are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of MM-PRM's code")
    parser.add_argument("--only", nargs="*", choices=["theirs", *OURS], default=["theirs", *OURS])
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--budget", type=int, default=600, help="maximum rollouts per problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="policy folder, instead of the built-in policy")
    parser.add_argument("--problems-file", type=Path, help="its problems")
    parser.add_argument("--preset", default="plain")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    name = arguments.model.name if arguments.model else "built-in policy"
    rows = results.setdefault("rows", {}).setdefault(f"{name}, budget {arguments.budget}", {})
    for kind in arguments.only:
        with tempfile.TemporaryDirectory(prefix="mmprm-peer-") as temporary:
            folder = Path(temporary)
            settings = settings_of(arguments, folder)
            loaded = load_problems(ProblemsConfig(path=settings["problems"]))
            problems = None if arguments.model else {problem.id: problem for problem in loaded}
            run = theirs(settings, folder) if kind == "theirs" else ours(settings, folder / "run", OURS[kind])
            rows[kind] = row_of(*run, problems) | {"problems": len(loaded), "load": round(os.getloadavg()[0], 1)}
        print(kind, json.dumps(rows[kind], indent=2), flush=True)
        results["machine"] = f"{len(settings['cores'])} cores, one engine per core"
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
