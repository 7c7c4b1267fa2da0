"""What a task is: families of procedural problems, their splits by content, and the drawing of problem sets.

A family is defined by a handful of whole numbers per problem. Everything else (the question, the gold answer, the right
solution, each systematic mistake) is a function of these numbers, so a problem can be rebuilt from its metadata.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal, Protocol

import numpy as np

from bsharp.seeding import generator
from bsharp.tasks.formats import FORMATS, worded
from bsharp.types import Problem

__all__ = [
    "DIFFICULTIES",
    "ENUMERATION_CAP",
    "Draws",
    "Family",
    "Mode",
    "Numbers",
    "ProceduralTask",
    "Role",
    "Solution",
    "Split",
    "Task",
    "check_split",
    "split_of",
]

Numbers = tuple[int, ...]
Mode = Literal["right", "wrong", "none"]
DIFFICULTIES = (1, 2, 3)
ENUMERATION_CAP = 20_000  # contents of a family after which counting stops
_MAX_REJECTIONS = 1_000  # draws in a row without a new problem, after which what is left of a family is enumerated
_ENUMERABLE = 2_000_000  # combinations of numbers; a family with more never runs out in practice
_BLOCK = 4096


class Role(StrEnum):
    """What a family is there to show; the roles are reported separately."""

    STANDARD = "standard"  # the base solves it often: gains are selection among what the base does already
    RARE = "rare"  # the base succeeds in 1-5 % of samples
    UNSOLVED = "unsolved"  # the base has no success in 256 samples on most problems
    TRANSFER = "transfer"  # never rewarded: left out of training problems


class Split(StrEnum):
    """The three disjoint parts of every family."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Solution:
    """Written steps such as `7+5=12`, and the answer they end in (not always the right one)."""

    steps: tuple[str, ...]
    answer: int


class Draws:
    """Scalar draws from a NumPy generator, taken in blocks because a scalar call costs microseconds."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._uniform: Iterator[float] = iter(())

    def uniform(self) -> float:
        """Uniform on [0, 1)."""
        for value in self._uniform:
            return value
        self._uniform = iter(self._rng.random(_BLOCK).tolist())
        return next(self._uniform)

    def one_of(self, values: Sequence[int]) -> int:
        """One of `values` (a range or a sequence), each equally likely."""
        return values[int(self.uniform() * len(values))]


def _digest(content: str) -> bytes:
    return hashlib.blake2b(content.encode(), digest_size=8, person=b"bsharp-split").digest()


def split_of(content: str) -> Split:
    """The split of a content key: 80 % train, 10 % validation, 10 % test, by its BLAKE2b hash and nothing else."""
    bucket = int.from_bytes(_digest(content)[:4], "little") % 10
    return Split.TRAIN if bucket < 8 else Split.VALIDATION if bucket == 8 else Split.TEST


class Family:
    """One kind of problem. Subclasses fill in the class attributes and the five functions of the numbers."""

    name: ClassVar[str]
    role: ClassVar[Role]
    mode: ClassVar[Mode]  # is the strategy that the base prefers, by construction of its corpus, the right one?
    description: ClassVar[str]
    mistake_types: ClassVar[tuple[str, ...]]  # the first is the usual one

    def ranges(self, difficulty: int) -> tuple[range, ...]:
        """The range of each number at difficulty 1, 2 or 3; larger difficulties have larger numbers."""
        raise NotImplementedError

    def valid(self, numbers: Numbers) -> bool:
        """Whether the numbers make a problem. Every mistake then has an answer other than the gold one."""
        raise NotImplementedError

    def content(self, numbers: Numbers) -> str:
        """The arithmetic asked for, as an expression whose commuting operands are sorted.

        It does not name the family: `12+3*8` is one content whether asked bare or as a story, so that a test problem
        has been seen in no wording.
        """
        raise NotImplementedError

    def question(self, numbers: Numbers, name: str, thing: str) -> str:
        """The question; word problems use a person's name and a thing, arithmetic ignores both."""
        raise NotImplementedError

    def solve(self, numbers: Numbers) -> Solution:
        """The right solution, step by step."""
        raise NotImplementedError

    def mistake(self, kind: str, numbers: Numbers) -> Solution:
        """The solution with the systematic mistake `kind`, one of `mistake_types`."""
        raise NotImplementedError

    def mistakes(self, problem: Problem) -> dict[str, tuple[str, str]]:
        """Mistake type -> (text of the mistaken solution, its answer), none of them right."""
        numbers = tuple(problem.metadata["numbers"])
        solutions = {kind: self.mistake(kind, numbers) for kind in self.mistake_types}
        return {kind: (render(solution), str(solution.answer)) for kind, solution in solutions.items()}

    def draw(self, draws: Draws, difficulty: int) -> Numbers | None:
        """Numbers drawn uniformly from the ranges; None where they make no problem."""
        numbers = tuple(draws.one_of(values) for values in self.ranges(difficulty))
        return numbers if self.valid(numbers) else None

    def generate(self, rng: np.random.Generator, difficulty: int = 2) -> Numbers:
        """The numbers of one random problem at the given difficulty, of any split."""
        draws = Draws(rng)
        while (numbers := self.draw(draws, difficulty)) is None:
            pass
        return numbers

    def enumerate(self, difficulty: int) -> Iterator[Numbers]:
        """Every problem of a difficulty, as numbers; commuted problems are not merged here."""
        return filter(self.valid, itertools.product(*self.ranges(difficulty)))

    def span(self) -> int:
        """How many combinations of numbers the ranges hold, valid or not."""
        return sum(math.prod(map(len, self.ranges(difficulty))) for difficulty in DIFFICULTIES)


def render(solution: Solution, prelude: str = "", separator: str = ";", ending: str = "") -> str:
    r"""A solution as response text, e.g. ` 7+5=12;4+2+1=7;3+1=4; \boxed{472}`; without steps only the box is left.

    The text begins with a space, so that prompt and response can be cut into pieces separately.
    """
    steps = " " + separator.join(solution.steps) + separator if solution.steps else ""
    return f"{prelude}{steps} \\boxed{{{solution.answer}}}{ending}"


class Task(Protocol):
    """A named source of problems.

    `families` holds the procedural families and is empty for other tasks, whose problems may still name a family (a subject of
    MATH). `reward_kind` says who grades: boxed, math, final_number or reasoning_gym. `prompt` is the text of the user's message,
    `oracle` a response that grades correct.
    """

    @property
    def name(self) -> str: ...

    @property
    def families(self) -> Mapping[str, Family]: ...

    @property
    def reward_kind(self) -> str: ...

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]: ...

    def size(self, split: Split | str) -> int: ...

    def prompt(self, problem: Problem) -> str: ...

    def oracle(self, problem: Problem) -> str: ...


@dataclass(frozen=True, eq=False)
class ProceduralTask:
    """A task whose problems are generated: a name, its families and the words of its stories."""

    name: str
    families: Mapping[str, Family]
    names: tuple[str, ...] = ("",)
    things: tuple[str, ...] = ("",)
    reward_kind: Literal["boxed", "math"] = "boxed"
    template: str = FORMATS["qa"]

    def problems(
        self,
        split: Split | str,
        count: int,
        seed: int,
        families: Sequence[str] | None = None,
        difficulties: Sequence[int] | None = None,
    ) -> list[Problem]:
        """`count` problems, dealt round-robin over the families, no two with the same content.

        A function of (split, seed, families, difficulties); a smaller count gives a prefix. By default every family
        takes part, except that training problems leave TRANSFER families out, and difficulties are 1, 2, 3 with equal
        chances. A family that is used up drops out of the round. Raises ValueError where all are.
        """
        split = check_split(split)
        chosen = self._choose_families(split, families)
        levels = _check_difficulties(difficulties)
        if count < 0:
            raise ValueError(f"{self.name}: count = {count} is negative; ask for 0 or more problems")
        seen: set[str] = set()
        dealers = deque(
            _Dealer(family, Draws(generator(seed, "problems", self.name, split, family.name)), split, levels, seen)
            for family in chosen
        )
        found: list[Problem] = []
        while len(found) < count and dealers:
            drawn = dealers[0].deal()
            if drawn is None:
                dealers.popleft()
                continue
            found.append(self.problem(dealers[0].family, *drawn))
            dealers.rotate(-1)
        if len(found) < count:
            raise ValueError(
                f"{self.name}: {count} {split} problems asked for, but only {len(found)} distinct ones exist in families "
                f"{', '.join(family.name for family in chosen)} at difficulties {list(levels)}; ask for fewer"
            )
        return found

    def size(self, split: Split | str, up_to: int | None = None) -> int:
        """How many distinct problems `problems(split, ...)` can give with its defaults; counting ends at `up_to`.

        Families are enumerated up to 20,000 contents each; beyond that the size is a lower bound.
        """
        split = check_split(split)
        return _size(tuple(self._choose_families(split, None)), split, up_to)

    def problem(self, family: Family, numbers: Numbers, difficulty: int) -> Problem:
        """The problem that the numbers stand for. Name and thing of a story follow from the content."""
        content = family.content(numbers)
        digest = _digest(content)
        name, thing = self.names[digest[4] % len(self.names)], self.things[digest[5] % len(self.things)]
        return Problem(
            problem_id=f"{self.name}/{family.name}/{','.join(map(str, numbers))}",
            task=self.name,
            family=family.name,
            question=family.question(numbers, name, thing),
            answer=str(family.solve(numbers).answer),
            difficulty=difficulty,
            metadata={"numbers": numbers, "content": content},
        )

    def prompt(self, problem: Problem) -> str:
        """What the model is given, by default as in `Q: 347+125 = ? A:`."""
        return worded(self.template, problem.question)

    def oracle(self, problem: Problem) -> str:
        """The right solution in the form of a response; it grades correct."""
        return render(self.families[problem.family].solve(tuple(problem.metadata["numbers"])))

    def mistakes(self, problem: Problem) -> dict[str, tuple[str, str]]:
        """Mistake type -> (text of the mistaken solution, its answer), none of them right."""
        return self.families[problem.family].mistakes(problem)

    def _choose_families(self, split: Split, names: Sequence[str] | None) -> list[Family]:
        if names is None:
            left_out = Role.TRANSFER if split is Split.TRAIN else None
            return [family for family in self.families.values() if family.role is not left_out]
        unknown = [name for name in names if name not in self.families]
        if unknown or not names:
            raise ValueError(f"{self.name} has no family {unknown}; choose from {', '.join(self.families)}")
        return [self.families[name] for name in dict.fromkeys(names)]


class _Dealer:
    """Deals one family's problems of one split, each content once; `seen` is shared by the families of a set."""

    def __init__(self, family: Family, draws: Draws, split: Split, levels: Sequence[int], seen: set[str]) -> None:
        self.family = family
        self._draws, self._split, self._levels, self._seen = draws, split, levels, seen
        self._rest: list[tuple[Numbers, int]] | None = None  # what is left, once random draws find little that is new

    def deal(self) -> tuple[Numbers, int] | None:
        """Numbers and difficulty of a new problem; None where the family is used up."""
        if self._rest is None:
            for _ in range(_MAX_REJECTIONS):
                difficulty = self._draws.one_of(self._levels)
                numbers = self.family.draw(self._draws, difficulty)
                if numbers is not None and self._is_new(numbers):
                    return numbers, difficulty
            self._rest = self._enumerate_rest()
        while self._rest:
            numbers, difficulty = self._rest.pop()
            if self._is_new(numbers):
                return numbers, difficulty
        return None

    def _is_new(self, numbers: Numbers) -> bool:
        content = self.family.content(numbers)
        if content in self._seen or split_of(content) is not self._split:
            return False
        self._seen.add(content)
        return True

    def _enumerate_rest(self) -> list[tuple[Numbers, int]]:
        if self.family.span() > _ENUMERABLE:
            return []
        rest = [
            (numbers, difficulty)
            for difficulty in self._levels
            for numbers in self.family.enumerate(difficulty)
            if self.family.content(numbers) not in self._seen
        ]
        order = sorted(range(len(rest)), key=lambda _: self._draws.uniform())
        return [rest[index] for index in order]


def check_split(split: Split | str) -> Split:
    """The split of that name; ValueError for an unknown one."""
    try:
        return Split(split)
    except ValueError:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(Split)}") from None


def _check_difficulties(difficulties: Sequence[int] | None) -> Sequence[int]:
    levels = DIFFICULTIES if difficulties is None else tuple(dict.fromkeys(difficulties))
    if not levels or not set(levels) <= set(DIFFICULTIES):
        raise ValueError(f"difficulties = {list(levels)} cannot be used; choose from {list(DIFFICULTIES)}")
    return levels


def distinct_contents(family: Family, cap: int) -> set[str]:
    """The contents of all problems of a family, or `cap` of them where it has more."""
    return set(itertools.islice(_contents(family), cap))


def _contents(family: Family) -> Iterator[str]:
    """The contents of all problems of a family, each once."""
    seen: set[str] = set()
    for difficulty in DIFFICULTIES:
        for numbers in family.enumerate(difficulty):
            content = family.content(numbers)
            if content not in seen:
                seen.add(content)
                yield content


@functools.cache
def _size(families: tuple[Family, ...], split: Split, up_to: int | None) -> int:
    found: set[str] = set()  # families may have contents in common
    for family in families:
        for content in itertools.islice(_contents(family), ENUMERATION_CAP):
            if split_of(content) is split:
                found.add(content)
                if len(found) == up_to:
                    return len(found)
    return len(found)
