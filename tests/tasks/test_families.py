"""Laws of the families: what is written is right arithmetic, the oracle grades correct, a mistake never does."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from bsharp.config import EMBEDDED_TASKS
from bsharp.rewards import BoxedAnswerReward
from bsharp.seeding import generator
from bsharp.tasks import DIFFICULTIES, Role, Split, load_task
from bsharp.tasks.arithmetic import add_columns, multiply_columns, subtract_columns
from bsharp.tasks.base import Draws, Family, ProceduralTask, split_of
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

TASKS = [load_task(name) for name in EMBEDDED_TASKS]
FAMILIES = [pytest.param(task, family, id=family.name) for task in TASKS for family in task.families.values()]
PROBLEMS_PER_CELL = 100


@cache
def sample(task: ProceduralTask, family: Family) -> list[Problem]:
    """The same number of problems for every split and difficulty."""
    draws = Draws(generator(0, "family tests", family.name))
    cells: Counter[tuple[Split, int]] = Counter()
    problems = []
    while len(cells) < 9 or min(cells.values()) < PROBLEMS_PER_CELL:
        difficulty = draws.one_of(DIFFICULTIES)
        numbers = family.draw(draws, difficulty)
        if numbers is None:
            continue
        cell = split_of(family.content(numbers)), difficulty
        if cells[cell] < PROBLEMS_PER_CELL:
            cells[cell] += 1
            problems.append(task.problem(family, numbers, difficulty))
    return problems


def evaluate(expression: str) -> float:
    """An arithmetic expression by Python's own rules."""
    assert re.fullmatch(r"[0-9+\-*/() ]+", expression), expression
    return eval(expression)


def grade(problems: list[Problem], texts: list[str]) -> list[GradeStatus]:
    completions = [Completion((0,), (0.0,), FinishReason.EOS, text) for text in texts]
    return [grade.status for grade in BoxedAnswerReward()(problems, completions)]


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_oracle_grades_correct_and_every_mistake_wrong_in_every_split_and_difficulty(
    task: ProceduralTask, family: Family
) -> None:
    problems = sample(task, family)
    assert set(grade(problems, [task.oracle(problem) for problem in problems])) == {GradeStatus.CORRECT}
    for kind in family.mistake_types:
        mistakes = [task.mistakes(problem)[kind] for problem in problems]
        assert set(grade(problems, [text for text, _ in mistakes])) == {GradeStatus.WRONG}
        assert all(text.endswith(f"\\boxed{{{answer}}}") for text, answer in mistakes)


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_content_is_the_arithmetic_whose_value_is_the_gold_answer(task: ProceduralTask, family: Family) -> None:
    for problem in sample(task, family):
        assert evaluate(problem.metadata["content"]) == int(problem.answer), problem


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_every_written_step_is_a_true_equation(task: ProceduralTask, family: Family) -> None:
    for problem in sample(task, family):
        for text in (task.oracle(problem), *(text for text, _ in task.mistakes(problem).values())):
            steps = text.rpartition(";")[0].strip().split(";")
            for left, right in (step.split("=") for step in steps):
                assert evaluate(left) == int(right), (problem.question, text)


@pytest.mark.parametrize(("task", "family"), FAMILIES)
def test_question_states_every_number_that_the_solution_needs(task: ProceduralTask, family: Family) -> None:
    """Numbers of the first step stand in the question, up to the digits of a column."""
    for problem in sample(task, family):
        first_step = task.oracle(problem).split("=")[0]
        for number in re.findall(r"\d+", first_step):
            assert number in problem.question or number[-1] in problem.question


def test_algebra_questions_are_solved_by_their_gold_answer() -> None:
    """The equations as asked, checked by substitution and not by the solution's own route."""
    math_mini = load_task("math_mini")
    for problem in math_mini.problems(Split.TEST, 300, 0, families=["linear", "linear_minus", "inverse"]):
        equation = problem.question.removesuffix(" x = ?").replace("x", problem.answer)
        left, right = equation.split(" = ")
        assert evaluate(left) == int(right)


def test_arithmetic_questions_evaluate_to_their_gold_answer() -> None:
    math_mini = load_task("math_mini")
    names = ["add", "add_long", "subtract", "multiply", "mixed", "bracket", "sum_times"]
    for problem in math_mini.problems(Split.VALIDATION, 400, 0, families=names):
        assert evaluate(problem.question.removesuffix(" = ?")) == int(problem.answer)
    for problem in math_mini.problems(Split.VALIDATION, 100, 0, families=["mean"]):
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert len(numbers) == 3
        assert sum(numbers) == 3 * int(problem.answer)


WORD_PROBLEM_ANSWERS = {
    "spend": lambda a, b, c: a - b * c,
    "more_than": lambda a, b: a + (a + b),
    "rows": lambda a, b, c, d: a * b + c * d,
    "bags": lambda a, b, c: a + b * c,
    "packs": lambda a, b, c: a + b * c,
    "share": lambda a, b, friends: (a + b) / friends,
    "share_rest": lambda a, b, kids: (a - b) / kids,
    "times": lambda a, b, c: a + b * a + c,
    "years": lambda a, b, c: (a + b) * c,
    "crates": lambda a, b, c: a * (b + c),
}


def test_stories_have_the_answer_that_their_numbers_in_reading_order_give() -> None:
    task = load_task("gsm8k_lite")
    assert set(WORD_PROBLEM_ANSWERS) == set(task.families)
    for problem in task.problems(Split.TEST, 500, 0):
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        assert WORD_PROBLEM_ANSWERS[problem.family](*numbers) == int(problem.answer), problem.question


def test_columns_reach_the_true_result_and_forgetting_the_carry_drops_it() -> None:
    assert add_columns(347, 125).steps == ("7+5=12", "4+2+1=7", "3+1=4")
    assert add_columns(347, 125, carrying=False).answer == 462
    assert subtract_columns(332, 185).steps == ("12-5=7", "13-1-8=4", "3-1-1=1")
    assert subtract_columns(342, 125, borrowing=False).answer == 227
    assert multiply_columns(47, 6).steps == ("7*6=42", "4*6=24", "24+4=28")
    assert multiply_columns(47, 6, carrying=False).answer == 242
    rng = generator(0, "columns")
    for left, right in rng.integers(0, 10_000, size=(500, 2)).tolist():
        assert add_columns(left, right).answer == left + right
        low, high = sorted((left, right))
        assert subtract_columns(high, low).answer == high - low
        assert multiply_columns(left, right % 10).answer == left * (right % 10)


@pytest.mark.parametrize("task", TASKS, ids=EMBEDDED_TASKS)
def test_each_task_has_every_role_and_as_many_right_as_wrong_mode_standard_families(task: ProceduralTask) -> None:
    assert {family.role for family in task.families.values()} == set(Role)
    modes = Counter(family.mode for family in task.families.values() if family.role is Role.STANDARD)
    assert modes["right"] == modes["wrong"] >= 3


@pytest.mark.parametrize("name", ["inverse", "crates"])
def test_unsolved_answers_are_out_of_reach_of_a_guess_near_a_mistake(name: str) -> None:
    task = next(task for task in TASKS if name in task.families)
    for problem in sample(task, task.families[name]):
        assert int(problem.answer) >= 100
        for solution in map(int, (answer for _, answer in task.mistakes(problem).values())):
            assert solution < int(problem.answer)
