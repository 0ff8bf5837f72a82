"""Define the configuration of `mmprm rl`: problems, engines, rewards, advantages and updates."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mmprm.config import Config, PathText
from mmprm.environments.load import EnvironmentConfig
from mmprm.errors import ConfigError
from mmprm.grading.symbolic import GraderConfig
from mmprm.hardware import HardwareConfig
from mmprm.problems import ProblemsConfig
from mmprm.prompts import PromptConfig
from mmprm.rendering import template_of_file
from mmprm.sampling.config import LocalEngineConfig, SamplingConfig, WholeDistributionConfig, sampling_of
from mmprm.sampling.policy import DECISIVE
from mmprm.steps import StepFormat
from mmprm.trackers import TrackerName
from policy_rl.algorithms.adora import AdoraConfig
from policy_rl.algorithms.advantages import ESTIMATORS, AdvantageConfig
from policy_rl.algorithms.credit_config import CreditConfig
from policy_rl.algorithms.samples import AdvantageSettings, Aggregate
from policy_rl.algorithms.tree_samples import TreeSettings
from policy_rl.algorithms.turn_samples import TurnSettings
from policy_rl.checks.credit import check_credit, check_rewards
from policy_rl.checks.environment import OF_TURNS, check_environment
from policy_rl.checks.sizes import check_evaluation_length, check_group_sizes, check_updates
from policy_rl.checks.staleness import check_staleness
from policy_rl.checks.trees import check_refresh, check_tree_credit
from policy_rl.monitor.alarms import MonitorConfig
from policy_rl.rewards.outcome import RewardConfig
from policy_rl.rewards.process import ProcessConfig
from policy_rl.rollouts.config import RolloutConfig
from policy_rl.rollouts.curriculum import FilterConfig, Phase
from policy_rl.trainer import config as trainer_config
from policy_rl.trainer.config import TrainerConfig
from policy_rl.weights.config import WeightsConfig

_IN_PART: dict[str, Any] = {key: DECISIVE[key] for key in ("engine", "grader")} | {
    "process": {
        "aggregator": True,
        "scorer": {"prm", "format", "backend", "dtype", "too_long"},
        "refresh": {"train", "min_auc", "window", "dev", "min_problems", "labels"},
    },
    "rollouts": {"branching"},
}
"""Maps configuration groups to the subkeys that must be unchanged for a run to be resumed. Their other subkeys may
change."""
_CHANGEABLE: dict[str, Any] = dict.fromkeys(
    ("output", "held_out", "eval_every", "eval_samples", "save_every", "keep_checkpoints", "rollouts", "monitor"), True
) | {
    "tracker": True,
    "ray_address": True,
    "keep_best": True,
    "weights": True,
    "problems": True,
    "environment": True,
    "filter": True,
    "trainer": trainer_config.CHANGEABLE,
    "rewards": {"timeout_seconds"},
}
"""Keys that may change on resume. They do not affect training, except for those in RLConfig.noted, whose changes are
reported."""


class BatchConfig(Config):
    """Configures the batch of a training step."""

    prompts: int = Field(128, ge=1)
    """Number of problems per step. Each yields one group of responses."""
    group_size: int = Field(8, ge=1)
    """Number of responses per problem."""
    updates: int = Field(1, ge=1)
    """Number of optimizer steps per rollout batch, each on an equal share of its groups (prompts / updates). Missing
    groups lead to fewer updates, not smaller ones."""
    epochs: int = Field(1, ge=1)
    """Number of passes over a rollout batch. Each pass makes `updates` optimizer steps, on differently shuffled
    groups."""

    @property
    def optimizer_steps(self) -> int:
        """Return the number of optimizer steps per rollout batch: updates × epochs."""
        return self.updates * self.epochs


class RLConfig(Config):
    """Configures `mmprm rl`."""

    output: PathText
    """Run folder, which receives checkpoints/, metrics.jsonl, tensorboard/, and finally policy/. If it contains an
    unfinished run, that run is resumed; a finished run is left unchanged."""
    problems: ProblemsConfig
    """Problems to train on."""
    held_out: ProblemsConfig | None = None
    """Problems on which to measure pass@1. By default, there is no evaluation."""
    engine: LocalEngineConfig
    """Model and engine settings. Trainer and engines both start from this model; "tiny" is the built-in policy."""
    sampling: WholeDistributionConfig = WholeDistributionConfig()
    """Sampling settings, without top-p and top-k: the ratio of new to old probability needs the full distribution."""
    prompt: PromptConfig = PromptConfig()
    """Prompt format of the problems."""
    step_format: StepFormat = "tags"
    """Format in which the policy marks its steps: tags, blank_lines, numbered or thoughts."""
    grader: GraderConfig = GraderConfig()
    """Settings of the grader for final answers."""
    environment: EnvironmentConfig | None = None
    """Environment in which each response is an episode of several turns; see docs/environments.md. Its
    max_turn_tokens replaces sampling.max_tokens. By default, a response is one answer to a problem."""
    rewards: RewardConfig = RewardConfig()
    """Outcome rewards: accuracy, format, length and user functions."""
    advantage: AdvantageConfig = AdvantageConfig()
    """Estimator, clamping and whitening of advantages."""
    credit: CreditConfig | None = None
    """Assignment of process rewards to tokens. Defaults to soft_min if `process` is set. Without `process`, only the
    outcome is rewarded, unless `source` is tree."""
    process: ProcessConfig | None = None
    """Process reward model that scores steps."""
    batch: BatchConfig = BatchConfig()
    """Batch size: problems, responses and optimizer updates per step."""
    filter: FilterConfig | None = None
    """Train only on groups of intermediate accuracy, and sample replacements for the others. Surplus groups, and groups
    too few to fill an update, are carried over to the next step."""
    adora: AdoraConfig | None = None
    """Reduce the weight of groups whose correct responses are short (ADORA)."""
    schedule: tuple[Phase, ...] = ()
    """Response length and group size per training phase (PTST). Replaces sampling.max_tokens and batch.group_size."""
    trainer: TrainerConfig = TrainerConfig()
    """Trainer settings: loss, KL, optimization, ranks, LoRA."""
    rollouts: RolloutConfig = RolloutConfig()
    """Rollout settings: engines, colocation, timeouts, branching."""
    weights: WeightsConfig = WeightsConfig()
    """Transfer of updated weights to the engines."""
    one_step_ahead: bool = False
    """Sample the next step's responses during the current step's training. They are then one policy version old."""
    max_staleness: int = Field(0, ge=0)
    """Sample up to this many further steps ahead. New weights interrupt their responses, which continue with them; the
    first tokens of a response are at most this many updates old when it is used. 0: sample and train in turns."""
    monitor: MonitorConfig = MonitorConfig()
    """Monitoring for reward hacking: alarms that end the run, and samples for people to read."""
    tracker: TrackerName | None = None
    """Also log to wandb, mlflow, swanlab or trackio. The package must be installed. Without a login, logs offline."""
    steps: int | None = Field(None, ge=1)
    """Number of training steps. By default, enough for `episodes` passes over the problems."""
    episodes: int = Field(1, ge=1)
    """Number of passes over the problems if `steps` is unset. Problems sampled as replacements for filtered ones also
    count."""
    seed: int = 0
    """Random seed for problem order, sampling and minibatches."""
    ray_address: str | None = None
    """Address (host:port) of a Ray cluster to join. Defaults to RAY_ADDRESS or a local `ray start`. If there is none,
    Ray is started here and listens on the loopback interface only. local: always start Ray here."""
    hardware: HardwareConfig = Field(HardwareConfig(), exclude=True)
    """Target machines for `mmprm plan`. The run itself ignores these keys."""
    eval_every: int = Field(0, ge=0)
    """Number of steps between evaluations on held_out; 0: evaluate only before the first step and after the last
    one."""
    eval_samples: int = Field(8, ge=1)
    """Number of responses to sample per held-out problem."""
    save_every: int = Field(10, ge=0)
    """Number of steps between checkpoints; 0: save only after the last step, and when SIGTERM or an alarm ends the
    run."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of most recent checkpoints to keep."""
    keep_best: bool = False
    """Also write a checkpoint at each evaluation, and keep the one with the highest pass@1 as checkpoints/best."""

    @property
    def step_credit(self) -> CreditConfig | None:
        """Return the settings for computing credit from PRM scores, or None if it is not computed from them."""
        credit = self.credit or CreditConfig()
        return None if self.process is None or credit.source != "prm" else credit

    @property
    def has_tree_credit(self) -> bool:
        """Return whether the credit of steps is computed from the rewards of continuations."""
        return self.credit is not None and self.credit.source in ("tree", "both")

    @property
    def turn_settings(self) -> TurnSettings | None:
        """Return the settings for computing credit from the rewards of turns, or None if it is not."""
        if self.credit is None or self.credit.source not in OF_TURNS:
            return None
        return TurnSettings(self.credit, self.rewards.environment_weight)

    @property
    def has_critic(self) -> bool:
        """Return whether the advantage estimator needs a critic."""
        return ESTIMATORS[self.advantage.estimator].critic

    def advantage_settings(self, aggregate: Aggregate | None) -> AdvantageSettings:
        """Return the settings for computing advantages. `aggregate` combines step scores with credit.mode=scalar."""
        kl = self.trainer.loss.kl
        return AdvantageSettings(
            self.advantage,
            self.step_credit,
            self.adora,
            kl_in_reward=kl.coefficient if kl.apply_to == "reward" else 0.0,
            aggregate=aggregate,
            mask_truncated=self.rewards.truncated == "mask",
            distillation=self.trainer.distillation,
            turns=self.turn_settings,
            accuracy_weight=self.rewards.accuracy_weight,
        )

    def tree_settings(self) -> TreeSettings | None:
        """Return the settings for computing the advantages of responses that branch, or None if they do not."""
        if not self.has_tree_credit:
            return None
        kl = self.trainer.loss.kl
        return TreeSettings(
            self.advantage,
            prior_weight=self.credit.prior_weight if self.credit.source == "both" else 0.0,
            prior_scale=self.rewards.accuracy_weight,
            train=self.rollouts.branching.train,
            kl_in_reward=kl.coefficient if kl.apply_to == "reward" else 0.0,
            mask_truncated=self.rewards.truncated == "mask",
        )

    @property
    def weights_transfer(self) -> WeightsConfig:
        """Return the settings of the weight transfer.

        With max_staleness, weights are transferred as files, which an engine loads once its requests are interrupted.
        Transfers from GPU to GPU would change its weights while it samples.
        """
        return self.weights.model_copy(update={"transport": "file"}) if self.max_staleness else self.weights

    @property
    def ends_by_passes(self) -> bool:
        """Return whether the run ends after `episodes` passes over the problems, not after a fixed number of steps.

        This is the case with a filter and without `steps`.
        """
        return self.steps is None and self.filter is not None

    def total_steps(self, problems: int) -> int:
        """Return the number of training steps of a run on `problems` problems.

        It is an estimate if the run ends by passes: there are fewer steps if the filter's rounds consume more problems,
        and more if incomplete steps wait for further groups.
        """
        return self.steps or max(1, self.episodes * problems // self.batch.prompts)

    def check_warmup(self, problems: int) -> None:
        """Raise ConfigError if the critic's warm-up takes all updates and leaves none for the policy."""
        warmup, updates = self.trainer.critic.warmup_updates, self.total_steps(problems) * self.batch.optimizer_steps
        if self.has_critic and warmup >= updates:
            raise ConfigError(
                f"trainer.critic.warmup_updates={warmup} must be less than the {updates} updates of this run, or only "
                "the critic learns; lower it, or raise steps"
            )

    def phase(self) -> Phase:
        """Return the training phase to use if `schedule` is empty."""
        return Phase(steps=1, group_size=self.batch.group_size, max_tokens=self.sampling.max_tokens)

    def resume_key(self) -> dict[str, Any]:
        """Return the settings that must be unchanged for a run to be resumed. The problems are checked separately."""
        whole = self.model_dump(mode="json", exclude=_CHANGEABLE)
        key = whole | self.model_dump(mode="json", include=_IN_PART)
        if self.environment is not None:
            key["environment"] = self.environment.resume_key()
        if self.process is not None and self.process.scorer.judge is not None:
            key["process"]["scorer"]["judge"] = self.process.scorer.judge.identity()
        return key

    def sampling_limits(self) -> SamplingConfig:
        """Return the sampling settings of a request: a response, or a turn of an episode."""
        sampling = sampling_of(self.sampling)
        if self.environment is None:
            return sampling
        return sampling.model_copy(update={"max_tokens": self.environment.max_turn_tokens})

    def noted(self) -> dict[str, Any]:
        """Return the settings that affect training but may change on resume. Such changes are reported."""
        return {
            "trainer.optimization.learning_rate": self.trainer.optimization.learning_rate,
            "filter": None if self.filter is None else self.filter.model_dump(mode="json"),
        }

    @model_validator(mode="before")
    @classmethod
    def _chat_template_of_a_file(cls, values: Any) -> Any:
        return template_of_file(values, "engine", "chat_template")

    @model_validator(mode="after")
    def _settings_are_compatible(self) -> RLConfig:
        check_group_sizes(self)
        check_updates(self)
        check_staleness(self)
        check_credit(self)
        check_tree_credit(self)
        check_refresh(self)
        check_environment(self)
        check_rewards(self)
        check_evaluation_length(self)
        return self
