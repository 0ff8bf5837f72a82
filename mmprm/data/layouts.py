r"""Recognize the rows of published data sets whose columns do not have the usual names: GSM8K, SVAMP and MATH.

    GSM8K   question, answer             the answer is the line `#### 18` that ends the column answer: a whole solution
    SVAMP   ID, Body, Question, Answer   the question is the body followed by the question
    MATH    problem, level, type, solution   the answer is the last \boxed{…} of the solution

A row that is in none of these layouts is returned unchanged, as is every row if the field has a configured column.
"""

from __future__ import annotations

import re
from typing import Any

from mmprm.data.cells import Row, is_empty
from mmprm.data.columns import USUAL, Columns

_GSM8K_ANSWER = re.compile(r"(?s:.*)^####[^\S\n]*(\S[^\n]*?)\s*\Z", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def with_usual_columns(row: Row, columns: Columns) -> Row:
    """Return a row of GSM8K, SVAMP or MATH with question, answer and solution under their usual names."""
    if columns.question is None and columns.answer is None and {"Body", "Question", "Answer"} <= row.keys():
        return _svamp(row)
    if columns.answer is None and columns.solution is None:
        return _with_final_answer(row)
    return row


def _svamp(row: Row) -> dict[str, Any]:
    rest = {name: value for name, value in row.items() if name not in ("ID", "Body", "Question", "Answer")}
    rest.pop("question_concat", None)  # the same text once more, in the version on the Hub
    given = {"question": f"{row['Body']} {row['Question']}", "answer": _without_zero(row["Answer"])}
    return given | ({"id": row["ID"]} if "ID" in row else {}) | rest


def _with_final_answer(row: Row) -> Row:
    answer, solution = row.get("answer"), row.get("solution")
    if isinstance(answer, str) and is_empty(solution) and (found := _GSM8K_ANSWER.fullmatch(answer)):
        if found.start(1) > len("#### "):  # more than an answer in that form
            return {**row, "answer": found[1], "solution": answer}
        return row
    has_answer = any(not is_empty(row.get(name.partition(".")[0])) for name in USUAL["answer"])
    if isinstance(solution, str) and not has_answer and (box := last_box(solution)):
        return {**row, "answer": box}
    return row


def last_box(text: str) -> str:
    r"""Return the content of the last \boxed{…} whose braces are balanced, or "" if there is none."""
    for begin in reversed([match.end() for match in _BOX.finditer(text)]):
        depth = 1
        for brace in _BRACE.finditer(text, begin):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return text[begin : brace.start()].strip()
    return ""


def _without_zero(value: Any) -> Any:
    """Remove the trailing .0 of a whole number, as in SVAMP's 145.0."""
    text = str(value).strip()
    return text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else value
