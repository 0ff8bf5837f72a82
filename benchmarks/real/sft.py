"""Fine-tune SmolLM2 on short generated solutions with `mmprm sft`, and measure pass@1 on held-out wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.real.problems import FORMS, RealProblem, make_problems, solution, write_rows
from benchmarks.real.workspace import FAMILIAR, PROMPTS, Results, Workspace, read_json, run_command, sampling_sets
from mmprm.prompts import messages
from mmprm.types import Problem


def conversations(problems: Sequence[RealProblem], seed: int) -> list[dict[str, Any]]:
    """Return one conversation per problem, with its solution in alternating step formats."""
    rng, rows = random.Random(seed), []
    for index, problem in enumerate(problems):
        form = FORMS[index % len(FORMS)]
        asked = messages(Problem("", problem.question, problem.answer), PROMPTS[form])
        response = {"role": "assistant", "content": solution(problem, form, rng)}
        rows.append({"messages": [*asked, response]})
    return rows


def write_data(workspace: Workspace) -> None:
    """Write the problems of all splits and the SFT conversations."""
    sizes = workspace.sizes
    made = make_problems("sft", sizes.solutions + sizes.held_out)
    write_rows(workspace.problems("sft"), conversations(made[: sizes.solutions], 0))
    write_rows(workspace.problems("sft-held-out"), conversations(made[sizes.solutions :], 1))
    counts = {"annotate": sizes.annotated, "rl": sizes.rl_steps * sizes.rl_prompts}
    counts |= {"dev": sizes.dev, "test": sizes.test}
    for split, count in counts.items():
        write_rows(workspace.problems(split), [problem.row() for problem in make_problems(split, count)])
    for split in ("dev", "test"):
        familiar = make_problems(split, counts[split], wordings="search")
        write_rows(workspace.problems(f"{FAMILIAR}{split}"), [problem.row() for problem in familiar])
    write_rows(workspace.problems("rl-held-out"), [problem.row() for problem in familiar[: sizes.rl_held_out]])


def measure(workspace: Workspace) -> Results:
    """Fine-tune the model unless a fine-tuned one exists, and measure its pass@1 with each step format."""
    write_data(workspace)
    if not workspace.policy.exists():
        run_command(
            "sft",
            "sft.yaml",
            {
                "model": workspace.model,
                "data.path": workspace.problems("sft"),
                "held_out.path": workspace.problems("sft-held-out"),
                "output": workspace.folder / "sft",
            },
        )
    return {form: pass_at_1(workspace, form) for form in FORMS} | {"solutions": workspace.sizes.solutions}


def pass_at_1(workspace: Workspace, form: str) -> Results:
    """Sample the development problems with `mmprm rerank`; return pass@1 with its interval, and token counts."""
    output = workspace.folder / f"pass-{form}"
    sets = sampling_sets(workspace, form=form)
    sets |= {"problems.path": workspace.problems("dev"), "output": output, "samples": workspace.sizes.pass_samples}
    if not (output / "summary.json").exists():
        run_command("rerank", None, sets)
    summary = read_json(output / "summary.json")
    one = summary["accuracy_at_n"][0]["accuracy"]["random"]
    return {
        "pass_at_1": one,
        "tokens_per_solution": summary["generated_tokens"] / summary["samples"],
        "unsplit": sum(summary["unsplit"].values()) / summary["samples"],
        "unknown": summary["unknown_verdicts"] / summary["samples"],
    }
