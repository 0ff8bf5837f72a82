from __future__ import annotations

import pytest

from mmprm.types import Problem, Verdict


@pytest.mark.integration
def test_grader_runs_inside_an_actor() -> None:
    import ray

    @ray.remote
    class Worker:
        async def verdicts(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
            import asyncio

            from mmprm.grading.symbolic import GraderConfig, SymbolicGrader

            with SymbolicGrader(GraderConfig(timeout_seconds=1)) as grader:
                gradings = await asyncio.gather(
                    *(grader.grade(Problem("p", "Q", gold), f"<answer>{answer}</answer>") for gold, answer in pairs)
                )
            return [grading.verdict for grading in gradings]

    started = not ray.is_initialized()
    if started:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        worker = Worker.remote()
        pairs = [("2x", "x+x"), ("\\sqrt{5}", "9^{9^{9^{9}}}"), ("2x", "x+1")]
        verdicts = ray.get(worker.verdicts.remote(pairs), timeout=240)
    finally:
        if started:
            ray.shutdown()
    assert verdicts == [Verdict.CORRECT, Verdict.INCORRECT, Verdict.INCORRECT]
