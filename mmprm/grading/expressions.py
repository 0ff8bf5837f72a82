r"""Parse LaTeX expressions (or program text, such as sqrt(2)*pi) into a tree of operations.

A node is a tuple: ("number", Fraction), ("symbol", name), ("constant", name), ("sum", variable, low, high, term),
("product", …), ("call", name, argument) for an unknown function, or (operation, *nodes) with an operation of
`operations.OPERATIONS`. Adjacent letters are a product; adjacent numbers are unreadable, since they may be two answers.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mmprm.grading.tokens import (
    BRACKETS,
    FIGURES,
    FUNCTIONS,
    GREEK,
    INVERSE,
    NAMED_FUNCTIONS,
    OTHER_NAMES,
    OWN_ACCENTS,
    PLAIN_ACCENTS,
    ROUND,
    TIMES,
    UnreadableError,
    tokenize,
)

Expression = tuple[Any, ...]

_MAX_DEPTH = 60

_SUMS = {
    "+": lambda left, right: ("add", left, right),
    "-": lambda left, right: ("add", left, ("negative", right)),
    **{sign: lambda left, right: ("call", "and", left, right) for sign in (r"\land", r"\wedge", r"\cap")},
    **{sign: lambda left, right: ("call", "or", left, right) for sign in (r"\lor", r"\vee", r"\cup")},
    r"\to": lambda left, right: ("call", "implies", ("call", "if", left), right),
    r"\Rightarrow": lambda left, right: ("call", "implies", ("call", "if", left), right),
}


@lru_cache(maxsize=20_000)
def parse(text: str) -> Expression:
    """Return the tree of an expression. Raises UnreadableError."""
    parser = _Parser(tokenize(text))
    node = parser.sum()
    if parser.peek() is not None:
        raise UnreadableError(f"unexpected {parser.peek()}")
    return node


def symbols(node: Expression) -> frozenset[str]:
    """Return the names of the free symbols of a tree."""
    if node[0] == "symbol":
        return frozenset([node[1]])
    if node[0] in ("sum", "product"):
        return frozenset().union(*map(symbols, node[2:4])) | (symbols(node[4]) - {node[1]})
    if node[0] in ("number", "constant"):
        return frozenset()
    return frozenset().union(*(symbols(part) for part in node[1:] if isinstance(part, tuple)))


def uses(node: Expression, *operations: str) -> bool:
    """Return whether any of the operations occurs in a tree."""
    return node[0] in operations or any(uses(part, *operations) for part in node[1:] if isinstance(part, tuple))


class _Parser:
    """Parse by recursive descent: sum > product > unary > power > postfix > atom."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._index, self._depth, self._bars = tokens, 0, 0, 0

    def peek(self) -> str | None:
        return self._tokens[self._index] if self._index < len(self._tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise UnreadableError("ends too early")
        self._index += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise UnreadableError(f"no {token}")

    def sum(self) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        node = self.product()
        while (sign := self.peek()) in _SUMS:
            self.take()
            right = self.product()
            node = _SUMS[sign](node, right)
        self._depth -= 1
        return node

    def product(self) -> Expression:
        node = self.unary()
        while (token := self.peek()) is not None:
            if token in TIMES:
                self.take()
                node = ("multiply", node, self.unary())
            elif token in ("/", r"\div"):
                self.take()
                divisor = self.unary()
                node = ("divide", node, divisor)
                if self._starts_factor():  # 1/2x: (1/2)x or 1/(2x)
                    node = ("ambiguous", node, self.power())
            elif token in (r"\bmod", r"\mod"):
                self.take()
                node = ("modulo", node, self.unary())
            elif self._starts_factor():
                if token[0].isdigit() and self._tokens[self._index - 1][-1].isdigit():
                    raise UnreadableError("two numbers side by side")
                node = ("multiply", node, self.power())
            else:
                break
        return node

    def unary(self) -> Expression:
        if self.peek() in ("+", "-"):
            return self.unary() if self.take() == "+" else ("negative", self.unary())
        return self.power()

    def power(self) -> Expression:
        base = self.postfix(self.atom())
        if self.peek() in ("^", "**"):
            self.take()
            base = self.postfix(("power", base, self.exponent()))
        return base

    def exponent(self) -> Expression:
        """Parse an exponent: x^{…}, and in program text x^10 and x^-4."""
        if self.peek() in ("-", "+"):
            return self.exponent() if self.take() == "+" else ("negative", self.exponent())
        return self.group() if self.peek() == "{" else self.power_atom()

    def power_atom(self) -> Expression:
        base = self.atom()
        if self.peek() in ("^", "**"):
            self.take()
            return ("power", base, self.exponent())
        return base

    def postfix(self, node: Expression) -> Expression:
        while self.peek() in ("!", "%", "°", r"\degree"):
            mark = self.take()
            node = {"!": ("factorial", node), "%": ("divide", node, _number(100))}.get(mark, ("degrees", node))
        return node

    def _starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token in _NO_FACTORS:
            return False
        if token == "|":
            return self._bars == 0
        return True

    def group(self) -> Expression:
        opening = self.take()
        if opening not in BRACKETS:
            raise UnreadableError(f"no bracket: {opening}")
        outer, self._bars = self._bars, 0
        node = self.sum()
        self._bars = outer
        self.expect(BRACKETS[opening])
        return node

    def arguments(self) -> list[Expression]:
        """Parse one or more comma-separated expressions in brackets or braces."""
        opening = self.take()
        if opening not in BRACKETS:
            raise UnreadableError(f"no bracket: {opening}")
        outer, self._bars = self._bars, 0
        nodes = [self.sum()]
        while self.peek() == ",":
            self.take()
            nodes.append(self.sum())
        self._bars = outer
        self.expect(BRACKETS[opening])
        return nodes

    def braced(self) -> Expression:
        r"""Parse the argument of a command: {…}, or one digit or letter as in \frac12."""
        if self.peek() == "{":
            return self.group()
        token = self.take()
        if len(token) > 1 and token.isdigit():
            self._index -= 1
            self._tokens[self._index] = token[1:]
            token = token[0]
            return _number(token)
        self._index -= 1
        return self.atom()

    def atom(self) -> Expression:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if token[0] == "#":
            return _number(token[1:])
        if token in BRACKETS:
            self._index -= 1
            return self.group()
        if token == "|" or token in (r"\vert", r"\lvert", r"\|"):
            return self.bars({r"\lvert": r"\rvert"}.get(token, token))
        if token in ROUND:
            name, closing = ROUND[token]
            node = self.sum()
            self.expect(closing)
            return (name, node)
        if token.startswith("\\"):
            return self.command(token[1:])
        return self.name(token)

    def bars(self, closing: str) -> Expression:
        self._bars += 1
        node = self.sum()
        self._bars -= 1
        self.expect(closing)
        return ("abs", node)

    def number(self, token: str) -> Expression:
        r"""Parse a number or a mixed number: 1\frac{4}{5} is 9/5."""
        node = _number(token)
        if token.isdigit() and self.peek() == r"\frac":
            start = self._index
            fraction = self.atom()
            top, bottom = fraction[1], fraction[2]
            if top[0] == bottom[0] == "number" and top[1] < bottom[1]:
                return ("add", node, fraction)
            self._index = start
        return node

    def command(self, name: str) -> Expression:
        """Parse a LaTeX command, given without its backslash."""
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return ("divide", self.braced(), self.braced())
        if name in ("binom", "dbinom", "tbinom"):
            return ("binomial", self.braced(), self.braced())
        if name == "sqrt":
            return self.root()
        if name in ("sum", "prod"):
            return self.series("sum" if name == "sum" else "product")
        if name == "pi":
            return ("constant", "pi")
        if name == "infty":
            return ("constant", "infinity")
        if name == "zeta" and self.peek() == "(":
            return ("zeta", self.group())
        if name in GREEK:
            return self.subscripted("\\" + name)
        if name in ("neg", "lnot"):
            return ("call", "not", self.power())
        if name in FIGURES:
            return self.figure(name)
        if name == "vec" and (ends := self.ends()):
            return ("add", ("symbol", ends[1]), ("negative", ("symbol", ends[0])))
        if name in PLAIN_ACCENTS:
            return self.accented("")
        if name in OWN_ACCENTS:
            return self.accented(name + " ")
        return self.function(name)

    def figure(self, name: str) -> Expression:
        r"""Parse \angle ABC, which equals \angle CBA, or \triangle ABC, whose points may come in any order."""
        points = ""
        while re.fullmatch(r"[A-Z]|\d+|'+" if points else r"[A-Za-z]|\d+", self.peek() or ""):
            points += self.take()
        if not points:
            raise UnreadableError(f"no points of a {name}")
        if name == "angle":
            points = min(points, points[::-1]) if points.isalpha() else points
        else:
            points = "".join(sorted(points))
        return ("symbol", f"{name} {points}")

    def ends(self) -> list[str]:
        r"""Consume the two points of \vec{AB}, which is B - A; return [] for any other vector."""
        start = self._index
        tokens = self._tokens[start : start + 4]
        if len(tokens) < 4 or (tokens[0], tokens[3]) != ("{", "}") or not (tokens[1] + tokens[2]).isupper():
            return []
        self._index += 4
        return tokens[1:3]

    def accented(self, prefix: str) -> Expression:
        """Parse an accented expression; `prefix` keeps an accent that changes the meaning in the symbol's name."""
        inside = self.braced()
        if inside[0] == "symbol" and prefix:
            return ("symbol", prefix + inside[1])
        if prefix and inside[0] != "multiply":
            raise UnreadableError("an accent over no letter")
        return inside

    def root(self) -> Expression:
        degree = _number(2)
        if self.peek() == "[":
            degree = self.group()
        radicand = self.group() if self.peek() in ("(", "{") else self.braced()
        return ("root", radicand, degree)

    def series(self, kind: str) -> Expression:
        r"""Parse a series such as \sum_{i=1}^{5} i^2, whose term extends to the next sign."""
        self.expect("_")
        self.expect("{")
        variable = self.take()
        self.expect("=")
        low = self.sum()
        self.expect("}")
        self.expect("^")
        return (kind, variable, low, self.exponent(), self.product())

    def name(self, token: str) -> Expression:
        """Parse a name in program text: a constant, a function or a symbol."""
        if token == "pi":
            return ("constant", "pi")
        if token in ("infinity", "inf"):
            return ("constant", "infinity")
        if token in ("e", "i") and self.peek() not in ("_", "'"):
            return ("constant", token)
        if len(token) > 1:
            return self.function(token)
        if not token.isalpha():
            raise UnreadableError(f"unexpected {token}")
        return self.subscripted(token)

    def subscripted(self, name: str) -> Expression:
        while (token := self.peek()) is not None and (token == "_" or token.startswith("'")):
            self.take()
            name += token if token.startswith("'") else "_" + self.subscript()
        if self.peek() == "(" and name.rstrip("'") in NAMED_FUNCTIONS:
            return ("call", name, self.group())
        return ("symbol", name)

    def subscript(self) -> str:
        token = self.take()
        if token != "{":
            return token
        parts: list[str] = []
        depth = 1
        while True:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token, 0)
            if depth == 0:
                return "".join(parts)
            if token not in ("{", "}"):
                parts.append(token)

    def function(self, name: str) -> Expression:
        name = OTHER_NAMES.get(name, name)
        if name == "log":
            return self.logarithm()
        if name not in FUNCTIONS:
            raise UnreadableError(f"unknown {name}")
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.exponent()
        if name == "sqrt":
            return ("root", self.group() if self.peek() in BRACKETS else self.braced(), _number(2))
        if name in ("gcd", "lcm", "max", "min"):
            return (name, *self.arguments())
        if exponent in (("negative", _number(1)),) and name in INVERSE:
            return (INVERSE[name], self.argument())
        node = (name, self.argument())
        return node if exponent is None else ("power", node, exponent)

    def logarithm(self) -> Expression:
        """Parse a logarithm; a missing base is the constant "log base", which evaluation tries as 10 and e."""
        base: Expression | None = None
        if self.peek() == "_":
            self.take()
            base = self.group() if self.peek() in BRACKETS else self.braced()
        if self.peek() == "^":
            self.take()
            exponent = self.exponent()
            return ("power", ("log", self.argument(), base or ("constant", "log base")), exponent)
        return ("log", self.argument(), base or ("constant", "log base"))

    def argument(self) -> Expression:
        r"""Parse brackets, or the factors up to the next sign or function: \sin 2x \cos x is sin(2x) cos(x)."""
        if self.peek() in ("(", "[", "{"):
            node = self.group()
            return self.postfix(node)
        sign = self.peek() == "-"
        if sign:
            self.take()
        node = self.power()
        while self._starts_factor() and self.peek() not in ("(", "[") and not self._at_function():
            if (self.peek() or "")[0].isdigit():
                break
            node = ("multiply", node, self.power())
        if self.peek() == "/" and self._index + 1 < len(self._tokens) and node == ("constant", "pi"):
            self.take()  # sin pi/6
            node = ("divide", node, self.power())
        return ("negative", node) if sign else node

    def _at_function(self) -> bool:
        name = (self.peek() or "").lstrip("\\")
        return name in FUNCTIONS or name in OTHER_NAMES or name == "log"


_NO_FACTORS = {
    *_SUMS,
    *("+", "-", "*", "/", "**", "^", "_", "=", ",", "!", "%", "°", ")", "]", "}"),
    *(r"\times", r"\cdot", r"\div", r"\bmod", r"\mod", r"\}", r"\rfloor", r"\rceil", r"\rvert", r"\degree"),
}
"""Tokens that cannot begin a factor."""


def _number(text: str | int) -> Expression:
    return ("number", Fraction(text))
