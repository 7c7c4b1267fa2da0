"""Every statement of the first-principles account on every world it speaks of: both sides, the error, the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bsharp.seeding import generator
from bsharp.theory.numbered import EXAMPLES, STATEMENTS
from bsharp.theory.place import Place
from bsharp.theory.statements import Kind, Sides, where_the_cosines_part
from bsharp.theory.world import FiniteWorld, random_world
from bsharp.theory.worlds import CONSTRUCTORS

__all__ = ["Check", "check", "check_worlds"]

ORDER = "OGPABCDEFRS"
"""Letters of the statements in the order of docs/theory.md."""


@dataclass(frozen=True)
class Check:
    """One statement on one world, at the place where it is furthest from true (an inequality: where it is tightest)."""

    statement: str  # as numbered in docs/theory.md
    equation: str
    world: str
    left: float
    right: float
    error: float  # |left - right|; for an inequality by how much left exceeds right
    bound: float  # rounding; for a limit the proven distance from it
    kind: Kind
    holds: bool


def check_worlds(seed: int = 0) -> dict[str, FiniteWorld]:
    """The worlds that `check` visits: random ones, one of a fixed length, one with graded rewards, and the named ones."""
    random = random_world(seed, 3, 4)
    graded = torch.as_tensor(generator(seed, "check", "graded rewards").uniform(size=random.size))
    return {
        "random": random,
        "random, graded reward": dataclasses.replace(random, rewards=graded),
        "random, fixed length": random_world(seed, 3, 3, eos=None),
        "three responses": where_the_cosines_part(),
        **{name.replace("_", " "): build(seed) for name, build in CONSTRUCTORS.items() if name != "random"},
    }


def check(seed: int = 0, worlds: Mapping[str, FiniteWorld] | None = None) -> list[Check]:
    """Every statement on every world it speaks of, in the order of docs/theory.md; the same rows for the same seed.

    `worlds` by name; without them `check_worlds(seed)`.
    A statement that holds at several settings (alpha, lambda, normalisations, objectives) is one row, at the worst of
    them. Statements over several prompts take all worlds as prompts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    try:
        rows = _rows(check_worlds(seed) if worlds is None else worlds, seed)
    finally:
        torch.set_num_threads(threads)
    return sorted(rows, key=lambda row: (ORDER.index(row.statement[0]), int(row.statement[1:])))


def _rows(worlds: Mapping[str, FiniteWorld], seed: int) -> list[Check]:
    places = [Place(name, world, seed) for name, world in worlds.items()]
    rows = [
        _row(statement.name, statement.equation, place.name, statement.sides(place))
        for statement in STATEMENTS
        for place in places
        if statement.where(place)
    ]
    for example in EXAMPLES:
        sides = example.sides(list(worlds.values()), seed)
        rows.append(_row(example.name, example.equation, example.world, sides))
    return rows


def _row(name: str, equation: str, world: str, sides: Sides) -> Check:
    at = sides.worst
    left, right = float(sides.left[at]), float(sides.right[at])
    return Check(name, equation, world, left, right, sides.error, sides.bound, sides.kind, sides.holds)
