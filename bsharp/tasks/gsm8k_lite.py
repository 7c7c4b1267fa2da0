"""`gsm8k_lite`: word problems of two or three steps in ten families.

Three STANDARD families whose right strategy the base prefers, three where it prefers a systematic mistake, one RARE, one
UNSOLVED and two TRANSFER families that tell a trained family's story in other words.
"""

from __future__ import annotations

from bsharp.tasks.arithmetic import (
    add_step,
    divide_step,
    multiply_columns,
    multiply_step,
    product,
    subtract_step,
    sum_of,
)
from bsharp.tasks.base import Family, Numbers, ProceduralTask, Role, Solution

__all__ = ["GSM8K_LITE"]

DIGIT = range(2, 10)


class Spend(Family):
    name, role, mode = "spend", Role.STANDARD, "right"
    description = "money left after buying several things at one price"
    mistake_types = ("forgets_quantity",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # money, things, price
        return {1: range(20, 50), 2: range(50, 75), 3: range(75, 100)}[difficulty], DIGIT, DIGIT

    def valid(self, numbers: Numbers) -> bool:
        money, things, price = numbers
        return money - things * price >= 1

    def content(self, numbers: Numbers) -> str:
        money, things, price = numbers
        return f"{money}-{product(things, price)}"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        money, things, price = numbers
        return f"{name} has {money} dollars and buys {things} {thing} at {price} dollars each. How much is left?"

    def solve(self, numbers: Numbers) -> Solution:
        money, things, price = numbers
        cost = things * price
        return Solution((multiply_step(things, price), subtract_step(money, cost)), money - cost)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        money, _, price = numbers
        return Solution((subtract_step(money, price),), money - price)


class MoreThan(Family):
    name, role, mode = "more_than", Role.STANDARD, "right"
    description = "one person has more than another: how many together"
    mistake_types = ("stops_at_second_person",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # first person, surplus
        return {1: range(4, 16), 2: range(16, 31), 3: range(31, 49)}[difficulty], range(2, 90)

    def valid(self, numbers: Numbers) -> bool:
        first, surplus = numbers
        return 2 * first + surplus < 100

    def content(self, numbers: Numbers) -> str:
        first, surplus = numbers
        return sum_of(first, first, surplus)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        first, surplus = numbers
        return f"{name} has {first} {thing} and Eve has {surplus} more. How many {thing} together?"

    def solve(self, numbers: Numbers) -> Solution:
        first, surplus = numbers
        second = first + surplus
        return Solution((add_step(first, surplus), add_step(first, second)), first + second)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        first, surplus = numbers
        return Solution((add_step(first, surplus),), first + surplus)


class Rows(Family):
    name, role, mode = "rows", Role.STANDARD, "right"
    description = "two kinds of rows: how many seats"
    mistake_types = ("ignores_second_rows",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # rows, seats, rows, seats
        seats = range(2, 13)
        return {1: range(2, 5), 2: range(5, 8), 3: range(8, 10)}[difficulty], seats, DIGIT, seats

    def valid(self, numbers: Numbers) -> bool:
        a, b, c, d = numbers
        return a * b + c * d < 100

    def content(self, numbers: Numbers) -> str:
        a, b, c, d = numbers
        return sum_of(product(a, b), product(c, d))

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        a, b, c, d = numbers
        return f"A hall has {a} rows of {b} seats and {c} rows of {d} seats. How many in all?"

    def solve(self, numbers: Numbers) -> Solution:
        a, b, c, d = numbers
        left, right = a * b, c * d
        return Solution((multiply_step(a, b), multiply_step(c, d), add_step(left, right)), left + right)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        a, b, _, _ = numbers
        return Solution((multiply_step(a, b),), a * b)


class Bags(Family):
    name, role, mode = "bags", Role.STANDARD, "wrong"
    description = "some things, and bags of more"
    mistake_types = ("reads_bags_of_as_count", "counts_bags")

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # things at first, bags, things per bag
        return {1: range(4, 25), 2: range(25, 50), 3: range(50, 96)}[difficulty], DIGIT, DIGIT

    def valid(self, numbers: Numbers) -> bool:
        start, bags, each = numbers
        return start + bags * each < 100

    def content(self, numbers: Numbers) -> str:
        start, bags, each = numbers
        return sum_of(start, product(bags, each))

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        start, bags, each = numbers
        return f"{name} has {start} {thing} and buys {bags} bags of {each} {thing} each. How many now?"

    def solve(self, numbers: Numbers) -> Solution:
        start, bags, each = numbers
        return Solution((multiply_step(bags, each), add_step(start, bags * each)), start + bags * each)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        start, bags, each = numbers
        added = each if kind == "reads_bags_of_as_count" else bags
        return Solution((add_step(start, added),), start + added)


class Packs(Bags):
    name, role, mode = "packs", Role.TRANSFER, "wrong"
    description = "bags in other words"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        start, bags, each = numbers
        return f"A shop keeps {start} {thing} and gets {bags} packs with {each} {thing} inside. How many in the shop?"


class Share(Family):
    name, role, mode = "share", Role.STANDARD, "wrong"
    description = "two lots put together and shared"
    mistake_types = ("stops_before_dividing",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # friends, things each, the first lot
        each = {1: range(2, 5), 2: range(5, 9), 3: range(9, 13)}[difficulty]
        return DIGIT, each, range(2, min(99, 9 * each.stop))

    def valid(self, numbers: Numbers) -> bool:
        friends, each, first = numbers
        return first + 2 <= friends * each < 100

    def content(self, numbers: Numbers) -> str:
        friends, each, first = numbers
        return f"({sum_of(first, friends * each - first)})/{friends}"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        friends, each, first = numbers
        second = friends * each - first
        return f"{name} has {first} {thing} and finds {second} {thing} more. {friends} friends share. How many each?"

    def solve(self, numbers: Numbers) -> Solution:
        friends, each, _ = numbers
        return Solution(
            (*self.mistake("stops_before_dividing", numbers).steps, divide_step(friends * each, friends)), each
        )

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        friends, each, first = numbers
        return Solution((add_step(first, friends * each - first),), friends * each)


class ShareRest(Share):
    name, role, mode = "share_rest", Role.TRANSFER, "wrong"
    description = "share after a loss, in other words"

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # friends, things each, things lost
        return DIGIT, {1: range(2, 5), 2: range(5, 9), 3: range(9, 13)}[difficulty], range(2, 60)

    def valid(self, numbers: Numbers) -> bool:
        friends, each, lost = numbers
        return friends * each + lost < 100

    def content(self, numbers: Numbers) -> str:
        friends, each, lost = numbers
        return f"({friends * each + lost}-{lost})/{friends}"

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        friends, each, lost = numbers
        total = friends * each + lost
        return f"Of {total} {thing} {lost} get lost and the rest goes to {friends} kids. How many each?"

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        friends, each, lost = numbers
        return Solution((subtract_step(friends * each + lost, lost),), friends * each)


class Times(Family):
    name, role, mode = "times", Role.STANDARD, "wrong"
    description = "one person has several times as many as another, and some are in a box: how many in all"
    mistake_types = ("forgets_first_person",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # first person, times, in the box
        return {1: range(2, 10), 2: range(10, 16), 3: range(16, 25)}[difficulty], DIGIT, range(2, 80)

    def valid(self, numbers: Numbers) -> bool:
        first, times, box = numbers
        return first + times * first + box < 100

    def content(self, numbers: Numbers) -> str:
        first, times, box = numbers
        return sum_of(first, product(first, times), box)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        first, times, box = numbers
        return f"{name} has {first} {thing} and Eve has {times} times as many. {box} {thing} lie in a box. How many in all?"

    def solve(self, numbers: Numbers) -> Solution:
        first, times, box = numbers
        second = first * times
        return Solution(
            (multiply_step(first, times), add_step(first, second), add_step(first + second, box)),
            first + second + box,
        )

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        first, times, box = numbers
        second = first * times
        return Solution((multiply_step(first, times), add_step(second, box)), second + box)


class Years(Family):
    name, role, mode = "years", Role.RARE, "wrong"
    description = "several times as old as someone will be in some years"
    mistake_types = ("multiplies_first",)

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # age then, age now, times
        return {1: range(6, 13), 2: range(13, 19), 3: range(19, 25)}[difficulty], range(2, 23), DIGIT

    def valid(self, numbers: Numbers) -> bool:
        then, now, _ = numbers
        return now + 2 <= then

    def content(self, numbers: Numbers) -> str:
        then, now, times = numbers
        return product(f"({sum_of(now, then - now)})", times)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        then, now, times = numbers
        return f"{name} is {now} and in {then - now} years Eve is {times} times as old as {name} then. How old is Eve?"

    def solve(self, numbers: Numbers) -> Solution:
        then, now, times = numbers
        return Solution((add_step(now, then - now), multiply_step(then, times)), then * times)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        then, now, times = numbers
        years = then - now
        return Solution((multiply_step(now, times), add_step(now * times, years)), now * times + years)


class Crates(Family):
    name, role, mode = "crates", Role.UNSOLVED, "wrong"
    description = "crates that hold two kinds each, which takes a sum and then the columns of math_mini's multiply"
    mistake_types = ("ignores_crates", "adds_crates")

    def ranges(self, difficulty: int) -> tuple[range, ...]:  # crates, things per crate, of the first kind
        total = {1: range(12, 40), 2: range(40, 70), 3: range(70, 100)}[difficulty]
        return DIGIT, total, range(2, total.stop - 2)

    def valid(self, numbers: Numbers) -> bool:
        crates, total, first = numbers
        # Three digits: the base cannot get there by a lucky guess near the sum.
        return first + 2 <= total and total % 10 * crates >= 10 and total * crates >= 100

    def content(self, numbers: Numbers) -> str:
        crates, total, first = numbers
        return product(f"({sum_of(first, total - first)})", crates)

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        crates, total, first = numbers
        return f"{crates} crates hold {first} red and {total - first} blue {thing} each. How many in all?"

    def solve(self, numbers: Numbers) -> Solution:
        crates, total, first = numbers
        columns = multiply_columns(total, crates)
        return Solution((add_step(first, total - first), *columns.steps), columns.answer)

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        crates, total, first = numbers
        if kind == "ignores_crates":
            return Solution((add_step(first, total - first),), total)
        return Solution((add_step(first, total - first), add_step(total, crates)), total + crates)


_FAMILIES: tuple[Family, ...] = (
    Spend(),
    MoreThan(),
    Rows(),
    Bags(),
    Share(),
    Times(),
    Years(),
    Crates(),
    Packs(),
    ShareRest(),
)
GSM8K_LITE = ProceduralTask(
    "gsm8k_lite",
    {family.name: family for family in _FAMILIES},
    names=("Ann", "Bob", "Cy", "Dee"),
    things=("pens", "eggs", "cards", "cups"),
)
