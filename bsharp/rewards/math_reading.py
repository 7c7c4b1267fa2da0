r"""Reading an answer: its structure (lists, sets, tuples, intervals) here, its expressions by math-verify's parser.

math-verify turns a whole answer into one sympy object, and what sympy's objects do not hold is lost: which brackets stood
around two numbers, how often a value was listed, whether a symbol was a capital. Read here are

- lists `1, 2 and 3` (unordered, repetitions count), sets `\{1,2\}`, tuples and intervals with their brackets, unions,
  `a \pm b` as the list of both values, inequalities in one symbol as intervals;
- a leading `x =` or `f(x) =`, kept by name; a percent sign; a unit after a number;
- numbers: thousands separators, `4.5e33`, mixed numbers; decimals, repeating ones too, as exact fractions;
- words: in `\text{…}` or of four letters without regard to case, shorter ones letter by letter.

What the parser would misread is not read: two numbers side by side, dots, undefined values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bsharp.rewards.units import is_known_unit, unit_of

__all__ = ["Expression", "Group", "Named", "Reading", "Words", "as_text", "read", "split_top"]


@dataclass(frozen=True)
class Expression:
    """One mathematical value: a sympy object with exact numbers."""

    value: Any
    percent: bool = False
    unit: str = ""  # or the base of a number: 52_8; with a leading "!" words that change the value: 5 million
    word: str = ""  # letters as they stand: as a word NO is not ON, and as a product it is


@dataclass(frozen=True)
class Words:
    """An answer in words, in small letters without blanks."""

    text: str


@dataclass(frozen=True)
class Named:
    """`name = item`."""

    name: str
    item: Reading


@dataclass(frozen=True)
class Group:
    """Several readings. `kind` is list, set, tuple or union; `brackets` are those around a tuple or an interval of two."""

    kind: str
    items: tuple[Reading, ...]
    brackets: str = ""


Reading = Expression | Words | Named | Group

_SIGNS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "°": "",
    "∪": r"\cup ",
    "±": r"\pm ",
}
_SIGNS |= {"≤": r"\le ", "≥": r"\ge ", "\n": " ", "\t": " "}
_REWRITTEN = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        (r"(?<!\\)\$|(?<!\\)\\[()]|`", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])", ""),
        (r"\\(?:displaystyle|limits)(?![A-Za-z])", ""),
        (r"(?<=\d)(?:,\\!\s*|\{,\}|\\[,;: ]|~|\s)(?=\d{3}(?![\d/]))", ""),
        (r"(?<!\\)\\!\s*", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s+(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\(?:mbox|hbox|mathrm|mathit|mathsf|text(?:bf|it|rm|sf|normal))(?![A-Za-z])", r"\\text"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?(?![A-Za-z])", ""),
        (r"\\leq(?:slant)?(?![A-Za-z])", r"\\le"),
        (r"\\geq(?:slant)?(?![A-Za-z])", r"\\ge"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\langle(?![A-Za-z])", "⟨"),
        (r"\\rangle(?![A-Za-z])", "⟩"),
        (r"\\(?:mathbf|boldsymbol|underline|mathbin)\s*\{([^{}]*)\}", r"\1"),
        (r"\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"^\*\*(.*)\*\*$", r"\1"),
        (r"\\text\s*\{\s*\}", " "),
        (r"\\text\s*\{\s*(?=[\d.]*\d\s+[A-Za-z])([\d.]+)([^{}\d]*)\}", r"\1\\text{\2}"),
        (r"^\\text\s*\{\s*([A-Za-z][A-Za-z ]*?)\s*\}\s*=\s*", r"\1="),
        (r"\\text\s*\{\s*(?:percent|\\?%)\s*\}|\bper\s?cent\b", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*,?", ", "),
        (r"\\text\s*\{\s*e\s*\}", "e"),
        (r"\bnp\.", ""),
        (r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sin|cos|tan|log|ln|exp)(?=\s*[({])", r"\\\1"),
    )
)
_WHOLE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_TEXT_UNIT = re.compile(r"(.*[\w})\]])\s*\\text\s*\{([^{}]*)\}\s*(?:\^\s*\{?(-?\d)\}?)?")
_WORD_UNIT = re.compile(r"([^A-Za-z]*\d)(\s*)([A-Za-z][A-Za-z ./]*)(?:\^\s*\{?(\d)\}?)?")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{\w+\}|_\w)?'?(?:\([A-Za-z](?:,[A-Za-z])*\))?")
_WORD = re.compile(r"[^\W\d_]{4,}(?:[ '-][^\W\d_]+)*")
_LETTERS = re.compile(r"(?:\\(?:triangle|angle)\s*)?[A-Za-z]{2,}")
_REPEATING = re.compile(
    r"(?<![\d.])(?!(?<=\d,)\d{3}\.)(\d*)\.(\d*)\s*\\(?:overline|bar|dot)(?![A-Za-z])\s*(?:\{\s*(\d{1,100})\s*\}|(\d))(?![\d.])"
)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min", "gcd", "lcm", "det", "lim", "mod"}
)
_THOUSANDS = re.compile(r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")
_IN_BASE = re.compile(r"(\d+)_\{?(\d+)\}?")
_PLAIN_NUMBER = re.compile(r"-?\d{1,100}(?:\.\d{1,100})?")
_PLAIN_FRACTION = re.compile(r"(-?)(?:\\frac\{(\d{1,100})\}\{(\d{1,100})\}|(\d{1,100})/(\d{1,100}))")
_RELATION = re.compile(r"<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\lt(?![A-Za-z])|\\gt(?![A-Za-z])")
_SYMBOL = re.compile(r"\\?[A-Za-z]+")
_UNREADABLE = re.compile(
    r"\\[lc]?dots|\.\.\.|…|\d\s+\d|\\(?:approx|sim|neq?|implies|mid)(?![A-Za-z])|\||[?!]{2}"
    r"|[\d.]\s*\\(?:overline|bar|dot)(?![A-Za-z])"
)
_MONEY = {"\\$": "dollar", "€": "euro", "£": "sterling"}
_CLOSER = {"(": ")]", "[": ")]", "⟨": "⟩"}


def as_text(text: str) -> str:
    """The answer as a string without what changes nothing: equal strings are equal answers."""
    cleaned = _without_thousands(_clean(text))
    whole = _WHOLE_TEXT.fullmatch(cleaned)
    if whole or _WORD.fullmatch(cleaned):
        return _words(whole[1] if whole else cleaned)
    cleaned = re.sub(r"(?<=[\d.])\s+(?=[\d.])", "␣", cleaned)  # 1 8 is not 18
    cleaned = re.sub(r"([\^_])\{(\w)\}", r"\1\2", re.sub(r"\s+(?![A-Za-z])|(?<![A-Za-z])\s+", "", cleaned))
    return re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", cleaned)


def read(text: str) -> tuple[Reading, ...]:
    """What an answer may mean, the likeliest first; empty where it cannot be read.

    There is more than one reading only where commas may be thousands separators or may part values: `100,200`.
    """
    cleaned = _clean(text)
    if not any(map(str.isalnum, cleaned)):
        return ()
    found = (_read(version) for version in dict.fromkeys((_without_thousands(cleaned), cleaned)))
    return tuple(reading for reading in found if reading is not None)


def _clean(text: str) -> str:
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    text = _REPEATING.sub(_repeating, text)
    for pattern, written in _REWRITTEN:
        text = pattern.sub(written, text)
    text = text.strip()
    text = re.sub(r"(?<=\d)\.(?![\d.])", "", text.rstrip(". ,;") if not text.endswith("...") else text)
    if text.startswith("{") and _matching(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _repeating(found: re.Match[str]) -> str:
    r"""A repeating decimal as an exact fraction: `0.3\overline{6}` is (36 - 3)/90."""
    whole, head, tail = found[1] or "0", found[2], found[3] or found[4]
    if len(whole) + len(head) > 200:
        return found[0]
    below = (10 ** len(tail) - 1) * 10 ** len(head)
    return f"\\frac{{{int(whole + head + tail) - int(whole + head)}}}{{{below}}}"


def _without_thousands(text: str) -> str:
    """Within brackets commas part values: (100,200) holds two."""
    return text if re.search(r"[(\[]|\\\{", text) else _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text)


def _words(text: str) -> str:
    return re.sub(r"[\s().,;:'\"-]+", "", text).casefold()


def split_top(text: str, separators: str = ",;") -> list[str]:
    """The parts of `text` between separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{⟨") - (character in ")]}⟩")
        if depth == 0 and character in separators:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def _matching(text: str, begin: int) -> int:
    """Where the bracket that opens at `begin` closes; -1 where it does not."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] in "([{⟨") - (text[place] in ")]}⟩")
        if depth == 0:
            return place
    return -1


def _read(text: str) -> Reading | None:
    text = text.strip()
    parts = [part for part in split_top(text) if part]
    if len(parts) > 1:
        return _group("list", parts)
    if not parts:
        return None
    return _read_one(parts[0])


def _group(kind: str, parts: list[str], brackets: str = "") -> Group | None:
    items: list[Reading] = []
    for part in parts:
        item = _read_one(part)
        if item is None:
            return None
        spread = kind in ("list", "set") and isinstance(item, Group) and item.kind == "list"
        items.extend(item.items if spread and isinstance(item, Group) else [item])
    return Group(kind, tuple(items), brackets)


def _read_one(text: str) -> Reading | None:
    text = re.sub(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*", "", text).strip()
    unions = re.split(r"\\cup(?![A-Za-z])", text)
    if len(unions) > 1:
        return _group("union", unions)
    if text.startswith("\\{") and text.endswith("\\}") and _matching(text, 1) == len(text) - 1:
        return _group("set", split_top(text[2:-2]))
    if text[:1] in _CLOSER and text[-1:] in _CLOSER[text[0]] and _matching(text, 0) == len(text) - 1:
        parts = split_top(text[1:-1])
        if len(parts) > 1:
            return _group("tuple", parts, text[0] + text[-1])
        if text[0] + text[-1] == "()":
            return _read_one(parts[0])
    whole = _WHOLE_TEXT.fullmatch(text)
    if whole and not re.fullmatch(r"[\s\d.,/+-]*\d[\s\d.,/+-]*", whole[1]):
        return Words(_words(whole[1])) if _words(whole[1]) else None
    if _WORD.fullmatch(text):
        return Words(_words(text))
    if whole:
        text = whole[1]
    if _RELATION.search(text):
        return _interval(text) or _expression(text)
    # A chain of equations ends in its value, if it starts with a name or a number.
    left, *values = split_top(text, "=")
    if values and all(values):
        if _NAME.fullmatch(left.replace(" ", "")):
            item = _read_one(values[-1])
            return None if item is None else Named(left.replace(" ", ""), item)
        if re.fullmatch(r"[^A-Za-z]*\d[^A-Za-z]*", left):
            return _read_one(values[-1])
    return _plus_minus(text)


def _plus_minus(text: str) -> Reading | None:
    if text.count(r"\pm") != 1:
        return None if r"\pm" in text else _expression(text)
    both = [_expression(text.replace(r"\pm", sign)) for sign in "+-"]
    first, second = both
    return None if first is None or second is None else Group("list", (first, second))


def _interval(text: str) -> Group | None:
    """`2 < x \\le 5` as (2, 5], `x > 5` as (5, oo); None for what is not an inequality in one symbol."""
    signs = [sign.lstrip("\\").replace("lt", "<").replace("gt", ">") for sign in _RELATION.findall(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    if any(sign in (">", "ge") for sign in signs):
        if any(sign in ("<", "le") for sign in signs):
            return None
        signs, sides = [{">": "<", "ge": "le"}[sign] for sign in reversed(signs)], sides[::-1]
    opening, closing = ["(" if signs[0] == "<" else "["], [")" if signs[-1] == "<" else "]"]
    if len(sides) == 2:
        if _SYMBOL.fullmatch(sides[0]):
            low, high, brackets = "-\\infty", sides[1], "(" + closing[0]
        elif _SYMBOL.fullmatch(sides[1]):
            low, high, brackets = sides[0], "\\infty", opening[0] + ")"
        else:
            return None
    elif len(sides) == 3 and _SYMBOL.fullmatch(sides[1]):
        low, high, brackets = sides[0], sides[2], opening[0] + closing[0]
    else:
        return None
    ends = [_expression(low), _expression(high)]
    first, second = ends
    return None if first is None or second is None else Group("tuple", (first, second), brackets)


def _expression(text: str) -> Expression | None:
    text = text.strip()
    percent = text.endswith("\\%")
    money = next((_MONEY[sign] for sign in _MONEY if text.startswith(sign)), "")
    text = re.sub(r"^\\\$\s*|^[€£]\s*|\s*\\%$", "", text).replace("\\$", "")
    text, unit = _without_unit(text)
    unit = unit or money
    if in_base := _IN_BASE.fullmatch(text):
        text, unit = in_base[1], f"base {in_base[2]}"
    text = _SCIENTIFIC.sub(
        r"(\1 \\times 10^{\2})" if _SCIENTIFIC.fullmatch(text) is None else r"\1 \\times 10^{\2}", text
    )
    text = re.sub(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}", text)
    if not text or _UNREADABLE.search(text):
        return None
    word = re.sub(r"\s+", "", text) if _LETTERS.fullmatch(text) else ""
    value = _parse(text)
    return None if value is None else Expression(value, percent, unit, word)


def _without_unit(text: str) -> tuple[str, str]:
    found = _TEXT_UNIT.fullmatch(text)
    if found and any(map(str.isalnum, found[1])):
        return found[1].strip(), _unit(found[2], found[3])
    found = _WORD_UNIT.fullmatch(text)
    if found:
        first, *others = re.split(r"[ /]", found[3].strip())
        long = len(first) >= 3 and first not in _FUNCTIONS and (found[2] or len(first) > 3 or is_known_unit(first))
        noon = re.fullmatch(r"[aApP]\.?[mM]\.?", found[3].strip())
        if long or noon or (not others and len(first) == 2 and is_known_unit(first)):
            return found[1].strip(), _unit(found[3], found[4])
    return text, ""


def _unit(words: str, power: str | None) -> str:
    known = unit_of(words, power or "")
    return f"!{_words(words)}{power or ''}" if known is None else known


def _parse(text: str) -> Any | None:
    """A sympy object with exact numbers, or None where the parser cannot read the text."""
    # Most answers are plain numbers or fractions of them, and parsing those takes a hundred times as long.
    if _PLAIN_NUMBER.fullmatch(text):
        from sympy import Rational

        return Rational(text)
    if (found := _PLAIN_FRACTION.fullmatch(text)) and int(below := found[3] or found[5]):
        from sympy import Rational

        return Rational(int(found[1] + (found[2] or found[4])), int(below))
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from sympy import Basic, Derivative, Float, MatrixBase, Rational, Symbol, nan, zoo
    from sympy.core.function import AppliedUndef

    # Units are taken off above: the parser's own list holds single letters, and would turn "t/2 t" into "t/2".
    tidy = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        parsed = latex2sympy(
            normalize_latex(text, tidy),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if not isinstance(parsed, (Basic, MatrixBase)) or parsed.has(zoo, nan):
            return None
        exact: dict[Any, Any] = {number: Rational(str(number)) for number in parsed.atoms(Float)}
        # Evaluated, dx/dt would be 0, and f(x) could not be given a value: they are symbols of their own.
        opaque = parsed.atoms(Derivative, AppliedUndef)
        return parsed.xreplace(exact | {item: Symbol(str(item), real=True) for item in opaque if _is_opaque(item)})
    except Exception:
        # The text is a model's: whatever it makes the parser raise, it cannot be read.
        return None


def _is_opaque(item: Any) -> bool:
    """An undefined function, or the derivative of a symbol."""
    return not hasattr(item, "expr") or bool(item.expr.is_Symbol or not item.expr.args)
