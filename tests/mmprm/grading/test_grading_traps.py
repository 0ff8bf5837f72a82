"""Test answers that come close to a gold: the same value in an unusual form, or another value in the same words."""

from __future__ import annotations

import time

import pytest

from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Problem, Verdict

ROWS = [
    # numbers that are too long to be written out
    ("2^{1000000}", r"4^{500000}", r"2^{1000000}+1 ¦ 2^{1000001}"),
    ("1-2^{-1000000}", "1-4^{-500000}", "1 ¦ 1+2^{-1000000}"),
    ("7^{7^{7}}", "7^{823543}", "7^{7^{7}}-1"),
    # exponents of one digit before a number
    ("5^{1}2", "10", "5^{12}"),
    ("24", "4!=24 ¦ 4! = 24", "4!=25"),
    # conjunctions between conditions
    ("x<2 or x>7", r"x<2或x>7 ¦ x>7 or x<2", r"x<2\land x>7 ¦ x<2且x>7"),
    ("4;\nx>3 or x<-3", "4; x<-3 or x>3", "4; x>3 and x<-3"),
    # negation in Chinese
    ("正确", "正确", "不正确 ¦ 错误"),
    ("对", "对", "不对"),
    ("11", "x=11 ¦ 约11", "大于11 ¦ 不是11 ¦ 超过11"),
    ("C", "选C ¦ 应选C项 ¦ 选择C", "不选C ¦ 不是C"),
    # other letters besides the announced one
    ("C", "C", "Options C and D are both correct"),
    ("C", "I would pick C ¦ I choose C; D is too small", "I would pick C, but D is also correct ¦ anything but C"),
    # a value stated in a sentence
    ("48", "Each side is 12, so the perimeter is 48 ¦ The sum of 20 and 28 is 48",
     "The sum of 48 and 2 is 50"),
    ("12", "The minimum is 12, attained at x=3 ¦ The maximum is 12 at x=3", "Each side is 12, so the perimeter is 48"),
    ("7 cm", "It measures 7 cm ¦ It measures 7 centimeters", "It measures 7 m ¦ It measures 7 s"),
    ("(2,-6)", "The vertex is at (2,-6).", "The vertex is at (-6,2)"),
    # equations that give no value
    ("9", "AB=9 ¦ |AB|=9 ¦ f(2)=9", "8=9 ¦ x^2=9"),
    # directed vectors
    (r"\overrightarrow{PQ}", r"-\overrightarrow{QP} ¦ \vec{PR}+\vec{RQ}", r"\overrightarrow{QP} ¦ \overrightarrow{PR}"),
    (r"\frac12\overrightarrow{PQ}", r"\frac{\overrightarrow{PQ}}{2} ¦ \frac12 PQ", r"-\frac12\overrightarrow{PQ}"),
    (r"\vec{a}\cdot\vec{b}", r"\vec b\cdot\vec a", r"\vec a\times\vec b"),
    # sets
    (r"\emptyset", r"\{\} ¦ \text{no solution}", r"\{\emptyset\} ¦ 0"),
    (r"\{\{1\},\{2\}\}", r"\{\{2\},\{1\}\}", r"\{1,2\}"),
    (r"\{x|x=4 or x=9\}", r"\{4,9\} ¦ 9, 4", r"\{4,8\}"),
    (r"\pm 6", r"\mp 6 ¦ -6, 6", "6"),
    ("(-4,9)", "{x | -4 < x < 9}", "{x | -4 < x \\le 9}"),
    # an exact value and its decimal
    (r"8\pi", r"8\pi = 25.13 ¦ 8\pi (25.13) ¦ 25.13 \approx 8\pi ¦ 8\pi \text{ or about } 25.13", r"8\pi = 25.10"),
    (r"\frac{1}{6}", r"1/6 or 16.7% ¦ 1/6 (or 0.167) ¦ \frac16 = 0.1666...", "1/6 or 0.25"),
    (r"\frac{1}{9}", "0.111...", "0.1 ¦ 0.9..."),
    (r"$\frac{3}{4}$ or $0.75$", "3/4 ¦ 0.75", "3/5"),
    # angles
    (r"\pi/6", r"30^\circ ¦ 30°", "60°"),
    (r"\arcsin\frac{1}{2}", r"30° ¦ \frac{\pi}{6}", "60°"),
    # numbered parts
    (r"(1)$$-9$$ (2)$$\sqrt{7}$$", r"1) -9 2) √7 ¦ (1): -9, (2): \sqrt7 ¦ \text{(1) }-9\text{; (2) }\sqrt7",
     "1) √7 2) -9"),
    # vectors and matrices
    (r"\begin{pmatrix}4\\7\end{pmatrix}", r"(4,7)^T ¦ [4,7]^T ¦ (4,7) ¦ <4,7>", r"(7,4)^T"),
    (r"\begin{pmatrix}1&5\\0&2\end{pmatrix}",
     r"M=\begin{pmatrix}1&5\\0&2\end{pmatrix}", r"M=\begin{pmatrix}1&5\\0&3\end{pmatrix}"),
    (r"\begin{cases}x, x<0\\ 3x, x\ge0\end{cases}",
     r"f(x)=\begin{cases}x & \text{if } x<0\\ 3x & \text{if } x\ge0\end{cases}", "x"),
    ("(6, -2)", r"\left\{\begin{array}{l}x=6\\y=-2\end{array}\right.",
     r"\left\{\begin{array}{l}x=-2\\y=6\end{array}\right."),
    # conditions after an answer
    ("y=x^3 (x>0)", r"y=x^3,\ x>0 ¦ y=x^3 (x>0)", ""),
    (r"\frac{2}{x}", r"\frac2x, x\ne 0", r"\frac3x, x\ne 0"),
    # quantities in two units
    ("2.25 h", "2 hours and 15 minutes ¦ 2 h 15 min", "2 hours and 25 minutes"),
    ("3 cm, 8 cm", "8 cm and 3 cm", "3 m and 8 m"),
    # program text
    (r"\sqrt{19}", "sqrt19 ¦ sqrt 19 ¦ math.sqrt(19)", "sqrt(91)"),
    (r"\arctan 3", "atan(3) ¦ arctan(3)", "tan(3)"),
    # decoration
    ("17", r"*17* ¦ <b>17</b> ¦ \therefore 17 ¦ => 17 ¦ 🎉 17 ¦ 17 \qed ¦ \hspace{2mm}17", "*71*"),
    # several options
    ("D. None of these", "None of these ¦ D", "A ¦ all of these"),
    ("B", "answer: b", "Let me think ¦ All options"),
    (r"\forall x>1", r"\forall x>1", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def grader():
    with SymbolicGrader() as grader:
        yield grader


def cases():
    for gold, correct, incorrect in ROWS:
        for answers, verdict in ((correct, Verdict.CORRECT), (incorrect, Verdict.INCORRECT)):
            for answer in filter(None, answers.split(" ¦ ")):
                yield pytest.param(gold, answer, verdict, id=f"{gold!r} {answer!r}")


@pytest.mark.parametrize(("gold", "answer", "verdict"), cases())
def test_verdict(grader, gold, answer, verdict):
    [grading] = grader.grade_many([(Problem("p", "", gold), f"<answer>{answer}</answer>")])
    assert grading.verdict is verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (r"20\sqrt{3}", Verdict.CORRECT),
        ("C", Verdict.CORRECT),
        (r"20", Verdict.INCORRECT),
    ],
)
def test_value_of_an_option_without_its_unit(grader, answer, verdict):
    problem = Problem("p", "", "C", choices=("10m", "20m", r"20\sqrt{3}m"))
    assert grader.grade_many([(problem, rf"\boxed{{{answer}}}")])[0].verdict is verdict


@pytest.mark.parametrize(
    "response",
    ["The answer is 7. No wait, the answer is", r"\boxed{7}. Final answer: \boxed{", "Answer: 7. Hmm, the answer is "],
)
def test_an_unfinished_later_answer_leaves_none(grader, response):
    assert grader.grade_many([(Problem("p", "", "7"), response)])[0].verdict is Verdict.INCORRECT


def test_boxes_after_part_numbers_are_several_answers(grader):
    response = r"(1) \boxed{6} (2) \boxed{-2}"
    assert grader.grade_many([(Problem("p", "", "6, -2"), response)])[0].verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        r"\sum_{i=1}^{3000}\sum_{j=1}^{3000} i j",
        r"\sum_{i=1}^{3000} i^{i}",
        "9^{9^{9^{9}}}",
        "10^{10^{10}}",
        r"\binom{5000}{2500}!",
        "0." + "3" * 1900 + "+1",
        ",".join(map(str, range(400))),
        r"\sqrt{1+" * 55 + "2" + "}" * 55,
    ],
)
def test_expensive_answers_do_not_block_the_caller(monkeypatch, answer):
    """Expensive comparisons are left to a worker, and the caller does not wait for it."""

    class Waiting:
        def compare(self, *_):
            from concurrent.futures import Future

            return Future()

    with SymbolicGrader() as grader:
        monkeypatch.setattr(grader, "_workers", Waiting)
        start = time.thread_time()
        grader._decide(Problem("p", "", "5"), answer)
        assert time.thread_time() - start < 0.2
