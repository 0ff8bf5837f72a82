"""Play episodes guided by a process reward model, or choose the best of several episodes.

The action to play is chosen by scores from the observations and actions before it, so nothing has to be tried in the
environment. Whole episodes are scored with what followed their last turn. The strategies are those of solutions (see
mmprm.selection.strategies), with turns as steps: best_of_n plays whole episodes; dvts plays `beams` episodes and
samples samples/beams actions per turn, of which the best is played; beam does so with one episode. A beam of several
states would have to be restored in every turn, and is refused.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmprm.environments.episode import Action, Episode, EpisodeStart, TurnRequest, TurnSampler, play
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import ConfigError, DataError
from mmprm.prm.info import FORMAT, JudgeInfo, PrmInfo
from mmprm.sampling.seeds import derive_seed, environment_seed
from mmprm.scoring.aggregate import Aggregator, aggregator
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.selection.groups import Candidate, CandidateGroup
from mmprm.selection.guided import Guided, Searched, scored_candidates, search_each
from mmprm.selection.strategies import GuidedConfig
from mmprm.types import Problem, Scorer, Solution


@dataclass(slots=True)
class GuidedPlayer:
    """Samples `width` actions per turn and returns the one after which the aggregated score is highest.

    Equal actions are scored once, and the first of several best actions is returned. `tokens` counts the tokens of all
    sampled actions, and `samples` these actions.
    """

    sampler: TurnSampler
    queue: ScoreQueue
    width: int
    aggregate: Aggregator
    tokens: int = 0
    samples: int = 0

    async def act(self, request: TurnRequest) -> Action:
        """Return the best of several actions; see TurnSampler."""
        seeds = random.Random(request.seed)
        others = (replace(request, seed=seeds.getrandbits(62)) for _ in range(self.width - 1))
        actions = await asyncio.gather(*map(self.sampler.act, (request, *others)))
        self.tokens += sum(action.token_count for action in actions)
        self.samples += len(actions)
        by_text: dict[str, Action] = {}
        for action in actions:
            by_text.setdefault(action.text, action)
        distinct = list(by_text.values())
        if len(distinct) == 1:
            return distinct[0]
        answers = await self.queue.score_apart([_solution_after(request, action) for action in distinct])
        values = [-math.inf if isinstance(each, DataError) else self.aggregate(each.scores) for each in answers]
        return distinct[values.index(max(values))]


async def search_episodes(
    problems: Sequence[Problem],
    sampler: TurnSampler,
    scorer: Scorer,
    environment: EnvironmentConfig,
    config: GuidedConfig,
    *,
    aggregate: str,
    run_seed: int = 0,
) -> Searched:
    """Play each problem's episodes with the configured strategy, and score them.

    A candidate is an episode: its answer is the whole plan, and its verdict is the episode's. A problem is left out and
    reported in `failed` if it cannot be played or none of its episodes can be scored. Raises EngineStoppedError if the
    engine stops.
    """
    check_strategy(config)
    value, queue, pool = aggregator(aggregate), ScoreQueue(scorer), EnvironmentPool(environment)
    episodes = {"best_of_n": config.samples, "dvts": config.beams, "beam": 1}[config.strategy]
    width = 1 if config.strategy == "best_of_n" else config.samples // episodes

    async def search(problem: Problem) -> Guided:
        player = GuidedPlayer(sampler, queue, width, value)
        seed = derive_seed(run_seed, problem.id, "", 0)
        starts = [EpisodeStart(problem, environment_seed(run_seed, problem.id), seed + i) for i in range(episodes)]
        played = await asyncio.gather(*(play(start, player, pool, environment) for start in starts))
        solutions = [episode_solution(problem, episode) for episode in played]
        answers = await queue.score_apart([solution for solution in solutions if solution.steps])
        candidates = scored_candidates(list(map(_candidate, played, solutions)), answers)
        return Guided(CandidateGroup(problem, candidates), player.tokens, player.samples)

    try:
        return await search_each(problems, search)
    finally:
        queue.close()
        pool.close()


def check_strategy(config: GuidedConfig) -> None:
    """Raise ConfigError if episodes cannot be searched with the strategy."""
    if config.strategy == "beam" and config.beams > 1:
        raise ConfigError(
            f"search.beams={config.beams} with search.strategy=beam must be 1 in an environment; set search.beams=1, "
            "or search.strategy=dvts for several episodes"
        )
    if config.lookahead:
        raise ConfigError(f"search.lookahead={config.lookahead} must be 0 in an environment; set it to 0")


def check_scorer(info: PrmInfo, prm: str) -> None:
    """Raise ConfigError if the scorer cannot read episodes, with which all actions would be equally good."""
    if isinstance(info, JudgeInfo):
        raise ConfigError("scorer: a thinking judge does not read episodes; set scorer.prm to a model of mmprm train")
    if info.format != FORMAT:
        raise ConfigError(
            f"scorer.prm={prm} has the format {info.format}, which cannot express episodes; use a model of mmprm train "
            f"({FORMAT})"
        )


def episode_solution(problem: Problem, episode: Episode) -> Solution:
    """Return an episode as a solution to score, whose steps are the policy's turns."""
    turns = episode.turns
    seen = [*(turn.observation for turn in turns), *(turn.transition.observation for turn in turns[-1:])]
    steps = tuple(turn.action.text for turn in turns)
    return Solution(problem, steps, tuple(observation.parts for observation in seen))


def _solution_after(request: TurnRequest, action: Action) -> Solution:
    steps = (*(each.text for each in request.actions), action.text)
    return Solution(request.problem, steps, tuple(observation.parts for observation in request.observations))


def _candidate(episode: Episode, solution: Solution) -> Candidate:
    plan = "".join(solution.steps)
    return Candidate(
        response=plan,
        steps=solution.steps,
        answer=plan or None,
        verdict=episode.verdict,
        token_count=sum(turn.action.token_count for turn in episode.turns),
        unsplit=None if solution.steps else episode.reason,
    )
