"""Test converting graded groups to per-token advantages: worked numbers, and each way to assign process rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from mmprm.config import build
from mmprm.errors import ConfigError
from mmprm.types import Grading, Problem, Verdict
from policy_rl.algorithms.adora import AdoraConfig
from policy_rl.algorithms.advantages import AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, add_advantages, draft, kept_mask
from policy_rl.graded import GradedGroup, GradedResponse, StepRewards
from policy_rl.types import Response, Reward, TrainingSample


def response(
    reward: float | None, length: int = 2, process: StepRewards | None = None, correct: bool | None = None
) -> GradedResponse:
    ids = tuple(range(10, 10 + length))
    correct = bool(reward) if correct is None else correct
    verdict = Verdict.UNKNOWN if reward is None else Verdict(int(correct))
    return GradedResponse(
        Response("text", ids, tuple(-0.1 * (i + 1) for i in range(length)), "stop"),
        Grading(verdict, None, ""),
        Reward(reward, {"accuracy": None if reward is None else float(correct)}),
        process,
    )


def graded_as(reward: float) -> tuple[Grading, Reward]:
    graded = response(reward)
    return graded.grading, graded.reward


def group(number: int, *responses: GradedResponse) -> GradedGroup:
    return GradedGroup(Problem(f"p{number}", "?", "1"), 5, 0, responses)


def made(
    groups: Sequence[GradedGroup],
    settings: AdvantageSettings | None = None,
    least: int = 2,
    fill=lambda sample: sample,
) -> tuple[list[TrainingSample], dict[str, float]]:
    kept_PK = kept_mask(groups, least)
    return add_advantages(
        groups,
        kept_PK,
        [fill(each) for each in draft(groups, kept_PK)],
        settings or AdvantageSettings(AdvantageConfig()),
    )


def values(samples: Sequence[TrainingSample], name: str = "advantages") -> list[list[float]]:
    return [getattr(each, name).tolist() for each in samples]


def near(*rows: Sequence[float]) -> list:
    return [pytest.approx(list(row), abs=1e-6) for row in rows]


def test_rloo_by_hand() -> None:
    """Rewards 1, 0, 0 give 1 − 0, 0 − ½, 0 − ½ on each token; the engine's log-probabilities are kept."""
    found, metrics = made([group(0, response(1.0, 1), response(0.0, 3), response(0.0, 2))])
    assert values(found) == near([1], [-0.5] * 3, [-0.5] * 2)
    assert metrics == {"advantage_size": pytest.approx((1 + 5 * 0.5) / 6)}
    assert found[1].engine.tolist() == pytest.approx([-0.1, -0.2, -0.3])
    assert found[1].token_ids.tolist() == [10, 11, 12]
    assert (found[1].prompt_tokens, found[1].returns) == (5, None)


def test_masked_truncated_responses_count_only_in_the_baselines() -> None:
    """For 1, 0 and a truncated 0, RLOO gives 1, −½ and −½; neither the truncated response nor the second group is
    trained on.
    """
    cut = GradedResponse(Response("t", (1, 2), (-1.0, -1.0), "length"), *graded_as(0.0))
    groups = [group(0, response(1.0, 1), response(0.0, 3), cut), group(1, cut, cut)]
    settings = AdvantageSettings(AdvantageConfig(), mask_truncated=True)
    found, metrics = made(groups, settings)
    assert values(found) == near([1], [-0.5] * 3)
    assert metrics == {"advantage_size": pytest.approx((1 + 3 * 0.5) / 4)}
    assert len(made(groups)[0]) == 5


def test_masked_truncated_responses_do_not_enter_the_whitening() -> None:
    cut = GradedResponse(Response("t", (1, 2, 3), (-1.0,) * 3, "length"), *graded_as(0.0))
    settings = AdvantageSettings(AdvantageConfig(whiten=True), mask_truncated=True)
    found, _ = made([group(0, response(1.0, 1), response(0.0, 1), cut)], settings)
    assert values(found) == near([1], [-1])


def test_unknown_verdicts_drop_samples_and_small_groups() -> None:
    """The second group has 2 known samples and the third 1, so the third is dropped; groups are numbered by their
    index.
    """
    groups = [
        group(0, response(1.0), response(0.0)),
        group(1, response(None), response(1.0), response(0.5)),
        group(2, response(1.0), response(None)),
    ]
    found, _ = made(groups)
    assert [each.group for each in found] == [0, 0, 1, 1]
    assert values(found) == near([1, 1], [-1, -1], [0.5, 0.5], [-0.5, -0.5])
    alone, _ = made(groups, AdvantageSettings(AdvantageConfig(estimator="reinforce_pp")), least=1)
    assert len(alone) == 5, "without a group baseline one sample is enough"


def test_clamped_and_whitened_over_all_tokens() -> None:
    groups = [group(0, response(1.0, 1), response(-1.0, 3))]
    found, _ = made(groups, AdvantageSettings(AdvantageConfig(clamp=1.5)))
    assert values(found) == near([1.5], [-1.5] * 3)
    found, _ = made(groups, AdvantageSettings(AdvantageConfig(whiten=True)))
    tokens = [2, -2, -2, -2]
    mean, deviation = fmean(tokens), math.sqrt(fmean((t - fmean(tokens)) ** 2 for t in tokens))
    assert [v for row in values(found) for v in row] == pytest.approx([(t - mean) / deviation for t in tokens])


def test_kl_in_the_reward_is_summed_to_the_end() -> None:
    """For k1 = old − ref = 0.5 and 1 at two tokens, β = 0.1 and γ = 0.5, the sums are −0.05 − 0.5·0.1 and −0.1."""

    def fill(each: TrainingSample) -> TrainingSample:
        return replace(each, old=np.array([-1.0, -1.0]), ref=np.array([-1.5, -2.0]))

    settings = AdvantageSettings(AdvantageConfig(gamma=0.5), kl_in_reward=0.1)
    found, _ = made([group(0, response(1.0), response(0.0))], settings, fill=fill)
    assert values(found) == near([1 - 0.1, 1 - 0.1], [-1 - 0.1, -1 - 0.1])
    longer, _ = made(
        [group(0, response(1.0), response(0.0))], replace(settings, advantage=AdvantageConfig()), fill=fill
    )
    assert values(longer) == near([1 - 0.15, 1 - 0.1], [-1 - 0.15, -1 - 0.1])


def test_adora_weighs_whole_groups() -> None:
    """Only in the second group is the correct response longer than the incorrect one."""
    groups = [group(0, response(1.0, 2), response(0.0, 2)), group(1, response(1.0, 3), response(0.0, 2))]
    found, _ = made(groups, AdvantageSettings(AdvantageConfig(), adora=AdoraConfig(weight=0.1)))
    assert values(found) == near([0.1] * 2, [-0.1] * 2, [1] * 3, [-1] * 2)


STEPS = (0, 0, 1, -1)
"""Two tokens of a first step, one of a second, one outside of steps."""


def with_scores(reward: float, *scores: float) -> GradedResponse:
    return response(reward, 4, StepRewards(scores, STEPS))


def test_step_returns_come_on_top_of_the_outcome() -> None:
    """The strict minimum of 2p − 1 is (−.8, −.8) for p = (.9, .1) and (−.6, .6) for (.2, .8); tokens outside steps get
    none.
    """
    credit = CreditConfig(mode="strict_min", baseline="none")
    groups = [group(0, with_scores(1.0, 0.9, 0.1), with_scores(0.0, 0.2, 0.8))]
    found, metrics = made(groups, AdvantageSettings(AdvantageConfig(), credit))
    assert values(found) == near([0.2, 0.2, 0.2, 1], [-1.6, -1.6, -0.4, -1])
    assert (metrics["scored"], metrics["unscored"]) == (2, 0)


def test_the_token_baseline_counts_the_tokens_of_steps() -> None:
    """Returns-to-go of (1, 0) and (0, 1) have totals of 1 over 3 step tokens, so the other earns b = 1/3 per token.

    G − b·remaining tokens is (1 − 1, 0 − 1/3) and (1 − 1, 1 − 1/3).
    """
    credit = CreditConfig(mode="return_to_go", baseline="pure_tokens")
    groups = [group(0, with_scores(0.0, 1.0, 0.0), with_scores(0.0, 0.0, 1.0))]
    found, _ = made(groups, AdvantageSettings(AdvantageConfig(), credit))
    assert values(found) == near([0, 0, -1 / 3, 0], [0, 0, 2 / 3, 0])


def test_the_default_baseline_is_what_the_others_earn_at_the_same_step() -> None:
    """The soft minimum of r = 2p − 1 is close to (−.8, −.8) and (−.6, 0) for (.8, −.8) and (−.6, .6); each is reduced
    by the other's.
    """
    groups = [group(0, with_scores(0.0, 0.9, 0.1), with_scores(0.0, 0.2, 0.8))]
    found, metrics = made(groups, AdvantageSettings(AdvantageConfig(), CreditConfig()))
    expected = ([-0.2, -0.2, -0.8, 0], [0.2, 0.2, 0.8, 0])
    assert values(found) == [pytest.approx(row, abs=1e-4) for row in expected]
    assert (metrics["scored"], metrics["alone"]) == (2, 0)


def test_a_response_without_scores_keeps_its_outcome() -> None:
    groups = [group(0, with_scores(1.0, 0.9, 0.1), response(0.0, 2), with_scores(0.5, 0.9, 0.1))]
    found, metrics = made(groups, AdvantageSettings(AdvantageConfig(), CreditConfig(mode="strict_min")))
    assert values(found)[1] == near([-0.75, -0.75])[0]
    assert (metrics["scored"], metrics["unscored"]) == (2, 1)
    # If steps are not compared with others', 0 would be worse than most scores.
    alone = CreditConfig(mode="strict_min", baseline="none")
    found, metrics = made(groups, AdvantageSettings(AdvantageConfig(), alone))
    assert values(found) == near([-0.05, -0.05, -0.05, 0.75], [-0.8, -0.8, -0.8, 0])
    assert (metrics["scored"], metrics["unscored"]) == (2, 1)
    groups = [group(0, with_scores(1.0, 0.9, 0.1), response(0.0, 2))]
    scalar = AdvantageSettings(AdvantageConfig(), CreditConfig(mode="scalar"), aggregate=min)
    found, metrics = made([group(0, *groups[0].responses, with_scores(0.0, 0.5, 0.5))], scalar)
    assert len(found) == 2, "an incomplete sum is not a reward"
    assert values(found) == near([0.6] * 4, [-0.6] * 4)
    assert metrics["unscored"] == 1


@pytest.mark.parametrize("baseline", ["step_index", "pure_tokens", "prime_steps"])
@pytest.mark.parametrize("mode", [{}, {"mode": "strict_min"}, {"mode": "return_to_go", "normalize_steps": True}])
def test_a_batch_without_a_scored_step_keeps_its_outcomes(mode: dict, baseline: str) -> None:
    """If the policy writes no steps, there is nothing to normalize or to compare."""
    credit = CreditConfig(**mode, baseline=baseline)
    found, metrics = made([group(0, response(1.0), response(0.0))], AdvantageSettings(AdvantageConfig(), credit))
    assert values(found) == near([1, 1], [-1, -1])
    assert (metrics["scored"], metrics["unscored"]) == (0, 2)


def test_sources_separate_and_summed() -> None:
    """With outcomes 1, 0, 0 and minimum scores .5, .1, .3, GRPO is applied to the sum or to each source."""
    responses = [with_scores(r, p, 1.0) for r, p in ((1.0, 0.5), (0.0, 0.1), (0.0, 0.3))]

    def grpo(rewards: Sequence[float]) -> np.ndarray:
        array = np.array(rewards)
        return (array - array.mean()) / (array.std(ddof=1) + 1e-6)

    for per_source, expected in (
        (False, grpo([1.5, 0.1, 0.3])),
        (True, grpo([1, 0, 0]) + grpo([0.5, 0.1, 0.3])),
    ):
        credit = CreditConfig(mode="scalar", per_source=per_source)
        settings = AdvantageSettings(AdvantageConfig(estimator="grpo"), credit, aggregate=min)
        found, _ = made([group(0, *responses)], settings)
        assert [row[0] for row in values(found)] == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_gate_needs_a_correct_answer() -> None:
    """Only correct answers are compared; the incorrect one keeps only its outcome, although its reward is above 0."""
    credit = CreditConfig(mode="strict_min", baseline="none", gate="correct")
    incorrect = replace(with_scores(0.5, 0.2, 0.8), reward=Reward(0.5, {"accuracy": 0.0, "format": 1.0}))
    found, metrics = made(
        [group(0, with_scores(1.0, 0.9, 0.1), incorrect)], AdvantageSettings(AdvantageConfig(), credit)
    )
    assert values(found) == near([-0.3, -0.3, -0.3, 0.5], [-0.5] * 4)
    assert metrics["scored"] == 1


def test_the_gate_takes_the_accuracy_in_force() -> None:
    """With exact labels, an answer can be correct although the grader's verdict is unknown, and vice versa."""
    credit = CreditConfig(mode="strict_min", baseline="none", gate="correct")
    unsaid = replace(with_scores(1.0, 0.9, 0.1), grading=Grading(Verdict.UNKNOWN, "x", ""))
    said = replace(with_scores(0.0, 0.9, 0.1), grading=Grading(Verdict.CORRECT, "x", ""))
    found, metrics = made([group(0, unsaid, said)], AdvantageSettings(AdvantageConfig(), credit))
    assert values(found) == near([0.2, 0.2, 0.2, 1], [-1] * 4)
    assert metrics["scored"] == 1


def test_each_source_has_its_own_leave_one_out() -> None:
    """Outcomes 1, 0 give 1, −1. Step rewards (1, 0) and (0, .5) have means .5 and .25, each subtracted from the other's
    steps.
    """
    credit = CreditConfig(mode="return_to_go", baseline="prime_steps")
    groups = [group(0, with_scores(1.0, 1.0, 0.0), with_scores(0.0, 0.0, 0.5))]
    found, _ = made(groups, AdvantageSettings(AdvantageConfig(), credit))
    assert values(found) == near([1.5, 1.5, 0.75, 1], [-1.5, -1.5, -1, -1])


def test_a_lone_scored_response_is_counted() -> None:
    groups = [group(0, with_scores(1.0, 0.9, 0.1), response(0.0, 2)), group(1, with_scores(1.0, 0.9, 0.1))]
    settings = AdvantageSettings(AdvantageConfig(estimator="reinforce_pp"), CreditConfig())
    _, metrics = made(groups, settings, least=1)
    assert (metrics["scored"], metrics["unscored"], metrics["alone"]) == (0, 1, 2)


def test_gae_with_step_rewards_by_hand() -> None:
    """Rewards are (0, .5, .25, 1): steps at their last tokens, and the outcome at the end.

    With γ = λ = 1 and V = 0.1, returns are the sums to the end, and advantages are returns minus V.
    """

    def fill(each: TrainingSample) -> TrainingSample:
        return replace(each, values=np.full(4, 0.1, dtype=np.float32))

    plain = AdvantageConfig(estimator="gae", whiten=False)
    settings = AdvantageSettings(plain, CreditConfig(mode="step_gae"))
    groups = [group(0, with_scores(1.0, 0.5, 0.25))]
    found, _ = made(groups, settings, least=1, fill=fill)
    assert values(found, "returns") == near([1.75, 1.75, 1.25, 1.0])
    assert values(found) == near([1.65, 1.65, 1.15, 0.9])
    # By default advantages are whitened, and returns are not.
    found, _ = made(groups, replace(settings, advantage=AdvantageConfig(estimator="gae")), least=1, fill=fill)
    assert values(found, "returns") == near([1.75, 1.75, 1.25, 1.0])
    mean, deviation = 1.3375, math.sqrt(fmean((a - 1.3375) ** 2 for a in (1.65, 1.65, 1.15, 0.9)))
    assert values(found) == near([(a - mean) / deviation for a in (1.65, 1.65, 1.15, 0.9)])


@pytest.mark.parametrize(
    ("estimator", "first"),
    [("reinforce_pp", [0.25, 0.5, 1.0]), ("rloo", [1.0] * 3), ("reinforce_pp_baseline", [0.5] * 3)],
)
def test_gamma_discounts_the_sequence_reward_of_reinforce_pp(estimator: str, first: Sequence[float]) -> None:
    """With γ = .5 and three tokens, R is assigned to the last token and discounted backward; other estimators do not
    discount it.
    """
    config = AdvantageConfig(estimator=estimator, gamma=0.5)
    found, _ = made([group(0, response(1.0, 3), response(0.0, 3))], AdvantageSettings(config))
    second = [0.0 if estimator == "reinforce_pp" else -each for each in first]
    tokens = [*first, *second]
    if estimator != "rloo":
        mean, deviation = fmean(tokens), math.sqrt(fmean((t - fmean(tokens)) ** 2 for t in tokens))
        tokens = [(t - mean) / deviation for t in tokens]
    assert [v for row in values(found) for v in row] == pytest.approx(tokens, abs=1e-6)


def test_whitening_is_part_of_some_estimators() -> None:
    expected = {"gae": True, "reinforce_pp": True, "reinforce_pp_baseline": True, "rloo": False, "grpo": False}
    assert {name: AdvantageConfig(estimator=name).whitens for name in expected} == expected
    assert not AdvantageConfig(estimator="gae", whiten=False).whitens
    assert AdvantageConfig(estimator="rloo", whiten=True).whitens
    with pytest.raises(ConfigError, match="whitening is part of REINFORCE"):
        build(AdvantageConfig, {"estimator": "reinforce_pp", "whiten": False})


@pytest.mark.parametrize(
    "estimator", ["rloo", "grpo", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline", "cpgd_clip_filter"]
)
def test_neither_order_of_groups_nor_padding_matters(estimator: str) -> None:
    rng = np.random.default_rng(0)
    groups = [
        group(number, *(response(float(rng.integers(2)), int(rng.integers(1, 6))) for _ in range(4)))
        for number in range(5)
    ]
    groups.append(group(5, response(None, 40), response(1.0), response(0.0)))
    settings = AdvantageSettings(AdvantageConfig(estimator=estimator))

    def by_problem(order: Sequence[int]) -> dict[str, list[list[float]]]:
        found, _ = made([groups[position] for position in order], settings)
        rows: dict[str, list[list[float]]] = {}
        for each in found:
            rows.setdefault(each.problem.id, []).append(each.advantages.tolist())
        return rows

    forward, backward = by_problem(range(6)), by_problem(range(5, -1, -1))
    for problem, rows in forward.items():
        for ours, theirs in zip(rows, backward[problem], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
    assert torch.tensor([v for rows in forward.values() for row in rows for v in row]).abs().max() > 0.1
