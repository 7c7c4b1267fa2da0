"""Laws of wrapped user functions: N completions give N grades, and bad reward code fails its own item only."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
from typing import Any

import pytest

from bsharp.config import ConfigError
from bsharp.rewards import FunctionReward
from bsharp.types import Completion, FinishReason, GradeStatus, Problem

CORRECT, WRONG, ERROR = GradeStatus.CORRECT, GradeStatus.WRONG, GradeStatus.ERROR


def batch(*texts: str) -> tuple[list[Problem], list[Completion]]:
    problems = [Problem(f"id{index}", "task", "family", f"question {index}", str(index)) for index in range(len(texts))]
    return problems, [Completion((index,), (0.0,), FinishReason.EOS, text) for index, text in enumerate(texts)]


def test_a_function_of_trl_signature_sees_texts_and_columns_in_order() -> None:
    seen: dict[str, Any] = {}

    def reward_func(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [1.0, 0.25, 0.0]

    grades = FunctionReward(reward_func)(*batch("a", r"\boxed{7}", "c"))
    assert [grade.reward for grade in grades] == [1.0, 0.25, 0.0]
    assert [grade.status for grade in grades] == [CORRECT, WRONG, WRONG]
    assert [grade.answer for grade in grades] == [None, "7", None]
    assert seen["prompts"] == ["question 0", "question 1", "question 2"]
    assert seen["completions"] == ["a", r"\boxed{7}", "c"]
    assert seen["answer"] == ["0", "1", "2"]
    assert seen["completion_ids"] == [[0], [1], [2]]
    assert all(len(column) == 3 for column in seen.values())


def test_a_function_gets_only_the_columns_its_signature_names() -> None:
    def length_reward(completions: list[str], answer: list[str]) -> list[float]:
        return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]

    grades = FunctionReward(length_reward)(*batch("0", "7", "2"))
    assert [grade.reward for grade in grades] == [1.0, 0.0, 1.0]


def test_prompts_are_those_of_the_given_prompt_function() -> None:
    def is_prompted(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(prompt.startswith("Q:")) for prompt in prompts]

    reward = FunctionReward(is_prompted, prompt=lambda problem: f"Q: {problem.question}")
    assert [grade.reward for grade in reward(*batch("a"))] == [1.0]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1.5, -0.1, "1", "high", [1.0]])
def test_a_missing_or_impossible_reward_is_an_error_of_its_item_alone(value: Any) -> None:
    grades = FunctionReward(lambda completions: [1.0, value, 0.0])(*batch("a", "b", "c"))
    assert [grade.status for grade in grades] == [CORRECT, ERROR, WRONG]
    assert [grade.reward for grade in grades] == [1.0, None, 0.0]
    assert "which is not a number in [0, 1]" in grades[1].detail


def test_an_exception_is_an_error_of_its_item_alone() -> None:
    def reward_func(completions: list[str]) -> list[float]:
        return [1.0 / len(text) for text in completions]

    grades = FunctionReward(reward_func)(*batch("a", "", "bb", ""))
    assert [grade.status for grade in grades] == [CORRECT, ERROR, WRONG, ERROR]
    assert [grade.reward for grade in grades] == [1.0, None, 0.5, None]
    assert "ZeroDivisionError" in grades[1].detail


def test_a_function_that_drops_an_item_shifts_nothing() -> None:
    def reward_func(completions: list[str]) -> list[float]:
        return [float(text) for text in completions if text]

    grades = FunctionReward(reward_func)(*batch("1", "", "0"))
    assert [grade.reward for grade in grades] == [1.0, None, 0.0]
    assert "returned 0 rewards for 1 completions" in grades[1].detail


def test_rewards_of_another_range_are_scaled_to_the_unit_interval() -> None:
    grades = FunctionReward(lambda completions: [-1, 0, 1, 2], low=-1, high=1)(*batch("a", "b", "c", "d"))
    assert [grade.reward for grade in grades] == [0.0, 0.5, 1.0, None]
    assert [grade.status for grade in grades] == [WRONG, WRONG, CORRECT, ERROR]


def test_a_function_that_takes_too_long_times_out_for_everyone() -> None:
    release = threading.Event()

    def slow(completions: list[str]) -> list[float]:
        release.wait(30)
        return [1.0] * len(completions)

    grades = FunctionReward(slow, time_limit=0.05)(*batch("a", "b"))
    release.set()
    assert [grade.status for grade in grades] == [GradeStatus.TIMEOUT] * 2
    assert [grade.reward for grade in grades] == [None, None]
    assert grades[0].detail == (
        "a call of the reward function with 2 completions took more than 0.05 s; the limit is of one call: "
        "raise --grader-seconds"
    )


def test_an_async_function_is_awaited() -> None:
    async def reward_func(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert [grade.reward for grade in FunctionReward(reward_func)(*batch("a", ""))] == [1.0, 0.0]


def test_an_async_function_that_raises_or_waits_is_no_exception() -> None:
    async def slow(completions: list[str]) -> list[float]:
        await asyncio.sleep(30)
        return [1.0]

    async def broken(completions: list[str]) -> list[float]:
        return [1.0 / len(text) for text in completions]

    assert [grade.status for grade in FunctionReward(slow, time_limit=0.05)(*batch("a"))] == [GradeStatus.TIMEOUT]
    assert [grade.status for grade in FunctionReward(broken)(*batch("a", ""))] == [CORRECT, ERROR]


def test_completions_are_messages_where_the_annotation_says_so() -> None:
    seen: dict[str, Any] = {}

    def reward_func(prompts: Any, completions: list[list[dict[str, str]]]) -> list[float]:
        seen.update(prompts=prompts, completions=completions)
        return [1.0]

    FunctionReward(reward_func)(*batch("a"))
    assert seen["prompts"] == [[{"role": "user", "content": "question 0"}]]
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}]]


def test_a_function_that_expects_messages_without_saying_so_is_told_what_to_write() -> None:
    def reward_func(completions, **columns):  # type: ignore[no-untyped-def]
        return [float(completion[0]["content"] == "a") for completion in completions]

    (grade,) = FunctionReward(reward_func)(*batch("a"))
    assert grade.status is ERROR
    assert "annotate completions: list[list[dict[str, str]]]" in grade.detail


def test_trl_rewards_run_as_they_are() -> None:
    rewards = pytest.importorskip("trl.rewards")
    problems, completions = batch(r"It is \boxed{\frac{1}{2}}.", r"\boxed{2}")
    problems = [dataclasses.replace(problem, answer=r"$\frac{1}{2}$") for problem in problems]
    assert [grade.reward for grade in FunctionReward(rewards.accuracy_reward)(problems, completions)] == [1.0, 0.0]
    assert [grade.reward for grade in FunctionReward(rewards.think_format_reward)(problems, completions)] == [0.0, 0.0]


def test_what_a_trainer_would_pass_is_accepted_and_ignored() -> None:
    def reward_func(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("column", completions)
        log_metric("figure", 1.0)
        return [float(trainer_state is None)]

    assert [grade.reward for grade in FunctionReward(reward_func)(*batch("a"))] == [1.0]


def test_fields_of_the_problem_are_columns() -> None:
    def reward_func(completions: list[str], level: list[int | None], solution: list[str]) -> list[float]:
        return [float(bool(value)) / 2 + float(text == "two") / 2 for value, text in zip(level, solution, strict=True)]

    problems, completions = batch("a", "b")
    problems = [dataclasses.replace(problems[0], metadata={"level": 3, "solution": "two"}), problems[1]]
    assert [grade.reward for grade in FunctionReward(reward_func)(problems, completions)] == [1.0, 0.0]


def test_a_column_that_no_problem_has_stops_the_run_at_once() -> None:
    def my_reward(completions: list[str], level: list[int]) -> list[float]:
        return [1.0]

    reward = FunctionReward(my_reward)
    with pytest.raises(
        ConfigError, match=r"my_reward asks for 'level', which no problem has; columns: answer, completion"
    ):
        reward(*batch("a"))


def test_no_completions_give_no_grades_without_a_call() -> None:
    assert FunctionReward(lambda completions: [1.0])([], []) == []


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low = 1.0, high = 1.0 is no range"):
        FunctionReward(lambda completions: [], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="time_limit = 0 must be positive"):
        FunctionReward(lambda completions: [], time_limit=0)
    with pytest.raises(ValueError, match="1 completions but 0 problems"):
        FunctionReward(lambda completions: [])([], [Completion((0,), (0.0,), FinishReason.EOS, "")])
