"""Test guided play and best-of-N episodes with a scorer that knows Sokoban's solver."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mmprm.environments.episode import Action, TurnRequest
from mmprm.environments.interface import Observation
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import ConfigError, DataError
from mmprm.scoring.aggregate import aggregator
from mmprm.scoring.http.queue import ScoreQueue
from mmprm.selection.accuracy import accuracy
from mmprm.selection.episodes import GuidedPlayer, search_episodes
from mmprm.selection.guided import Searched
from mmprm.selection.strategies import GuidedConfig
from mmprm.tiny.sokoban_player import SolverPlayer
from mmprm.tiny.sokoban_problems import make_sokoban_problems
from mmprm.tiny.sokoban_scores import first_losing_turn
from mmprm.types import Solution, StepScores, Verdict

SOKOBAN = EnvironmentConfig(path="sokoban", max_turns=12)
LEVELS = make_sokoban_problems(12, 0, "test", 5, 1)


class SolverScorer:
    """Scores 1 until the level cannot be solved within the turn limit, and 0 from then on."""

    def __init__(self) -> None:
        self.scored: list[Solution] = []

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        self.scored += solutions
        return [StepScores(tuple(map(float, self._solvable(solution)))) for solution in solutions]

    def _solvable(self, solution: Solution) -> list[bool]:
        lost = first_losing_turn(solution.problem.extra["level"], solution.steps, SOKOBAN.max_turns)
        return [lost == -1 or turn < lost for turn in range(len(solution.steps))]


async def searched(scorer: object, **values: object) -> Searched:
    config = GuidedConfig(**values)
    return await search_episodes(LEVELS, SolverPlayer(0.6), scorer, SOKOBAN, config, aggregate="last")


def solved(found: Searched) -> float:
    verdicts = [candidate.verdict for result in found.results for candidate in result.group.candidates]
    return sum(verdict is Verdict.CORRECT for verdict in verdicts) / len(verdicts)


async def test_guided_play_avoids_losing_moves() -> None:
    """Every solvable state has a move that keeps it solvable, which is among eight sampled moves almost always."""
    scorer = SolverScorer()
    guided = await searched(scorer, strategy="beam", samples=8, beams=1)
    alone = await searched(SolverScorer(), strategy="best_of_n", samples=1)
    assert not guided.failed
    assert solved(alone) < 0.6
    assert solved(guided) > 0.9
    for result in guided.results:
        (episode,) = result.group.candidates
        assert result.samples == result.tokens == 8 * len(episode.steps)
        assert len(episode.scores.scores) == len(episode.steps) == episode.token_count
    for solution in scorer.scored:
        assert len(solution.observations) - len(solution.steps) in (0, 1), "before an action is played, or after it"
        assert solution.observations[0] == (solution.problem.question, solution.problem.images[0])


async def test_the_best_of_several_episodes_is_chosen_by_its_score() -> None:
    found = await searched(SolverScorer(), strategy="best_of_n", samples=4)
    assert [len(result.group.candidates) for result in found.results] == [4] * len(LEVELS)
    rates = accuracy([result.group for result in found.results], "last", 0)
    assert rates["random"].value == pytest.approx(solved(found))
    assert rates["prm"].value == rates["oracle"].value > rates["random"].value + 0.1


async def test_dvts_plays_several_guided_episodes() -> None:
    found = await searched(SolverScorer(), strategy="dvts", samples=6, beams=2)
    assert {len(result.group.candidates) for result in found.results} == {2}
    assert all(
        result.samples == 3 * sum(len(episode.steps) for episode in result.group.candidates) for result in found.results
    )


async def test_equal_seeds_play_equal_episodes() -> None:
    first, second = [await searched(SolverScorer(), strategy="beam", samples=3, beams=1) for _ in range(2)]
    assert [result.group for result in first.results] == [result.group for result in second.results]


async def test_an_action_that_cannot_be_scored_is_the_last_choice() -> None:
    class Half(SolverScorer):
        def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
            scores = self.score(solutions)
            hidden = ["<action>up</action>" in each.steps for each in solutions]
            return [DataError("up") if each else score for each, score in zip(hidden, scores, strict=True)]

    found = await searched(Half(), strategy="beam", samples=16, beams=1)
    without = [c for result in found.results for c in result.group.candidates if c.scores is not None]
    assert without
    assert all("<action>up</action>" not in candidate.steps for candidate in without)
    assert len(without) + len(found.failed) == len(LEVELS), "a problem without any scored episode has failed"


async def test_a_scorer_that_reads_no_episode_gives_reasons_instead_of_random_choices() -> None:
    class Blind(SolverScorer):
        def score_each(self, solutions: Sequence[Solution]) -> list[StepScores | DataError]:
            return [DataError("is an episode")] * len(solutions)

    found = await searched(Blind(), strategy="best_of_n", samples=2)
    assert not found.results
    assert set(found.failed.values()) == {"is an episode"}


async def test_the_first_of_several_best_actions_is_played() -> None:
    """All actions have equal scores; the first one is sampled again after another."""

    class Scripted:
        async def act(self, request: TurnRequest) -> Action:
            return next(actions)

    class Equal(SolverScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            return [StepScores((0.5,) * len(solution.steps)) for solution in solutions]

    actions = iter([Action("first"), Action("second"), Action("first")])
    queue = ScoreQueue(Equal())
    player = GuidedPlayer(Scripted(), queue, 3, aggregator("last"))
    chosen = await player.act(TurnRequest(LEVELS[0], (Observation(("?",)),), (), 0))
    queue.close()
    assert chosen.text == "first"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "beam", "samples": 4, "beams": 2}, "search.beams=2 with search.strategy=beam must be 1"),
        ({"strategy": "dvts", "samples": 4, "lookahead": 1}, "search.lookahead=1 must be 0"),
    ],
)
async def test_strategies_that_restore_states_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await searched(SolverScorer(), **values)
