"""One spelling for each answer: LaTeX variants, Unicode, white space; and telling prose from mathematics."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_UNICODE = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣", "-"),
        **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup "},
        **{"≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∈": r"\in "},
        **{"α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "λ": r"\lambda ", "±": r"\pm ", "∠": r"\angle "},
        **{"△": r"\triangle ", "⊥": r"\perp ", "∥": r"\parallel ", "º": "°", "˚": "°", "、": ",", "。": "."},
        **{sign: f"^{{{plain}}}" for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True)},
        **{sign: f"_{{{plain}}}" for sign, plain in zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True)},
        **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
        **{chr(0x2460 + i): f"({i + 1})" for i in range(20)},
        **{"’": "'", "‘": "'", "′": "'", "“": '"', "”": '"', "\u200b": "", "\ufeff": ""},
    }
)

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", "¤"),  # a price, as opposed to the $ that delimits mathematics
        (r"\$|\\\(|\\\)|\\\[|\\\]|\*\*", ""),
        (r"\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
        (r"(?<!\\)\\!\s*", ""),
        (r"\{,\}(?=\d)", ","),
        (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|sf|normal)?|mbox|hbox|mathrm|mathsf|operatorname)\s*\{", r"\\text{"),
        (r"\{\s*\\rm\s+", r"\\text{"),
        (r"\{\s*\\rm\s*\{", r"\\text{{"),
        (r"\\(?:number|mathbf|mathit|boldsymbol|bm|textcolor\{\w+\})\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:overrightarrow|overset\{\\rightarrow\})", r"\\vec"),
        (r"\\(?:lt|gt)(?![a-zA-Z])", lambda match: "<" if match[0] == r"\lt" else ">"),
        (r"\\(?:leqslant|leq|le)(?![a-zA-Z])\s*", r"\\leq "),
        (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])\s*", r"\\geq "),
        (r"\\(?:neq|ne)(?![a-zA-Z])\s*", r"\\neq "),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\textcircled\s*\{?(\d+)\}?", r"(\1)"),
        (r"(?:\{\s*\})?\s*\^\s*\{?\s*(?:\\circ|°)\s*\}?|\\degrees?(?![a-zA-Z])", "°"),
        (r"\{\s*\}", ""),
        (r"([_^])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"\\%", "%"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)|√\s*(\w+)", lambda match: rf"\sqrt{{{match[1] or match[2]}}}"),
        (r"\s+", " "),
    )
]
_TRAILING = re.compile(r"(?:[\s.,;:?]|\\\\)+$")
_DIGIT_GAP = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_NO_WORDS = re.compile(
    r"\\(?:begin|end)\{\w+\}|\\(?!text)[a-zA-Z]+|\b(?:or|and|not|arc(?:sin|cos|tan)|(?:sin|cos|tan)h?|cot|sec|csc|log|exp|lim|max|min|mod|gcd|lcm"
    r"|det)\b"
)
_WORDS = re.compile(
    r"(?!\b[A-Z]+\b)\b[^\W\d_]{4,}|\b[^\W\d_]*[a-z]{2,} [a-z]{2,}|[\u2234\u2235\u3040-\u9fff\uac00-\ud7af]"
)


def clean(line: str) -> str:
    """One line in the common spelling: LaTeX of one dialect, no math delimiters, no trailing punctuation.

    Prices keep a `¤`, degrees are `°`, text commands are `\\text{…}`. Nothing that carries meaning is dropped.
    """
    line = unicodedata.normalize("NFKC", line.translate(_UNICODE)).translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        line = pattern.sub(replacement, line)
    return _TRAILING.sub("", _whole_text(line.strip())).strip()


@lru_cache(maxsize=10_000)
def key(text: str) -> str:
    """Equal keys are equal answers. Letter case counts in mathematics, not in prose."""
    lines = [clean(line) for line in text.strip().splitlines()]
    cleaned = "\n".join(line for line in lines if line)
    if is_prose(cleaned):
        return " ".join(re.sub(r"\\text\{([^{}]*)\}", r"\1", cleaned).casefold().split())
    return _DIGIT_GAP.sub("", cleaned.replace("\n", ";"))


def is_prose(text: str) -> bool:
    """Whether words rather than mathematics say what is meant (units and "or" are judged by who splits them off)."""
    return bool(_WORDS.search(_NO_WORDS.sub(" ", text.replace(r"\text", " ")))) or _is_word(text)


def _is_word(text: str) -> bool:
    """A short word on its own (odd, Yes), as opposed to a product of letters (abc)."""
    return bool(re.fullmatch(r"\\text\{[^{}]*[a-zA-Z]{2}[^{}]*\}|[A-Z][a-z]+|yes|no|true|odd|even", text.strip()))


def _whole_text(line: str) -> str:
    """`\\text{Evelyn}` is the word itself."""
    match = re.fullmatch(r"\\text\{([^{}]*)\}[.\s]*", line)
    return match[1].strip() if match else line
