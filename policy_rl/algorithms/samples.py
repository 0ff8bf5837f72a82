"""Convert graded groups to training samples: compute advantages from rewards, one value per response token.

    kept_PK = kept_mask(groups, least)
    samples = draft(groups, kept_PK)              # then add old, ref and values, if needed
    samples, metrics = add_advantages(groups, kept_PK, samples, settings)

Shapes: P group, K sample of a group, S step, N kept sample in the order of kept_PK, T token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from policy_rl.algorithms.adora import AdoraConfig, adora_weight
from policy_rl.algorithms.advantages import (
    ESTIMATORS,
    AdvantageConfig,
    clamp,
    gae,
    keep,
    moments,
    returns_to_go,
    tabulate,
    whiten,
)
from policy_rl.algorithms.baselines import ScoredSteps
from policy_rl.algorithms.credit import (
    Credit,
    Outcomes,
    Source,
    assign,
    combine,
    count_tokens,
    scatter_to_tokens,
    spread,
)
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.distillation import DistillationConfig, distillation_advantages
from policy_rl.algorithms.turn_samples import TurnSettings, turn_advantages, turn_of_tokens
from policy_rl.graded import GradedGroup, StepRewards
from policy_rl.types import TrainingSample, as_sample

Aggregate = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class AdvantageSettings:
    """Configures the computation of advantages: estimator, process credit, ADORA, KL in the reward, distillation.

    `kl_in_reward` is the coefficient β of the per-token reward −β·k1. `aggregate` combines step scores with
    credit.mode=scalar. `accuracy_weight` is rewards.accuracy_weight, which credit.mode=value needs. With
    `mask_truncated`, truncated responses count only in the baselines of their groups. `turns` are the settings of
    credit from the rewards of turns.
    """

    advantage: AdvantageConfig
    credit: CreditConfig | None = None
    adora: AdoraConfig | None = None
    kl_in_reward: float = 0.0
    aggregate: Aggregate | None = None
    mask_truncated: bool = False
    distillation: DistillationConfig | None = None
    turns: TurnSettings | None = None
    accuracy_weight: float = 1.0


def kept_mask(groups: Sequence[GradedGroup], least: int) -> Tensor:
    """Return kept_PK, which marks the samples with known rewards, except in groups with fewer than `least` of them."""
    return keep(_rewards(groups)[1], least)


def draft(groups: Sequence[GradedGroup], kept_PK: Tensor) -> list[TrainingSample]:
    """Create training samples from the kept responses, without advantages. `group` is set to the group's index."""
    drafts = []
    for p, k in kept_PK.nonzero().tolist():
        group = groups[p]
        drafts.append(as_sample(group.problem, p, group.prompt_tokens, group.responses[k].response))
    return drafts


def add_advantages(
    groups: Sequence[GradedGroup], kept_PK: Tensor, samples: Sequence[TrainingSample], settings: AdvantageSettings
) -> tuple[list[TrainingSample], dict[str, float]]:
    """Compute the samples' advantages and, with a critic, their return targets; return (samples, metrics).

    Samples that lack a required reward are left out. Without a critic, A_t = w·A_sequence + the return of the token's
    step + Σ_{l ≥ t} γ^(l − t)·(−β·k1_l), with ADORA's weight w, is clamped and then whitened over all tokens. With
    reinforce_pp, w·A_sequence is a reward of the last token T, so the first term becomes γ^(T − t)·w·A_sequence. With a
    critic, w·A_sequence is also a reward of the last token, step rewards are rewards of the last token of their step,
    and A_t is the GAE of all rewards. Distillation advantages are added in all cases, before the clamp. Tokens of
    observations have no advantage. With credit.mode=value, A_sequence leaves out the accuracy of scored responses,
    because their step returns contain it.

    With `settings.turns`, each token of a turn has the advantage of its turn (see turn_samples), in addition to
    A_sequence or, with source=environment, instead of it.
    """
    config = settings.advantage
    estimator = ESTIMATORS[config.estimator]
    sources = [Source.of(_rewards(groups)[0], kept_PK)]
    credit, step_of_NT, accuracy_PK = _credit(groups, kept_PK, samples, settings)
    if credit is not None:
        sources += credit.sources
    per_source = settings.credit is not None and settings.credit.per_source
    sequence_PK, taking_PK = combine(sources, estimator, per_source)
    if settings.turns is not None and settings.turns.replaces_outcome:
        sequence_PK = torch.zeros_like(sequence_PK)
    if credit is not None and settings.credit.replaces_outcome:
        sequence_PK = sequence_PK - torch.where(credit.scored_PK, estimator.advantages(accuracy_PK, kept_PK), 0)
    if credit is not None and settings.credit.needs_scores:
        taking_PK = taking_PK & ~credit.missing_PK
    if settings.adora is not None:
        sequence_PK = sequence_PK * torch.tensor([[adora_weight(group, settings.adora.weight)] for group in groups])
    taking_N, sequence_N = taking_PK[kept_PK], sequence_PK[kept_PK]
    if settings.mask_truncated:
        taking_N = taking_N & ~_truncated(groups, kept_PK)
    lengths_N = torch.tensor([len(each.token_ids) for each in samples])
    counted = [torch.from_numpy(np.array(each.counted)) for each in samples]
    mask_NT = pad_sequence(counted, batch_first=True) & taking_N[:, None]
    rewards_NT = _kl_rewards(samples, settings.kl_in_reward, mask_NT)
    if credit is not None and credit.rewards_PKS.any():
        rewards_NT += scatter_to_tokens(credit.rewards_PKS[kept_PK], step_of_NT)
    if estimator.on_last_token:
        rewards_NT[torch.arange(len(samples)), lengths_N - 1] += sequence_N
    returns_NT = None
    if estimator.critic:
        values_NT = _padded([each.values for each in samples])
        advantages_NT, returns_NT = gae(rewards_NT, values_NT, mask_NT, config.gamma, config.lam)
    else:
        advantages_NT = returns_to_go(rewards_NT, mask_NT, config.gamma)
        if not estimator.on_last_token:
            advantages_NT = advantages_NT + sequence_N[:, None]
        if credit is not None:
            advantages_NT = advantages_NT + spread(credit.returns_PKS[kept_PK], step_of_NT)
        if settings.turns is not None:
            turns_PKS = turn_advantages(groups, kept_PK, settings.turns, estimator)
            advantages_NT = advantages_NT + spread(turns_PKS[kept_PK], turn_of_tokens(groups, kept_PK))
    metrics = {}
    if settings.distillation is not None:
        own_NT, metrics["teacher_kl"] = _distillation(samples, mask_NT, settings.distillation)
        advantages_NT = advantages_NT + own_NT
    advantages_NT = clamp(torch.where(mask_NT, advantages_NT, 0), config.clamp)
    if config.whitens:
        advantages_NT = whiten(advantages_NT, mask_NT, moments(advantages_NT, mask_NT))
    made = [
        replace(each, advantages=_cut(advantages_NT, n, each), returns=_cut(returns_NT, n, each))
        for n, each in enumerate(samples)
        if taking_N[n]
    ]
    return made, metrics | _metrics(advantages_NT, mask_NT, credit)


def _rewards(groups: Sequence[GradedGroup]) -> tuple[Tensor, Tensor]:
    return tabulate([[each.reward.total for each in group.responses] for group in groups])


def _mask(lengths_N: Tensor) -> Tensor:
    """Return mask_NT, which is False on padding."""
    return torch.arange(lengths_N.max().item()) < lengths_N[:, None]


def _outcomes(groups: Sequence[GradedGroup], kept_PK: Tensor) -> Tensor:
    """Return outcome_PK, which is 1 for correct answers, 0 for incorrect ones and −1 for unknown ones."""
    outcome_PK = torch.full(kept_PK.shape, -1)
    for p, k in kept_PK.nonzero().tolist():
        each = groups[p].responses[k]
        if each.reward.parts.get("accuracy") is not None:
            outcome_PK[p, k] = int(each.correct)
    return outcome_PK


def _truncated(groups: Sequence[GradedGroup], kept_PK: Tensor) -> Tensor:
    responses = [groups[p].responses[k].response for p, k in kept_PK.nonzero().tolist()]
    return torch.tensor([each.finish_reason == "length" for each in responses])


def _credit(
    groups: Sequence[GradedGroup], kept_PK: Tensor, samples: Sequence[TrainingSample], settings: AdvantageSettings
) -> tuple[Credit | None, Tensor, Tensor]:
    """Return the credit from step scores, if there are any, step_of_NT, and the weighted accuracies as accuracy_PK."""
    processes_N = _processes(groups, kept_PK, samples, settings.credit)
    step_of_NT = _step_of_tokens(processes_N, samples)
    outcome_PK = _outcomes(groups, kept_PK)
    accuracy_PK = settings.accuracy_weight * (outcome_PK == 1).float()
    if settings.credit is None:
        return None, step_of_NT, accuracy_PK
    steps = _scored_steps(processes_N, kept_PK, step_of_NT)
    outcomes = Outcomes(accuracy_PK, kept_PK, settings.accuracy_weight, settings.advantage.lam)
    credit = assign(steps, kept_PK, outcome_PK, settings.credit, settings.aggregate, outcomes)
    return credit, step_of_NT, accuracy_PK


def _processes(
    groups: Sequence[GradedGroup], kept_PK: Tensor, samples: Sequence[TrainingSample], credit: CreditConfig | None
) -> list[StepRewards | None]:
    """Return the scores of the kept responses. With credit.mode=value, they cover all generated tokens."""
    found = [groups[p].responses[k].process for p, k in kept_PK.nonzero().tolist()]
    if credit is None or not credit.replaces_outcome:
        return found
    return [each and _whole(each, sample) for each, sample in zip(found, samples, strict=True)]


def _whole(process: StepRewards, sample: TrainingSample) -> StepRewards:
    """Return the steps of a response with its generated tokens after the last one as a further step, if there are any.

    A PRM may score only the first steps of a long response. The added score, 0, is not read by credit.mode=value.
    """
    step_of_T = process.step_of_token
    after_T = np.array(sample.counted) & (np.arange(len(step_of_T)) > np.flatnonzero(step_of_T >= 0).max(initial=-1))
    if not after_T.any():
        return process
    return StepRewards((*process.scores, 0.0), np.where(after_T, len(process.scores), step_of_T))


def _step_of_tokens(processes_N: Sequence[StepRewards | None], samples: Sequence[TrainingSample]) -> Tensor:
    """Return step_of_NT, the step index of each token, or −1 on padding and in responses without scores."""
    rows = []
    for process, sample in zip(processes_N, samples, strict=True):
        outside = np.full(len(sample.token_ids), -1)
        rows.append(torch.from_numpy(np.array(process.step_of_token if process else outside, dtype=np.int64)))
    return pad_sequence(rows, batch_first=True, padding_value=-1)


def _scored_steps(processes_N: Sequence[StepRewards | None], kept_PK: Tensor, step_of_NT: Tensor) -> ScoredSteps:
    scores = [process.scores if process else () for process in processes_N]
    scores_NS = _padded([np.array(each, dtype=np.float32) for each in scores])
    mask_NS = _mask(torch.tensor([len(each) for each in scores]))
    shape = (*kept_PK.shape, scores_NS.shape[1])
    tables = [torch.zeros(shape), torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)]
    rows = (scores_NS, count_tokens(step_of_NT, scores_NS.shape[1]).float(), mask_NS)
    for table_PKS, rows_NS in zip(tables, rows, strict=True):
        table_PKS[kept_PK] = rows_NS
    return ScoredSteps(*tables)


def _kl_rewards(samples: Sequence[TrainingSample], coefficient: float, mask_NT: Tensor) -> Tensor:
    """Return the KL reward −β·k1 per token, with k1 = old − ref."""
    if coefficient == 0:
        return torch.zeros(mask_NT.shape)
    old_NT, ref_NT = (_padded([getattr(each, name) for each in samples]) for name in ("old", "ref"))
    return torch.where(mask_NT, -coefficient * (old_NT - ref_NT), 0)


def _distillation(
    samples: Sequence[TrainingSample], mask_NT: Tensor, config: DistillationConfig
) -> tuple[Tensor, float]:
    """Return the distillation advantages, and the mean estimate of the reverse KL divergence per token."""
    old_NT, teacher_NT = (_padded([getattr(each, name) for each in samples]) for name in ("old", "teacher"))
    advantages_NT, kl_NT = distillation_advantages(old_NT, teacher_NT, mask_NT, config)
    return advantages_NT, (kl_NT.sum(dtype=torch.float64) / mask_NT.sum().clamp(min=1)).item()


def _padded(rows: Sequence[np.ndarray | None]) -> Tensor:
    return pad_sequence([torch.as_tensor(np.array(row), dtype=torch.float32) for row in rows], batch_first=True)


def _cut(values_NT: Tensor | None, n: int, sample: TrainingSample) -> np.ndarray | None:
    return None if values_NT is None else values_NT[n, : len(sample.token_ids)].numpy().copy()


def _metrics(advantages_NT: Tensor, mask_NT: Tensor, credit: Credit | None) -> dict[str, float]:
    """Compute the mean absolute advantage and, with process rewards, the numbers of responses with and without one.

    advantage_size: mean |A| per token; scored: responses that received a process reward; unscored: responses without a
    scored step; alone: responses without another response in their group to compare with.
    """
    total = torch.where(mask_NT, advantages_NT, 0).abs().sum(dtype=torch.float64)
    metrics = {"advantage_size": (total / mask_NT.sum().clamp(min=1)).item()}
    if credit is not None:
        metrics |= {"scored": float(credit.scored_PK.sum()), "unscored": float(credit.missing_PK.sum())}
        metrics |= {"alone": float(credit.alone_PK.sum())}
    return metrics
