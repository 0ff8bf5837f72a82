"""Build the page for browsing a run's search trees: view.html filled with data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmprm.report.browsing import data_element, media_data, write_browsing_page
from mmprm.report.episodes import EpisodeReplay, turn_data
from mmprm.report.trees import Branch, grow
from mmprm.steps import StepFormat, plain
from mmprm.trees.stopping import StoppingRule, rule_of
from mmprm.trees.store import Store
from mmprm.trees.tallies import ProblemTally, tallies
from mmprm.types import Problem, Rollout, Scorer, Steps, Tree

OUTCOMES = {
    ("done", "too easy"): "too easy",
    ("done", "too hard"): "too hard",
    ("done", "no known verdict"): "unknown",
    ("failed", ""): "failed",
    ("open", ""): "open",
}
"""Maps the (status, reason) of a search to the problem's category on the page. All others are "searched"."""


def write_view(path: Path, store: Store, limit: int, scorer: Scorer | None = None) -> int:
    """Write a page with at most `limit` problems, spread evenly over the run, and return the number of problems
    written. With `scorer`, the turns of episodes are scored."""
    shown = evenly_spaced(tallies(store), limit)
    write_browsing_page(path, "view.html", data_elements(store, shown, scorer))
    return len(shown)


def evenly_spaced(entries: Sequence[ProblemTally], limit: int) -> list[ProblemTally]:
    """Choose at most `limit` evenly spaced entries."""
    count = min(limit, len(entries))
    return [entries[index * len(entries) // count] for index in range(count)]


def data_elements(store: Store, shown: Sequence[ProblemTally], scorer: Scorer | None = None) -> Iterator[str]:
    """Yield a script element with the list of problems, then one element per problem.

    The elements are separate so that a browser parses only the problems that are opened.
    """
    config = store.config
    step_format, rule = config.get("step_format", "tags"), rule_of(config)
    problems = [store.problem(tally.problem_id) for tally in shown]
    entries = [list_entry(tally, problem) for tally, problem in zip(shown, problems, strict=True)]
    yield data_element("run", {"run": str(store.path.parent), "total": len(store.ids()), "problems": entries})
    episodes = EpisodeReplay(store, scorer) if config.get("environment") is not None else None
    for position, problem in enumerate(problems):
        data = problem_data(problem, store.tree(problem.id), rule, step_format, episodes)
        yield data_element(f"problem-{position}", data)
    if episodes is not None:
        episodes.close()


def list_entry(tally: ProblemTally, problem: Problem) -> dict[str, Any]:
    """Build a problem's entry in the list of problems."""
    key = (tally.status, tally.reason if tally.status == "done" else "")
    return {
        "id": problem.id,
        "question": problem.question.strip(),
        "outcome": OUTCOMES.get(key, "searched"),
        "ended": tally.reason or tally.status,
        "states": tally.states,
        "rollouts": tally.rollouts,
    }


def problem_data(
    problem: Problem,
    tree: Tree,
    rule: StoppingRule,
    step_format: StepFormat,
    episodes: EpisodeReplay | None = None,
) -> dict[str, Any]:
    """Build the data that the page needs to show one problem.

    Each distinct text is stored once in `texts` and referenced by index. Branches are in depth-first order, so a
    `parent` always precedes its children; `steps` are the steps that the branch adds to its parent. In an episode,
    `turns` are the states after these steps; those of the root also hold the first state.
    """
    texts: dict[str, int] = {}

    def index_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    def indices_of(steps: Steps) -> list[int]:
        return [index_of(plain(step, step_format) or step) for step in steps]

    def rollout(entry: Rollout) -> list[Any]:
        steps = indices_of(entry.steps) or [index_of(entry.text)]
        return [steps, int(entry.verdict), entry.token_count, index_of(entry.reason), entry.unsplit]

    branches: list[dict[str, Any]] = []
    root = grow(tree, rule) if tree.nodes else None
    turns = {} if episodes is None or root is None else episodes.turns(problem, [each.steps for each in root.walk()])

    def turns_of(branch: Branch) -> list[dict[str, Any] | None]:
        lengths = range(branch.above + 1 if branch.steps else 0, len(branch.steps) + 1)
        found = [turns.get(branch.steps[:length]) for length in lengths]
        return [turn and turn_data(turn) for turn in found]

    def add(branch: Branch, parent: int | None) -> None:
        counts = branch.counts
        branches.append(
            {
                "parent": parent,
                "steps": indices_of(branch.steps[branch.above :]),
                "number": branch.number,
                "value": counts.value,
                "counts": [counts.correct, counts.incorrect, counts.unknown],
                "rollouts": [rollout(entry) for entry in branch.rollouts],
                "through": branch.through,
                **({"turns": turns_of(branch)} if turns else {}),
            }
        )
        own = len(branches) - 1
        for child in branch.children:
            add(child, own)

    if root is not None:
        add(root, None)
    return {
        "answer": problem.answer,
        "choices": problem.choices,
        "images": [media_data(each) for each in problem.media],
        "branches": branches,
        "texts": list(texts),
    }
