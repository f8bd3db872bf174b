"""Final answers: where a text says its own, and when two of them are the same.

`extract` finds the answer as it is written; `canonical` turns it into one text for all ways to write it, so that
votes count equal answers together; `equivalent` also tries identities that have no normal form. What counts as equal
follows the graders of the MATH data set (Hendrycks et al. 2021, arXiv:2103.03874; Lewkowycz et al. 2022,
arXiv:2206.14858): 1,234 = 1234.0, \\frac{1}{2} = 1/2 = 0.5, $5 = 5 dollars, 50\\% = 50, 90^\\circ = 90, x=5 is 5,
(A) is A.
Numbers are exact: 0.333 is not 1/3. Nothing is ever evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from .expressions import NotAnExpression, Value, identical, parse, render

# Extraction --------------------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_SAYS = re.compile(
    r"\banswer\b(?:\s+(?:to|for)\b[^.\n:=]{0,80})?\s*(?:is|:|=)\s*:?\s*(\S.*)|^answer +(\S+) *$",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def boxed(text: str) -> str | None:
    """What the last closed \\boxed{...} holds, braces inside it included; None if there is none."""
    for match in reversed(list(_BOX.finditer(text))):
        if text[match.end() : match.end() + 1] == "{":
            end = _closing(text, match.end())
            if end is not None:
                return text[match.end() + 1 : end].strip()
        elif bare := re.match(r"[^\s${}\\]+", text[match.end() :]):  # \boxed 5
            return bare[0].rstrip(".,;")
    return None


def after_hashes(text: str) -> str | None:
    """What the last line `#### x` says, as GSM8K writes answers."""
    found = _HASHES.findall(text)
    return found[-1] if found else None


def said(text: str) -> str | None:
    """What the last `the answer is x` says, up to the end of the sentence; or the last line `answer x`."""
    found = [sentence or line for sentence, line in _SAYS.findall(text.replace("**", ""))]
    if not found:
        return None
    answer = re.split(r"[.;!?](?:\s|$)|\s(?:because|since)\b", found[-1], maxsplit=1)[0].strip(" ,*")
    formula = re.match(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", answer)
    return (next(group for group in formula.groups() if group) if formula else answer) or None


def extract(text: str) -> str | None:
    """The final answer of a completion as it is written: \\boxed{x}, else `#### x`, else `the answer is x`."""
    for find in (boxed, after_hashes, said):
        answer = find(text)
        if answer:
            return answer
    return None


def code(text: str) -> str | None:
    """The program in a Markdown text: its first fenced block that defines something, else its first; or None."""
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in ("", "python", "py", "python3")]
    defining = [body for body in blocks if re.search(r"^(?:def|class|async def) ", body, re.MULTILINE)]
    return next(iter(defining or blocks), None)


def _closing(text: str, opening: int) -> int | None:
    """The index of the brace that closes the one at ``opening``."""
    depth = 0
    for index in range(opening, len(text)):
        if text[index] in "{}" and text[index - 1 : index] != "\\":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return index
    return None


# Normalisation -----------------------------------------------------------------------------------------------

_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:!> ]|quad\b|qquad\b|displaystyle\b|limits\b|left\b|right\b|[bB]igg?[lrm]?\b)|~"
)
_STYLED = re.compile(r"\\(?:text|text(?:bf|it|rm|sf)|math(?:rm|bf|it|sf)|mbox|operatorname)\b\s*\{([^{}]*)\}")
_SHORT_UNITS = "cm|mm|km|kg|mg|ml|mL|ft|in|lb|oz|hr|am|pm"
# Words after a number; one character class after the other, so that no text takes long to match. 2xy is no unit.
_UNIT = (
    rf"(?:\s*(?:[%\u00b0\u20ac\u00a3\u00a2]|(?:{_SHORT_UNITS}|mph|degrees?)\b)"
    r"|\s+(?!(?:and|or|sqrt|cbrt|sin|cos|tan|log|exp)\b)[a-zA-Z]{3,})(?:[a-zA-Z\s/.]|\^\{?-?[1-9]\}?)*"
)
_PLAIN = r"[-+]?\s*(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/", "\u03c0": "\\pi ",
    "\u221e": "\\infty ", "\u00b2": "^2", "\u00b3": "^3", "\u221a": "\\sqrt ", "\u2264": "\\le ", "\u2265": "\\ge ",
    "\u2260": "\\ne ", "\u222a": "\\cup ", "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00b1": "\\pm ",
    "\u2208": "\\in ",
}  # fmt: skip
_RELATIONS = {
    "\\leq": "<=",
    "\\le": "<=",
    "\\geq": ">=",
    "\\ge": ">=",
    "\\neq": "!=",
    "\\ne": "!=",
    "\\lt": "<",
    "\\gt": ">",
}
_LONGEST = 2000


@lru_cache(maxsize=1 << 14)
def canonical(answer: str) -> str:
    """One text for all ways to write an answer; lower case. Text that is no expression is only tidied up."""
    if len(answer) > _LONGEST:
        return " ".join(answer.split()).lower()
    return _canonical(_tidy(answer), 0)


def equivalent(one: str, other: str) -> bool:
    """Whether two answers are the same: in canonical form, or element by element as an identity."""
    if canonical(one) == canonical(other):
        return True
    if max(len(one), len(other)) > _LONGEST:
        return False
    return _same(_tidy(one), _tidy(other))


def _tidy(answer: str) -> str:
    """The answer without layout, dollar signs, units and what stands before an equals sign."""
    text = answer.strip()
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\\[tdc]frac(?![a-zA-Z])", r"\\frac", text)
    text = text.replace("{,}", ",").replace("\\$", "").replace("$", "")
    text = re.sub(r"(?<=\d)\\[,! ](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d),\\!(?=\d{3}(?!\d))", ",", text)
    text = _SPACING.sub(" ", text)
    text = text.replace("\\{", "\x01").replace("\\}", "\x02")
    text = re.sub(r"\^\s*(?:\\circ\b|\{\s*\\circ\s*\})|\\degrees?\b", " ", text)
    text = text.replace("\\lbrace", "\x01").replace("\\rbrace", "\x02").replace("\\%", "%").replace("\\_", "_")
    text = re.sub(r"0?\.(\d*)\\overline\s*\{(\d+)\}", _repeating, text)
    text = _without_units(text)
    while (plain := _STYLED.sub(r" \1 ", text)) != text:
        text = plain
    text = " ".join(text.split()).strip(" .,;:*").strip()
    text = re.sub(rf"^({_PLAIN}){_UNIT}$", r"\1", text)
    named = re.fullmatch(r"(?:[a-zA-Z]|[a-zA-Z]\([a-zA-Z]\)|\\[a-z]+)\s*(?:=|\\in\b)\s*([^=]+)", text)
    return (named[1] if named else text).strip()


def _without_units(text: str) -> str:
    """5\\text{ cm}^2 is 5: styled text after a digit or a brace is a unit unless it says `and` or `or`."""
    unit = (
        r"(?<=[\d})%])\s*\\(?:text|mathrm|mbox|textrm)\s*\{(?!\s*(?:and|or)\b)[^{}]*\}(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
    )
    return re.sub(rf"{unit}\s*\.?$", "", text)


def _repeating(match: re.Match[str]) -> str:
    still, period = match[1], match[2]
    nines = (10 ** len(period) - 1) * 10 ** len(still)
    return f"\\frac{{{int(still + period) - int(still or 0)}}}{{{nines}}}"


def _canonical(text: str, depth: int) -> str:
    opened = _structure(text) if depth < 8 else None
    if opened is not None:
        kind, parts = opened
        made = [_canonical(part, depth + 1) for part in parts]
        return _join(kind, sorted(made) if kind in ("{}", "U") else made)
    value = _value(text)
    if value is not None:
        return render(value)
    for latex, sign in _RELATIONS.items():
        text = re.sub(re.escape(latex) + r"\b", sign, text)
    text = re.sub(r"\s*([^\w\s])\s*", r"\1", text.replace("\x01", "{").replace("\x02", "}").lower())
    return " ".join(text.split())


def _same(one: str, other: str, depth: int = 0) -> bool:
    left, right = _structure(one), _structure(other)
    if left is not None and right is not None and depth < 8:
        (kind, parts), (other_kind, others) = left, right
        if kind != other_kind or len(parts) != len(others):
            return False
        if kind not in ("{}", "U"):
            return all(_same(a, b, depth + 1) for a, b in zip(parts, others, strict=True))
        rest = list(others)
        for part in parts:
            found = next((candidate for candidate in rest if _same(part, candidate, depth + 1)), None)
            if found is None:
                return False
            rest.remove(found)
        return True
    if left is not None or right is not None:
        return False
    a, b = _value(one), _value(other)
    if a is None or b is None:
        return _canonical(one, 8) == _canonical(other, 8)
    return identical(a, b)


def _structure(text: str) -> tuple[str, list[str]] | None:
    """A union, list, set, tuple, interval or matrix as its kind and parts; None for what is one thing."""
    matrix = re.fullmatch(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", text)
    if matrix is not None:
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        return "matrix", ["(" + ",".join(row.split("&")) + ")" for row in rows]
    if len(union := re.split(r"\\cup\b", text)) > 1:
        return "U", [part.strip() for part in union]
    if "\\pm" in text and "," not in text:
        return "{}", [text.replace("\\pm", "+", 1), text.replace("\\pm", "-", 1)]
    inside = text[1:-1]
    if text[:1] == "\x01" and text[-1:] == "\x02":
        return "{}", _split(inside)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _enclosed(text):
        parts = _split(inside)
        if len(parts) > 1:
            return text[0] + text[-1], parts
        if re.fullmatch(r"\([a-zA-Z]\)", text):
            return None
    parts = _split(re.sub(r",?\s+(?:and|or)\s+", ",", text))
    # Digits in groups of three are a number.
    if len(parts) > 1 and not re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text.replace(" ", "")):
        return "{}", parts
    return None


def _enclosed(text: str) -> bool:
    """Whether the first bracket is closed by the last one; intervals may be half open."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return index == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets; a comma in 1,234 separates thousands where all do."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{\x01") - (character in ")]}\x02")
        if character in ",;" and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] if len(parts) > 1 else parts


def _join(kind: str, parts: Sequence[str]) -> str:
    if kind == "U":
        return "U".join(parts)
    if kind == "matrix":
        return "[" + ",".join(parts) + "]"
    return kind[0] + ",".join(parts) + kind[1]


def _value(text: str) -> Value | None:
    """The expression that a text is, or None."""
    number = text.replace(" ", "")
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        text = number.replace(",", "")
    if re.fullmatch(r"[a-zA-Z]{2,}", text) and text.lower() not in ("pi",):
        return None  # a word, not a product
    mixed = re.fullmatch(r"([-+]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)", text)
    if mixed is not None:
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    text = text.replace("%", " ").replace("\\infty", "\\omega_0")
    try:
        return parse(text.strip())
    except NotAnExpression:
        return None
