"""Define the configurations for training the tiny policies."""

from __future__ import annotations

from pydantic import Field

from mmprm.config import Config


class StepsConfig(Config):
    """Configures the number of optimizer steps of each training stage, in order.

    lessons.py describes the texts: calculations (`drill`), readings, solutions and checks.
    """

    vision: int = 80
    """Number of optimizer steps that train only the vision tower."""
    arithmetic: int = 500
    """Number of optimizer steps on calculations without images."""
    reading: int = 400
    """Number of optimizer steps on reading digits from images, mixed with some calculations and statements to
    verify."""
    solutions: int = 1200
    """Number of optimizer steps on solutions, mixed with some calculations and statements to verify."""
    checking: int = 1300
    """Number of optimizer steps on verification, half of them on solutions and half on single statements."""
    statements: int = 400
    """Number of optimizer steps on the verification of single statements only."""
    both: int = 600
    """Number of optimizer steps on a mixture of 60% solutions and 40% statements to verify."""


class TinyPolicyConfig(Config):
    """Configures what the training of all tiny policies has in common."""

    seed: int = 0
    """Random seed for weights, problems and mistakes."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak learning rate of each stage, with linear warm-up over 5% of its steps, then cosine decay to 5% of the
    peak."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    threads: int = Field(2, ge=1)
    """Number of CPU threads."""


class TinyTrainConfig(TinyPolicyConfig):
    batch: int = 64
    """Number of texts per optimizer step."""
    mistake_rate: float = 0.05
    """Probability that an easy step of a training solution is incorrect. It determines pass@1 at temperature 1."""
    hard_mistake_rate: float = 0.3
    """Probability that a hard step is incorrect. Hard steps read an easily misread digit or need a carry."""
    problems: int = 20000
    """Number of distinct training problems."""
    held_out: int = 500
    """Number of test problems for the final metrics."""
    steps: StepsConfig = StepsConfig()
    """Number of optimizer steps of each stage."""


class SokobanTrainConfig(TinyPolicyConfig):
    """Configures `mmprm tiny sokoban-policy`."""

    size: int = Field(5, ge=5)
    """Number of rows and columns of a level, including the outer walls."""
    boxes: int = Field(1, ge=1)
    """Number of boxes per level."""
    max_turns: int = Field(12, ge=1)
    """Maximum number of turns per episode."""
    mistake_rate: float = Field(0.6, ge=0, le=1)
    """Probability that the imitated player moves towards a state that cannot be solved. It determines the solve rate at
    temperature 1."""
    vision_steps: int = Field(150, ge=1)
    """Number of optimizer steps that train only the vision tower, on images of single states."""
    move_steps: int = Field(1000, ge=1)
    """Number of optimizer steps that train the language model on single moves."""
    move_batch: int = Field(32, ge=1)
    """Number of states or single moves per optimizer step of these two stages."""
    play_steps: int = Field(400, ge=1)
    """Number of optimizer steps that train the language model on episodes, with few mistakes."""
    mistake_steps: int = Field(100, ge=1)
    """Number of optimizer steps that train the language model to make mistakes."""
    batch: int = Field(8, ge=1)
    """Number of episodes per optimizer step of the last two stages."""
    held_out: int = Field(200, ge=1)
    """Number of levels of the test split for the final metrics."""


class OmniTrainConfig(TinyPolicyConfig):
    """Configures `mmprm tiny omni-policy`."""

    clips: int = Field(800, ge=1)
    """Number of distinct training clips."""
    mistake_rate: float = Field(0.1, ge=0, le=1)
    """Probability that a training solution misreads a move or an easy tone."""
    hard_mistake_rate: float = Field(0.55, ge=0, le=1)
    """Probability that a training solution mistakes a middle tone for a high one."""
    batch: int = Field(48, ge=1)
    """Number of clips per optimizer step."""
    tower_steps: int = Field(150, ge=1)
    """Number of optimizer steps that train only the vision tower and the audio tower."""
    answer_steps: int = Field(300, ge=1)
    """Number of optimizer steps that train the whole model on solutions."""
    held_out: int = Field(300, ge=1)
    """Number of clips of the test split for the final metrics."""
