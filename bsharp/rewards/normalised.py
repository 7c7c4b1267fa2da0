r"""A grader that knows no algebra: answers are normalised as strings and numbers, and compared for equality.

It shares no code with math-verify or sympy, so that the two can be held against each other. What it does:

- LaTeX that changes nothing is dropped (`\left`, `\!`, `\text{}`, `\dfrac`, `^\circ`, `\$`, `\%`, blanks, a full stop at
  the end), units after a number and a leading `x =` too; two units that differ are two answers, and of a computation with
  numbers (`17 + 1 = 18`) the last side is read;
- numbers become exact fractions: integers, decimals (repeating ones too), `a/b`, `\frac`, mixed numbers, thousands
  separators, `4.5e33` and `4.5 \times 10^{33}`;
- tuples and intervals keep their brackets and their order; sets and lists have none (a list keeps repetitions);
- words are compared without regard to case.

For numbers it is exactly equality of values: 0.4999999 is not 0.5 and 0.333 is not 1/3. A percent sign counts as a unit: 50% is
50 and is not 0.5. It does not know that \sqrt{12} is 2\sqrt{3}: such answers are WRONG here, and show up as disagreements.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from fractions import Fraction

from bsharp.rewards.base import check_paired
from bsharp.rewards.extract import ExtractionRule, extract_answer
from bsharp.rewards.units import differ, unit_of
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["NormalisedReward", "canonical_answer"]

_MAX_CHARACTERS = 2_000
_KEPT_CHARACTERS = 200
_MAX_EXPONENT = 400  # a larger power of ten would only fill the memory
_MAX_DIGITS = 1_000

_SPACES = re.compile(r"(?<!\\)\\(?:[,;:! ]|quad\b|qquad\b|displaystyle\b|limits\b)|~|\s+")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])")
_FONTS = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf|normal)|mbox|hbox|operatorname\*?)\s*\{([^{}]*)\}"
)
_BLANK = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z]))|~")
_UNIT = re.compile(r"(.*[\d}])\s*\\(?:text|mbox|mathrm|textrm|hbox)\s*\{([^{}]*)\}\s*(?:\^\s*\{?(\d)\}?)?\s*")
_WORD_UNIT = re.compile(
    r"([^A-Za-z]*\d)(?:\s*(?=[A-Za-z]{4}|(?:[cmk]m|mi|ft|in|kg|lb|hr|min|g|[aApP]\.?[mM])(?![A-Za-z]))|\s+(?=[A-Za-z]{3})"
    r"|\s*(?=mph|kph|yds|lbs|day))([A-Za-z][\sA-Za-z./]*)(?:\^\{?(\d)\}?)?"
)
_MONEY = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "sterling"}
_REPEATING = re.compile(
    r"(?<![\d.])(?!(?<=\d,)\d{3}\.)(\d*)\.(\d*)\s*\\(?:overline|bar)\s*(?:\{\s*(\d{1,100})\s*\}|(\d))(?![\d.])"
)
_TEXT_FIRST = re.compile(r"\\(?:text|mbox|mathrm|textrm|hbox)\s*\{\s*([\d.,]*\d)(\s[^{}\d]*)\}")
_SUM = re.compile(r"[^A-Za-z\\(\[{]*\d[^A-Za-z\\\[{]*=([^=]*\d[^=]*)")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|°")
_SIGNS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
}
_SYNONYMS = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\leq(?:slant)?(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\geq(?:slant)?(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\(?:cdot|times|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
)
_SHORT_FRACTION = re.compile(r"\\frac(?:\{([^{}]*)\}|(\d|[A-Za-z]))(?:\{([^{}]*)\}|(\d|[A-Za-z]))")
_SHORT_ROOT = re.compile(r"\\sqrt([\dA-Za-z])")
_SINGLE = re.compile(r"([\^_])\{([\dA-Za-z])\}")
_AND = re.compile(r",?\s*(?:\\(?:text|mbox|mathrm)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*,?")
_LEADING = re.compile(r"^\\?[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?(?:=|\\in(?![A-Za-z]))(?=[^=])")
_MATRIX = re.compile(r"\\begin\{[pbvBV]?matrix\}(.*)\\end\{[pbvBV]?matrix\}")

_INTEGER = r"\d{1,3}(?:,\d{3})+|\d+"
_DECIMAL = re.compile(rf"(?:{_INTEGER})?(?:\.\d*)?")
_SCIENTIFIC = re.compile(r"(.*?)(?:[eE]|\*10\^)\{?([+-]?\d{1,4})\}?")
_RATIO = re.compile(r"([^/]+)/([^/]+)")
_FRACTION = re.compile(r"\\frac\{([^{}]+)\}\{([^{}]+)\}")
_MIXED = re.compile(r"(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_OPENING, _CLOSING = "([{", ")]}"


class NormalisedReward:
    """1 where the normalised answer equals the normalised gold answer, else 0; the rules are those of this module.

    UNPARSEABLE (no answer found, or neither a letter nor a digit in it): reward 0, no vote. A gold answer with neither is an
    ERROR without a reward, and so is one without a number where `extraction`, which says where the answer stands, is
    final_number.
    """

    def __init__(self, extraction: ExtractionRule = "last_box") -> None:
        self.extraction: ExtractionRule = extraction

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        pairs = zip(problems, completions, strict=True)
        return [self._grade(problem.answer, completion.text) for problem, completion in pairs]

    def _grade(self, gold: str, text: str) -> Grade:
        canonical_gold, gold_unit = _read(gold)
        numberless = self.extraction == "final_number" and not any(map(str.isdigit, canonical_gold or ""))
        if canonical_gold is None or numberless:
            missing = "nothing to compare" if canonical_gold is None else "no number"
            return Grade(GradeStatus.ERROR, None, detail=f"the gold answer {gold[:100]!r} holds {missing}")
        extracted = extract_answer(text, self.extraction)
        if extracted is None:
            return Grade(GradeStatus.UNPARSEABLE, 0.0, detail="no answer found")
        answer, unit = _read(extracted)
        if answer is None:
            return Grade(GradeStatus.UNPARSEABLE, 0.0, detail=f"{extracted[:100]!r} holds nothing to compare")
        correct = answer == canonical_gold and not differ(unit, gold_unit)
        status = GradeStatus.CORRECT if correct else GradeStatus.WRONG
        return Grade(status, float(correct), answer, exact_match=extracted == gold)


def canonical_answer(text: str) -> str | None:
    r"""The normalised form of an answer, equal for equal answers: `\dfrac{6}{4}` -> `3/2`, `\{2, 1\}` -> `{1, 2}`.

    None where the text holds neither letter nor digit, or more than 2,000 characters, or brackets nested too deeply.
    """
    return _read(text)[0]


def _read(text: str) -> tuple[str | None, str]:
    """The normalised form of an answer and the unit that it names."""
    if len(text) > _MAX_CHARACTERS or not any(character.isalnum() for character in text):
        return None, ""
    return _read_known(text) if len(text) <= _KEPT_CHARACTERS else _read_anew(text)


def _read_anew(text: str) -> tuple[str | None, str]:
    try:
        cleaned, unit = _clean(text)
        return _whole(cleaned) or None, unit
    except RecursionError:
        return None, ""


# A gold answer is read once per completion, and answers repeat; what is long seldom does.
_read_known = functools.lru_cache(maxsize=4096)(_read_anew)


def _whole(text: str) -> str:
    """The canonical form of a whole answer; values of several names keep them: `x=3, y=2` is not `x=2, y=3`."""
    parts = list(_split(text))
    names = [found[0] for part in parts if (found := _LEADING.match(part))]
    if len(names) == len(parts) == len(set(names)) > 1:
        return (
            "{"
            + ", ".join(
                sorted(name + _canonical(_LEADING.sub("", part)) for name, part in zip(names, parts, strict=True))
            )
            + "}"
        )
    if found := _SUM.fullmatch(text):
        text = found[1]
    return _canonical(_LEADING.sub("", text))


def _repeating(found: re.Match[str]) -> str:
    whole, head, tail = found[1] or "0", found[2], found[3] or found[4]
    if len(whole) + len(head) > 200:
        return found[0]
    below = (10 ** len(tail) - 1) * 10 ** len(head)
    return f"\\frac{{{int(whole + head + tail) - int(whole + head)}}}{{{below}}}"


def _without_unit(text: str) -> tuple[str, str]:
    """The text before a unit, and the unit; words that change the value are none and stay."""
    money = next((_MONEY[sign] for sign in _MONEY if text.startswith(sign) and text.count("$") < 2), "")
    text = re.sub(r"\\?\$|^\s*[€£]\s*", "", text)
    for pattern in (_UNIT, _WORD_UNIT):
        found = pattern.fullmatch(text)
        unit = unit_of(found[2], found[3] or "") if found else None
        if found and unit is not None:
            return found[1], unit or money
    return text, money


def _clean(text: str) -> tuple[str, str]:
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    text = _REPEATING.sub(_repeating, _BLANK.sub(" ", re.sub(r"(?<!\\)\\[()]|`", "", text)))
    text = _DEGREES.sub("", _SIZES.sub("", text)).strip().rstrip(".")
    text = re.sub(r"\\?%|\\text\s*\{\s*(?:percent|%|\\%)\s*\}|\bpercent\b", "", text).strip()
    text = _TEXT_FIRST.sub(r"\1\\text{\2}", _AND.sub(", ", text))
    text = re.sub(r",\\!\s*|\{,\}", ",", text)
    text = re.sub(r"^\\text\s*\{\s*[A-Za-z][A-Za-z ]*\}\s*=(?=[^=])", "", text)
    text, unit = _without_unit(text)
    text = _FONTS.sub(r"\1", text)
    text = re.sub(r"\\([dtc]?)frac\s*(\d)\s+(\d)(?!\d)", r"\\frac{\2}{\3}", text)
    # A blank between two digits is kept as a mark: "1 1/2" is a mixed number and "2 3" is not 23.
    text = re.sub(r"(?<=\d)(?:\s|\\[,; ])+(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[\d.])\s+(?=[\d.])", "␣", text)
    text = re.sub(r",\s+", ",␠", text)
    text = _SPACES.sub("", text)
    for pattern, written in _SYNONYMS:
        text = pattern.sub(written, text)
    text = _SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)
    text = _SINGLE.sub(r"\1\2", _SHORT_ROOT.sub(r"\\sqrt{\1}", text))
    return text, unit


def _canonical(text: str) -> str:
    number = _number(text.replace("␠", ""), separators="␠" not in text)
    if number is not None:
        return str(number)
    if len(parts := list(_split(text))) > 1:
        return _braced([found for part in parts for found in _values(_LEADING.sub("", part), _canonical)])
    text = text.replace("␠", "")
    if text.startswith("\\{") and text.endswith("\\}") and _closes_at_end(text[1:]):
        return _braced({found for part in _split(text[2:-2]) for found in _values(part, _element)})
    if text.count("\\pm") == 1:
        return _braced(_values(text, _element))
    if matrix := _MATRIX.fullmatch(text):
        rows = matrix[1].removesuffix("\\\\").split("\\\\")
        return "[" + "; ".join(", ".join(_element(cell) for cell in row.split("&")) for row in rows) + "]"
    if text[:1] in tuple("([") and text[-1:] in tuple(")]") and _closes_at_end(text):
        inside = list(_split(text[1:-1]))
        if len(inside) > 1:
            return text[0] + ", ".join(_element(part) for part in inside) + text[-1]
        return _canonical(text[1:-1]) if text[0] + text[-1] == "()" else text
    if "\\cup" in text:
        return " u ".join(sorted(_canonical(part) for part in text.split("\\cup")))
    if text.startswith("{") and _closes_at_end(text):
        return _canonical(text[1:-1])
    return text.casefold() if re.fullmatch(r"[^\W\d_]{2,}", text) else text


def _element(text: str) -> str:
    """An element of a tuple or a set: there a comma separates elements and never thousands."""
    number = _number(text.replace("␠", ""), separators=False)
    return str(number) if number is not None else _canonical(text)


def _values(text: str, read: Callable[[str], str]) -> list[str]:
    r"""Both values of `a \pm b`, else the one."""
    signs = "+-" if text.count("\\pm") == 1 else ""
    return [read(text.replace("\\pm", sign).removeprefix("+")) for sign in signs] or [read(text)]


def _braced(items: Collection[str]) -> str:
    return "{" + ", ".join(sorted(items)) + "}"


def _split(text: str) -> Iterator[str]:
    """The parts of `text` between commas outside all brackets."""
    depth, part = 0, ""
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if character in ",;" and depth == 0:
            yield part
            part = ""
        elif not (character == "␠" and not part):
            part += character
    yield part


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by its last character."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return place == len(text) - 1
    return False


def _number(text: str, separators: bool = True) -> Fraction | None:
    """The exact value of a number however it is written, or None."""
    sign = -1 if text.startswith("-") else 1
    text = text[1:] if text[:1] in ("-", "+") else text
    if len(text) > _MAX_DIGITS or (not separators and "," in text):
        return None
    for read in (_decimal, _scientific, _mixed, _ratio):
        value = read(text)
        if value is not None:
            return sign * value
    return None


def _decimal(text: str) -> Fraction | None:
    if not _DECIMAL.fullmatch(text) or not any(map(str.isdigit, text)):
        return None
    return Fraction(text.replace(",", "").rstrip(".") or "0")


def _scientific(text: str) -> Fraction | None:
    found = _SCIENTIFIC.fullmatch(text) or _SCIENTIFIC.fullmatch(f"1*{text}" if text.startswith("10^") else "")
    if not found or abs(int(found[2])) > _MAX_EXPONENT:
        return None
    mantissa = _decimal(found[1])
    return None if mantissa is None else mantissa * Fraction(10) ** int(found[2])


def _mixed(text: str) -> Fraction | None:
    whole, blank, rest = text.partition("␣")
    if blank and whole.isdigit() and re.fullmatch(r"\d+/\d+", rest):
        return _sum(whole, _ratio(rest))
    found = _MIXED.fullmatch(text)
    return _sum(found[1], _quotient(found[2], found[3], _decimal)) if found else None


def _sum(whole: str, part: Fraction | None) -> Fraction | None:
    return None if part is None else int(whole) + part


def _ratio(text: str) -> Fraction | None:
    found = _FRACTION.fullmatch(text) or _RATIO.fullmatch(text)
    return _quotient(found[1], found[2], _number) if found and "␣" not in text else None


def _quotient(above: str, below: str, read: Callable[[str], Fraction | None]) -> Fraction | None:
    numerator, denominator = read(above), read(below)
    return None if numerator is None or not denominator else numerator / denominator
