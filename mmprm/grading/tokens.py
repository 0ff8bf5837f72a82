"""Split expressions into tokens, and define the names that the parser recognizes."""

from __future__ import annotations

import re

from mmprm.grading.numbers import number

_MAX_LENGTH = 2000


class UnreadableError(ValueError):
    """Raised when a text is not an expression that the parser supports."""


_TOKEN = re.compile(
    r"""\s*(?:
    (?P<repeating>\d*\.\d*\\(?:bar|overline|dot)\s*(?:\{\d+\}|\d)|\d*\.\d+(?:\.\.\.|\\(?:ldots|dots|cdots)(?![a-zA-Z])))
    |(?P<grouped>\d{1,3}(?:,\d{3}|[ ]\d{3})+(?!\d)(?:\.\d+)?)
    |(?P<number>\d+(?:\.\d+)?(?:[eE][-+]?\d+(?![\w.]))?|\.\d+)
    |(?P<command>\\[a-zA-Z]+|\\[{}|])
    |(?P<word>[A-Za-z]+)
    |(?P<power>\*\*)
    |(?P<mark>'+)
    |(?P<sign>[-+*/^_(){}\[\],!|%°=])
    )""",
    re.VERBOSE,
)
FUNCTIONS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh"),
    *("ln", "lg", "exp", "sqrt", "abs", "floor", "ceil", "gcd", "lcm", "max", "min"),
}
OTHER_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "arctg": "arctan", "tg": "tan", "ctg": "cot"}
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_WORDS = sorted({*FUNCTIONS, *OTHER_NAMES, "log", "pi", "infinity", "inf"}, key=len, reverse=True)
_WORD_SPLIT = re.compile("|".join(_WORDS) + "|.")
GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "hbar"),
    *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell"),
}
PLAIN_ACCENTS = {"vec", "overrightarrow", "hat", "widehat", "mathbf", "boldsymbol", "bm", "mathit", "mathrm", "text"}
OWN_ACCENTS = {"bar", "tilde", "dot", "overline", "mathcal", "mathbb", "underline"}
BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
ROUND = {r"\lfloor": ("floor", r"\rfloor"), r"\lceil": ("ceil", r"\rceil")}
TIMES = {"*", r"\times", r"\cdot"}
CONJUNCTIONS = (r"\land", r"\wedge", r"\cap")
DISJUNCTIONS = (r"\lor", r"\vee", r"\cup")
IMPLICATIONS = (r"\to", r"\Rightarrow")
NAMED_FUNCTIONS = "fghFG"
FIGURES = {"angle", "triangle", "odot", "arc", "overparen", "square", "widearc"}


def tokenize(text: str) -> list[str]:
    """Split a text into tokens; a repeating decimal becomes the token `#VALUE`. Raises UnreadableError."""
    if len(text) > _MAX_LENGTH:
        raise UnreadableError("too long")
    tokens: list[str] = []
    position, text = 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UnreadableError(f"unexpected {text[position]!r}")
        token = match[match.lastgroup]
        if match["repeating"]:
            value = number(token)
            if value is None:
                raise UnreadableError(f"no cycle in {token}")
            token = f"#{value}"
        tokens += (
            _WORD_SPLIT.findall(token)
            if match["word"]
            else [token.replace(" ", "").replace(",", "") if match["grouped"] else token]
        )
        position = match.end()
    return tokens


class TokenStream:
    """Provides the tokens of an expression to the parser, one by one."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._index = tokens, 0

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

    def ends(self) -> list[str]:
        r"""Consume and return the endpoints of \vec{AB} (the vector B - A), or return [] for any other vector."""
        start = self._index
        tokens = self._tokens[start : start + 4]
        if len(tokens) < 4 or (tokens[0], tokens[3]) != ("{", "}") or not (tokens[1] + tokens[2]).isupper():
            return []
        self._index += 4
        return tokens[1:3]

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
