"""Compare labels of turns, and a process reward model trained on them, with the exact solver of Sokoban.

labels_auc   AUC of the labels against "can still be solved within the turn limit", over the states that the policy
             solves at least once in 64 rollouts and those that cannot be solved; `all_states`: over all states, and
             `all_states_default`: with labels from at least as many shared rollouts as by default
first_error  share of the failed episodes whose first error found by bisection is the solver's first losing turn,
             over those whose last state before it the policy solves at least once in 64 rollouts. `not_found` counts
             the other failed episodes, of which the search bisects only some
prm_f1       first-error F1 of the process reward model on the policy's episodes of unseen levels
prm_value    AUC of the process reward model that benchmarks/agents.py uses for RL against "can still be solved within
             the turn limit of RL", over the states after each turn of these episodes. It is trained on values
             (target.kind=soft): the outcomes of all rollouts of the levels of RL through a state, with that limit
kill         an annotation that is killed with SIGKILL five times: batches lost, and batches counted twice

All parts need a policy that plays: mmprm tiny sokoban-policy --output runs/sokoban/policy

    python -m benchmarks.agents_labels --policy runs/sokoban/policy [--only labels_auc first_error] [--small]

`--policy solver` plays with the solver that makes mistakes instead, without an engine. The annotation and the training
resume where they were interrupted. Results are merged into benchmarks/results/agents.json.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.agents_sokoban import (
    MIN_SHARED_ROLLOUTS,
    MISTAKES,
    SMALL,
    SOLVER,
    Sizes,
    SlowSolver,
    annotate,
    campaign,
    solved_once,
    solver_or_none,
    turn_sampler,
    write_levels,
)
from benchmarks.parts import ROOT, Part, Results, folder_and_output, parts_parser, run_parts
from mcts.config import CampaignConfig
from mcts.search import SearchConfig
from mmprm.errors import StoreError
from mmprm.labels.build import LabelsConfig, build_labels
from mmprm.metrics import NO_ERROR, choose_threshold, first_below, processbench_f1, roc_auc
from mmprm.scoring.config import ScorerConfig
from mmprm.scoring.open import open_scorer
from mmprm.tiny.sokoban_scores import first_losing_turn, is_solvable
from mmprm.trees.evidence import evidence
from mmprm.trees.store import Store
from mmprm.trees.tallies import tallies
from mmprm.types import Counts, Problem, Solution, Steps, Tree, Verdict

KILLS = 5
TRAIN_ROLLOUTS = 8
"""Minimum number of shared rollouts of a label that the PRM trains on: more labels, but with more noise."""
VALUE_EPOCHS = 3
"""Epochs of the PRM of values, which has several times as many paths as the other one."""
BARS: dict[str, tuple[str, Callable[[Results], bool]]] = {
    "labels_auc": ("at least 0.95", lambda found: found["value"] >= 0.95),
    "first_error": (
        "at least 0.9 on at least 60 levels",
        lambda found: found["value"] >= 0.9 and found["levels"] >= 60,
    ),
    "prm_f1": ("at least 0.8", lambda found: found["value"] >= 0.8),
    "prm_value": ("reported", lambda found: True),
    "kill": ("lost and doubled 0", lambda found: found["value"] == 0),
}


@dataclass(frozen=True)
class Bench:
    """Holds the folder, policy and sizes of a run of the benchmark."""

    folder: Path
    policy: str
    sizes: Sizes

    def annotated(self, split: str) -> CampaignConfig:
        """Annotate the levels of the train or the test split, or those of RL ("values"), if this is not done yet."""
        sizes, levels, count = {
            "train": (self.sizes.of_train(), "train", self.sizes.train_levels),
            "test": (self.sizes, "test", self.sizes.held_out_levels),
            "values": (self.sizes.of_values(), "rl", self.sizes.rl_levels),
        }[split]
        path = write_levels(self.folder / f"{levels}.jsonl", "test" if split == "test" else "train", count, sizes)
        config = campaign(path, self.folder / f"annotate-{split}", self.policy, sizes)
        annotate(config, solver_or_none(self.policy))
        return config


def trees_of(
    config: CampaignConfig, min_shared_rollouts: int = MIN_SHARED_ROLLOUTS
) -> Iterator[tuple[Problem, Tree, dict[Steps, Counts]]]:
    """Yield each problem of a campaign with its search tree and the counts of its labeled states."""
    store = Store.read(config.output)
    try:
        for tree in store.trees():
            yield store.problem(tree.problem_id), tree, evidence(tree, config.search, min_shared_rollouts)
    finally:
        store.close()


def labels_auc(bench: Bench) -> Results:
    """Compare the value of each labeled state with the solver."""
    config = bench.annotated("test")
    states, truth = _judged(bench, config, MIN_SHARED_ROLLOUTS)
    default, default_truth = _judged(bench, config, SearchConfig().min_shared_rollouts)
    # Only a solvable state of value 0 can be one that the policy never solves.
    unsure = [state[:2] for state, true in zip(states, truth, strict=True) if true and state[2] == 0]
    with turn_sampler(bench.policy, config.environment) as sampler:
        found = iter(asyncio.run(solved_once(unsure, sampler, config.environment)))
    kept = [not true or state[2] > 0 or next(found) for state, true in zip(states, truth, strict=True)]
    values = [value for _, _, value in states]
    judged = [(value, true) for value, true, keep in zip(values, truth, kept, strict=True) if keep]
    return {
        "value": roc_auc([value for value, _ in judged], [true for _, true in judged]),
        "all_states": roc_auc(values, truth),
        "all_states_default": roc_auc([value for *_, value in default], default_truth),
        "states": len(states),
        "unsolvable": truth.count(False),
        "never_solved": kept.count(False),
        "false_positives": sum(value > 0 and not true for value, true in zip(values, truth, strict=True)),
    }


def _judged(
    bench: Bench, config: CampaignConfig, min_shared_rollouts: int
) -> tuple[list[tuple[Problem, Steps, float]], list[bool]]:
    """Return each labeled state with its value, and whether it can be solved."""
    states = [
        (problem, steps, counts.value)
        for problem, _, labels in trees_of(config, min_shared_rollouts)
        for steps, counts in labels.items()
        if counts.value is not None
    ]
    return states, [is_solvable(problem.extra["level"], steps, bench.sizes.max_turns) for problem, steps, _ in states]


def found_errors(tree: Tree, labels: dict[Steps, Counts]) -> Iterator[tuple[Steps, int]]:
    """Yield the failed episodes from the start whose first error was found, with the index of its turn."""
    for rollout in tree.nodes[0].rollouts:
        if rollout.verdict is not Verdict.INCORRECT:
            continue
        values = [
            (length, labels[rollout.steps[:length]].value)
            for length in range(1, len(rollout.steps) + 1)
            if rollout.steps[:length] in labels
        ]
        recoverable = max((length for length, value in values if value), default=0)
        failed = min((length for length, value in values if not value), default=len(rollout.steps))
        if failed == recoverable + 1:
            yield rollout.steps, failed - 1


def first_error(bench: Bench) -> Results:
    """Compare the first errors that bisection found with the solver's first losing turns."""
    config, turns = bench.annotated("test"), bench.sizes.max_turns
    episodes, failed = [], 0
    for problem, tree, labels in trees_of(config):
        failed += sum(rollout.verdict is Verdict.INCORRECT for rollout in tree.nodes[0].rollouts)
        for steps, found in found_errors(tree, labels):
            truth = first_losing_turn(problem.extra["level"], steps, turns)
            episodes.append((problem, steps, found, truth if truth != NO_ERROR else len(steps)))
    with turn_sampler(bench.policy, config.environment) as sampler:
        before = [(problem, steps[:truth]) for problem, steps, _, truth in episodes]
        agree = asyncio.run(solved_once(before, sampler, config.environment))
    same = [found == truth for (_, _, found, truth), kept in zip(episodes, agree, strict=True) if kept]
    return {
        "value": sum(same) / len(same) if same else None,
        "episodes": len(same),
        "levels": len({problem.id for (problem, *_), kept in zip(episodes, agree, strict=True) if kept}),
        "never_solved": agree.count(False),
        "not_found": failed - len(episodes),
        "all_episodes": sum(found == truth for _, _, found, truth in episodes) / len(episodes) if episodes else None,
    }


def prm_f1(bench: Bench) -> Results:
    """Train a process reward model on labels of the train split, and find the first errors of unseen episodes.

    The threshold is chosen on every second level of the test split, and F1 is measured on the other levels.
    """
    # A level that is solved could always be solved.
    prm = _train(bench, "train", "train", {"target.kind": "hard", "target.correct_solutions": "all_steps"})
    parts: list[list[tuple[Problem, Steps]]] = [[], []]
    for number, episodes in enumerate(_unseen_episodes(bench)):
        parts[number % 2].extend(episodes)
    scores = [_scores(prm, part) for part in parts]
    truths = [
        [first_losing_turn(problem.extra["level"], steps, bench.sizes.max_turns) for problem, steps in part]
        for part in parts
    ]
    threshold, _ = choose_threshold(scores[0], truths[0])
    measured = processbench_f1([first_below(each, threshold) for each in scores[1]], truths[1])
    return {
        "value": measured.f1,
        "on_failed": measured.on_bad,
        "on_successful": measured.on_good,
        "threshold": threshold,
        "episodes": len(truths[1]),
    }


def prm_value(bench: Bench) -> Results:
    """Train a process reward model on values with the turn limit of RL, and compare its scores with the solver."""
    target = {"target.kind": "soft", "training.epochs": str(min(VALUE_EPOCHS, bench.sizes.epochs))}
    prm, turns = _train(bench, "prm-values", "values", target, 1), bench.sizes.rl_turns
    episodes = [(problem, steps[:turns]) for level in _unseen_episodes(bench) for problem, steps in level]
    states: dict[tuple[str, Steps], tuple[float, bool]] = {}
    for (problem, steps), scores in zip(episodes, _scores(prm, episodes), strict=True):
        for length, score in enumerate(scores, 1):
            state = steps[:length]
            if (problem.id, state) not in states:
                truth = is_solvable(problem.extra["level"], state, turns)
                states[problem.id, state] = score, truth
    scores, truths = zip(*states.values(), strict=True)
    return {"value": roc_auc(scores, truths), "states": len(states), "unsolvable": truths.count(False)}


def kill(bench: Bench) -> Results:
    """Kill an annotation by the solver five times, and compare its store with that of an undisturbed run."""
    for name in ("whole", "killed"):  # a finished annotation could not be killed
        shutil.rmtree(bench.folder / name, ignore_errors=True)
    levels = write_levels(bench.folder / "kill.jsonl", "train", max(8, bench.sizes.held_out_levels // 4), bench.sizes)
    whole, killed = (campaign(levels, bench.folder / name, SOLVER, bench.sizes) for name in ("whole", "killed"))
    annotate(whole, SlowSolver(MISTAKES))
    expected = _batches(Path(whole.output))
    settings = bench.folder / "killed.json"
    settings.write_text(json.dumps(killed.model_dump(mode="json", exclude_unset=True)))
    lost = 0
    for number in range(1, KILLS + 1):
        driver = subprocess.Popen([sys.executable, "-m", "benchmarks.agents_sokoban", str(settings)], cwd=ROOT)
        while driver.poll() is None and len(_batches(Path(killed.output))) < number * len(expected) // (KILLS + 1):
            time.sleep(0.01)
        before = _batches(Path(killed.output))
        assert driver.poll() is None, "the annotation must outlast the kills"
        driver.kill()
        driver.wait()
        lost += len(before - _batches(Path(killed.output)))
    annotate(killed, SlowSolver(MISTAKES))
    after = _batches(Path(killed.output))
    store = Store.read(killed.output)
    counted = sum(tally.rollouts for tally in tallies(store))
    stored = sum(len(batch.rollouts) for problem_id in store.ids() for batch in store.batches(problem_id))
    store.close()
    lost += len(expected - after)
    doubled = len(after - expected) + abs(counted - stored)
    return {"value": lost + doubled, "lost": lost, "doubled": doubled, "kills": KILLS, "batches": len(expected)}


def _unseen_episodes(bench: Bench) -> Iterator[list[tuple[Problem, Steps]]]:
    """Yield the policy's distinct episodes of each level of the test split."""
    for problem, tree, _ in trees_of(bench.annotated("test")):
        yield [(problem, steps) for steps in dict.fromkeys(rollout.steps for rollout in tree.nodes[0].rollouts)]


def _scores(prm: Path, episodes: Sequence[tuple[Problem, Steps]]) -> list[Sequence[float]]:
    """Return the score of each turn of the episodes."""
    scorer = open_scorer(ScorerConfig(prm=str(prm)))
    scored = list(scorer.score([_episode(problem, steps) for problem, steps in episodes]))
    scorer.close()
    return [each.scores for each in scored]


def _train(bench: Bench, name: str, split: str, target: Mapping[str, str], rollouts: int = TRAIN_ROLLOUTS) -> Path:
    """Train a process reward model on the labels of a split from at least `rollouts` rollouts, unless this is done."""
    labels, output = bench.folder / f"labels-{split}.parquet", bench.folder / name
    store = bench.annotated(split).output
    if not labels.exists():
        build_labels(LabelsConfig(store=store, output=str(labels), min_shared_rollouts=rollouts, dev=0))
    sets = {
        "model": _base(bench),
        "labels": str(labels),
        "output": str(output),
        "packing": "samples",
        "frozen": "[vision]",
        "max_length": "1024",
        "training.epochs": str(bench.sizes.epochs),
        "training.batch_size": "16",
        "training.micro_batch_tokens": "512",  # longer rows take more time on CPU, because attention is quadratic
        "training.learning_rate": "5e-4",
        "training.precision": "fp32",
        "training.save_every": "200",
        **target,
    }
    words = (word for key, value in sets.items() for word in ("--set", f"{key}={value}"))
    subprocess.run([sys.executable, "-m", "mmprm", "train", *words], check=True, cwd=ROOT)
    return output / "prm"


def _base(bench: Bench) -> str:
    """Return the folder of the policy, or of one with random weights if the solver plays."""
    if bench.policy != SOLVER:
        return bench.policy
    from mmprm.tiny.model import build_model
    from mmprm.tiny.sokoban_policy import build_sokoban_processor

    folder, processor = bench.folder / "random-policy", build_sokoban_processor()
    if not folder.exists():
        build_model(processor.tokenizer).save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(folder)


def _episode(problem: Problem, steps: Steps) -> Solution:
    from mmprm.environments.replay import replay
    from mmprm.tiny.sokoban_environment import SokobanEnvironment

    played = replay(SokobanEnvironment(), problem, 0, steps)
    seen = (played.start, *(transition.observation for transition in played.transitions))
    return Solution(problem, steps, tuple(observation.parts for observation in seen))


def _batches(run: Path) -> set[tuple[str, Steps, int, tuple[Steps, ...]]]:
    """Return the stored batches of a run with their rollouts; the store may not exist yet."""
    try:
        store = Store.read(run)
    except StoreError:
        return set()
    try:
        return {
            (problem_id, batch.steps, batch.first_sample, tuple(rollout.steps for rollout in batch.rollouts))
            for problem_id in store.ids()
            for batch in store.batches(problem_id)
        }
    finally:
        store.close()


PARTS = {
    name: Part(measure, *BARS[name])
    for name, measure in (
        ("labels_auc", labels_auc),
        ("first_error", first_error),
        ("prm_f1", prm_f1),
        ("prm_value", prm_value),
        ("kill", kill),
    )
}


def main() -> None:
    """Run the parts and merge their results into the results file."""
    parser = parts_parser(__doc__, PARTS, ROOT / "runs" / "sokoban" / "policy")
    arguments = parser.parse_args()
    folder, output = folder_and_output(arguments, "bench-agents-labels", "agents.json")
    bench = Bench(folder, str(arguments.policy), SMALL if arguments.small else Sizes())
    run_parts(PARTS, arguments.only, bench, output, arguments.small)


if __name__ == "__main__":
    main()
