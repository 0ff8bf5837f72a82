"""Measure the grader's accuracy on real gold answers: `make bench-grading` writes benchmarks/results/grading.json.

repeat     fraction of gold answers graded correct when repeated between answer tags
rewritten  fraction of rewritten gold answers graded correct (boxed; unit or trailing dot removed; fraction as decimal),
           over the gold answers that Math-Verify parses
shuffled   number of different gold answers of other problems that are graded correct
perturbed  number of gold answers with one changed numeral that are graded correct
unknown    number of UNKNOWN verdicts in each of these; they count as failures in the first two
cases      fraction of correct verdicts over a folder of JSON lines (gold, response, choices, expected); false_correct
           counts incorrect answers graded correct; both are skipped if there is no such folder
speed      Math-Verify's seconds divided by the grader's: see grading_speed.py

`n` holds the denominators. Two gold answers count as equal if their letters, digits and signs agree, or if Math-Verify
parses both to the same value, exactly or to 50 digits.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

from grading_speed import speed_ups
from machine import machine
from math_verify import parse
from sympy import Eq, Expr

from mmprm.grading.symbolic import GraderConfig, SymbolicGrader
from mmprm.problems import ProblemsConfig, load_problems
from mmprm.types import Problem, Verdict

ROOT = Path(__file__).parent.parent
FILES = ("k12/problems.json", "math/problems.jsonl")
BARS = {
    **{"repeat": 0.98, "rewritten": 0.95, "shuffled": 0, "perturbed": 0},
    **{"cases": 0.95, "false_correct": 0, "speed": {"easy": 3.0, "symbolic": 1.6}},
}

Pair = tuple[Problem, str]
"""Pairs a problem with a response to grade."""


def repeat(problems: list[Problem]) -> list[Pair]:
    return [(problem, f"<answer>{problem.answer}</answer>") for problem in problems]


def rewritten(problems: list[Problem]) -> list[Pair]:
    pairs: list[Pair] = []
    for problem in problems:
        gold = problem.answer.strip()
        if not math_verify_values(gold):
            continue
        bare = without_dollars(gold)
        variants = [f"<answer>\\boxed{{{bare}}}</answer>", f"The answer follows.\n\n\\boxed{{{bare}}}"]
        changed = {re.sub(r"[.\s]+(\$*)$", r"\1", gold), without_unit(gold), fraction_as_decimal(gold)} - {gold}
        variants += [f"<answer>{text}</answer>" for text in sorted(changed)]
        pairs += [(problem, variant) for variant in variants]
    return pairs


def shuffled(problems: list[Problem]) -> list[Pair]:
    return [
        (problem, f"<answer>{other.answer}</answer>")
        for problem, other in itertools.permutations(problems, 2)
        if skeleton(problem.answer) != skeleton(other.answer)
    ]


def perturbed(problems: list[Problem]) -> list[Pair]:
    return [
        (problem, f"<answer>{gold[: match.start()]}{int(match[0]) + 1}{gold[match.end() :]}</answer>")
        for problem in problems
        for gold in [problem.answer]
        for match in re.finditer(r"\d+", gold)
    ]


def without_dollars(gold: str) -> str:
    """Remove math delimiters from a gold answer, but keep `\\$`, which marks a price."""
    return re.sub(r"(?<!\\)\$", "", gold).strip()


def without_unit(gold: str) -> str:
    gold = re.sub(r"(\{\})?\^\s*\{?\s*\\circ\s*\}?|°", "", gold)
    return re.sub(
        r"(?<=\d)\s*(\\(text|mathrm|mbox)\s*\{[^{}]*\}|\\?\bcm\b|\\?\bkm\b|\bmeters\b|%)(\^\{?\d\}?)?", "", gold
    )


def fraction_as_decimal(gold: str) -> str:
    match = re.fullmatch(r"\$*\s*(-?)\\[dt]?frac\s*(?:\{(\d+)\}\{(\d+)\}|(\d)\s*(\d))\s*\$*\.?", gold)
    if match is None:
        return gold
    top, bottom = (group for group in match.groups()[1:] if group is not None)
    return match[1] + str(float(Fraction(int(top), int(bottom))))


def skeleton(gold: str) -> str:
    return re.sub(r"[\s$\\{}.,;]", "", gold).casefold()


def math_verify_values(gold: str) -> list:
    """Parse a gold answer with Math-Verify, whose time limit works here because this is the main thread."""
    return parse(f"${without_dollars(gold)}$", fallback_mode="no_fallback")


def really_different(gold: str, other: str) -> bool:
    """Return whether two gold answers differ according to Math-Verify, independently of the grader."""
    one, two = (next(iter(math_verify_values(text)), None) for text in (gold, other))
    one, two = (
        value.rhs if isinstance(value, Eq) else value for value in (one, two)
    )  # an equation y = 3 gives the value 3
    if one is None or two is None or one == two:
        return one != two
    if not (isinstance(one, Expr) and isinstance(two, Expr)):
        return True
    difference = (one - two).doit().evalf(50)
    size = abs(one.doit().evalf(50)) + abs(two.doit().evalf(50))
    return not (difference.is_zero or ((difference / size).evalf(50).is_number and abs(difference / size) < 1e-45))


def judge_cases(folder: Path, grader: SymbolicGrader) -> dict | None:
    """Grade the cases in a folder and compare them with the known verdicts; return None if there are no cases."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        print(f"cases: skipped, {folder} has no .jsonl files", file=sys.stderr)
        return None
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    problems = [
        Problem("p", row.get("question", ""), row["gold"], choices=tuple(row.get("choices") or ())) for row in rows
    ]
    gradings = grader.grade_many([(problem, row["response"]) for problem, row in zip(problems, rows, strict=True)])
    verdicts = [grading.verdict.name.lower() for grading in gradings]
    expected = [row["expected"] if "expected" in row else row["right"] for row in rows]
    for row, verdict, known in zip(rows, verdicts, expected, strict=True):
        if verdict != known:
            print(f"cases: {verdict}, not {known}: gold {row['gold']!r}, {row['response']!r}", file=sys.stderr)
    not_correct = [verdict for verdict, known in zip(verdicts, expected, strict=True) if known != "correct"]
    agreed = sum(verdict == known for verdict, known in zip(verdicts, expected, strict=True))
    return {"n": len(rows), "cases": round(agreed / len(rows), 4), "false_correct": not_correct.count("correct")}


def measure(problems: list[Problem], grader: SymbolicGrader) -> dict:
    results: dict = {"n": {}, "unknown": {}}
    for task in (repeat, rewritten, shuffled, perturbed):
        name, pairs = task.__name__, task(problems)
        verdicts = [grading.verdict for grading in grader.grade_many(pairs)]
        correct = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is Verdict.CORRECT]
        results["n"][name] = len(pairs)
        results["unknown"][name] = collections.Counter(verdicts)[Verdict.UNKNOWN]
        if name in ("repeat", "rewritten"):
            results[name] = round(len(correct) / len(pairs), 4)
            incorrect = [pair for pair in pairs if pair not in correct]
        elif name == "shuffled":
            incorrect = [pair for pair in correct if really_different(pair[0].answer, pair[1][8:-9])]
            results["n"][name] -= len(correct) - len(incorrect)
            results[name] = len(incorrect)
        else:
            incorrect, results[name] = correct, len(correct)
        for problem, response in incorrect:
            print(f"{name}: gold {problem.answer!r}, response {response!r}", file=sys.stderr)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "grading.json")
    parser.add_argument("--cases", type=Path, default=ROOT.parent / "shared" / "cases" / "grading")
    parser.add_argument("--pairs", type=int, default=600, help="number of pairs per timed run")
    arguments = parser.parse_args()
    problems = [problem for file in FILES for problem in load_problems(ProblemsConfig(path=str(arguments.data / file)))]
    with SymbolicGrader(GraderConfig(workers=os.cpu_count() or 1)) as grader:
        results = measure(problems, grader)
        if cases := judge_cases(arguments.cases, grader):
            results["n"]["cases"] = cases.pop("n")
            results |= cases
    results["speed"] = speed_ups(arguments.pairs)
    results["bars"] = BARS
    results["machine"] = machine()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
