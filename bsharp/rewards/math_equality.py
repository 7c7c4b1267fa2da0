r"""Whether two readings are the same answer, and the canonical form by which answers vote.

Numbers are equal or they are not: fractions exactly; other constants where they agree to 50 digits, relative to their size, and a
decimal of many digits never equals an irrational number. Expressions in symbols are equal where they agree at several points
of either sign; equations where one is a multiple of the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bsharp.rewards.math_reading import Expression, Group, Named, Reading, Words
from bsharp.rewards.units import differ

__all__ = ["canonical", "equal"]

_DIGITS = 50
_TOLERANCE_DIGITS = 40
_DIGITS_OF_A_DECIMAL = 10**25  # a fraction with a larger denominator may be a decimal cut from an irrational number
_POINTS = 5


def equal(gold: Reading, answer: Reading) -> bool:
    """Whether `answer` is `gold`. A name may be left out (`x = 5` and `5`); two names must be the same."""
    if isinstance(gold, Named) and isinstance(answer, Named):
        return gold.name == answer.name and equal(gold.item, answer.item)
    if isinstance(gold, Named):
        if isinstance(answer, Expression) and _is_equation(answer.value):
            return _same_equation(_named_equation(gold), answer.value)
        return equal(gold.item, answer)
    if isinstance(answer, Named):
        if isinstance(gold, Expression) and _is_equation(gold.value):
            return _same_equation(gold.value, _named_equation(answer))
        return equal(gold, answer.item)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _word(gold) == _word(answer) is not None
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _equal_groups(gold, answer)
    return _equal_expressions(gold, answer)


def canonical(reading: Reading) -> str:
    """The form by which answers vote: equal for the ways to write one answer that are recognised without comparing."""
    if isinstance(reading, Named):
        return canonical(reading.item)  # `x = 3` votes with `3`
    if isinstance(reading, Words):
        return reading.text
    if isinstance(reading, Expression):
        value = reading.value
        if reading.word and not _is_product(reading.word):
            return reading.word.casefold()
        with contextlib.suppress(Exception):
            value = value.doit()
        return f"{value} {reading.unit[1:]}" if reading.unit[:1] == "!" else str(value)
    parts = [canonical(item) for item in reading.items]
    if reading.kind == "tuple":
        return reading.brackets[0] + ", ".join(parts) + reading.brackets[1]
    if reading.kind == "union":
        return " u ".join(sorted(parts))
    return "{" + ", ".join(sorted(set(parts) if reading.kind == "set" else parts)) + "}"


def _word(reading: Reading) -> str | None:
    """The words of a reading; a single symbol counts as a word, and so do letters side by side: (C) and C, Yes."""
    if isinstance(reading, Words):
        return reading.text
    if isinstance(reading, Expression) and reading.word:
        return reading.word.casefold()
    if isinstance(reading, Expression) and getattr(reading.value, "is_Symbol", False):
        return str(reading.value).casefold()
    return None


def _is_product(word: str) -> bool:
    """Two small letters side by side are a product: xy is yx. Three are more often a word."""
    return len(word) == 2 and word.islower()


def _equal_groups(gold: Reading, answer: Reading) -> bool:
    ours = gold if isinstance(gold, Group) else Group("set", (gold,))
    theirs = answer if isinstance(answer, Group) else Group("set", (answer,))
    if "tuple" in (ours.kind, theirs.kind):
        if ours.kind != theirs.kind or len(ours.items) != len(theirs.items):
            return False
        # Two numbers may be an interval, where the brackets say which ends belong to it; longer ones are written (…) or […].
        plain = {ours.brackets, theirs.brackets} <= {"()", "[]", "⟨⟩"}
        as_vectors = plain and (len(ours.items) > 2 or "⟨⟩" in (ours.brackets, theirs.brackets))
        if ours.brackets != theirs.brackets and not as_vectors:
            return False
        return all(equal(g, a) for g, a in zip(ours.items, theirs.items, strict=True))
    if "union" in (ours.kind, theirs.kind):
        if ours.kind != theirs.kind:
            return False
        known = _as_set(ours), _as_set(theirs)
        if None not in known:
            return bool(known[0] == known[1])
    if "set" in (ours.kind, theirs.kind):
        return _matched(_distinct(ours.items), _distinct(theirs.items))
    return _matched(ours.items, theirs.items)


def _distinct(items: Sequence[Reading]) -> list[Reading]:
    kept: list[Reading] = []
    for item in items:
        if not any(equal(other, item) for other in kept):
            kept.append(item)
    return kept


def _matched(golds: Sequence[Reading], answers: Sequence[Reading]) -> bool:
    """Whether the two can be paired off in some order. Greedy is enough, because equality is transitive."""
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for gold in golds:
        partner = next((place for place, answer in enumerate(left) if equal(gold, answer)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _as_set(union: Group) -> Any | None:
    """A union of intervals as a sympy set, or None where it is made of something else."""
    from sympy import Interval, Union

    parts = []
    for item in union.items:
        if not (isinstance(item, Group) and item.kind == "tuple" and len(item.items) == 2):
            return None
        ends = [end.value for end in item.items if isinstance(end, Expression) and not end.value.free_symbols]
        if len(ends) < 2:
            return None
        low, high = (end.doit() for end in ends)
        if (low.is_infinite and item.brackets[0] == "[") or (high.is_infinite and item.brackets[1] == "]"):
            return None
        with contextlib.suppress(Exception):
            parts.append(Interval(low, high, item.brackets[0] == "(", item.brackets[1] == ")"))
    return Union(*parts) if len(parts) == len(union.items) else None


def _equal_expressions(gold: Expression, answer: Expression) -> bool:
    if differ(gold.unit, answer.unit) or (gold.unit != answer.unit and "!" in (gold.unit[:1], answer.unit[:1])):
        return False
    if gold.word and answer.word and not (_is_product(gold.word) and _is_product(answer.word)):
        return gold.word == answer.word
    if equal_values(gold.value, answer.value):
        return True
    if gold.percent == answer.percent:
        return False
    from sympy import Rational

    hundredth = Rational(1, 100)
    ours = gold.value * hundredth if gold.percent else gold.value
    theirs = answer.value * hundredth if answer.percent else answer.value
    return equal_values(ours, theirs)


def equal_values(gold: Any, answer: Any) -> bool:
    """Whether two sympy objects are the same value."""
    from sympy import MatrixBase, Rational

    if gold == answer:
        return True
    gold, answer = _done(gold), _done(answer)
    if isinstance(gold, Rational) and isinstance(answer, Rational):
        return bool(gold == answer)
    if gold == answer:
        return True
    if isinstance(gold, MatrixBase) or isinstance(answer, MatrixBase):
        if not (isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase) and gold.shape == answer.shape):
            return False
        return all(equal_values(g, a) for g, a in zip(gold.flat(), answer.flat(), strict=True))
    if _is_equation(gold) or _is_equation(answer):
        return _is_equation(gold) and _is_equation(answer) and _same_equation(gold, answer)
    if not (_is_scalar(gold) and _is_scalar(answer)):
        return _verified(gold, answer)
    if gold.is_infinite or answer.is_infinite:
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols:
        return _same_constant(gold, answer)
    if getattr(gold, "is_Symbol", False) and getattr(answer, "is_Symbol", False):
        return bool(str(gold) == str(answer))
    seen = 0
    for point in _points(symbols):
        same = _close(gold, answer, point)
        if same is False:
            return False
        seen += same is True
    return seen >= 2 or _verified(gold, answer)


def _done(value: Any) -> Any:
    try:
        return value.doit()
    except Exception:
        return value


def _is_scalar(value: Any) -> bool:
    from sympy import Expr

    return isinstance(value, Expr)


def _same_constant(gold: Any, answer: Any) -> bool:
    if _close(gold, answer) is not True:
        return False
    for one, other in ((gold, answer), (answer, gold)):
        # A decimal may be cut from an irrational number after more digits than are compared.
        if one.is_Rational and not other.is_Rational and one.q > _DIGITS_OF_A_DECIMAL:
            return bool(other.is_rational) and bool((one - other).equals(0))
    return True


def _close(gold: Any, answer: Any, point: Any = None) -> bool | None:
    """Whether two values agree to 40 digits, relative to the larger one; None where they have no value at this point."""
    from sympy import Abs, Float

    first, second, gap = (_number(value, point) for value in (gold, answer, gold - answer))
    if first is None or second is None or gap is None:
        return None
    size, gap = max(Abs(first), Abs(second)), Abs(gap)
    limit = Float(10, _DIGITS) ** -_TOLERANCE_DIGITS
    # A hidden zero such as sqrt(2)**2 - 2 has no leading digits: it is compared with the size 1 of its parts.
    return bool(gap <= limit * size) or bool(size < limit and gap < limit and 0 in (first, second))


def _number(value: Any, point: Any) -> Any | None:
    """A value to 50 digits, or None where there is none."""
    from sympy import nan, zoo

    found = value.evalf(_DIGITS, subs=point)
    return found if found.is_number and found.is_finite is not False and not found.has(nan, zoo) else None


def _points(symbols: Sequence[Any]) -> list[dict[Any, Any]]:
    """Fixed points without any relation between their coordinates, half of them with a sign changed."""
    from sympy import Rational

    points = []
    for number in range(_POINTS):
        point = {}
        for place, symbol in enumerate(symbols):
            size = Rational(7919 * (number + 2) + 104729 * (place + 1), 86243 + 31 * number)
            point[symbol] = -size if (number >> (place % 2)) % 2 and number < 4 else size
        points.append(point)
    return points


def _is_equation(value: Any) -> bool:
    from sympy import Eq

    return isinstance(value, Eq)


def _named_equation(named: Named) -> Any:
    from sympy import Eq, Symbol

    value = named.item.value if isinstance(named.item, Expression) else Symbol("?")
    return Eq(Symbol(named.name, real=True), value, evaluate=False)


def _same_equation(gold: Any, answer: Any) -> bool:
    """Whether the two sides' differences are multiples of each other."""
    if not (_is_equation(gold) and _is_equation(answer)):
        return False
    first, second = gold.lhs - gold.rhs, answer.lhs - answer.rhs
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    names = {str(symbol) for symbol in symbols}
    if len(names) < len(symbols) or first.free_symbols != second.free_symbols:
        return False
    ratios = []
    for point in _points(symbols):
        above, below = _number(first, point), _number(second, point)
        if above is None or not below:
            return False
        ratios.append(above / below)
    return all(_close(one, other) is True for one, other in pairwise(ratios))


def _verified(gold: Any, answer: Any) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, numeric_precision=_DIGITS, timeout_seconds=None))
