"""The pretraining corpus of the embedded base: training problems answered rightly, wrongly and by guessing.

The mixture is `corpus.toml`, shipped with the package; `CorpusConfig` documents every knob. Documents come from the TRAIN
split only and include TRANSFER families, which reinforcement learning leaves out.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from bsharp.config import EMBEDDED_TASKS, load_config
from bsharp.seeding import generator
from bsharp.tasks import embedded_task
from bsharp.tasks.base import (
    DIFFICULTIES,
    Draws,
    Family,
    Numbers,
    ProceduralTask,
    Role,
    Solution,
    Split,
    render,
    split_of,
)
from bsharp.types import Problem

__all__ = [
    "CorpusConfig",
    "Document",
    "FamilyMixture",
    "GuessConfig",
    "StyleConfig",
    "documents",
    "load_corpus_config",
    "pieces",
    "strategy_probabilities",
    "vocabulary",
]

T = TypeVar("T")
UnitFloat = Annotated[float, Field(ge=0, le=1)]
_strict = ConfigDict(extra="forbid", validate_default=True)
_TOLERANCE = 1e-9
_PIECE = re.compile(r" ?[^\s\d]+|\d| ")


@dataclass(frozen=True, config=_strict)
class GuessConfig:
    """Direct guesses: the box at once, without a step."""

    hit_probability: UnitFloat = 0.3
    """Chance that a guess hits its target."""
    offsets: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 10, 20)
    """Otherwise it is off by one of these, up or down, each equally likely."""


@dataclass(frozen=True, config=_strict)
class StyleConfig:
    """How a solution is dressed: prelude, what follows every step, ending. Each list goes with its probabilities."""

    preludes: tuple[str, ...] = ("",)
    """Before the steps; empty or beginning with a space."""
    prelude_probabilities: tuple[UnitFloat, ...] = (1.0,)
    separators: tuple[str, ...] = (";",)
    """After every step; one symbol."""
    separator_probabilities: tuple[UnitFloat, ...] = (1.0,)
    endings: tuple[str, ...] = ("",)
    """After the box; empty or beginning with a space."""
    ending_probabilities: tuple[UnitFloat, ...] = (1.0,)

    @model_validator(mode="after")
    def _check(self) -> StyleConfig:
        for kind in ("prelude", "separator", "ending"):
            texts, probabilities = getattr(self, f"{kind}s"), getattr(self, f"{kind}_probabilities")
            if len(texts) != len(probabilities) or abs(sum(probabilities) - 1) > _TOLERANCE:
                raise ValueError(
                    f"{kind}_probabilities = {list(probabilities)} must be {len(texts)} numbers that sum to 1, one for "
                    f"each of {kind}s"
                )
            for text in texts:
                spaced = text == "" or text.startswith(" ")
                fits = spaced if kind != "separator" else text in {";", ",", "|", ":", "&"}
                if not fits or "".join(_PIECE.findall(text)) != text or re.search(r"[\d{}\\]", text):
                    raise ValueError(
                        f"{kind} {text!r} cannot be used: write words without digits, braces and backslashes after single "
                        "spaces, or for a separator one of ; , | : &"
                    )
        return self


@dataclass(frozen=True, config=_strict)
class FamilyMixture:
    """The strategies of one family. correct + the mistakes + guess = 1."""

    correct: UnitFloat
    """Share of documents with the right solution."""
    mistakes: Mapping[str, UnitFloat]
    """Share by mistake type."""
    guess: UnitFloat
    """Share of direct guesses."""
    guess_target: Literal["answer", "mistake"] = "answer"
    """What a guess aims at: the gold answer, or the answer of the family's usual mistake, and then no guess is right."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Relative frequency of the family; 0 leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> FamilyMixture:
        total = self.correct + sum(self.mistakes.values()) + self.guess
        if abs(total - 1) > _TOLERANCE:
            raise ValueError(f"correct + mistakes + guess = {total:g}; make them sum to 1")
        return self


@dataclass(frozen=True, config=_strict)
class CorpusConfig:
    """The mixture of the pretraining corpus; `mistake_rate_shift` sweeps how wrong it is."""

    families: Annotated[Mapping[str, FamilyMixture], Field(min_length=1)]
    """Mixture by family name, of either task."""
    guess: GuessConfig = GuessConfig()
    style: StyleConfig = StyleConfig()
    mistake_rate_shift: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Added to the mistake share of STANDARD and TRANSFER families, taken from their right share; both stay in [0, 1]."""

    @model_validator(mode="after")
    def _check(self) -> CorpusConfig:
        known = _known_families()
        for name, mixture in self.families.items():
            if name not in known:
                raise ValueError(f"unknown family {name!r}; choose from {', '.join(known)}")
            types = known[name][1].mistake_types
            unknown = [kind for kind in mixture.mistakes if kind not in types]
            if unknown:
                raise ValueError(f"family {name!r} has no mistake {unknown[0]!r}; choose from {', '.join(types)}")
        if not any(mixture.weight for mixture in self.families.values()):
            raise ValueError("every family has weight 0; give at least one a positive weight")
        return self


@plain_dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus. `strategy` is "correct", a mistake type or "guess"; a guess may be right all the same."""

    prompt: str
    response: str
    problem: Problem
    strategy: str

    def __iter__(self) -> Iterator[str]:
        """Unpacks as `prompt, response`."""
        return iter((self.prompt, self.response))


@functools.cache
def _known_families() -> dict[str, tuple[ProceduralTask, Family]]:
    tasks = [embedded_task(name) for name in EMBEDDED_TASKS]
    return {name: (task, family) for task in tasks for name, family in task.families.items()}


def load_corpus_config(path: str | Path | None = None) -> CorpusConfig:
    """The corpus config of a TOML file, by default the shipped one. Raises ConfigError with what to write instead."""
    if path is not None:
        return load_config(CorpusConfig, path)
    with importlib.resources.as_file(importlib.resources.files("bsharp.tasks") / "corpus.toml") as shipped:
        return load_config(CorpusConfig, shipped)


def pieces(text: str) -> list[str]:
    r"""A text cut into words with their leading space, single digits and lone spaces: ` ?[^\s\d]+|\d| `.

    Joined again they give the text; ValueError where the text has other white space.
    """
    found = _PIECE.findall(text)
    if "".join(found) != text:
        raise ValueError(f"{text!r} holds white space other than single spaces; such text has no pieces")
    return found


def strategy_probabilities(config: CorpusConfig, family: str) -> dict[str, float]:
    """Strategy -> share of the family's documents, after `mistake_rate_shift`. The shares sum to 1.

    The shift s moves min(s, correct) from right to mistaken (or back, at most all mistakes, where s < 0); mistake types
    keep their proportions. RARE and UNSOLVED families do not move.
    """
    mixture = config.families[family]
    mistaken = sum(mixture.mistakes.values())
    moves = _known_families()[family][1].role in (Role.STANDARD, Role.TRANSFER) and mixture.mistakes
    shift = min(max(config.mistake_rate_shift, -mistaken), mixture.correct) if moves else 0.0
    equal = 1 / max(len(mixture.mistakes), 1)
    mistakes = {
        kind: share + shift * (share / mistaken if mistaken else equal) for kind, share in mixture.mistakes.items()
    }
    return {"correct": mixture.correct - shift, **mistakes, "guess": mixture.guess}


class _Choice(Generic[T]):
    """Draws one of several values with given probabilities."""

    def __init__(self, shares: Mapping[T, float]) -> None:
        self._values = [value for value, share in shares.items() if share > 0]
        total = sum(shares.values())
        self._bounds = list(itertools.accumulate(shares[value] / total for value in self._values))[:-1]

    def __call__(self, draws: Draws) -> T:
        return self._values[bisect(self._bounds, draws.uniform())]


def documents(config: CorpusConfig, seed: int) -> Iterator[Document]:
    """An endless stream of documents from TRAIN problems, a function of (config, seed).

    Each is drawn independently: family by weight, difficulty 1-3 with equal chances, problem uniformly among the family's
    training problems of that difficulty (as drawn, so commuted forms count twice), strategy and style by their shares.
    """
    draws = Draws(generator(seed, "corpus"))
    known = _known_families()
    family_of = _Choice({name: mixture.weight for name, mixture in config.families.items()})
    strategy_of = {name: _Choice(strategy_probabilities(config, name)) for name in config.families}
    style = config.style
    prelude_of = _Choice(dict(zip(style.preludes, style.prelude_probabilities, strict=True)))
    separator_of = _Choice(dict(zip(style.separators, style.separator_probabilities, strict=True)))
    ending_of = _Choice(dict(zip(style.endings, style.ending_probabilities, strict=True)))
    while True:
        name = family_of(draws)
        task, family = known[name]
        problem = _draw_training_problem(task, family, draws)
        strategy = strategy_of[name](draws)
        solution = _solution(config, family, problem.metadata["numbers"], strategy, draws)
        response = render(solution, prelude_of(draws), separator_of(draws), ending_of(draws))
        yield Document(task.prompt(problem), response, problem, strategy)


def _draw_training_problem(task: ProceduralTask, family: Family, draws: Draws) -> Problem:
    difficulty = draws.one_of(DIFFICULTIES)
    while True:
        numbers = family.draw(draws, difficulty)
        if numbers is not None and split_of(family.content(numbers)) is Split.TRAIN:
            return task.problem(family, numbers, difficulty)


def _solution(config: CorpusConfig, family: Family, numbers: Numbers, strategy: str, draws: Draws) -> Solution:
    if strategy == "correct":
        return family.solve(numbers)
    if strategy != "guess":
        return family.mistake(strategy, numbers)
    answer = family.solve(numbers).answer
    aims_at_answer = config.families[family.name].guess_target == "answer"
    target = answer if aims_at_answer else family.mistake(family.mistake_types[0], numbers).answer
    guess = target
    if draws.uniform() >= config.guess.hit_probability:
        offset = draws.one_of(config.guess.offsets)
        sign = 1 if draws.uniform() < 0.5 or target < offset else -1
        guess = target + sign * offset
        if guess == answer:  # only where the guess aims at a mistake that lies one offset away from the answer
            guess = target
    return Solution((), guess)


def vocabulary(config: CorpusConfig) -> list[str]:
    """All pieces, sorted, that a prompt or response of any split or an oracle solution can hold.

    The words of a template do not depend on its numbers, so a few problems per family and difficulty, told with every name
    and thing and in every style, show all of them.
    """
    found = set("0123456789 ")
    style = config.style
    for task, family in _known_families().values():
        rng = generator(0, "vocabulary", family.name)
        for difficulty, _ in itertools.product(DIFFICULTIES, range(20)):
            numbers = family.generate(rng, difficulty)
            for name, thing in itertools.product(task.names, task.things):
                found.update(pieces(f"Q: {family.question(numbers, name, thing)} A:"))
            solutions = [family.solve(numbers), *(family.mistake(kind, numbers) for kind in family.mistake_types)]
            for solution, separator in itertools.product(solutions, style.separators):
                found.update(pieces(render(solution, separator=separator)))
    for text in (*style.preludes, *style.endings):
        found.update(pieces(text))
    return sorted(found)
