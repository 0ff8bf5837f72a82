"""Parse the atoms of expressions: numbers, symbols, brackets, LaTeX commands and functions with their arguments."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any

from mmprm.grading.numbers import MAX_POWER
from mmprm.grading.tokens import (
    BRACKETS,
    CONJUNCTIONS,
    DISJUNCTIONS,
    FIGURES,
    FUNCTIONS,
    GREEK,
    IMPLICATIONS,
    INVERSE,
    NAMED_FUNCTIONS,
    OTHER_NAMES,
    OWN_ACCENTS,
    PLAIN_ACCENTS,
    ROUND,
    TokenStream,
    UnreadableError,
)

Expression = tuple[Any, ...]
"""Node of an expression tree; the node types are listed in expressions.py."""

_NO_FACTORS = {
    *(*CONJUNCTIONS, *DISJUNCTIONS, *IMPLICATIONS),
    *("+", "-", "*", "/", "**", "^", "_", "=", ",", "!", "%", "°", ")", "]", "}"),
    *(r"\times", r"\cdot", r"\div", r"\bmod", r"\mod", r"\}", r"\rfloor", r"\rceil", r"\rvert", r"\degree"),
}
"""Tokens that cannot begin a factor."""


class AtomParser(TokenStream, ABC):
    """Parses atoms; subclasses parse the operators, including those inside an atom's brackets and arguments."""

    _bars = 0

    @abstractmethod
    def sum(self) -> Expression:
        """Parse a whole expression, which is a sum of terms."""

    @abstractmethod
    def product(self) -> Expression:
        """Parse one term of a sum: factors joined by multiplication, division or modulo."""

    @abstractmethod
    def power(self) -> Expression:
        """Parse a factor with its exponent."""

    @abstractmethod
    def exponent(self) -> Expression:
        """Parse the exponent after ^."""

    @abstractmethod
    def postfix(self, node: Expression) -> Expression:
        """Parse the postfix operators after a factor, such as ! and %."""

    def starts_factor(self) -> bool:
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
        r"""Parse the argument of a LaTeX command: {…}, or a single digit or letter as in \frac12."""
        if self.peek() == "{":
            return self.group()
        token = self.take()
        if len(token) > 1 and token.isdigit():
            self._index -= 1
            self._tokens[self._index] = token[1:]
            token = token[0]
            return number_of(token)
        self._index -= 1
        return self.atom()

    def atom(self) -> Expression:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if token[0] == "#":
            return number_of(token[1:])
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
        node = number_of(token)
        if token.isdigit() and self.peek() == r"\frac":
            start = self._index
            fraction = self.atom()
            top, bottom = fraction[1], fraction[2]
            if top[0] == bottom[0] == "number" and top[1] < bottom[1]:
                return ("add", node, fraction)
            self._index = start
        return node

    def command(self, name: str) -> Expression:
        """Parse a LaTeX command; `name` omits the backslash."""
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
        r"""Parse a named geometric figure: \angle ABC equals \angle CBA, and the points of \triangle ABC may be in any
        order."""
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

    def accented(self, prefix: str) -> Expression:
        """Parse a LaTeX accent and its argument. `prefix` is added to the symbol's name if the accent changes its
        meaning."""
        inside = self.braced()
        if inside[0] == "symbol" and prefix:
            return ("symbol", prefix + inside[1])
        if prefix and inside[0] != "multiply":
            raise UnreadableError("an accent over no letter")
        return inside

    def root(self) -> Expression:
        degree = number_of(2)
        if self.peek() == "[":
            degree = self.group()
        radicand = self.group() if self.peek() in ("(", "{") else self.braced()
        return ("root", radicand, degree)

    def series(self, kind: str) -> Expression:
        r"""Parse a sum or product over an index such as \sum_{i=1}^{5} i^2. Its term ends at the next + or - sign."""
        self.expect("_")
        self.expect("{")
        variable = self.take()
        self.expect("=")
        low = self.sum()
        self.expect("}")
        self.expect("^")
        return (kind, variable, low, self.exponent(), self.product())

    def name(self, token: str) -> Expression:
        """Parse a name without a backslash: a constant, a function or a symbol."""
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
            return ("root", self.group() if self.peek() in BRACKETS else self.braced(), number_of(2))
        if name in ("gcd", "lcm", "max", "min"):
            return (name, *self.arguments())
        if exponent in (("negative", number_of(1)),) and name in INVERSE:
            return (INVERSE[name], self.argument())
        node = (name, self.argument())
        return node if exponent is None else ("power", node, exponent)

    def logarithm(self) -> Expression:
        """Parse a logarithm with or without a base. A missing base becomes the constant "log base", for which
        evaluation tries 10 and e."""
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
        r"""Parse a function's argument, in brackets or up to the next sign or function.

        For example, \sin 2x \cos x is sin(2x) cos(x).
        """
        if self.peek() in ("(", "[", "{"):
            node = self.group()
            return self.postfix(node)
        sign = self.peek() == "-"
        if sign:
            self.take()
        node = self.power()
        while self.starts_factor() and self.peek() not in ("(", "[") and not self._at_function():
            if (self.peek() or "")[0].isdigit():
                break
            node = ("multiply", node, self.power())
        if self.peek() == "/" and self._index + 1 < len(self._tokens) and node == ("constant", "pi"):
            self.take()  # sin pi/6 is sin(pi/6)
            node = ("divide", node, self.power())
        return ("negative", node) if sign else node

    def _at_function(self) -> bool:
        name = (self.peek() or "").lstrip("\\")
        return name in FUNCTIONS or name in OTHER_NAMES or name == "log"


def number_of(text: str | int) -> Expression:
    """Build the expression node for a number. Raises UnreadableError beyond 10^±MAX_POWER, which would fill memory."""
    _, _, power = str(text).lower().partition("e")
    if power and (len(power) > 9 or abs(int(power)) > MAX_POWER):
        raise UnreadableError(f"{text}: power of ten out of reach")
    return ("number", Fraction(text))
