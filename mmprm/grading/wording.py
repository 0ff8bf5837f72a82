"""Strip words that only introduce or annotate a value, and find the value that a sentence states."""

from __future__ import annotations

import re

from mmprm.grading.numbers import worded_number
from mmprm.grading.text import is_prose
from mmprm.grading.units import read_unit

_LEADS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:so|thus|therefore|hence|then|finally|i think|(?:we|i) (?:get|got|have|find|obtain))\b[,:]?\s+",
        r"(?:即|故|所以|因此)[,:，：]?\s*",
        r"(?:the |my |our )?(?:final |correct |right )?(?:answer|solution|result)s?\s*(?:is|are|:|=)[\s:]*",
        r"(?:the )?(?:answer|solution|result)\s*:\s*",
        r"(?:最终)?(?:答案|结果|答)\s*(?:是|为|应为)?\s*[::,]?\s*",
        r"[:=]\s*",
        r"(?:\\approx|approximately|approx\.?|about|around|roughly|nearly|exactly|大?约)(?![a-zA-Z])\s*",
    )
]
_REMARKS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\s*\((?:[^()]|\([^()]*\))*(?:(?<![\\a-zA-Z])[a-zA-Z]{4,}|\\in(?![a-zA-Z])|[<>=]|\\[lg]eq|\\neq)(?:[^()]|\([^()]*\))*\)",
        r"[,;]?\s*\b(?:because|since|rejecting|due to|as required|as desired|altogether|in (?:total|all))\b.*",
        r"[,;]?\s*\b(?:for (?:all|any|some|every|each)|for|where|when|if"
        r"|with|provided|given that)\s+(?=\W*[a-zA-Z]?\b.*).*",
        r"[,;]\s*(?:as|which)\s+[a-z].*|[,;]\s*(?:so|and)\s+[a-z][^\d]*",  # "so the area is 36" states another value
        r"[,;]?\s+(?:attained|achieved|reached|obtained|occurring)\b.*|\s+at\s+\(?[a-z]\s*=.*",
        r"[,;]\s*(?:and )?(?:not|rather than|instead of)\b.*",
        r"\s*(?:,\s*|\s)[a-zA-Z]\s*\\in\s*(?:\\mathbb\s*\{?[A-Z]\}?|[NZRQ])[\^*+_]*\S*",
    )
]
_TEXT = re.compile(r"(?<![_^{])\\text\s*\{([^{}]*)\}")
_STATED = re.compile(
    r".*\b(?:is|are|was|were|be|equals?|measures?|gives?|becomes?|makes|has|have|had|costs?|takes|需要|是|为|等于|有|共)(?![a-zA-Z])\s*"
    r"(?:at (?=\()|equal to |exactly "
    r"|approximately |about |only |also |a total of |therefore |=|:|\\approx)*\s*(?P<value>.+)",
    re.IGNORECASE | re.DOTALL,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|equals?|measures?|gives?|becomes?|makes?|has|have|had|costs?|takes?|contains?)\b"
)
_CONCLUSION = re.compile(r"[,;.]\s+(?:so|thus|hence|therefore)\s+(?=.*\d)", re.IGNORECASE)
_UNIT = re.compile(r"\s?((?!in\b|at\b|a\b|as\b)[a-zA-Z]+(?:/[a-zA-Z]+)?(?:\^?\{?[23]\}?)?)(?![\w^(=])")
_NEGATION = re.compile(
    r"\b(?:not|never|no|neither|nor|cannot|isn't|aren't|wasn't|doesn't|don't|can't|without|wrong|false|incorrect)\b|n't\b|不|没|非"
)
_EXCLUSION = re.compile(
    r"\b(?:not|isn't|(?:more|less|greater|fewer|larger|smaller) than|at (?:least|most)|up to|between)\b"
    r"|不[是到足]|至[多少]|[大小多少低高]于|超过"
)
_CHUNK = re.compile(
    r"(?:[-+]?[¤¥€£]?(?:\d|\.\d|\\(?:frac|sqrt|pi|pm|infty|begin|vec|sin|cos|tan|ln|log|lg|left)|[({\[]|[a-zA-Z](?=[\^_=<>+*/(]|\s*=)))"
    r"(?:(?![a-zA-Z]{2,}\b(?!\())(?:\\[a-zA-Z]+\s?|[\d.,%°'+*/^_=<>(){}\[\]|!;:~-]|[a-zA-Z](?![a-zA-Z])|\s(?=[-+*/=<>^\d({\\])|\\.))*"
)
_ALTERNATIVE = re.compile(
    r"(?P<one>.+?)\s*\(\s*(?:or|或)\s*(?:fill in|equivalently|as)?:?\s*(?P<other>.+)\)\s*", re.DOTALL
)
_FREE_CHOICE = re.compile(
    r"\s*\((?:choose one|any one|one is enough|answers? (?:may )?var\w*"
    r"|(?:the )?answer (?:is )?not unique|not unique)[^()]*\)\s*",
    re.IGNORECASE,
)


def core(text: str) -> tuple[str, str]:
    """Strip leading phrases and remarks from a cleaned answer; return (answer, remark), where remark may be empty."""
    text = _TEXT.sub(
        lambda match: f" {match[1]} " if re.search(r"[a-zA-Z]{3,}|[\u3040-\u9fff]", match[1]) else match[0], text
    )
    text = re.sub(r"\s+", " ", text).strip().strip('"').strip()
    text = _without_leads(text)
    if r"\begin" in text:  # the conditions of cases are not remarks
        return text, ""
    bare, remark = _without_remarks(text)
    return (text, "") if is_prose(bare) else (_without_leads(bare), remark)


def _without_remarks(text: str) -> tuple[str, str]:
    remark = ""
    for pattern in _REMARKS:
        match = next((m for m in pattern.finditer(text) if m.start() > 0 and m.end() == len(text)), None)
        if match is not None and text[: match.start()].strip(" ,;"):
            remark = remark or match[0]
            text = text[: match.start()].strip(" ,;")
    return text, remark


def condition(remark: str) -> str:
    """Return the relation in a remark, such as x>0, or "" if it has none."""
    found = re.search(r"\(?([a-zA-Z]\w?\s*(?:[<>=]|\\(?:in|leq|geq|neq))[^()]*)\)?", remark)
    return re.sub(r"\s", "", found[1]) if found else ""


def _without_leads(text: str) -> str:
    changed = True
    while changed:
        changed = False
        for pattern in _LEADS:
            match = pattern.match(text)
            if match is not None and match.end() < len(text):
                text, changed = text[match.end() :].strip(), True
    return text


def alternatives(gold: str) -> list[str]:
    """Return the answers that a gold answer accepts: `8.75` and `35/4` for "35/4 (or 8.75)"."""
    free = _FREE_CHOICE.search(gold)
    gold = _FREE_CHOICE.sub("", gold) if free else gold
    if match := _ALTERNATIVE.fullmatch(gold):
        return [match["one"], match["other"]]
    return re.split(r"\s+or\s+", gold) if free and " or " in gold else [gold]


def stated_values(sentence: str) -> list[str]:
    """Return the value that a sentence states, or all values that it mentions if it states none."""
    sentence, _ = _without_remarks(_CONCLUSION.split(sentence)[-1])
    match = _STATED.fullmatch(sentence)
    if match is not None:
        value, _ = core(match["value"])
        before = sentence[: match.start("value")]
        if (
            value
            and not (is_prose(value) and worded_number(value) is None)
            and (not _values(before) or len(_VERB.findall(sentence)) == 1)
        ):
            return [value]
    return _values(sentence)


def denies(text: str) -> bool:
    """Return whether a text contains a negation, or only bounds a value, as in "at most 5"."""
    return bool(_NEGATION.search(text.lower()) or excludes(text))


def excludes(text: str) -> bool:
    """Return whether a text mentions a value only to exclude or bound it, as in "not 5" or "more than 5"."""
    return _EXCLUSION.search(text.lower()) is not None


def _unit_after(sentence: str, end: int) -> str:
    """Return the known unit that follows a value, such as " cm", or "" if there is none."""
    match = _UNIT.match(sentence, end)
    unit = read_unit(match[1]) if match and sentence[end - 1 : end + 1].strip() else None
    return f" {match[1]}" if unit and unit.known else ""


def _values(sentence: str) -> list[str]:
    found = [match[0].strip(" ,;.:") + _unit_after(sentence, match.end()) for match in _CHUNK.finditer(sentence)]
    return [value for value in found if re.search(r"\d|\\[a-zA-Z]|[a-zA-Z]", value)]
