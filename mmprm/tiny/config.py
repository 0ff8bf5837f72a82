"""Configure the training of the tiny policy."""

from __future__ import annotations

from mmprm.config import Config


class StepsConfig(Config):
    """Holds the number of optimizer steps of each stage, in order."""

    vision: int = 80
    """Train the vision tower alone."""
    arithmetic: int = 500
    """Calculations without images."""
    reading: int = 400
    """Readings, with some checks and calculations."""
    solutions: int = 1200
    """Solutions, with some checks and calculations."""
    checking: int = 1300
    """Solutions and checks in equal parts."""
    statements: int = 400
    """Checks alone."""
    both: int = 600
    """Solutions, and somewhat fewer checks."""


class TinyTrainConfig(Config):
    seed: int = 0
    """Random seed of weights, problems and mistakes."""
    batch: int = 64
    """Number of texts per optimizer step."""
    learning_rate: float = 2e-3
    """Peak learning rate of each stage: linear warm-up over 5 % of its steps, then cosine decay to 5 % of the peak."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    mistake_rate: float = 0.05
    """Probability that an easy step of a training solution is incorrect; it determines pass@1 at temperature 1."""
    hard_mistake_rate: float = 0.3
    """Probability that a hard step is incorrect: one that reads a hard digit or needs a carry."""
    problems: int = 20000
    """Number of different training problems."""
    held_out: int = 500
    """Number of test problems for the final metrics."""
    threads: int = 2
    """Number of CPU threads."""
    steps: StepsConfig = StepsConfig()
    """Number of steps of each stage."""
