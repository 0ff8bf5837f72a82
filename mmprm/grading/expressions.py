r"""Parse LaTeX expressions (or program text, such as sqrt(2)*pi) into a tree of operations.

A node is a tuple: ("number", Fraction), ("symbol", name), ("constant", name), ("sum", variable, low, high, term),
("product", …), ("call", name, argument) for an unknown function, or (operation, *nodes) with an operation of
`operations.OPERATIONS`. Adjacent letters are multiplied; adjacent numbers are an error, since they may be two answers.
"""

from __future__ import annotations

from functools import lru_cache

from mmprm.grading.atoms import AtomParser, Expression, number_of
from mmprm.grading.tokens import CONJUNCTIONS, DISJUNCTIONS, IMPLICATIONS, TIMES, UnreadableError, tokenize

_MAX_DEPTH = 60

_SUMS = {
    "+": lambda left, right: ("add", left, right),
    "-": lambda left, right: ("add", left, ("negative", right)),
    **{sign: lambda left, right: ("call", "and", left, right) for sign in CONJUNCTIONS},
    **{sign: lambda left, right: ("call", "or", left, right) for sign in DISJUNCTIONS},
    **{sign: lambda left, right: ("call", "implies", ("call", "if", left), right) for sign in IMPLICATIONS},
}


@lru_cache(maxsize=20_000)
def parse(text: str) -> Expression:
    """Parse a text into an expression tree. Raises UnreadableError if it is not a supported expression."""
    parser = _Parser(tokenize(text))
    node = parser.sum()
    if parser.peek() is not None:
        raise UnreadableError(f"unexpected {parser.peek()}")
    return node


def symbols(node: Expression) -> frozenset[str]:
    """Return the names of the free symbols in an expression tree."""
    if node[0] == "symbol":
        return frozenset([node[1]])
    if node[0] in ("sum", "product"):
        return frozenset().union(*map(symbols, node[2:4])) | (symbols(node[4]) - {node[1]})
    if node[0] in ("number", "constant"):
        return frozenset()
    return frozenset().union(*(symbols(part) for part in node[1:] if isinstance(part, tuple)))


def uses(node: Expression, *operations: str) -> bool:
    """Return whether an expression tree contains any of the given operations."""
    return node[0] in operations or any(uses(part, *operations) for part in node[1:] if isinstance(part, tuple))


class _Parser(AtomParser):
    """Parses expressions by recursive descent: sum > product > unary > power > postfix > atom."""

    _depth = 0

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
                if self.starts_factor():  # 1/2x may mean (1/2)x or 1/(2x)
                    node = ("ambiguous", node, self.power())
            elif token in (r"\bmod", r"\mod"):
                self.take()
                node = ("modulo", node, self.unary())
            elif self.starts_factor():
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
        """Parse an exponent, with braces as in x^{…} or without them as in x^10 and x^-4."""
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
            node = {"!": ("factorial", node), "%": ("divide", node, number_of(100))}.get(mark, ("degrees", node))
        return node
