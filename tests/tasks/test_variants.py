"""Laws of the harmless changes: the question is another text, the problem and its answer are the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import pytest

from bsharp.config import EMBEDDED_TASKS
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.seeding import generator
from bsharp.tasks import Family, ProceduralTask, Split, content_key, load_task, split_of
from bsharp.tasks.variants import CHANGES, KEEPS_ANSWER, changed_problem
from bsharp.types import Problem

FAMILIES = [
    pytest.param(load_task(task), name, id=name) for task in EMBEDDED_TASKS for name in load_task(task).families
]
NAMED = {"spend", "more_than", "bags", "share", "times", "years", "crates", "packs", "share_rest"}
ORDERED = {"add", "add_long", "multiply", "mixed", "linear", "linear_minus", "inverse", "mean", "sum_times"} | {
    "rows",
    "share",
    "crates",
}
PROBLEMS = 20


@cache
def pairs(task: ProceduralTask, family: str, change: str) -> list[tuple[Problem, Problem]]:
    """Problems of a family with their changed forms, where there are any."""
    found = []
    for problem in task.problems(Split.TEST, PROBLEMS, seed=0, families=[family]):
        changed = changed_problem(task, problem, change, generator(0, "variants", change, problem.problem_id))
        if changed is not None:
            found.append((problem, changed))
    return found


def keeping(task: ProceduralTask, family: str) -> Iterator[tuple[str, Problem, Problem]]:
    for change in KEEPS_ANSWER:
        for problem, changed in pairs(task, family, change):
            yield change, problem, changed


@pytest.fixture(scope="module")
def embedded() -> LanguageModel:
    return load_language_model("embedded:tiny")


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_every_change_but_numbers_keeps_content_and_answer_and_alters_the_question(
    task: ProceduralTask, family: str
) -> None:
    for change, problem, changed in keeping(task, family):
        solved = task.families[family].solve(tuple(changed.metadata["numbers"]))
        assert content_key(changed) == content_key(problem)
        assert changed.answer == problem.answer == str(solved.answer)
        assert changed.question != problem.question
        assert changed.problem_id == f"{problem.problem_id}~{change}"


def right_answer(family: str, question: str) -> float:
    """What the text asks for, read off the text alone, by Python's arithmetic."""
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    readings = {
        "mean": lambda a, b, c: (a + b + c) / 3,
        "spend": lambda money, things, price: money - things * price,
        "more_than": lambda first, more: 2 * first + more,
        "rows": lambda a, b, c, d: a * b + c * d,
        "bags": lambda start, bags, each: start + bags * each,
        "packs": lambda start, bags, each: start + bags * each,
        "share": lambda first, second, friends: (first + second) / friends,
        "share_rest": lambda total, lost, kids: (total - lost) / kids,
        "years": lambda now, years, times: (now + years) * times,
        "crates": lambda crates, red, blue: crates * (red + blue),
    }
    if family == "times":  # the box may be told of first
        first, times, box = numbers if "box" in question.split(".")[1] else (*numbers[1:], numbers[0])
        return first + times * first + box
    if family in readings:
        return readings[family](*numbers)
    if family in ("linear", "linear_minus", "inverse"):
        sides = re.findall(r"(\S*\d) *= *(\S*\d)", question)[0]
        return next(x for x in range(1000) if len({eval(side, {"x": x}) for side in sides}) == 1)
    text = question.replace(" ", "")
    return eval(re.findall(r"[\d()*+-]+", text)[0])


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_the_changed_text_itself_asks_for_the_answer_it_carries(task: ProceduralTask, family: str) -> None:
    for change in CHANGES:
        for problem, changed in pairs(task, family, change):
            assert right_answer(family, problem.question) == int(problem.answer), problem.question
            assert right_answer(family, changed.question) == int(changed.answer), changed.question


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_a_changed_prompt_holds_no_token_unknown_to_the_embedded_model(
    task: ProceduralTask, family: str, embedded: LanguageModel
) -> None:
    unknown = embedded.tokenizer.unk_token_id
    for change in CHANGES:
        for _, changed in pairs(task, family, change):
            assert unknown not in embedded.encode(task.prompt(changed)), changed.question


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_a_family_has_the_changes_its_text_allows(task: ProceduralTask, family: str) -> None:
    possible = {change for change in CHANGES if pairs(task, family, change)}
    expected = {"wording", "spacing", "numbers"}
    expected |= ({"names"} if family in NAMED else set()) | ({"order"} if family in ORDERED else set())
    assert possible == expected


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_each_kind_changes_only_what_it_says(task: ProceduralTask, family: str) -> None:
    numbers = re.compile(r"\d+")
    words = re.compile("|".join([*task.names, *task.things])) if task.names != ("",) else re.compile("(?!)")
    for change, problem, changed in keeping(task, family):
        before, after = problem.question, changed.question
        assert sorted(numbers.findall(before)) == sorted(numbers.findall(after))
        if change == "names":
            assert words.sub("_", before) == words.sub("_", after)
        elif change == "spacing":
            assert before.replace(" ", "") == after.replace(" ", "")
        elif change == "order":
            assert sorted(before) == sorted(after)


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_other_numbers_are_another_problem_of_the_same_size_story_and_split(task: ProceduralTask, family: str) -> None:
    found = pairs(task, family, "numbers")
    assert len(found) >= PROBLEMS // 2
    for problem, changed in found:
        assert content_key(changed) != content_key(problem)
        assert split_of(content_key(changed)) is split_of(content_key(problem))
        assert changed.difficulty == problem.difficulty
        # A digit for a digit: the same number of digits each, and the same words around them.
        assert re.sub(r"\d", "0", changed.question) == re.sub(r"\d", "0", problem.question)
        assert changed.answer == str(task.families[family].solve(tuple(changed.metadata["numbers"])).answer)


def test_the_random_stream_alone_decides_which_change_is_made() -> None:
    task = load_task("gsm8k_lite")
    (problem,) = task.problems(Split.TEST, 1, seed=0)
    first, again = (changed_problem(task, problem, "names", generator(3, "variants")) for _ in range(2))
    assert first == again
    others = [changed_problem(task, problem, "names", generator(3, "variants", place)) for place in range(20)]
    assert len({changed.question for changed in others if changed}) > 5


def test_a_problem_that_is_already_changed_gets_no_other_numbers() -> None:
    task = load_task("math_mini")
    (problem,) = task.problems(Split.TEST, 1, seed=0)
    spaced = changed_problem(task, problem, "spacing", generator(0, "variants"))
    assert spaced is not None
    assert changed_problem(task, spaced, "numbers", generator(0, "variants")) is None


class PlainTask:
    """A task with neither families nor numbers, as a public data set is."""

    name = "plain"
    families: ClassVar[dict[str, Family]] = {}
    reward_kind = "math"

    def prompt(self, problem: Problem) -> str:
        return problem.question


def test_a_problem_without_a_family_has_only_changes_that_are_safe_for_any_text() -> None:
    problem = Problem("plain/0", "plain", "plain", "Let $f(x) = 2 x$. Find $f(3)$.", "6")
    made = {
        change: {
            changed.question
            for place in range(20)
            if (changed := changed_problem(PlainTask(), problem, change, generator(place, "variants")))
        }
        for change in CHANGES
    }
    assert made == {
        "names": set(),
        "order": set(),
        "numbers": set(),
        "wording": {"Please solve: Let $f(x) = 2 x$. Find $f(3)$."},
        "spacing": {"Let $f(x) = 2 x$. Find $f(3)$.\n", "Let $f(x) = 2 x$.  Find $f(3)$."},
    }


def test_an_unknown_change_is_refused_with_the_known_ones() -> None:
    task = load_task("math_mini")
    (problem,) = task.problems(Split.TEST, 1, seed=0)
    with pytest.raises(ValueError, match="unknown change 'colour'; choose from names, wording, order"):
        changed_problem(task, problem, "colour", generator(0, "variants"))
