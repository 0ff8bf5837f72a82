"""Give a thinking judge malformed outputs, and count the scores that it makes up.

Verdicts are written in each layout and then damaged, so that they do not determine a verdict on every step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import get_args

from mmprm.sampling.config import EngineConfig
from mmprm.scoring.judge_config import ThinkingJudgeConfig
from mmprm.scoring.judge_scorer import JudgeScorer
from mmprm.scoring.verdicts import FormatOfVerdicts
from mmprm.types import Completion, Problem, SampleRequest, Solution, StepScores

FORMATS: tuple[FormatOfVerdicts, ...] = get_args(FormatOfVerdicts)


def written(verdicts: list[bool], form: FormatOfVerdicts) -> str:
    """Write verdicts in the layout of a format, after some reasoning."""
    if form == "plain":
        words = ("incorrect", "correct")
        return "I check.\n\n" + "\n".join(f"Step {n}: {words[v]}" for n, v in enumerate(verdicts, start=1))
    if form == "thinkprm":
        words = ("incorrect", "correct")
        return "\n".join(f"Step {n}: it adds.\nIt is \\boxed{{{words[v]}}}." for n, v in enumerate(verdicts, start=1))
    block = "<analyze>\nIt adds.\n</analyze>\n<output>\n**Judgement**: $\\boxed{{{}}}$\n</output>\n"
    return "".join(block.format("Yes" if v else "No") for v in verdicts)


Damage = Callable[[list[bool], FormatOfVerdicts, random.Random], str]


def without_one(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    """Leave out the verdict on the last step, which nothing else determines, as no step before it is incorrect."""
    return written([True] * (len(verdicts) - 1), form)


def with_one_too_many(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    return written([*verdicts, rng.random() < 0.5], form)


def contradicting(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    return written(verdicts, form) + "\n" + written([not verdict for verdict in verdicts], form)


def in_other_words(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    text = written(verdicts, form)
    for word in ("incorrect", "correct", "Yes", "No"):
        text = text.replace(word, rng.choice(["good", "wrong?", "corect", "", "Yes/No", "{}", "\\text{", "7"]))
    return text


def in_another_layout(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    """Write another layout. The numbered lines of the plain layout contain no boxes, and boxes are no such lines."""
    return written(verdicts, rng.choice([other for other in FORMATS if other != form]))


def still_thinking(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    return "<think>" + written(verdicts, form)[: rng.randrange(12)]


def noise(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    pieces = ["Step 1", "correct", "\\boxed", "{", "}", "<output>", "</output", "\n", " ", "\x00", "٣", "½", "{}" * 9]
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(60)))


def huge_number(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    return f"Step {'9' * rng.randrange(7, 5000)}: correct\n<output>\\boxed{{{'Yes' * 9}}}</output>"


def blank(verdicts: list[bool], form: FormatOfVerdicts, rng: random.Random) -> str:
    return rng.choice(["", " ", "\n\n\t", "<think></think>", "<think>\n</think>\n\n"])


DAMAGES: list[Damage] = [
    without_one,
    with_one_too_many,
    contradicting,
    in_other_words,
    in_another_layout,
    still_thinking,
    noise,
    huge_number,
    blank,
]


def malformed(index: int) -> tuple[FormatOfVerdicts, int, str]:
    """Return a format, a number of steps, and a text that gives no verdicts on them."""
    rng = random.Random(index)
    form = FORMATS[index % len(FORMATS)]
    verdicts = [True, *(rng.random() < 0.5 for _ in range(rng.randrange(1, 6)))]
    return form, len(verdicts), DAMAGES[index // len(FORMATS) % len(DAMAGES)](verdicts, form, rng)


class _Replies:
    """Replies to a request about problem i with the i-th text."""

    def __init__(self, texts: Sequence[Completion]) -> None:
        self._texts = texts

    async def sample(self, request: SampleRequest) -> tuple[Completion, ...]:
        return (self._texts[int(request.problem.id)],)


def judged(cases: Sequence[tuple[FormatOfVerdicts, int, Completion]], folder: Path) -> dict[str, int]:
    """Score one solution per (format, number of steps, output of the judge); return the numbers of scored solutions
    and of chains that are counted as unread."""
    scored = unread = 0
    for form in FORMATS:
        own = [(steps, output) for name, steps, output in cases if name == form]
        solutions = [
            Solution(Problem(str(index), f"question {index}", ""), ("step",) * steps)
            for index, (steps, _) in enumerate(own)
        ]
        config = ThinkingJudgeConfig(
            engine=EngineConfig(model="scripted"), verdict_format=form, cache=str(folder / f"{form}.sqlite")
        )
        with closing(JudgeScorer(config, _Replies([output for _, output in own]))) as scorer:
            scored += sum(isinstance(answer, StepScores) for answer in scorer.score_each(solutions))
            unread += scorer.unread.total()
    return {"scored": scored, "unread": unread}


def measure(folder: Path, count: int = 1000) -> dict[str, int]:
    """Judge `count` malformed outputs, as many that were cut off, and as many that are well-formed."""
    damaged = [(form, steps, Completion(text, 1, "stop")) for form, steps, text in map(malformed, range(count))]
    whole = [(form, steps, written([True] * steps, form)) for form, steps, _ in damaged]
    cut = [(form, steps, Completion(text, 1, "length")) for form, steps, text in whole]
    good = [(form, steps, Completion(text, 1, "stop")) for form, steps, text in whole]
    outcomes = {"malformed": damaged, "cut_off": cut, "well_formed": good}
    found = {name: judged(cases, folder / name) for name, cases in outcomes.items()}
    return {
        "outputs": 2 * count,
        "made_up": found["malformed"]["scored"] + found["cut_off"]["scored"],
        "counted": found["malformed"]["unread"] + found["cut_off"]["unread"],
        "well_formed": count,
        "well_formed_scored": found["well_formed"]["scored"],
    }
