"""Run `mmprm eval sokoban`: play levels with a policy, and report the solve rate and MageBench's score."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmprm.cli.shared.policy import check_config, opened_player, policy_folder
from mmprm.config import Config, PathText
from mmprm.environments.episode import Episode, EpisodeStart, TurnSampler, play
from mmprm.environments.first_prompt import first_prompt
from mmprm.environments.load import EnvironmentConfig
from mmprm.environments.pool import EnvironmentPool
from mmprm.errors import DataError
from mmprm.preflight import check_output
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, LocalEngineConfig, SamplingConfig
from mmprm.sampling.dtype import with_dtype
from mmprm.sampling.seeds import derive_seed, environment_seed
from mmprm.tiny.sokoban_plan import MAX_MOVES, read_plan
from mmprm.tiny.sokoban_player import action_text
from mmprm.tiny.sokoban_scores import SokobanMetrics, shortest_solution, sokoban_metrics
from mmprm.types import Problem, Verdict


class PlayingEngineConfig(LocalEngineConfig):
    """Configures the vLLM engine of a policy that plays in an environment, which runs in the process of the command."""

    absent: ClassVar[dict[str, str]] = {
        "servers": "episodes are played on an engine of this process; remove the key",
        "cores": "the engine uses all CPU cores that are available to the process; remove the key",
    }


class SokobanEvalConfig(Config):
    """Configures `mmprm eval sokoban`."""

    output: PathText = "runs/eval"
    """Output folder for the metrics (sokoban.json)."""
    engine: PlayingEngineConfig
    """Engine that runs the policy."""
    sampling: SamplingConfig = SamplingConfig(temperature=0)
    """Sampling settings for the policy's turns."""
    prompt: PromptConfig = PromptConfig(preset="plain")
    """Prompt settings for the policy."""
    plan: bool = False
    """Let the policy write a plan of all moves at once (MageBench's Sokoban-Global). By default, it plays one move per
    turn (Sokoban-Online)."""
    max_turns: int = Field(10, ge=1)
    """Maximum number of turns per episode."""
    max_turn_tokens: int = Field(256, ge=1)
    """Maximum number of tokens per turn, or of a plan; replaces sampling.max_tokens."""
    images: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """Number of most recent observations whose images are shown to the policy; "all" shows every image."""
    samples: int = Field(1, ge=1)
    """Number of episodes per level."""
    seed: int = 0
    """Random seed for sampling."""

    @property
    def environment(self) -> EnvironmentConfig:
        """Return the environment in which the policy plays."""
        return EnvironmentConfig(
            path="mmprm.tiny.sokoban_plan:SokobanPlanEnvironment" if self.plan else "sokoban",
            max_turns=1 if self.plan else self.max_turns,
            max_turn_tokens=self.max_turn_tokens,
            images=self.images,
        )


def evaluate_sokoban_policy(kind: str, files: Sequence[Path], config: SokobanEvalConfig) -> SokobanMetrics:
    """Play the levels of the files with the policy, and return the metrics of the episodes.

    Episodes without an outcome are left out with a note.
    """
    levels = [level for file in files for level in load_problems(ProblemsConfig(path=str(file)), episodes=True)]
    for level in levels:
        shortest_solution(level)  # raises an error before the engine starts
    check_output(config.output, "output")
    engine = EngineConfig(**config.engine.model_dump(exclude_unset=True))
    engine = with_dtype(engine, model_folder=policy_folder(engine))
    sampling = config.sampling.model_copy(update={"max_tokens": config.max_turn_tokens})
    config = config.model_copy(update={"engine": engine, "sampling": sampling})
    seed = environment_seed(config.seed, levels[0].id)
    first = first_prompt(config.environment, engine.images_per_prompt, levels[0], seed)
    check_config(config, [first], config.samples, "samples")
    with opened_player(config, config.environment) as player:
        episodes = asyncio.run(_played(levels, player, config))
    known = [(level, each) for level, each in episodes if each.verdict is not Verdict.UNKNOWN]
    if len(known) < len(episodes):
        reason = next(each.reason for _, each in episodes if each.verdict is Verdict.UNKNOWN)
        missing = f"{len(episodes) - len(known)} of {len(episodes)} episodes have no outcome (the first: {reason})"
        if not known:
            raise DataError(f"{', '.join(map(str, files))}: {missing}; check the engine and the environment")
        print(f"note: {missing} and are left out", file=sys.stderr)
    return sokoban_metrics([(level, _moves(each, config.plan)) for level, each in known])


def sokoban_table(result: SokobanMetrics) -> str:
    """Format the metrics, one per line."""
    over = "–" if result.moves_over_optimum is None else f"{result.moves_over_optimum:.2f}"
    return (
        f"episodes            {result.episodes}\n"
        f"solve rate          {result.solve_rate:.3f}\n"
        f"lost rate           {result.lost_rate:.3f}\n"
        f"moves over optimum  {over}\n"
        f"MageBench score     {result.magebench:.2f}"
    )


async def _played(
    levels: Sequence[Problem], player: TurnSampler, config: SokobanEvalConfig
) -> list[tuple[Problem, Episode]]:
    environments = EnvironmentPool(config.environment)

    async def one(level: Problem, number: int) -> tuple[Problem, Episode]:
        seed = derive_seed(config.seed, level.id, "", 0) + number
        start = EpisodeStart(level, environment_seed(config.seed, level.id), seed)
        return level, await play(start, player, environments, config.environment)

    try:
        return await asyncio.gather(*(one(level, number) for level in levels for number in range(config.samples)))
    finally:
        environments.close()


def _moves(episode: Episode, is_plan: bool) -> list[str]:
    """Return the texts of an episode's moves, one per move; a plan with the wrong format has no moves."""
    texts = [turn.action.text for turn in episode.turns]
    if not is_plan:
        return texts
    return [action_text(name) for text in texts for name in (read_plan(text) or [])[:MAX_MOVES]]
