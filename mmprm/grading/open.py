"""Open a grader from its configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mmprm.grading.judge import AnswerJudge, JudgedGrader
from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.types import Grader


@asynccontextmanager
async def open_grader(config: GraderConfig) -> AsyncIterator[Grader]:
    """Yield the symbolic grader, backed by the judge if one is configured, and close it afterwards.

    Callers check beforehand that the judge is calibrated; see calibration.check_judge.
    """
    with SymbolicGrader(config) as symbolic:
        if config.judge is None:
            yield symbolic
            return
        async with AnswerJudge(config.judge) as judge:
            yield JudgedGrader(symbolic, judge)
