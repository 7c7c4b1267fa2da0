"""Written arithmetic: columns from right to left, with the carry dropped on request, and sorted expressions."""

from __future__ import annotations

from bsharp.tasks.base import Solution

__all__ = [
    "add_columns",
    "add_step",
    "carries",
    "divide_step",
    "multiply_columns",
    "multiply_step",
    "product",
    "subtract_columns",
    "subtract_step",
    "sum_of",
]


def add_step(left: int, right: int) -> str:
    return f"{left}+{right}={left + right}"


def subtract_step(left: int, right: int) -> str:
    return f"{left}-{right}={left - right}"


def multiply_step(left: int, right: int) -> str:
    return f"{left}*{right}={left * right}"


def divide_step(left: int, right: int) -> str:
    return f"{left}/{right}={left // right}"


def add_columns(left: int, right: int, *, carrying: bool = True) -> Solution:
    """left + right column by column: `7+5=12;4+2+1=7;3+1=4`. Without carrying, the `+1` of every column is forgotten."""
    width = max(len(str(left)), len(str(right)))
    steps, answer, carry = [], 0, 0
    for place in range(width):
        x, y = left // 10**place % 10, right // 10**place % 10
        total = x + y + carry
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        last = place == width - 1
        answer += (total if last else total % 10) * 10**place
        carry = total // 10 if carrying else 0
    return Solution(tuple(steps), answer)


def carries(left: int, right: int) -> bool:
    """Whether left + right carries out of a column that is not the last."""
    return add_columns(left, right, carrying=False).answer != left + right


def subtract_columns(left: int, right: int, *, borrowing: bool = True) -> Solution:
    """left − right column by column: `12-5=7;4-1-2=1;3-1=2`. Without borrowing, the `-1` that pays it back is forgotten.

    Needs left ≥ right ≥ 0.
    """
    width = len(str(left))
    steps, answer, borrow = [], 0, 0
    for place in range(width):
        x, y = left // 10**place % 10, right // 10**place % 10
        short = x - borrow < y
        top = x + 10 * short
        value = top - borrow - y
        steps.append(f"{top}{'-1' if borrow else ''}-{y}={value}")
        answer += value * 10**place
        borrow = int(short and borrowing)
    return Solution(tuple(steps), answer)


def multiply_columns(number: int, digit: int, *, carrying: bool = True) -> Solution:
    """number · digit: `7*6=42;4*6=24;24+4=28` for 47 · 6 = 282. Without carrying, the last step is left out.

    The number is cut into its tens (any size) and its units; the carry must not be 0.
    """
    tens, units = divmod(number, 10)
    carry, last_digit = divmod(units * digit, 10)
    steps = [multiply_step(units, digit), multiply_step(tens, digit)]
    head = tens * digit
    if carrying:
        steps.append(add_step(head, carry))
        head += carry
    return Solution(tuple(steps), head * 10 + last_digit)


def sum_of(*terms: int | str) -> str:
    """The sorted sum of the terms as text: a content key that does not depend on their order."""
    return "+".join(sorted(map(str, terms)))


def product(*factors: int | str) -> str:
    """The sorted product of the factors as text."""
    return "*".join(sorted(map(str, factors)))
