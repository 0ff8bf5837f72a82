"""Run campaigns without a model, to measure their bookkeeping at scale and their recovery after being killed.

The engines are Ray actors as usual, but their sampler simulates solutions of recorded lengths and success rates. Run as
a script, this file is the driver: `annotate_simulated.py PROFILE FOLDER PROBLEMS MAX_ROLLOUTS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from mcts.campaign import SUMMARY_NAME, run_campaign
from mcts.capacity import Load
from mcts.config import CampaignConfig
from mcts.ray_worker import EngineActor, RayWorkers
from mcts.roll import Roller
from mcts.search import SearchConfig, search
from mmprm.config import build
from mmprm.grading.symbolic import SymbolicGrader
from mmprm.sampling.simulated import Profile, SimulatedSampler
from mmprm.trees.database import STORE_NAME
from mmprm.trees.evidence import evidence
from mmprm.trees.stopping import rule_of
from mmprm.trees.store import Store
from mmprm.types import Problem

GIB = 2**30
TOTALS = """SELECT TOTAL(correct + incorrect + unknown + tokens) FROM batches
UNION ALL SELECT TOTAL(count) FROM reasons UNION ALL SELECT TOTAL(labels) FROM problems"""
"""SQL query for totals that would change if a batch were counted twice."""


def record_profile(store: Store, path: Path) -> None:
    """Record the value of each problem in a campaign, and the words per step of the solutions from its root."""
    values, lengths = [], []
    for tree in store.trees():
        root = tree.nodes[0]
        values.append(root.counts.value)
        lengths += [[len(step.split()) for step in rollout.steps] for rollout in root.rollouts if rollout.steps]
    path.write_text(json.dumps(asdict(Profile(tuple(values), tuple(map(tuple, lengths[:2000]))))))


def read_profile(path: str | Path) -> Profile:
    values = json.loads(Path(path).read_text())
    return Profile(tuple(values["values"]), tuple(map(tuple, values["lengths"])), values["variants"])


class SimulatedActor(EngineActor):
    def open_engine(
        self, config: CampaignConfig, number: int, bind_core: bool
    ) -> tuple[SimulatedSampler, Callable[[], Load | None]]:
        return SimulatedSampler(read_profile(config.engine.model)), lambda: None


class SimulatedWorkers(RayWorkers):
    actor_class = SimulatedActor


def configure(profile: Path, folder: Path, problems: int, max_rollouts: int) -> CampaignConfig:
    path = folder / "problems.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = (json.dumps({"question": f"problem {number}", "answer": str(number)}) for number in range(problems))
        path.write_text("\n".join(rows))
    return build(
        CampaignConfig,
        {
            "output": str(folder),
            "problems": {"path": str(path)},
            "engine": {"model": str(profile)},
            "search": {"max_rollouts": max_rollouts, "max_searches": max_rollouts},
            "workers": 2,
        },
    )


def drive(profile: Path, folder: Path, problems: int, max_rollouts: int) -> None:
    config = configure(profile, folder, problems, max_rollouts)
    with SimulatedWorkers(config) as workers:
        run_campaign(config, make_worker=workers.make)


@contextmanager
def driver(*arguments: object) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watch(process: subprocess.Popen, until: Callable[[], bool], seconds: float = 0.5) -> float:
    """Wait until `until()` is true or the process ends; return the process's peak memory in GiB."""
    peak = 0.0
    while process.poll() is None and not until():
        # VmHWM is the peak resident set size of the process.
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max(peak, *(int(line.split()[1]) * 1024 / GIB for line in status.splitlines() if "VmHWM" in line), 0.0)
        time.sleep(seconds)
    return peak


def rows_of(folder: Path, sql: str) -> list[tuple]:
    try:
        connection = sqlite3.connect(f"file:{folder / STORE_NAME}?mode=ro", uri=True, timeout=30)
        with connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error:  # the driver has not created the store yet
        return []


def batch_keys(folder: Path) -> set[tuple]:
    return set(rows_of(folder, "SELECT problem, state, first_draw FROM batches"))


def last_batch(folder: Path) -> int:
    return (rows_of(folder, "SELECT MAX(number) FROM batches") or [(0,)])[0][0] or 0


def labels_of(folder: Path) -> tuple[int, str]:
    """Return the number of distinct labels and a hash of all labels with their counts."""
    store = Store.read(folder / STORE_NAME)
    rule = rule_of(store.config)
    count, digest = 0, hashlib.sha256()
    for tree in store.trees():
        labels = {steps: counts for steps, counts in evidence(tree, rule).items() if steps}
        count += len(labels)
        digest.update(repr((tree.problem_id, sorted(labels.items(), key=lambda item: item[0]))).encode())
    store.close()
    return count, digest.hexdigest()


def simulated(profile: Path, folder: Path, problems: int, max_rollouts: int) -> dict:
    """Run a whole campaign, kill its driver near the end, and time the restart until the next run's first batch."""
    arguments = (profile, folder, problems, max_rollouts)

    def nearly_done() -> bool:
        return (rows_of(folder, "SELECT COUNT(*) FROM problems WHERE status = 'open'") or [(problems,)])[0][0] < 150

    with driver(*arguments) as process:
        peak = watch(process, lambda: folder.joinpath(STORE_NAME).exists() and nearly_done(), seconds=5)
        assert process.poll() is None, "the driver must still be running"
    seconds = rows_of(folder, "SELECT MAX(last - began) FROM sessions")[0][0]
    rollouts = rows_of(folder, "SELECT TOTAL(correct + incorrect + unknown) FROM batches")[0][0]
    before, begun = last_batch(folder), time.perf_counter()
    with driver(*arguments) as process:
        peak = max(peak, watch(process, lambda: last_batch(folder) > before, seconds=0.1))
        restart = time.perf_counter() - begun
        peak = max(peak, watch(process, lambda: False))
        assert process.returncode == 0
    begun = time.perf_counter()
    labels, _ = labels_of(folder)
    return {
        "labels": labels,
        "rollouts_per_second": rollouts / seconds,
        "driver_peak_gib": peak,
        "store_gib": sum(file.stat().st_size for file in folder.glob(f"{STORE_NAME}*")) / GIB,
        "restart_seconds": restart,
        "rollouts": json.loads((folder / SUMMARY_NAME).read_text())["rollouts"],
        "seconds": seconds,
        "labels_seconds": time.perf_counter() - begun,
        "problems": problems,
    }


def kill(profile: Path, folder: Path, kills: int, problems: int, max_rollouts: int) -> dict:
    """Kill the driver or a random worker with SIGKILL at random times, then run the campaign to completion."""
    moment = random.Random(0)
    folder.mkdir()
    repeating = folder / "profile.json"  # repeated step texts, so that rollouts of one state are evidence for another
    repeating.write_text(json.dumps(asdict(replace(read_profile(profile), variants=3))))
    profile = repeating
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    with driver(profile, undisturbed, problems, max_rollouts) as process:
        assert process.wait() == 0
    done: dict[str, int] = {"driver": 0, "worker": 0}
    lost = 0
    acknowledged: set[tuple] = set()
    while sum(done.values()) < kills:
        with driver(profile, killed, problems, max_rollouts) as process:
            before = last_batch(killed)
            watch(process, lambda before=before: last_batch(killed) > before, seconds=0.02)
            for victim in moment.choices(["driver", "worker"], k=6):
                time.sleep(moment.uniform(0, 1.5))
                if process.poll() is not None:
                    break
                seen = batch_keys(killed)
                if victim == "driver":
                    process.kill()
                    process.wait()
                elif not _kill_worker(process, moment):
                    continue
                done[victim] += 1
                # Batches that were committed before the kill must still be in the store after it.
                acknowledged |= seen
                lost += len(acknowledged - batch_keys(killed))
                if victim == "driver":
                    break
            else:
                process.kill()
        assert last_batch(killed) < last_batch(undisturbed), "the campaign must outlast the kills"
    with driver(profile, killed, problems, max_rollouts) as process:
        assert process.wait() == 0
    extra = len(batch_keys(killed) - batch_keys(undisturbed))
    totals = [sum(row[0] for row in rows_of(each, TOTALS)) for each in (killed, undisturbed)]
    return {
        "kills": sum(done.values()),
        "lost": lost,
        "double_counted": int(extra + abs(totals[0] - totals[1])),
        "identical": labels_of(killed) == labels_of(undisturbed),
        "by": done,
        "batches": last_batch(undisturbed),
    }


def _kill_worker(process: subprocess.Popen, moment: random.Random) -> bool:
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "SimulatedActor" in child.name() or "SimulatedActor" in _title(child)]
    if workers:
        os.kill(moment.choice(workers).pid, signal.SIGKILL)
    return bool(workers)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def growth(profile: Path, folder: Path) -> dict:
    """Measure bookkeeping time per label for several numbers of problems, and per state for several tree sizes."""
    by_problems = {}
    for problems in (10, 100, 1000):
        target = folder / f"problems-{problems}"
        with driver(profile, target, problems, 640) as process:
            assert process.wait() == 0
        seconds = rows_of(target, "SELECT MAX(last - began) FROM sessions")[0][0]
        by_problems[problems] = 1e6 * seconds / labels_of(target)[0]
    by_states = {}
    sampler, grader = SimulatedSampler(Profile((0.5,), ((5,) * 12,))), SymbolicGrader()
    for states in (100, 1000, 10_000):
        config = SearchConfig(max_searches=10**6, max_rollouts=20 * states)
        roll = Roller(Problem("p", "question", "1"), sampler, grader, "tags", 0, [], lambda batch: None)
        begun = time.perf_counter()
        tree = asyncio.run(search(Problem("p", "question", "1"), roll, config)).tree
        by_states[len(tree.nodes)] = 1e6 * (time.perf_counter() - begun) / len(tree.nodes)
    grader.close()
    return {"microseconds_a_label_by_problems": by_problems, "microseconds_a_state_by_states": by_states}


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
