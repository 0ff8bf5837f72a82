"""Run MM-PRM's own OmegaPRM code on some of the problems, with an mmprm engine on one core.

Only the following is adapted:

engine     the checkout's LanguageModel is replaced by an engine with our settings, prompt and sampling; the steps that
           the checkout writes into the user turn are continued in the assistant turn, which the policy was trained on
judge      the 72-billion-parameter judge is replaced by string comparison
splitting  the checkout's own regular expression, applied to the completion

mm_prm.py starts one such process per core, as the checkout's shell script starts one per GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmprm.problems import ProblemsConfig, load_problems
from mmprm.prompts import PromptConfig
from mmprm.sampling.config import EngineConfig, SamplingConfig
from mmprm.sampling.seeds import derive_seed
from mmprm.sampling.vllm_sampler import VllmSampler
from mmprm.types import Problem, SampleRequest

SETTINGS = {"c_puct": 0.125, "alpha": 0.5, "beta": 0.9, "length_scale": 2000, "num_rollouts": 16}
"""Settings of MM-PRM's run_data_pipeline.sh, except for the budgets."""
MAX_SEARCHES = 200
STEPS = re.compile(r"<step>(.*?)</step>|<answer>(.*?)</answer>", re.DOTALL)
"""Pattern that MM-PRM's llm_utils.py uses to split steps."""
PREVIOUS = "\nPrevious Steps:"


class SameEngine:
    """Answers MM-PRM's requests for rollouts with an mmprm engine, and counts the generated tokens."""

    def __init__(self, sampler: VllmSampler) -> None:
        self._sampler = sampler
        self._runner = asyncio.Runner()
        self.problem: Problem | None = None
        self.tokens = 0

    def generate_results(self, prompt: str, image_path: str | None, num_copies: int) -> list[list[str]]:
        """Return the steps of `num_copies` completions. The current problem provides question and image."""
        del image_path
        _, _, previous = prompt.partition(PREVIOUS)
        steps = [f"<step>{each[0]}</step>" for each in STEPS.findall(previous)][1:]  # the first one is the question
        prefix = "".join(steps)
        seed = derive_seed(0, self.problem.id, prefix, self.tokens)
        request = SampleRequest(self.problem, prefix, num_copies, seed)
        completions = self._runner.run(self._sampler.sample(request))
        self.tokens += sum(completion.token_count for completion in completions)
        return [[(step or answer).strip() for step, answer in STEPS.findall(each.text)] for each in completions]


def search_class(checkout: Path) -> type:
    """Return MM-PRM's OmegaPRM class with its judge replaced by string comparison."""
    sys.path.insert(0, str(checkout / "data_pipeline"))
    from omegaprm import OmegaPRM

    class ComparedAsText(OmegaPRM):
        def check_correctness(self, question: str, correct_answer: str, solution: str) -> bool:
            return solution.strip() == correct_answer.strip()

    return ComparedAsText


def labels_of(state: Any) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield (steps, correct, incorrect) for each state below `state` from which rollouts were sampled.

    These are all labels but those of complete solutions, to which the checkout gives the value of their answer.
    """
    for child in state.children:
        correct, incorrect = child.num_correct_rollouts, child.num_incorrect_rollouts
        if correct + incorrect:
            yield child.get_solution_prefix()[1:], correct, incorrect
        yield from labels_of(child)


def search(kind: type, engine: SameEngine, problem: Problem, budget: int) -> dict[str, Any]:
    """Search one problem; return its labels, summing the counts of equal prefixes, and its rollouts."""
    engine.problem = problem
    omega = kind(
        LLM=engine,
        question=problem.question,
        image_path=None,
        correct_answer=problem.answer,
        max_search_count=MAX_SEARCHES,
        rollout_budget=budget,
        api_endpoint="http://127.0.0.1:9/v1/",
        **SETTINGS,
    )
    omega.run()
    omega.executor.shutdown()
    return {"id": problem.id, "labels": distinct_labels(omega.root), "rollouts": omega.total_rollouts}


def distinct_labels(root: Any) -> list[dict[str, Any]]:
    """Return one label per prefix, with the rollouts of states of equal prefix added up."""
    found: dict[tuple[str, ...], list[int]] = {}
    for steps, correct, incorrect in labels_of(root):
        counts = found.setdefault(steps, [0, 0])
        counts[0] += correct
        counts[1] += correct + incorrect
    return [{"steps": steps, "correct": correct, "rollouts": count} for steps, (correct, count) in found.items()]


def main() -> None:
    """Search every `--workers`-th problem from `--index` on, and write the results as one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="JSON file written by mm_prm.py")
    parser.add_argument("--index", type=int, required=True)
    arguments = parser.parse_args()
    settings = json.loads(arguments.settings.read_text(encoding="utf-8"))
    cores = settings["cores"]
    engine = EngineConfig(**settings["engine"] | {"cores": (cores[arguments.index],)})
    sampler = VllmSampler(engine, SamplingConfig(**settings["sampling"]), PromptConfig(**settings["prompt"]))
    same, kind = SameEngine(sampler), search_class(Path(settings["checkout"]))
    problems = load_problems(ProblemsConfig(path=settings["problems"]))[arguments.index :: len(cores)]
    begun = time.time()
    searched = [search(kind, same, problem, settings["budget"]) for problem in problems]
    result = {"begun": begun, "ended": time.time(), "tokens": same.tokens, "searched": searched}
    sampler.close()
    target = arguments.settings.with_name(f"theirs-{arguments.index}.json")
    target.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
