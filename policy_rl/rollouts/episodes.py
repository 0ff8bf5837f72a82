"""Play episodes on a rollout engine, and keep the tokens and log-probabilities exactly as they were sampled.

If every prompt shows all images, each prompt begins with the whole previous prompt and action. The tokens of an episode
are then those after its first prompt: actions and observations. Otherwise, they are those of its actions alone, and
each action is read after its own prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmprm.environments.episode import (
    CONTEXT_LIMIT,
    Action,
    Episode,
    EpisodeStart,
    EpisodeTurn,
    TurnRequest,
    TurnSampler,
    check_deterministic_play,
    play,
)
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import SamplingError, TrainingError
from mmprm.sampling.seeds import environment_seed
from mmprm.sampling.vllm_turns import VllmTurnSampler
from mmprm.types import Grading, ImageRef, Problem, Verdict
from policy_rl.types import Group, PlayedTurn, PlayedTurns, Response, ResponsePrefix, TokenRow

_LIMITS = ("turn limit", "truncated", CONTEXT_LIMIT)
"""Reasons of episodes that a limit ended."""


@dataclass(frozen=True, slots=True)
class EpisodeConfig:
    """Configures the episodes of a run: the environment, and the run seed, from which its seeds are derived."""

    environment: EnvironmentConfig
    run_seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledAction(Action):
    """Holds an action with its log-probabilities, the engine's token ids of its prompt, and the prompt's images."""

    logprobs: np.ndarray
    prompt_ids: np.ndarray
    images: tuple[ImageRef, ...]


class EpisodeSampler(VllmTurnSampler):
    """Samples actions together with what training needs; see SampledAction. Tokens in `banned` are never sampled."""

    banned: Sequence[int] = ()

    async def act(self, request: TurnRequest) -> SampledAction:
        """Sample the policy's next action; see VllmTurnSampler.act."""
        tokens, output = await self.complete_turn(
            request,
            logprobs=0,
            flat_logprobs=True,
            logit_bias=dict.fromkeys(self.banned, float("-inf")) or None,
            detokenize=False,  # otherwise vLLM looks up every token's text again for its log-probability
        )
        (generated,) = output.outputs
        ids = tuple(generated.token_ids)
        return SampledAction(
            self.encoder.given + self._tokenizer.decode(list(ids), skip_special_tokens=True),
            ids,
            len(ids),
            generated.finish_reason or "abort",
            logprobs=np.asarray(generated.logprobs.logprobs, dtype=np.float32),
            prompt_ids=np.asarray(output.prompt_token_ids, dtype=np.int32),
            images=tokens.images,
        )


class EpisodePlayer:
    """Plays groups of episodes with one sampler, in environments that it reuses."""

    def __init__(self, sampler: TurnSampler, config: EpisodeConfig) -> None:
        self._sampler, self._config = sampler, config
        self._environments = EnvironmentPool(config.environment)
        self._is_checked = False

    async def group(
        self, problem: Problem, n: int, seed: int, version: int, prefix: ResponsePrefix | None = None
    ) -> Group:
        """Play `n` episodes of a problem, labeled with policy version `version`.

        All of them have the same environment seed, so that they begin in the same state. Episode i uses seed `seed + i`
        for its actions. With a prefix, whole turns of an episode, all of them begin with its actions, which are
        replayed. Raises SamplingError if no episode has a turn, TrainingError if the replay differs, and EpisodeError
        if a replay of the first group's longest episode does.
        """
        start_seed, config = environment_seed(self._config.run_seed, problem.id), self._config.environment
        actions = () if prefix is None else actions_of(prefix)
        starts = [EpisodeStart(problem, start_seed, seed + i, actions) for i in range(n)]
        found = await asyncio.gather(
            *(play(start, self._sampler, self._environments, config) for start in starts), return_exceptions=True
        )
        for each in found:
            if isinstance(each, BaseException):
                raise each
        episodes: list[Episode] = list(found)
        first = next((episode.turns[0].action for episode in episodes if episode.turns), None)
        if first is None:
            raise SamplingError(f"problem {problem.id}: no episode has a turn: {episodes[0].reason}")
        if not self._is_checked:
            self._is_checked = True
            await check_deterministic_play(problem, start_seed, episodes, self._environments)
        if prefix is not None:
            _check_replay(problem, episodes, prefix.played.turns[: len(actions) + 1])
        responses = tuple(response_of(problem, episode, config.images) for episode in episodes)
        return Group(problem, responses, version, len(first.prompt_ids))

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()


def actions_of(prefix: ResponsePrefix) -> tuple[SampledAction, ...]:
    """Return the actions of an episode's prefix, with the prompts that they were sampled from."""
    played = prefix.played
    turn_of_token = played.turn_of_token[: len(prefix.token_ids)]
    actions = []
    for turn in range(turn_of_token.max() + 1):
        (own,) = (turn_of_token == turn).nonzero()
        number = next(index for index, row in enumerate(played.rows) if own[0] < row.stop)
        row, begin = played.rows[number], played.rows[number - 1].stop if number else 0
        ids = tuple(prefix.token_ids[own].tolist())
        actions.append(
            SampledAction(
                played.turns[turn].text,
                ids,
                len(ids),
                logprobs=prefix.logprobs[own],
                prompt_ids=np.concatenate([row.prompt_ids, prefix.token_ids[begin : own[0]]]),
                images=row.images,
            )
        )
    return tuple(actions)


def _check_replay(problem: Problem, episodes: Sequence[Episode], turns: Sequence[PlayedTurn]) -> None:
    """Raise TrainingError if an episode does not show the observations of `turns`, whose actions it repeats."""
    for episode in episodes:
        for number, (replayed, turn) in enumerate(zip(episode.turns, turns, strict=False), start=1):
            if replayed.observation.parts != turn.observation:
                raise TrainingError(
                    f"problem {problem.id}: the observation before turn {number} differs when the same actions are "
                    "replayed, so episodes cannot branch; make the environment deterministic for a given seed, or "
                    "leave rollouts.branching out"
                )


def response_of(problem: Problem, episode: Episode, images: int | Literal["all"]) -> Response:
    """Convert an episode to a response; `images` is environment.images.

    An episode of unknown outcome has the finish reason "abort", and one that a limit ended "length".
    """
    actions = [turn.action for turn in episode.turns]
    tokens = _one_row(problem, actions) if images == "all" and actions else _row_per_turn(actions)
    grading = Grading(episode.verdict, None, episode.reason)
    turns = tuple(map(_turn, episode.turns))
    end = episode.turns[-1].transition.observation.parts if actions else ()
    played = PlayedTurns(turns, tokens.turn_of_token, tokens.rows, grading, end)
    text = "".join(turn.text for turn in turns)
    return Response(text, tokens.ids, tokens.logprobs, _finish_reason(episode), played)


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: np.ndarray
    logprobs: np.ndarray
    turn_of_token: np.ndarray
    rows: tuple[TokenRow, ...]


def _one_row(problem: Problem, actions: Sequence[SampledAction]) -> _Tokens:
    """Return the tokens after the first prompt, as the last prompt and the last action hold them."""
    first, last = actions[0].prompt_ids, actions[-1]
    whole = np.concatenate([last.prompt_ids, np.asarray(last.ids, dtype=np.int32)])
    ids, head = whole[len(first) :], len(first)
    logprobs = np.zeros(len(ids), dtype=np.float32)
    turn_of_token = np.full(len(ids), -1, dtype=np.int32)
    for number, action in enumerate(actions):
        begin = len(action.prompt_ids)
        end = begin + len(action.ids)
        if not (np.array_equal(whole[:begin], action.prompt_ids) and tuple(whole[begin:end].tolist()) == action.ids):
            raise TrainingError(
                f"problem {problem.id}: the prompt of a later turn does not begin with turn {number + 1}, so vLLM "
                "changes this model's prompts; set environment.images to a number, which trains on each turn by itself"
            )
        logprobs[begin - head : end - head] = action.logprobs
        turn_of_token[begin - head : end - head] = number
    return _Tokens(ids, logprobs, turn_of_token, (TokenRow(first, len(ids), last.images),))


def _row_per_turn(actions: Sequence[SampledAction]) -> _Tokens:
    """Return the tokens of the actions alone, with a row per action."""
    lengths = [len(action.ids) for action in actions]
    stops = np.cumsum(lengths).tolist()
    rows = (TokenRow(action.prompt_ids, stop, action.images) for action, stop in zip(actions, stops, strict=True))
    return _Tokens(
        np.array([token for action in actions for token in action.ids], dtype=np.int32),
        np.concatenate([np.zeros(0, dtype=np.float32), *(action.logprobs for action in actions)]),
        np.repeat(np.arange(len(actions), dtype=np.int32), lengths),
        tuple(rows),
    )


def _turn(turn: EpisodeTurn) -> PlayedTurn:
    info = turn.transition.info
    is_valid = info["action"] is not None if "action" in info else None
    return PlayedTurn(turn.observation.parts, turn.action.text, float(turn.transition.reward), is_valid)


def _finish_reason(episode: Episode) -> str:
    if episode.verdict is Verdict.UNKNOWN:
        return "abort"
    return "length" if episode.reason in _LIMITS else "stop"
