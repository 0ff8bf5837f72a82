"""Collect the groups of a training step: sample, grade, reward, filter and score them; carry over the surplus.

Each group is graded and scored as soon as its responses are complete, while other groups are still being generated.
Dropped samples are counted by reason and never receive a reward.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmprm.errors import DataError, EngineStoppedError, SamplingError, TrainingError
from mmprm.prompts import assistant_beginning
from mmprm.types import Grader, Grading, Problem
from policy_rl.algorithms.advantages import ESTIMATORS
from policy_rl.config import RLConfig
from policy_rl.graded import BranchedPrefix, GradedGroup, GradedResponse, Process, from_json, to_json
from policy_rl.rewards.cutter import StepCutter
from policy_rl.rewards.outcome import OutcomeReward
from policy_rl.rollouts.branching import ChosenPrefix, choose_prefixes
from policy_rl.rollouts.collected import Collected
from policy_rl.rollouts.config import branch_seed, may_branch, rollout_seed
from policy_rl.rollouts.curriculum import Phase, Prompts, groups_to_ask, phase_of
from policy_rl.rollouts.protocol import Pool
from policy_rl.trainer.rows import split_rows
from policy_rl.types import Group, Response, Reward, TrainingSample, as_sample

_T = TypeVar("T")


@dataclass(slots=True)
class _Taken:
    """Holds what an unfinished `collect` has taken: groups that were carried over, and positions of problems."""

    carried: list[GradedGroup]
    positions: list[int] = field(default_factory=list)


class Collector:
    """Collects graded groups of responses for each training step.

    `check` raises DataError if a response cannot be trained on. `cutter` finds the steps of responses. It is needed
    with rollouts.branching, and otherwise only for the credits in the logged samples. A collector's state consists of
    its position in the data and the groups that it carries over. Several steps may be collected at the same time.
    """

    def __init__(
        self,
        config: RLConfig,
        problems: Sequence[Problem],
        pool: Pool,
        grader: Grader,
        check: Callable[[TrainingSample], None],
        process: Process | None = None,
        prefill: str | None = None,
        cutter: StepCutter | None = None,
    ) -> None:
        self._config, self._pool, self._grader, self._check, self._process = config, pool, grader, check, process
        self.prefill = assistant_beginning(config.prompt, "") if prefill is None else prefill
        self._cutter = cutter
        self._reward = OutcomeReward(config.rewards, self.prefill)
        self._interruptible = config.max_staleness > 0
        self._least = ESTIMATORS[config.advantage.estimator].least
        self._prompts = Prompts(problems, config.seed)
        self._by_id = {problem.id: problem for problem in problems}
        self.fingerprint = problems_fingerprint(problems, config)
        self._carried: list[GradedGroup] = []
        self._failures: Counter[str] = Counter()
        self._unfinished: dict[int, _Taken] = {}
        """What each unfinished step has taken. A failed step stays here, so that it is collected again on resume."""
        self._total = config.total_steps(len(problems))

    @property
    def waiting(self) -> int:
        """Return the number of groups carried over to the next step."""
        return len(self._carried)

    @property
    def passes(self) -> float:
        """Return the number of passes over the problems so far, including a partial one."""
        return self._prompts.position / len(self._prompts.problems)

    def may_branch(self, group: GradedGroup) -> bool:
        """Return whether the responses of a group are continued from some of their prefixes, if they have any."""
        config = self._config.rollouts.branching
        return config is not None and may_branch(config, self._config.seed, group.version, group.problem.id)

    def step_of_token(self, each: GradedResponse) -> np.ndarray | None:
        """Return the step index of each token of a response, or None if its steps are unknown."""
        if each.process is not None:
            return each.process.step_of_token
        return None if self._cutter is None else self._cutter.cut(each.response)[1]

    async def collect(self, step: int) -> Collected:
        """Collect up to batch.prompts groups for a training step. `step` counts from 1.

        There are fewer if some were dropped or if the filter ran out of rounds. With a filter, the number is a multiple
        of the groups per update, and the rest are carried over: a shortage leads to fewer updates, not smaller ones.
        """
        config, found = self._config, Collected()
        phase = phase_of(config.schedule, step) if config.schedule else config.phase()
        wanted, most = config.batch.prompts, config.filter.rounds if config.filter else 1
        groups, self._carried = self._carried, []
        taken = self._unfinished[step] = _Taken(list(groups))
        seen = passed = 0
        while (missing := wanted - len(groups)) > 0 and found.rounds < most:
            found.rounds += 1
            positions = self._prompts.reserve(groups_to_ask(missing, passed, seen, wanted))
            taken.positions += positions
            asked = [self._prompts.at(position) for position in positions]
            new = await self._round(asked, phase, found)
            groups += new
            seen, passed = seen + len(asked), passed + len(new)
        # With a filter, only whole updates are used, so that every update has the configured size.
        size = config.batch.prompts // config.batch.updates if config.filter else 1
        used = min(wanted, len(groups) // size * size)
        found.groups = groups[:used]
        self._carried += groups[used:]
        del self._unfinished[step]
        found.passed, found.carried, found.progress = passed, self.waiting, self._progress(step)
        if config.filter is not None and len(groups) < wanted:
            print(
                f"step {step}: {len(groups)} of {wanted} groups after filter.rounds={most} rounds "
                f"({found.reasons}); {used // size} of {config.batch.updates} updates of {size} groups, "
                f"{found.carried} groups wait for the next step",
                file=sys.stderr,
                flush=True,
            )
        return found

    def _progress(self, step: int) -> float:
        config = self._config
        return min(1.0, self.passes / config.episodes if config.ends_by_passes else step / self._total)

    def state(self) -> dict[str, Any]:
        """Return the collector's state for a checkpoint. What unfinished steps have taken will be taken again."""
        unfinished = [self._unfinished[step] for step in sorted(self._unfinished)]
        carried = [*(group for taken in unfinished for group in taken.carried), *self._carried]
        again = sorted([*self._prompts.again, *(each for taken in unfinished for each in taken.positions)])
        return {"position": self._prompts.position, "again": again, "carried": list(map(to_json, carried))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self._prompts.position, self._prompts.again = state["position"], list(state.get("again", ()))
        self._carried = [from_json(group, self._by_id) for group in state["carried"]]

    def collected(self, state: Mapping[str, Any]) -> Collected:
        """Restore what Collected.to_json has serialized."""
        return Collected.from_json(state, self._by_id)

    async def _round(self, asked: Sequence[tuple[Problem, int]], phase: Phase, found: Collected) -> list[GradedGroup]:
        """Sample, grade and score the given problems; return the groups that were not dropped.

        The groups are in the order of the problems, not in the order of completion.
        """
        started = sampled = time.perf_counter()

        async def one(problem: Problem, epoch: int) -> GradedGroup | None:
            nonlocal sampled
            group = await self._sample(problem, epoch, phase, found)
            sampled = time.perf_counter()
            graded = None if group is None else await self._grade(group, found)
            if graded is None or not self.may_branch(graded):
                return graded
            branched = await self._branch(graded, epoch, phase, found)
            sampled = time.perf_counter()
            return branched

        groups = await all_or_none(one(problem, epoch) for problem, epoch in asked)
        found.generating += sampled - started
        found.scoring += time.perf_counter() - sampled
        return [group for group in groups if group is not None]

    async def _sample(self, problem: Problem, epoch: int, phase: Phase, found: Collected) -> Group | None:
        seed = rollout_seed(self._config.seed, self._pool.version, problem.id, epoch)
        version = None if self._interruptible else self._pool.version
        limit = {"max_tokens": phase.max_tokens} if self._config.schedule else {}
        group = await self._ask(found, problem, phase.group_size, seed, version, **limit)
        if group is not None:
            found.tokens += sum(response.token_count for response in group.responses)
        return group

    async def _ask(self, found: Collected, problem: Problem, *request: Any, **settings: Any) -> Group | None:
        """Request responses from the pool. The result is None if the engines reject the prompt, which is counted."""
        try:
            return await self._pool.sample(problem, *request, **settings)
        except EngineStoppedError:
            raise
        except (SamplingError, DataError) as error:  # affects only this prompt; the engine still works
            found.dropped["refused"] += 1
            found.refusal = found.refusal or str(error)
            return None

    async def _grade(self, group: Group, found: Collected) -> GradedGroup | None:
        grades = (self._graded(group, response, found) for response in group.responses)
        graded = list(await asyncio.gather(*grades))
        known = [index for index, each in enumerate(graded) if each.reward.total is not None]
        if len(known) < self._least:
            found.dropped["few_known"] += 1
            return None
        made = GradedGroup(group.problem, group.prompt_tokens, group.version, tuple(graded))
        reason = self._config.filter and self._config.filter.verdict(made)
        if reason:  # drop the group before the PRM scores it
            found.dropped[reason] += 1
            return None
        if self._process is None:
            return made
        scores = await self._process.score(group.problem, [graded[index].response for index in known])
        for index, process in zip(known, scores, strict=True):
            graded[index] = replace(graded[index], process=process)
        return replace(made, responses=tuple(graded))

    async def _branch(self, group: GradedGroup, epoch: int, phase: Phase, found: Collected) -> GradedGroup:
        """Continue the group's responses from the prefixes that rollouts.branching chooses."""
        config = self._config.rollouts.branching
        assert config is not None
        assert self._cutter is not None, "branching needs a step cutter"
        budget = config.token_budget or phase.group_size * self._max_tokens(phase)
        prefixes = choose_prefixes(group, self._cutter, config, partial(self._max_tokens, phase), budget)
        seed = rollout_seed(self._config.seed, group.version, group.problem.id, epoch)
        made = await all_or_none(self._continue(group, each, seed, phase, found) for each in prefixes)
        return replace(group, branches=tuple(branch for branch in made if branch is not None))

    def _max_tokens(self, phase: Phase, after: ChosenPrefix | None = None) -> int:
        """Return the maximum number of tokens that are generated for a response or an episode, or after a prefix."""
        environment = self._config.environment
        if environment is None:
            return phase.max_tokens - (after.tokens if after else 0)
        return (environment.max_turns - (after.step + 1 if after else 0)) * environment.max_turn_tokens

    async def _continue(
        self, group: GradedGroup, chosen: ChosenPrefix, seed: int, phase: Phase, found: Collected
    ) -> BranchedPrefix | None:
        """Sample and grade the continuations of a prefix. The result is None if the engine rejects it."""
        prefix = group.responses[chosen.response].response.prefix(chosen.tokens)
        seed = branch_seed(seed, group.problem.id, chosen.response, chosen.tokens)
        n, limit = self._config.rollouts.branching.continuations, self._max_tokens(phase, chosen)
        sampled = await self._ask(found, group.problem, n, seed, group.version, max_tokens=limit, prefix=prefix)
        if sampled is None:
            return None
        if sampled.prompt_tokens != group.prompt_tokens:
            raise TrainingError(
                f"problem {group.problem.id}: the prompt has {group.prompt_tokens} tokens, but "
                f"{sampled.prompt_tokens} before a prefix; this model's responses cannot branch, so leave "
                "rollouts.branching out"
            )
        # An environment that fails during the replay leaves fewer tokens than the prefix has.
        tokens = sum(max(0, response.token_count - prefix.token_count) for response in sampled.responses)
        found.tokens, found.branch_tokens = found.tokens + tokens, found.branch_tokens + tokens
        graded = await asyncio.gather(*(self._graded(sampled, each, found) for each in sampled.responses))
        return BranchedPrefix(chosen.response, chosen.tokens, chosen.score, tuple(graded))

    async def _graded(self, group: Group, response: Response, found: Collected) -> GradedResponse:
        grading = await grading_of(self._grader, group.problem, response, self.prefill)
        reward = await self._reward.compute_async(group.problem, response, grading)
        reason = self._why_dropped(group, response) or ("unknown" if reward.total is None else None)
        if response.played is not None and response.finish_reason == "abort":
            self._note_failure(group.problem, grading.reason)
        if reason:
            found.dropped[reason] += 1
            reward = Reward(None, reward.parts)
        elif response.finish_reason == "length" and self._config.rewards.truncated == "mask":
            found.dropped["truncated"] += 1  # add_advantages leaves it out, after it has counted in the baselines
        return GradedResponse(response, grading, reward)

    def _note_failure(self, problem: Problem, reason: str) -> None:
        """Print why an episode has no outcome, once per reason."""
        if reason not in self._failures:
            print(
                f"problem {problem.id}: an episode was dropped, and so are others with this reason: {reason}",
                file=sys.stderr,
                flush=True,
            )
        self._failures[reason] += 1

    def _why_dropped(self, group: Group, response: Response) -> str | None:
        if response.finish_reason == "abort":
            return "aborted"
        try:
            for row in split_rows([as_sample(group.problem, 0, group.prompt_tokens, response)]):
                self._check(row)
        except DataError:
            return "untrainable"
        return None


def problems_fingerprint(problems: Sequence[Problem], config: RLConfig) -> str:
    """Hash the problems in order, so that a resumed run can detect changes to them.

    Image files may be moved, so only their number is included. Extra columns are included only if there are user reward
    functions or an environment, which may read them.
    """
    content = [(p.id, p.question, p.answer, p.choices, len(p.media)) for p in problems]
    if config.rewards.functions or config.environment is not None:
        content.append([sorted(p.extra.items()) for p in problems])
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


async def grading_of(grader: Grader, problem: Problem, response: Response, prefill: str) -> Grading:
    """Grade a response. The grade of an episode is its outcome, which the environment decides."""
    if response.played is not None:
        return response.played.grading
    return await grader.grade(problem, prefill + response.text)


async def all_or_none(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """Await all tasks and return their results in order; if one raises, cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
