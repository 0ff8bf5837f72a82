"""Define the configuration of `mmprm labels critiques`."""

from __future__ import annotations

from pydantic import Field

from mmprm.config import Config, PathText
from mmprm.labels.checks import Split
from mmprm.labels.selection import SelectionConfig
from mmprm.scoring.judge_config import ThinkingJudgeConfig


class CritiquesConfig(Config):
    """Configures `mmprm labels critiques`."""

    labels: PathText
    """Parquet file of mmprm labels or mmprm labels import."""
    split: Split = "train"
    """Split of the labels to use."""
    selection: SelectionConfig = SelectionConfig()
    """Labels and solutions to use. A step counts as correct if its label exceeds selection.rule.value_above."""
    teacher: ThinkingJudgeConfig
    """Model that writes the critiques, with the request and the layout that the judge will be trained on. It writes
    `chains` critiques per solution, and its chains are cached, so that an interrupted run can resume."""
    ask_teacher: bool = True
    """Whether to write critiques; false writes only problems.jsonl, for reinforcement learning without SFT."""
    max_per_solution: int = Field(1, ge=1)
    """Maximum number of critiques to keep per solution."""
    output: PathText = "runs/critiques"
    """Folder for kept.jsonl, refused.jsonl, problems.jsonl, summary.json, and the images."""
