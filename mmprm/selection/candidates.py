"""Write and read candidates.jsonl, which has one line per candidate, grouped by problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmprm.errors import DataError
from mmprm.problems import content_id
from mmprm.selection.groups import Candidate, CandidateGroup, rewards
from mmprm.types import Problem, StepScores, Verdict


def candidate_lines(groups: Sequence[CandidateGroup], aggregate: str | None) -> Iterator[dict[str, Any]]:
    """Yield one JSON object per candidate. `chosen` marks the first candidate with the highest reward in its group.

    If `aggregate` is None, for groups that are not scored yet, no candidate is chosen.
    """
    for group in groups:
        reward_M = rewards(group, aggregate) if aggregate else []
        best = reward_M.index(max(reward_M)) if aggregate else None
        problem = group.problem
        digest = content_id(problem.question, problem.answer, problem.media, problem.choices)
        for number, candidate in enumerate(group.candidates):
            scored = candidate.scores is not None
            judge = {"score_tokens": candidate.score_tokens} if candidate.score_tokens is not None else {}
            yield {
                "problem_id": problem.id,
                "problem_digest": digest,
                "sample": number,
                "response": candidate.response,
                "steps": candidate.steps,
                "answer": candidate.answer,
                "verdict": candidate.verdict.name.lower(),
                "unsplit": candidate.unsplit,
                "unscored": candidate.unscored,
                "tokens": candidate.token_count,
                "scores": candidate.scores.scores if scored else None,
                **judge,
                "reward": reward_M[number] if scored else None,
                "chosen": number == best,
            }


def read_groups(
    rows: Iterable[tuple[str, dict[str, Any]]], problems: Mapping[str, Problem] | None = None
) -> list[CandidateGroup]:
    """Build groups of candidates from (location for error messages, line) pairs, in the order of the lines.

    Problems are looked up by id in `problems`; if it is None, a group's problem has only an id. Raises DataError if two
    different problems have the same id, as can happen with files from two runs.
    """
    found: dict[str, list[Candidate]] = {}
    digests: dict[str, Any] = {}
    for location, row in rows:
        try:
            digest = row.get("problem_digest")  # older files lack this key
            if digests.setdefault(row["problem_id"], digest) != digest:
                raise DataError(
                    f"{location}: problem_id {row['problem_id']!r} already belongs to a different problem; use unique "
                    "ids in both runs, or evaluate the runs separately"
                )
            scores = row["scores"]
            candidate = Candidate(
                response=row["response"],
                steps=tuple(row["steps"]),
                answer=row["answer"],
                verdict=Verdict[row["verdict"].upper()],
                token_count=row.get("tokens", 0),
                unsplit=row["unsplit"],
                scores=None if scores is None else StepScores(tuple(scores), row.get("score_tokens")),
                unscored=row.get("unscored"),
                unknown_scores=scores is None and row.get("score_tokens") is not None,
                score_tokens=row.get("score_tokens"),
            )
            found.setdefault(row["problem_id"], []).append(candidate)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{location}: is not a line of a candidates.jsonl of mmprm rerank ({type(error).__name__}: "
                f"{error}); give a file written by mmprm rerank"
            ) from error
    if not found:
        raise DataError("the files contain no candidates; give a complete candidates.jsonl of mmprm rerank")
    return [
        CandidateGroup(problems[name] if problems else Problem(name, question="", answer=""), tuple(candidates))
        for name, candidates in found.items()
    ]
