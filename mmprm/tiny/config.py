"""How the tiny policy is trained."""

from __future__ import annotations

from mmprm.config import Config


class StepsConfig(Config):
    """Optimiser steps of each stage, in order."""

    vision: int = 80
    """The vision tower alone."""
    arithmetic: int = 500
    """Calculations without pictures."""
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
    """Seed of weights, problems and mistakes."""
    batch: int = 64
    """Texts in an optimiser step."""
    learning_rate: float = 2e-3
    """Peak of each stage's schedule: linear warm-up over a twentieth of its steps, then cosine to a twentieth."""
    weight_decay: float = 0.01
    """AdamW's decay."""
    mistake_rate: float = 0.05
    """Probability that an easy step of a training solution is wrong; it sets pass@1 at temperature 1."""
    hard_mistake_rate: float = 0.3
    """The same of a hard step: one that reads a hard digit or needs a carry."""
    problems: int = 20000
    """Different problems of the train split to draw from."""
    heldout: int = 500
    """Problems of the test split for the final figures."""
    threads: int = 2
    """CPU threads."""
    steps: StepsConfig = StepsConfig()
    """Length of each stage."""
