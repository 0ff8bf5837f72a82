"""How the tiny policy is trained."""

from __future__ import annotations

from mmprm.config import Config


class StepsConfig(Config):
    vision: int = 80
    """Optimiser steps of stage 1."""
    arithmetic: int = 500
    """Optimiser steps of stage 2."""
    reading: int = 400
    """Optimiser steps of stage 3."""
    solutions: int = 1200
    """Optimiser steps of stage 4."""


class TinyTrainConfig(Config):
    seed: int = 0
    """Seed of weights, problems and mistakes."""
    batch: int = 64
    """Texts in an optimiser step."""
    learning_rate: float = 2e-3
    """Peak of each stage's schedule: linear warm-up over a twentieth of its steps, then cosine to a twentieth."""
    weight_decay: float = 0.01
    """AdamW's decay."""
    mistake_rate: float = 0.08
    """Probability that a step of a training solution is wrong; it sets pass@1 at temperature 1."""
    problems: int = 20000
    """Different problems of the train split to draw from."""
    heldout: int = 500
    """Problems of the test split for the final figures."""
    threads: int = 2
    """CPU threads."""
    steps: StepsConfig = StepsConfig()
    """Length of each stage."""
