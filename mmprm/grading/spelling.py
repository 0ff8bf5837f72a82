"""Define the rewrites that normalize Unicode, LaTeX dialects and decoration before answers are compared.

Each rewrite preserves meaning; mere decoration of a value (color, check mark, Q.E.D.) is dropped.
"""

from __future__ import annotations

import re

UNICODE = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣", "-"),
        **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup "},
        **{"≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∈": r"\in "},
        **{"α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi "},
        **{"ω": r"\omega ", "ρ": r"\rho ", "σ": r"\sigma ", "±": r"\pm ", "∠": r"\angle ", "△": r"\triangle "},
        **{"⊥": r"\perp ", "∥": r"\parallel ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "∩": r"\cap ", "→": r"\to "},
        **{"º": "°", "˚": "°", "、": ",", "。": ".", "⟨": "(", "⟩": ")", "⁻": "^-", "℃": "°C", "℉": "°F"},
        **{sign: f"^{{{plain}}}" for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "0123456789n", strict=True)},
        **{sign: f"_{{{plain}}}" for sign, plain in zip("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n", strict=True)},
        **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}"},
        **{chr(0x2460 + i): f"({i + 1})" for i in range(20)},
        **{"’": "'", "‘": "'", "′": "'", "″": "''", "“": '"', "”": '"', "\u2009": r"\,", "\u202f": r"\,"},
        **dict.fromkeys("✅☑✓✔∎■`\u200b\ufeff\ufe0f", ""),
    }
)
_DELIMITERS = (
    (r"^\s*<(b|i|em|strong|u)>(.*)</\1>\s*$", r"\2"),
    (r"^\s*([*_])([^*_]+)\1\s*$", r"\2"),
    (r"^\s*(?:\\(?:therefore|because|Rightarrow|implies|Longrightarrow)(?![a-zA-Z])|=>|[∴⇒•→])\s*(?=\S)", ""),
    (r"[\U0001F300-\U0001FAFF]", ""),
    (r"^\s*<([^<>=|]*,[^<>=|]*)>\s*$", r"(\1)"),
    (r"\^-\^\{(\w)\}", r"^{-\1}"),
    (r"\\\$|(?<![\w$}\\])\$(?=\s?\d[\d,.]*\s*$)", "¤"),  # a price, as opposed to the $ that delimits mathematics
    (r"(?:\\|\$)?textdegree\$?", "°"),
    (r"(\$\$[^$]+\$\$)\s+(?=\$\$)", r"\1; "),  # adjacent blanks
    (r"(?<![\w)}\]])\*\*|\*\*(?![\w({\\-])|(?<=\*\*)\*", ""),
    (r"\$|\\\(|\\\)|\\\[|\\\]", ""),
)
_DECORATION = (
    (r"\\(?:hspace|vspace|h?phantom)\*?\s*\{[^{}]*\}", ""),
    (r"\\(?:checkmark|blacksquare|square|Box|qed)(?![a-zA-Z])|\bQ\.?E\.?D\b\.?", ""),
    (r"\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
    (r"\\(?:text)?color\s*\{\w+\}\s*", ""),
    (r"\\(?:Large|LARGE|large|Huge|huge|normalsize|small|bf|it|tt|underline)(?![a-zA-Z])\s*", ""),
)
_SPACES = (
    (r"(?<![\d.])(\d{0,20}\.\d{0,20}?(\d{1,20}?)\2{1,30})\.{3,}", r"\1\\ldots "),  # 0.333...
    (r"(?<=\d),\s+(?=0\d\d(?!\d))", ","),
    (r"\\thinspace(?![a-zA-Z])", r"\\,"),
    (r"(?<=\d)\s*(?:\\[,;: ]|\\!)\s*(?=\d{3}(?!\d))", ","),  # 10\,000
    (r"(?<!\\)\\!\s*", ""),
    (r"\{,\}(?=\d)", ","),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
)
_FRACTIONS = (
    (r"\\[dtc]frac", r"\\frac"),
    (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}"),
    (r"\\[dt]?binom\s*(\d)\s*(\d)", r"\\binom{\1}{\2}"),
    (r"\\[dt]binom", r"\\binom"),
    (r"√\s*\(([^()]*)\)|√\s*\{([^{}]*)\}|√\s*(\w+)", lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}"),
)
_TEXT = (
    (r"\\(?:num|number)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:ce|bm|boldsymbol|mathbf|mathit)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1"),
    (r"\\(?:mathbf|boldsymbol|bm)\s+(?=[a-zA-Z])", ""),
    (r"\\(?:quantity|SI|qty)\s*\{([^{}]*)\}\s*\{", r"\1 \\text{"),
    (r"\\(?:unit|text(?:bf|it|rm|sf|normal)?|mbox|hbox|mathrm|mathsf|operatorname)\s*\{", r"\\text{"),
    (r"\{\s*\\rm\s+|\{\s*\\rm(?=\{)", r"\\text{"),
    (r"\s*(?:\\text\{\s*(?:\\?%|per ?cent)\s*\}|\bper ?cent\b)", "%"),
    (r"\\text\{([\s\d().,;:]*)\}", r"\1"),
    (r"_\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}", r"_{\1}"),
    (r"\\text\{\s*([ie])\s*\}", r" \1"),
    (r"(?<![\\a-zA-Z])(?:np|math|numpy|sympy)\.(?=[a-z])", ""),
    (r"(?<![\\a-zA-Z])a(?:rc)?(sin|cos|tan)(?![a-zA-Z])", r"\\arc\1"),
    (r"(?<![\\a-zA-Z])cbrt(?![a-zA-Z])", r"\\sqrt[3]"),
    (r"(?<![\\a-zA-Z])sqrt\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])sqrt(?![a-zA-Z])", r"\\sqrt"),
    (r"(?<![\\a-zA-Z])(?:infinity|infty|inf|oo)(?![a-zA-Z])", r"\\infty"),
)
_SYMBOLS = (
    (r"\\(?:overrightarrow|overset\{\\rightarrow\})", r"\\vec"),
    (r"\\(?:langle|rangle)(?![a-zA-Z])\s*", lambda match: "(" if "lan" in match[0] else ")"),
    (r"\\(?:lt|gt)(?![a-zA-Z])", lambda match: "<" if match[0] == r"\lt" else ">"),
    (r"\\(?:leqslant|leq|le)(?![a-zA-Z])\s*|<=", r"\\leq "),
    (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])\s*|>=", r"\\geq "),
    (r"\\(?:neq|ne)(?![a-zA-Z])\s*|(?<![\d)])!=", r"\\neq "),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
    (r"(?<=[=\s\d])-+>|\\rightarrow(?![a-zA-Z])", r"\\to "),
    (r"={2,}", "="),
    (r"\\(?:simeq|thickapprox)(?![a-zA-Z])|≃", r"\\approx "),
    (r"(?<=\d)\s*\^\s*o(?![a-zA-Z])", "°"),
    (r"\\mid(?![a-zA-Z])|\\vert(?![a-zA-Z])", "|"),
    (r"\\colon(?![a-zA-Z])", ":"),
    (r"\\textcircled\s*\{?(\d+)\}?", r"(\1)"),
    (
        r"(?:\{\s*\})?\s*\^\s*\{?\s*(?:\\circ|°|\\text\{\s*o\s*\}|\{\s*o\s*\}|o(?=\s*\}))\s*\}?|\\degrees?(?![a-zA-Z])",
        "°",
    ),
    (r"(?<=\d)\s*度(?![\w])", "°"),
    (r"(?<=°)\s+(?=[CF]\b)", ""),
    (r"\{\s*\}", ""),
    (r"([_^])\s*\{\s*(\w)\s*\}(?!\d)", r"\1\2"),  # x^{2}3 is not x^23
    (r"\\%", "%"),
)
REWRITES = [
    (re.compile(pattern), replacement)
    for table in (_DELIMITERS, _SPACES, _DECORATION, _TEXT, _FRACTIONS, _SYMBOLS, ((r"\s+", " "),))
    for pattern, replacement in table
]
"""Rewrite rules as (pattern, replacement) pairs, applied to each line in this order."""
