"""Laws of prompt formats: the question stands in the prompt as it is, whatever braces it or the format has."""

from __future__ import annotations

import pytest

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.tasks import FORMATS, TASK_NAMES, load_task
from bsharp.tasks.formats import template_of, worded
from bsharp.tasks.public import PUBLIC

TRICKY = "Let $\\{x\\}$ and {0} and {question_} and %s be \\boxed{?}"


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_holds_the_question_once_and_as_it_is(name: str) -> None:
    before, after = FORMATS[name].split("{question}")
    assert worded(FORMATS[name], TRICKY) == before + TRICKY + after


def test_the_paper_s_prompt_is_word_for_word_its_own() -> None:
    assert worded(template_of("paper", "boxed"), "What is 1+1?") == (
        "Think step-by-step to solve the following problem. Output your answer inside of \\boxed{} tags.:\n"
        "What is 1+1?\n\nLet's think step-by-step"
    )


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("task_name", ["math_mini", "gsm8k_lite"])
def test_embedded_tasks_take_every_format_and_keep_their_own_by_default(task_name: str, name: str) -> None:
    task, asked = load_task(task_name), load_task(task_name, ProblemsConfig(prompt_format=name))
    (problem,) = task.problems("test", 1, 0)
    assert task.prompt(problem) == f"Q: {problem.question} A:"
    assert asked.problems("test", 1, 0) == [problem]
    assert asked.prompt(problem) == worded(FORMATS[name], problem.question)
    assert asked.size("test") == task.size("test")


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_text_with_a_question_in_it_is_a_format_for_every_task(name: str) -> None:
    task = load_task(name, ProblemsConfig(prompt_format="Solve: {question}\nAnswer:"))
    (problem,) = load_task("math_mini").problems("test", 1, 0)
    assert task.prompt(problem) == f"Solve: {problem.question}\nAnswer:"


@pytest.mark.parametrize("name", list(PUBLIC))
def test_the_default_format_of_a_public_set_is_a_known_one(name: str) -> None:
    (problem,) = load_task("math_mini").problems("test", 1, 0)
    assert load_task(name).prompt(problem) == worded(FORMATS[PUBLIC[name].prompt_format], problem.question)


@pytest.mark.parametrize("name", ["papr", "Solve the problem", "{questions}"])
def test_a_format_that_is_unknown_and_holds_no_question_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not known; choose from default, paper, boxed, hash, tags, plain, qa"):
        load_task("gsm8k", ProblemsConfig(prompt_format=name))
