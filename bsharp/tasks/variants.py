"""Harmless changes of a problem: the same thing asked a little differently, or the like with other numbers.

Every text a change can make of an embedded problem is written with the words and symbols of the pretraining corpus, so that
the embedded model reads no unknown token: what is measured is the change, not a hole in its vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bsharp.config import EMBEDDED_TASKS
from bsharp.tasks.base import Draws, Family, Numbers, ProceduralTask, Task, split_of
from bsharp.types import Problem

__all__ = ["CHANGES", "KEEPS_ANSWER", "changed_problem"]

CHANGES: Mapping[str, str] = {
    "names": "another person's name or another thing in the story",
    "wording": "the same question in other words",
    "order": "addends, factors, facts or the sides of an equation in another order",
    "spacing": "a blank more or less where it means nothing",
    "numbers": "other numbers with as many digits each, in the same family, difficulty and split",
}
"""Kind of change → what it does."""

KEEPS_ANSWER: tuple[str, ...] = ("names", "wording", "order", "spacing")
"""The changes after which the right answer is what it was."""

_MAX_DRAWS = 20_000  # draws of other numbers before a problem is said to have no sister of the same size
_Rewrites = tuple[tuple[str, str], ...]  # (pattern, replacement) on the question

_LEAD_INS: _Rewrites = ((r"^", "So "), (r"^", "Let's see: "))
_BARE: _Rewrites = (*_LEAD_INS, (r"^(.+) = \?$", r"How much is \1 ?"))
_EQUATION: _Rewrites = (*_LEAD_INS, (r"^(.+) x = \?$", r"How much is x in \1 ?"))

# Each rewrite keeps the arithmetic, and so the answer; its words occur in the corpus.
_WORDING: Mapping[str, _Rewrites] = {
    **dict.fromkeys(("add", "add_long", "subtract", "multiply", "mixed", "bracket", "sum_times"), _BARE),
    **dict.fromkeys(("linear", "linear_minus", "inverse"), _EQUATION),
    "mean": (
        *_LEAD_INS,
        (r"^mean (.+) = \?$", r"How much is the mean \1 ?"),
    ),
    "spend": ((r"How much is left\?$", "How many dollars now?"),),
    "more_than": ((r"How many \w+ together\?$", "How many in all?"), (r" together\?$", " in all?")),
    "rows": ((r"How many in all\?$", "How many seats in all?"), (r"How many in all\?$", "How many seats together?")),
    "bags": ((r"(\w+) each\. How many now\?$", r"\1 each. How many \1 now?"),),
    "packs": ((r"(\w+) inside\. How many in the shop\?$", r"\1 inside. How many \1 in the shop?"),),
    "share": ((r"(\w+) more\. (.+)How many each\?$", r"\1 more. \2How many \1 each?"),),
    "share_rest": ((r"^Of (\d+) (\w+) (.+)How many each\?$", r"Of \1 \2 \3How many \2 each?"),),
    "times": (
        (r"^(.+ many\.) (.+ box\.) ", r"\2 \1 "),
        (r"(\w+) lie in a box\. How many in all\?$", r"\1 lie in a box. How many \1 in all?"),
    ),
    "years": ((r" in (\d+) years Eve is (\d+) times", r" Eve is in \1 years \2 times"),),
    "crates": ((r"(\w+) each\. How many in all\?$", r"\1 each. How many \1 in all?"),),
}
_SUM: _Rewrites = ((r"(\d+)\+(\d+)", r"\2+\1"),)
_SIDES: _Rewrites = ((r"^(.+) = (\d+) x = \?$", r"\2 = \1 x = ?"),)
_ORDER: Mapping[str, _Rewrites] = {
    **dict.fromkeys(("add", "add_long", "sum_times"), _SUM),
    **dict.fromkeys(("linear", "linear_minus", "inverse"), _SIDES),
    "multiply": ((r"(\d+)\*(\d+)", r"\2*\1"),),
    "mixed": ((r"(\d+)\*(\d+)", r"\2*\1"), (r"(\d+)\+(\d+\*\d+)", r"\2+\1")),
    "mean": tuple(
        (r"of (\d+) (\d+) (\d+)", rf"of \{i} \{j} \{k}")
        for i, j, k in ((1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))
    ),
    "rows": ((r"(\d+ rows of \d+ seats) and (\d+ rows of \d+ seats)", r"\2 and \1"),),
    "share": ((r"has (\d+) (\w+) and finds (\d+)", r"has \3 \2 and finds \1"),),
    "crates": ((r"(\d+) red and (\d+) blue", r"\2 red and \1 blue"),),
}
# For any text: what a reader does not notice, and LaTeX ignores.
_GENERAL: Mapping[str, _Rewrites] = {
    "wording": ((r"^(?s:(.+))$", r"Please solve: \1"),),
    "spacing": ((r"\Z", r"\n"), (r"(?<=[.?!]) (?=[A-Z])", "  ")),
}


def changed_problem(task: Task, problem: Problem, change: str, rng: np.random.Generator) -> Problem | None:
    """The problem after a harmless change, one of `CHANGES`; None where it does not apply.

    The answer and the arithmetic (`content_key`) are the same, but after `numbers`, where both differ and the numbers of the
    question have as many digits as before. Where several changes of the kind exist, `rng` draws one. The id is the
    problem's with `~change` behind. Embedded problems have every kind that their text allows: arithmetic has no names, and
    a difference no other order. Others have `wording` (`Please solve:` before it) and `spacing` (a line break behind it, or two
    blanks between sentences). Raises ValueError for an unknown change.
    """
    if change not in CHANGES:
        raise ValueError(f"unknown change {change!r}; choose from {', '.join(CHANGES)}")
    embedded = isinstance(task, ProceduralTask) and task.name in EMBEDDED_TASKS
    if not embedded:
        return _with_one_of(problem, change, _rewritten(problem, _GENERAL.get(change, ())), rng)
    assert isinstance(task, ProceduralTask)
    if change == "numbers":
        return _with_other_numbers(task, problem, rng)
    if change == "names":
        family = task.families[problem.family]
        questions = list(_tellings(task, family, tuple(problem.metadata["numbers"])).values())
    elif change == "spacing":
        questions = _with_other_blanks(problem)
    else:
        questions = _rewritten(problem, (_WORDING if change == "wording" else _ORDER).get(problem.family, ()))
    return _with_one_of(problem, change, questions, rng)


def _with_one_of(problem: Problem, change: str, questions: list[str], rng: np.random.Generator) -> Problem | None:
    others = [question for question in dict.fromkeys(questions) if question != problem.question]
    if not others:
        return None
    question = others[int(rng.integers(len(others)))]
    return replace(problem, question=question, problem_id=f"{problem.problem_id}~{change}")


def _rewritten(problem: Problem, rewrites: _Rewrites) -> list[str]:
    return [re.sub(pattern, replacement, problem.question, count=1) for pattern, replacement in rewrites]


def _tellings(task: ProceduralTask, family: Family, numbers: Numbers) -> dict[tuple[str, str], str]:
    """(name, thing) → the question told with them."""
    return {(name, thing): family.question(numbers, name, thing) for name in task.names for thing in task.things}


def _with_other_blanks(problem: Problem) -> list[str]:
    question = problem.question
    blanks = [place for place, character in enumerate(question) if character == " "]
    doubled = [f"{question[:place]} {question[place:]}" for place in blanks]
    return [f"{question} ", *doubled, re.sub(r"(?<=\d) =", "=", question, count=1)]


def _with_other_numbers(task: ProceduralTask, problem: Problem, rng: np.random.Generator) -> Problem | None:
    family, content = task.families[problem.family], str(problem.metadata["content"])
    split, digits, draws = split_of(content), _digit_counts(problem.question), Draws(rng)
    told = _tellings(task, family, tuple(problem.metadata["numbers"]))
    words = next((words for words, question in told.items() if question == problem.question), None)
    if words is None:  # a problem already changed otherwise
        return None
    for _ in range(_MAX_DRAWS):
        numbers = family.draw(draws, problem.difficulty)
        if numbers is None:
            continue
        other = family.content(numbers)
        if other == content or split_of(other) is not split:
            continue
        question = family.question(numbers, *words)
        if _digit_counts(question) == digits:
            found = task.problem(family, numbers, problem.difficulty)
            return replace(found, question=question, problem_id=f"{problem.problem_id}~numbers")
    return None


def _digit_counts(text: str) -> list[int]:
    return [len(number) for number in re.findall(r"\d+", text)]
