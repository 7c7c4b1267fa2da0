"""`math_mini`: bare arithmetic and algebra in eleven families.

Three STANDARD families whose right strategy the base prefers, three where it prefers a systematic mistake, one RARE, one
UNSOLVED and three TRANSFER families that share a trained family's mistake. Sums and differences done in one step stay below
100; larger numbers are worked in columns.
"""

from __future__ import annotations

from typing import ClassVar

from bsharp.tasks.arithmetic import (
    add_columns,
    add_step,
    carries,
    divide_step,
    multiply_columns,
    multiply_step,
    product,
    subtract_columns,
    subtract_step,
    sum_of,
)
from bsharp.tasks.base import Family, Mode, Numbers, ProceduralTask, Role, Solution

__all__ = ["MATH_MINI"]

DIGIT = range(2, 10)


class Add(Family):
    name, role = "add", Role.STANDARD
    mode: ClassVar[Mode] = "right"
    description = "two- and three-digit addition with a carry"
    mistake_types = ("dropped_carry",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        two, three = range(10, 100), range(100, 1000)
        return {1: (two, two), 2: (three, two), 3: (three, three)}[difficulty]

    def valid(self, numbers: Numbers) -> bool:
        return carries(*numbers)

    def content(self, numbers: Numbers) -> str:
        return sum_of(*numbers)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        return "{}+{} = ?".format(*numbers)

    def solve(self, numbers: Numbers) -> Solution:
        return add_columns(*numbers)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        return add_columns(*numbers, carrying=False)


class AddLong(Add):
    name, role, mode = "add_long", Role.TRANSFER, "wrong"
    description = "four-digit addition with a carry: add one size up"

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        second = {1: range(10, 100), 2: range(100, 1000), 3: range(1000, 9000)}[difficulty]
        return range(1000, 9000), second

    def valid(self, numbers: Numbers) -> bool:
        return sum(numbers) < 10_000 and carries(*numbers)


class Subtract(Family):
    name, role, mode = "subtract", Role.TRANSFER, "wrong"
    description = "three-digit subtraction with a borrow: the carry of add, backwards"
    mistake_types = ("dropped_borrow",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        return {
            1: (range(110, 1000), range(10, 100)),
            2: (range(200, 600), range(100, 500)),
            3: (range(600, 1000), range(100, 900)),
        }[difficulty]

    def valid(self, numbers: Numbers) -> bool:
        left, right = numbers
        return left - right >= 100 and subtract_columns(left, right, borrowing=False).answer != left - right

    def content(self, numbers: Numbers) -> str:
        return "{}-{}".format(*numbers)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        return "{}-{} = ?".format(*numbers)

    def solve(self, numbers: Numbers) -> Solution:
        return subtract_columns(*numbers)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        return subtract_columns(*numbers, borrowing=False)


class Multiply(Family):
    name, role, mode = "multiply", Role.STANDARD, "right"
    description = "a number of two or three digits times a digit, with a carry"
    mistake_types = ("dropped_carry",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        return {1: range(12, 50), 2: range(50, 100), 3: range(100, 250)}[difficulty], DIGIT

    def valid(self, numbers: Numbers) -> bool:
        number, digit = numbers
        return number % 10 * digit >= 10 and number * digit < 1000

    def content(self, numbers: Numbers) -> str:
        return product(*numbers)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        return "{}*{} = ?".format(*numbers)

    def solve(self, numbers: Numbers) -> Solution:
        return multiply_columns(*numbers)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        return multiply_columns(*numbers, carrying=False)


class Mixed(Family):
    name, role, mode = "mixed", Role.STANDARD, "right"
    description = "a + b * c: precedence"
    mistake_types = ("left_to_right",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        return {1: range(10, 30), 2: range(30, 60), 3: range(60, 96)}[difficulty], DIGIT, DIGIT

    def valid(self, numbers: Numbers) -> bool:
        a, b, c = numbers
        return a + b * c < 100

    def content(self, numbers: Numbers) -> str:
        a, b, c = numbers
        return sum_of(a, product(b, c))

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        return "{}+{}*{} = ?".format(*numbers)

    def solve(self, numbers: Numbers) -> Solution:
        a, b, c = numbers
        return Solution((multiply_step(b, c), add_step(a, b * c)), a + b * c)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        a, b, c = numbers
        return Solution((add_step(a, b), multiply_step(a + b, c)), (a + b) * c)


class Linear(Family):
    name, role, mode = "linear", Role.STANDARD, "wrong"
    description = "solve m*x + b = c"
    mistake_types = ("stops_before_dividing",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # m, x, b
        return DIGIT, range(2, 13), {1: range(2, 10), 2: range(10, 30), 3: range(30, 82)}[difficulty]

    def valid(self, numbers: Numbers) -> bool:
        m, x, b = numbers
        return m * x + b < 100

    def content(self, numbers: Numbers) -> str:
        m, x, b = numbers
        return f"({m * x + b}-{b})/{m}"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        m, x, b = numbers
        return f"{m}*x+{b} = {m * x + b} x = ?"

    def solve(self, numbers: Numbers) -> Solution:
        m, x, b = numbers
        return Solution((subtract_step(m * x + b, b), divide_step(m * x, m)), x)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        m, x, b = numbers
        return Solution((subtract_step(m * x + b, b),), m * x)


class LinearMinus(Linear):
    name, role, mode = "linear_minus", Role.TRANSFER, "wrong"
    description = "solve m*x - b = c: linear with the other sign"

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # m, x, b
        return DIGIT, range(2, 13), {1: range(2, 10), 2: range(10, 30), 3: range(30, 90)}[difficulty]

    def valid(self, numbers: Numbers) -> bool:
        m, x, b = numbers
        return b + 2 <= m * x < 100

    def content(self, numbers: Numbers) -> str:
        m, x, b = numbers
        return f"({sum_of(m * x - b, b)})/{m}"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        m, x, b = numbers
        return f"{m}*x-{b} = {m * x - b} x = ?"

    def solve(self, numbers: Numbers) -> Solution:
        m, x, b = numbers
        return Solution((add_step(m * x - b, b), divide_step(m * x, m)), x)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        m, x, b = numbers
        return Solution((add_step(m * x - b, b),), m * x)


class Mean(Family):
    name, role, mode = "mean", Role.STANDARD, "wrong"
    description = "the mean of three numbers"
    mistake_types = ("stops_before_dividing",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # the first two numbers, the mean
        small = {1: range(2, 25), 2: range(2, 45), 3: range(2, 65)}[difficulty]
        return small, small, {1: range(4, 13), 2: range(13, 23), 3: range(23, 34)}[difficulty]

    def valid(self, numbers: Numbers) -> bool:
        a, b, mean = numbers
        return 3 * mean - a - b >= 2

    def content(self, numbers: Numbers) -> str:
        a, b, mean = numbers
        return f"({sum_of(a, b, 3 * mean - a - b)})/3"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        a, b, mean = numbers
        return f"mean of {a} {b} {3 * mean - a - b} = ?"

    def solve(self, numbers: Numbers) -> Solution:
        mean = numbers[2]
        return Solution((*self.mistake("stops_before_dividing", numbers).steps, divide_step(3 * mean, 3)), mean)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        a, b, mean = numbers
        return Solution((add_step(a, b), add_step(a + b, 3 * mean - a - b)), 3 * mean)


class Bracket(Family):
    name, role, mode = "bracket", Role.STANDARD, "wrong"
    description = "a - (b - c)"
    mistake_types = ("drops_brackets",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        first = {1: range(20, 50), 2: range(50, 75), 3: range(75, 100)}[difficulty]
        return first, range(4, first.stop - 2), range(2, first.stop // 2)

    def valid(self, numbers: Numbers) -> bool:
        a, b, c = numbers
        return c < b and b + c <= a

    def content(self, numbers: Numbers) -> str:
        return "{}-({}-{})".format(*numbers)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        return "{}-({}-{}) = ?".format(*numbers)

    def solve(self, numbers: Numbers) -> Solution:
        a, b, c = numbers
        return Solution((subtract_step(b, c), subtract_step(a, b - c)), a - (b - c))

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        a, b, c = numbers
        return Solution((subtract_step(a, b), subtract_step(a - b, c)), a - b - c)


class SumTimes(Family):
    name, role, mode = "sum_times", Role.RARE, "wrong"
    description = "(a + b) * c"
    mistake_types = ("drops_brackets",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # a + b, a, c
        return {1: range(6, 13), 2: range(13, 19), 3: range(19, 25)}[difficulty], range(2, 23), DIGIT

    def valid(self, numbers: Numbers) -> bool:
        total, a, _ = numbers
        return a + 2 <= total

    def content(self, numbers: Numbers) -> str:
        total, a, c = numbers
        return product(f"({sum_of(a, total - a)})", c)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        total, a, c = numbers
        return f"({a}+{total - a})*{c} = ?"

    def solve(self, numbers: Numbers) -> Solution:
        total, a, c = numbers
        return Solution((add_step(a, total - a), multiply_step(total, c)), total * c)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        total, a, c = numbers
        b = total - a
        return Solution((multiply_step(b, c), add_step(a, b * c)), a + b * c)


class Inverse(Family):
    name, role, mode = "inverse", Role.UNSOLVED, "wrong"
    description = "solve x/m - b = c, which takes a sum as in linear_minus and then the columns of multiply"
    mistake_types = ("stops_before_multiplying", "adds_divisor")

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # m, b + c, b
        total = {1: range(12, 40), 2: range(40, 70), 3: range(70, 100)}[difficulty]
        return DIGIT, total, range(2, total.stop - 2)

    def valid(self, numbers: Numbers) -> bool:
        m, total, b = numbers
        # Three digits and more: the base cannot get there by a lucky guess near the sum.
        return b + 2 <= total and total % 10 * m >= 10 and total * m >= 100

    def content(self, numbers: Numbers) -> str:
        m, total, b = numbers
        return product(f"({sum_of(b, total - b)})", m)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        m, total, b = numbers
        return f"x/{m}-{b} = {total - b} x = ?"

    def solve(self, numbers: Numbers) -> Solution:
        m, total, b = numbers
        columns = multiply_columns(total, m)
        return Solution((add_step(total - b, b), *columns.steps), columns.answer)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        m, total, b = numbers
        if kind == "stops_before_multiplying":
            return Solution((add_step(total - b, b),), total)
        return Solution((add_step(total - b, b), add_step(total, m)), total + m)


_FAMILIES: tuple[Family, ...] = (
    Add(),
    Multiply(),
    Mixed(),
    Linear(),
    Mean(),
    Bracket(),
    SumTimes(),
    Inverse(),
    AddLong(),
    Subtract(),
    LinearMinus(),
)
MATH_MINI = ProceduralTask("math_mini", {family.name: family for family in _FAMILIES})
