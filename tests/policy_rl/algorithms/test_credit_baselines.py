"""Test that baselines center step credit at every step, and that length alone earns no credit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprm.config import build
from policy_rl.algorithms.baselines import ScoredSteps
from policy_rl.algorithms.credit import assign
from policy_rl.algorithms.credit_config import CreditConfig

MODES: dict[str, dict[str, Any]] = {
    "soft_min": {"mode": "soft_min"},
    "strict_min": {"mode": "strict_min"},
    "delta": {"mode": "return_to_go", "transform": "delta"},
    "progress": {"mode": "progress"},
}
"""The modes whose return at the first step does not grow with the number of steps."""
SUMS: dict[str, dict[str, Any]] = {
    "sum": {"mode": "return_to_go"},
    "clip": {"mode": "return_to_go", "transform": "clip", "eta": 0.5},
    "normalized": {"mode": "return_to_go", "normalize_steps": True},
}


def steps_of(*groups: list[list[float]], tokens: int = 1) -> ScoredSteps:
    """Return step scores given as nested lists; all steps have the same number of tokens."""
    width = max(len(steps) for group in groups for steps in group)
    scores_PKS = torch.tensor([[[*steps, *[0.0] * (width - len(steps))] for steps in group] for group in groups])
    lengths_PK = torch.tensor([[len(steps) for steps in group] for group in groups])
    mask_PKS = torch.arange(width) < lengths_PK[..., None]
    return ScoredSteps(scores_PKS, tokens * mask_PKS, mask_PKS)


def credit_of(steps: ScoredSteps, values: dict[str, Any], kept_PK: Tensor | None = None) -> Tensor:
    """Return returns_PKS of the step scores."""
    everyone = torch.ones(steps.mask_PKS.shape[:2], dtype=torch.bool)
    return assign(steps, everyone if kept_PK is None else kept_PK, everyone, build(CreditConfig, values)).returns_PKS


def random_groups(seed: int, groups: int = 400, samples: int = 8, most: int = 20) -> ScoredSteps:
    generator = torch.Generator().manual_seed(seed)
    lengths_PK = torch.randint(1, most + 1, (groups, samples), generator=generator)
    mask_PKS = torch.arange(most) < lengths_PK[..., None]
    scores_PKS = torch.rand(groups, samples, most, generator=generator)
    return ScoredSteps(scores_PKS, torch.randint(1, 40, mask_PKS.shape, generator=generator), mask_PKS)


@pytest.mark.parametrize("values", [*MODES.values(), *SUMS.values()], ids=[*MODES, *SUMS])
def test_identical_responses_earn_nothing_at_any_step(values: dict[str, Any]) -> None:
    for scores, samples in itertools.product(([0.1], [0.1, 0.1, 0.1], [0.9, 0.2, 0.7, 0.4]), (2, 4, 7)):
        returns_PKS = credit_of(steps_of([scores] * samples), values)
        assert returns_PKS.abs().max() <= 1e-6


@pytest.mark.parametrize("values", MODES.values(), ids=MODES)
def test_equal_scores_at_any_length_earn_nothing_at_the_first_step(values: dict[str, Any]) -> None:
    """Groups contain responses of 1 to 20 steps in all pairs of lengths, with long and short steps."""
    for score in (0.1, 0.5, 0.9):
        whole = steps_of([[score] * length for length in range(1, 21)], tokens=7)
        assert credit_of(whole, values)[..., 0].abs().max() <= 1e-6
        pairs = steps_of(*([[score] * a, [score] * b] for a, b in itertools.combinations(range(1, 21), 2)))
        assert credit_of(pairs, values)[..., 0].abs().max() <= 1e-6


@pytest.mark.parametrize("values", [*MODES.values(), *SUMS.values()], ids=[*MODES, *SUMS])
def test_credit_is_centered_at_every_step(values: dict[str, Any]) -> None:
    """The credit at step j sums to zero over the responses of a group that have a step j."""
    steps = random_groups(0)
    returns_PKS = credit_of(steps, values)
    have_PS = steps.mask_PKS.sum(dim=1)
    means_PS = returns_PKS.double().sum(dim=1) / have_PS.clamp(min=1)
    assert means_PS.abs().max() <= (1e-6 if values in MODES.values() else 1e-5)
    means_S = returns_PKS.double().sum(dim=(0, 1)) / steps.mask_PKS.sum(dim=(0, 1))
    assert means_S.abs().max() <= 1e-6
    assert (returns_PKS[(have_PS == 1)[:, None] & steps.mask_PKS] == 0).all(), "no other response to compare with"
    assert returns_PKS.std() > 0.1


def test_the_mean_of_the_others_by_hand() -> None:
    """With r = 2p − 1 and the strict minimum, the responses have (−.8, −.8, .6), (.2) and (.6, .4).

    At step 1 the others' means are .3 (.2 and .4, since the third's lowest is .4), −.2 and −.3. At step 2 they are .4
    and −.8; no other response has a third step.
    """
    steps = steps_of([[0.9, 0.1, 0.8], [0.6], [0.8, 0.7]])
    found = credit_of(steps, {"mode": "strict_min"})[0]
    expected = torch.tensor([[-0.8 - 0.3, -0.8 - 0.4, 0.0], [0.2 + 0.2, 0, 0], [0.4 + 0.3, 0.4 + 0.8, 0]])
    torch.testing.assert_close(found, expected)


def test_dropped_samples_do_not_count_among_the_others() -> None:
    steps = steps_of([[0.9, 0.1], [0.6, 0.6], [0.2, 0.2]])
    found = credit_of(steps, {"mode": "strict_min"}, torch.tensor([[True, True, False]]))[0]
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]))


def test_the_length_after_a_step_does_not_change_the_others_credit() -> None:
    """A response that continues with steps as good as its last earns the same credit at its first step."""
    short = steps_of([[0.9, 0.3], [0.7, 0.5]])
    for values in MODES.values():
        first = credit_of(short, values)[0, 0, 0].item()
        for more in range(1, 12):
            longer = steps_of([[0.9, 0.3, *[0.3] * more], [0.7, 0.5]])
            tolerance = 0.01 if values["mode"] == "soft_min" else 1e-6  # the softmax gives 0.9 e⁻¹² of its weight
            assert credit_of(longer, values)[0, 0, 0].item() == pytest.approx(first, abs=tolerance)


@pytest.mark.parametrize(
    ("baseline", "lengths", "score", "expected"),
    [
        ("pure_tokens", (5, 10), 0.9, (0.4, -0.8)),
        ("pure_tokens", (5, 10), 0.1, (-0.4, 0.8)),
        ("prime_steps", (1, 2), 0.9, (0.4, -0.8)),
        ("prime_steps", (5, 10), 0.1, (-0.4, 0.8)),
    ],
)
def test_published_baselines_reward_length(
    baseline: str, lengths: tuple[int, int], score: float, expected: tuple[float, float]
) -> None:
    """With equal scores, a response twice as long earns more, so these baselines are not the default."""
    steps = steps_of([[score] * length for length in lengths])
    found = credit_of(steps, {"mode": "soft_min", "baseline": baseline})[0, :, 0]
    torch.testing.assert_close(found, torch.tensor(expected))
    by_index = credit_of(steps, {"mode": "soft_min"})[0, :, 0]
    torch.testing.assert_close(by_index, torch.zeros(2))


def test_the_token_baseline_of_a_minimum_is_not_centered() -> None:
    """Four identical responses with r = −.8 at each of three steps get 0, −.267 and −.533."""
    steps = steps_of([[0.1, 0.1, 0.1]] * 4)
    found = credit_of(steps, {"mode": "strict_min", "baseline": "pure_tokens"})[0, 0]
    torch.testing.assert_close(found, torch.tensor([0, -0.8 / 3, -1.6 / 3]))


def test_pures_soft_min_with_its_token_baseline_by_hand() -> None:
    """Scores are p = (.9, .1) over 2 + 3 tokens, and .55 over 5.

    z = w·r with w = softmax(−r/.1) is (.8·2.5e-7…, −.8), and .1. The rates are .1/5 and −.8/5 per token, for 5, 3 and 5
    remaining tokens.
    """
    steps = steps_of([[0.9, 0.1], [0.55]])
    steps = ScoredSteps(steps.scores_PKS, torch.tensor([[[2, 3], [5, 0]]]), steps.mask_PKS)
    found = credit_of(steps, {"mode": "soft_min", "baseline": "pure_tokens"})[0]
    expected = torch.tensor([[-0.8 - 0.1, -0.8 - 0.06], [0.1 + 0.8, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
