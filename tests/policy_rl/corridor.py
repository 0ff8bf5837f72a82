"""Provide an environment of three cells in a row, a player for it, and episodes that it has played."""

from __future__ import annotations

import asyncio
import random

import numpy as np

from mmprm.environments.episode import TurnRequest
from mmprm.environments.interface import Observation, Transition
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import EngineStoppedError, SamplingError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.graded import GradedResponse
from policy_rl.rollouts.episodes import EpisodeConfig, EpisodePlayer, SampledAction
from policy_rl.types import Group, PlayedTurn, PlayedTurns, Response, ResponsePrefix, Reward, TokenRow
from policy_rl.weights.transfer import Published

RIGHT, LEFT, JUMP = 1, 2, 3
WORDS = {RIGHT: "right", LEFT: "left", JUMP: "jump"}
CORRIDOR = EnvironmentConfig(path="corridor:Corridor", max_turns=4, images="all")


class Corridor:
    """Moves the player between cells 0, 1 and 2. Cell 2 is the goal. A jump is not a valid action.

    A turn costs 0.1, and the goal is worth 1. With the column `breaks`, the second turn raises an exception.
    """

    def reset(self, problem: Problem, seed: int) -> Observation:
        self._cell, self._turn, self._breaks = 0, 0, problem.extra.get("breaks", False)
        return Observation(("cell 0",))

    def step(self, text: str) -> Transition:
        self._turn += 1
        if self._breaks and self._turn == 2:
            raise RuntimeError("the floor is missing")
        self._cell = max(0, self._cell + {"right": 1, "left": -1}.get(text, 0))
        found = self._cell == 2
        info = {"action": text if text in ("right", "left") else None}
        return Transition(Observation((f"cell {self._cell}",)), found - 0.1, found, info=info)

    def close(self) -> None: ...


class NoReset(Corridor):
    """Fails before the first turn."""

    def reset(self, problem: Problem, seed: int) -> Observation:
        raise RuntimeError("no first cell")


class Drifting(Corridor):
    """Begins in another cell each time, whatever the seed, after the first `steady` times."""

    def __init__(self, steady: int = 1) -> None:
        self._resets = -steady

    def reset(self, problem: Problem, seed: int) -> Observation:
        super().reset(problem, seed)
        self._resets += 1
        return Observation((f"visit {max(0, self._resets)}",))


class CorridorPlayer:
    """Moves to the right with probability `skill`, otherwise to the left, or jumps.

    A prompt begins with token 9 and continues like an engine's: the action's token, and 100 + cell for an observation.
    """

    def __init__(self, skill: float, shows_all: bool = True) -> None:
        self._skill, self._shows_all = skill, shows_all
        self.seeds: list[int] = []

    async def act(self, request: TurnRequest) -> SampledAction:
        self.seeds.append(request.seed)
        if request.problem.id == "refused":
            raise SamplingError("problem refused: too long")
        rng = random.Random(request.seed)
        token = RIGHT if rng.random() < self._skill else rng.choice((LEFT, JUMP))
        prompt = [9]
        for observation, action in zip(request.observations, (*request.actions, None), strict=True):
            prompt += [100 + int(observation.text[-1]), *(action.ids if action and self._shows_all else ())]
        return SampledAction(
            WORDS[token],
            (token, 8),
            2,
            "stop",
            logprobs=np.array([-0.5, -0.25], dtype=np.float32),
            prompt_ids=np.array(prompt, dtype=np.int32),
            images=request.observations[-1].images,
        )


def corridor_player(skill: float, environment: EnvironmentConfig = CORRIDOR) -> EpisodePlayer:
    return EpisodePlayer(CorridorPlayer(skill, shows_all=environment.images == "all"), EpisodeConfig(environment, 0))


class CorridorPool:
    """Plays episodes instead of an engine; see ScriptedPool."""

    probe_token_ids = (1, 2)

    def __init__(self, skill: float = 0.6, environment: EnvironmentConfig = CORRIDOR) -> None:
        self.version, self._player = 0, corridor_player(skill, environment)
        self.branches: list[tuple[int, int | None, list[int]]] = []
        """Number of continuations, maximum number of tokens, and prefix of each request to continue an episode."""

    async def sample(
        self,
        problem: Problem,
        n: int,
        seed: int,
        version: int,
        max_tokens: int | None = None,
        prefix: ResponsePrefix | None = None,
    ) -> Group:
        if prefix is not None:
            self.branches.append((n, max_tokens, prefix.token_ids.tolist()))
        return await self._player.group(problem, n, seed, version, prefix)

    async def load_weights(self, published: Published) -> float:
        self.version = published.version
        return 0.0

    async def until_lost(self) -> EngineStoppedError:
        await asyncio.Event().wait()


def played_response(
    cells: tuple[str, ...], rewards: tuple[float, ...], total: float | None, tokens: int = 2
) -> GradedResponse:
    """Return a graded episode with one turn per cell: `tokens` tokens per action, and one per observation between."""
    turns = tuple(PlayedTurn((cell,), "right", reward) for cell, reward in zip(cells, rewards, strict=True))
    turn_of_token = [each for turn in range(len(turns)) for each in (*[turn] * tokens, -1)][:-1]
    count = len(turn_of_token)
    verdict = Verdict.UNKNOWN if total is None else Verdict(int(total > 0.5))
    grading = Grading(verdict, None, "")
    played = PlayedTurns(turns, turn_of_token, (TokenRow([9], count),), grading)
    response = Response("", range(10, 10 + count), [-0.1] * count, "stop", played)
    accuracy = None if total is None else float(verdict)
    return GradedResponse(response, grading, Reward(total, {"accuracy": accuracy}))
