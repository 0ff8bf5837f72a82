from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmprm.errors import ConfigError, DataError, SamplingError
from mmprm.selection.accuracy import SUBSETS, accuracy_at_n
from mmprm.selection.groups import (
    Candidate,
    CandidateGroup,
    answer_key,
    choices,
    common_size,
    rewards,
    sample_groups,
    score_groups,
)
from mmprm.selection.selectors import SELECTORS, Choices
from mmprm.types import Completion, Grading, Problem, SampleRequest, Solution, StepScores, Verdict


@dataclass(frozen=True)
class Choice:
    answer: str | None
    correct: bool
    reward: float = -math.inf
    weight: float = 0.0


def choice(answer: str | None, correct: bool, reward: float = 0.0) -> Choice:
    return Choice(answer, correct, reward, weight=max(reward, 0.0))


def stacked(*problems: Sequence[Choice]) -> Choices:
    """Stack the candidates of the problems into arrays."""
    numbers = [{c.answer: None for c in row if c.answer is not None} for row in problems]
    positions = [{answer: position for position, answer in enumerate(known)} | {None: -1} for known in numbers]
    return Choices(
        np.array([[of[c.answer] for c in row] for of, row in zip(positions, problems, strict=True)]),
        np.array([[c.correct for c in row] for row in problems]),
        np.array([[c.reward for c in row] for row in problems]),
        np.array([[c.weight for c in row] for row in problems]),
    )


def select(name: str, candidates: Sequence[Choice]) -> float:
    """Return the selector's accuracy on all candidates of one problem."""
    return SELECTORS[name](stacked(candidates), np.ones((1, len(candidates)), dtype=bool)).item()


# "7" is correct. The majority says 8; the highest-scored candidate and the weighted vote (1.0 against 0.9) say 7.
FIVE = [
    choice("8", False, 0.3),
    choice("8", False, 0.3),
    choice("8", False, 0.3),
    choice("7", True, 0.9),
    choice("7", True, 0.1),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("random", 0.4), ("first", 0.0), ("majority", 0.0), ("prm", 1.0), ("weighted", 1.0), ("oracle", 1.0)],
)
def test_worked_choice(name: str, expected: float) -> None:
    assert select(name, FIVE) == pytest.approx(expected)


def test_ties_are_split_evenly() -> None:
    tied = [choice("8", False, 0.5), choice("7", True, 0.5), choice("9", False, 0.1)]
    assert select("prm", tied) == 0.5
    assert select("majority", tied) == pytest.approx(1 / 3)
    assert select("weighted", tied) == 0.5


def test_votes_of_equal_weight_tie_in_any_order() -> None:
    """In floating point, 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1."""
    weights = [0.1, 0.2, 0.3]
    sampled = [choice("7", True, weight) for weight in weights] + [choice("8", False, w) for w in reversed(weights)]
    assert sum(weights) != sum(reversed(weights))
    assert select("weighted", sampled) == 0.5
    assert select("weighted", [*sampled, choice("8", False, 1e-6)]) == 0.0


def test_a_candidate_without_an_answer_does_not_vote() -> None:
    assert select("majority", [choice(None, False), choice(None, False), choice("7", True)]) == 1.0
    assert select("majority", [choice(None, False), choice(None, False)]) == 0.0
    assert select("majority", [choice(None, True), choice(None, False)]) == 0.5


def test_an_unscored_candidate_is_chosen_last() -> None:
    unscored = Choice("7", True)
    assert select("prm", [unscored, choice("8", False, -50.0)]) == 0.0
    assert select("prm", [unscored, Choice("8", False)]) == 0.5


@given(st.lists(st.tuples(st.sampled_from("789"), st.floats(0, 1)), min_size=1, max_size=6), st.randoms())
@settings(max_examples=50, deadline=None)
def test_only_first_depends_on_order_and_the_oracle_is_an_upper_bound(
    items: list[tuple[str, float]], rng: random.Random
) -> None:
    candidates = [choice(answer, answer == "7", reward) for answer, reward in items]
    shuffled = rng.sample(candidates, len(candidates))
    for name in SELECTORS:
        if name != "first":
            assert select(name, candidates) == pytest.approx(select(name, shuffled))
        assert select(name, candidates) <= select("oracle", candidates)


def one_by_one(name: str, candidates: Sequence[Choice]) -> float:
    """Apply the selection rules naively to one subset of one problem's candidates."""
    mean = statistics.fmean
    if name in ("majority", "weighted"):
        votes: dict[str, float] = {}
        for candidate in candidates:
            if candidate.answer is not None:
                weight = candidate.weight if name == "weighted" else 1.0
                votes[candidate.answer] = votes.get(candidate.answer, 0.0) + weight
        if votes:
            elected = [answer for answer, of in votes.items() if of == pytest.approx(max(votes.values()), rel=1e-12)]
            return mean(mean(c.correct for c in candidates if c.answer == answer) for answer in elected)
    highest = max(candidate.reward for candidate in candidates)
    return {
        "first": float(candidates[0].correct),
        "prm": mean(c.correct for c in candidates if c.reward == highest),
        "oracle": float(any(c.correct for c in candidates)),
    }.get(name, mean(c.correct for c in candidates))


def test_vectorized_selection_equals_the_naive_rules() -> None:
    rng = random.Random(0)

    def sampled() -> Choice:
        reward = rng.choice([-math.inf, 0.0, 0.25, 0.5, rng.random()])
        return Choice(rng.choice([None, "7", "8", "9"]), rng.random() < 0.4, reward, max(reward, 0.0))

    problems = [[sampled() for _ in range(6)] for _ in range(30)]
    subsets = [subset for n in (1, 2, 3, 6) for subset in itertools.combinations(range(6), n)]
    inside = np.array([[position in subset for position in range(6)] for subset in subsets])
    for name, selector in SELECTORS.items():
        slow = [[one_by_one(name, [row[position] for position in subset]) for subset in subsets] for row in problems]
        np.testing.assert_allclose(selector(stacked(*problems), inside), slow, atol=1e-12, err_msg=name)


PROBLEM = Problem("p", "q", "7")


def candidate(answer: str, scores: Sequence[float] | None, verdict: Verdict | None = None) -> Candidate:
    correct = Verdict.CORRECT if answer == "7" else Verdict.INCORRECT
    return Candidate(
        response=f"<answer>{answer}</answer>",
        steps=("s",),
        answer=answer,
        verdict=correct if verdict is None else verdict,
        token_count=3,
        scores=None if scores is None else StepScores(tuple(scores)),
    )


GROUP = CandidateGroup(
    PROBLEM, (candidate("7", [0.9, 0.8]), candidate("8", [0.9, 0.2]), candidate("8", [0.1]), candidate("7", [0.5]))
)


def test_choices_aggregate_and_unknown_is_not_correct() -> None:
    group = CandidateGroup(
        PROBLEM, (candidate("7", [0.5, 0.4]), candidate("7", None), candidate("7", [1.0], Verdict.UNKNOWN))
    )
    seen = choices([group], "product")
    assert seen.reward_PM.tolist() == [[pytest.approx(0.2), -math.inf, 1.0]]
    assert seen.weight_PM.tolist() == [[pytest.approx(0.2), 0.0, 1.0]]
    assert seen.correct_PM.tolist() == [[True, True, False]]
    assert seen.answer_PM.tolist() == [[0, 0, 0]]
    assert choices([group], "sum_log").weight_PM[0, 0] == pytest.approx(0.2)


def test_accuracy_at_n_by_hand() -> None:
    # Minimum scores: .8 (correct), .2, .1, .5 (correct). The best of each of the six pairs is correct except in {8, 8}.
    one, two, four = accuracy_at_n([GROUP], "min", sizes=(1, 2, 4))
    assert {name: interval.value for name, interval in one.accuracy.items()} == dict.fromkeys(SELECTORS, 0.5)
    assert two.accuracy["prm"].value == pytest.approx(5 / 6)
    assert two.accuracy["oracle"].value == pytest.approx(5 / 6)
    assert two.accuracy["majority"].value == pytest.approx((1 + 4 * 0.5 + 0) / 6)
    assert two.accuracy["first"].value == pytest.approx(3 / 6)  # pairs that contain the first candidate
    assert four.accuracy["prm"].value == 1.0
    assert four.minus_random["prm"].value == pytest.approx(0.5)
    assert four.minus_majority["weighted"].value == pytest.approx(0.5)
    assert four.minus_majority["random"].value == pytest.approx(0.0)


def test_oracle_over_sampled_subsets_is_near_the_closed_form() -> None:
    group = CandidateGroup(PROBLEM, tuple(candidate("7" if i < 3 else "8", [0.5]) for i in range(24)))
    assert math.comb(24, 4) > SUBSETS
    (point,) = accuracy_at_n([group], "min", sizes=(4,))
    assert point.accuracy["oracle"].value == pytest.approx(1 - math.comb(21, 4) / math.comb(24, 4), abs=0.1)
    assert point == accuracy_at_n([group], "min", sizes=(4,))[0]


def test_sizes_and_groups_must_fit() -> None:
    with pytest.raises(ConfigError, match="8 must be between 1 and 4, the number of samples per problem"):
        accuracy_at_n([GROUP], "min", sizes=(1, 8))
    with pytest.raises(DataError, match=r"sizes \[1, 4\]"):
        common_size([GROUP, CandidateGroup(PROBLEM, GROUP.candidates[:1])])


@pytest.mark.parametrize(
    ("left", "right"),
    [("24", " 24. "), ("$24$", "24.0"), ("1,000", "1000"), ("\\(x + 1\\)", "x+1"), ("1/2", "0.5"), ("Yes", "yes")],
)
def test_spellings_of_one_answer_vote_together(left: str, right: str) -> None:
    assert answer_key(left, PROBLEM) == answer_key(right, PROBLEM)


def test_options_vote_by_letter() -> None:
    letters = Problem("p", "q", "B")
    assert len({answer_key(text, letters) for text in ("B", "(B)", "b.", "option B")}) == 1
    listed = Problem("p", "q", "4 cm", choices=("3 cm", "4 cm"))
    assert len({answer_key(text, listed) for text in ("B", "4 cm", "B. 4 cm")}) == 1
    assert answer_key("A", listed) != answer_key("B", listed)


def test_different_answers_do_not() -> None:
    keys = [answer_key(text, PROBLEM) for text in ("24", "2.4", "-24", "24 cm", "1,2", "1,000,5", "nan", "B", "b")]
    assert len(set(keys)) == len(keys)
    assert answer_key(None, PROBLEM) is None
    assert answer_key("  ", PROBLEM) is None


class CountingSampler:
    """Answers with the sample number, and fails for one problem."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        self.in_flight += request.n
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= request.n
        if request.problem.id == "broken":
            raise SamplingError("image x.png is missing")
        texts = (f"<step>is {i}</step><answer>{i}</answer>" if i != 2 else "<step>oh" for i in range(request.n))
        return tuple(Completion(text, 5, "stop") for text in texts)


class TextGrader:
    async def grade(self, problem: Problem, response: str) -> Grading:
        if "<answer>" not in response:
            return Grading(Verdict.INCORRECT, None, "no answer")
        answer = response.split("<answer>")[1].removesuffix("</answer>")
        return Grading(Verdict(answer == problem.answer), answer, "match")


class RecordingScorer:
    def __init__(self) -> None:
        self.asked: list[Solution] = []

    def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
        self.asked += solutions
        return [StepScores(tuple(len(step) / 100 for step in solution.steps)) for solution in solutions]


async def test_groups_contain_samples_verdicts_and_scores() -> None:
    problems = [Problem("a", "q", "1"), Problem("broken", "q", "1"), Problem("b", "q", "3")]
    sampler, scorer = CountingSampler(), RecordingScorer()
    sampled = await sample_groups(problems, sampler, TextGrader(), samples=4, step_format="tags", in_flight=4)
    assert sampler.most == 4
    assert sampled.failed == {"broken": "image x.png is missing"}
    assert [group.problem.id for group in sampled.groups] == ["a", "b"]
    first = sampled.groups[0].candidates
    assert first[1] == Candidate(
        "<step>is 1</step><answer>1</answer>", ("is 1", "<answer>1</answer>"), "1", Verdict.CORRECT, 5
    )
    assert (first[2].steps, first[2].unsplit) == ((), "unclosed step")

    group = score_groups(sampled.groups[:1], scorer)[0]
    assert [c.scores is None for c in group.candidates] == [False, False, True, False]
    assert group.candidates[1].scores == StepScores((0.04, 0.18))


def test_equal_solutions_are_scored_once() -> None:
    scorer = RecordingScorer()
    same = Candidate("t", ("a", "b"), "7", Verdict.CORRECT, 2)
    groups = [CandidateGroup(PROBLEM, (same, same)), CandidateGroup(Problem("other", "q", "7"), (same, same))]
    scored = score_groups(groups, scorer)
    assert len(scorer.asked) == 2
    assert all(c.scores == StepScores((0.01, 0.01)) for c in itertools.chain(*(g.candidates for g in scored)))


def test_unscorable_candidates_have_a_reason_and_stop_nothing() -> None:
    class Picky(RecordingScorer):
        def score(self, solutions: Sequence[Solution]) -> list[StepScores]:
            if any("<prm>" in solution.steps for solution in solutions):
                raise DataError("step 1 contains '<prm>'")
            return super().score(solutions)

    marked, *others = (Candidate("t", (step,), "7", Verdict.CORRECT, 2) for step in ("<prm>", "a", "abc", "ab"))
    (group,) = score_groups([CandidateGroup(PROBLEM, (others[0], marked, *others[1:]))], Picky())
    assert rewards(group, "min") == [0.01, -math.inf, 0.03, 0.02]
    assert [c.unscored for c in group.candidates] == [None, "step 1 contains '<prm>'", None, None]
    with pytest.raises(DataError, match="step 1"):
        score_groups([CandidateGroup(PROBLEM, (marked, marked))], Picky())
