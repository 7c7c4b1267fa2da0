"""A user's Python function as a reward function."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bsharp.config import ConfigError
from bsharp.rewards.base import check_paired
from bsharp.rewards.calls import call_within
from bsharp.rewards.extract import extract_answer
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["FunctionReward", "UserFunction"]

UserFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]


def _ignore(*arguments: Any, **named: Any) -> None:
    """TRL's log_extra and log_metric."""


_OF_A_TRAINER: Mapping[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}


class FunctionReward:
    """Wraps `reward_func(prompts, completions, **columns) -> list[float | None]`, the signature TRL uses.

    `prompts` and `completions` are texts, or conversations (lists of messages with role and content) where the annotation
    of `completions` says dict, as that of TRL's own rewards does: `list[list[dict[str, str]]]`. Every other argument is a
    column with one value per completion: `answer` (gold), `problem_id`, `task`, `family`, `difficulty`, `metadata`,
    `completion_ids`, `finish_reason` and the problem's metadata by name, such as the further fields of your own data;
    `solution` is the answer where the metadata have none. A function without `**columns` gets those that its signature
    names. TRL's `trainer_state` is None here, `log_extra` and `log_metric` are taken and ignored. It may be async.

    A number in [low, high] becomes the reward (value - low) / (high - low), with status CORRECT above one half and WRONG
    otherwise. None (not graded), NaN, an infinity, a number outside the range or something that is no number is an ERROR
    without a reward, for that completion alone. Where the function raises or returns the wrong number of rewards, it is called
    again with one completion at a time and only those that fail again are errors; a function that compares the completions of a
    batch with each other must therefore not raise. `time_limit` is of one call, however many completions it is given: one that
    takes longer gives TIMEOUT to all of them; Python cannot stop it, it is left behind in a daemon thread.

    Raises TypeError for a function that cannot be called so, and ConfigError when it asks for a column that no problem has.
    """

    def __init__(
        self,
        function: UserFunction,
        low: float = 0.0,
        high: float = 1.0,
        time_limit: float = 60.0,
        prompt: Callable[[Problem], str] | None = None,
    ) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low = {low}, high = {high} is no range; give two finite numbers, low < high")
        if not time_limit > 0:
            raise ValueError(f"time_limit = {time_limit} must be positive: seconds per call")
        self.function, self.low, self.high, self.time_limit = function, low, high, time_limit
        self.prompt = prompt or (lambda problem: problem.question)
        parameters = _parameters(function)
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._named = frozenset(parameters)
        self._needed = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        ]
        self._conversational = (
            "completions" in parameters and "dict" in str(parameters["completions"].annotation).lower()
        )

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        if not completions:
            return []
        outcome = self._call(problems, completions)
        if isinstance(outcome, str) and len(completions) > 1:
            pairs = zip(problems, completions, strict=True)
            return [self([problem], [completion])[0] for problem, completion in pairs]
        if isinstance(outcome, Grade):
            return [outcome] * len(completions)
        if isinstance(outcome, str):
            return [Grade(GradeStatus.ERROR, None, detail=outcome)]
        return [self._grade(*pair) for pair in zip(problems, completions, outcome, strict=True)]

    def _call(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Any] | str | Grade:
        """The raw rewards, or what went wrong as a string, or the grade of a call that took too long."""
        arguments = self._arguments(problems, completions)

        def run() -> list[Any]:
            returned: Any = self.function(**arguments)
            if inspect.isawaitable(returned):
                returned = asyncio.run(_finish(returned))
            return list(returned)

        outcome = call_within(self.time_limit, run)
        if outcome.expired:
            detail = (
                f"a call of the reward function with {len(completions)} completions took more than {self.time_limit:g} s; "
                "the limit is of one call: raise --grader-seconds"
            )
            return Grade(GradeStatus.TIMEOUT, None, detail=detail)
        if outcome.failure is not None:
            hint = ""
            if not self._conversational and "string ind" in outcome.failure:
                hint = "; where it expects messages, annotate completions: list[list[dict[str, str]]]"
            return f"the reward function raised {outcome.failure}"[:300] + hint
        assert outcome.value is not None
        if len(outcome.value) != len(completions):
            return f"the reward function returned {len(outcome.value)} rewards for {len(completions)} completions"
        return outcome.value

    def _arguments(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
        prompts: list[Any] = [self.prompt(problem) for problem in problems]
        texts: list[Any] = [completion.text for completion in completions]
        if self._conversational:
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        known: Mapping[str, Any] = {
            "prompts": prompts,
            "completions": texts,
            "answer": [problem.answer for problem in problems],
            "problem_id": [problem.problem_id for problem in problems],
            "task": [problem.task for problem in problems],
            "family": [problem.family for problem in problems],
            "difficulty": [problem.difficulty for problem in problems],
            "metadata": [dict(problem.metadata) for problem in problems],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "finish_reason": [str(completion.finish_reason) for completion in completions],
        }
        names = {key for problem in problems for key in problem.metadata if isinstance(key, str)}
        columns: dict[str, Any] = {name: [problem.metadata.get(name) for problem in problems] for name in sorted(names)}
        columns["solution"] = [problem.metadata.get("solution", problem.answer) for problem in problems]
        columns |= known
        missing = [name for name in self._needed if name not in columns and name not in _OF_A_TRAINER]
        if missing:
            there = ", ".join(sorted(columns))
            raise ConfigError(
                f"the reward function {_name(self.function)} asks for {missing[0]!r}, which no problem has; columns: {there}"
            )
        if self._takes_all:
            return columns | {name: value for name, value in _OF_A_TRAINER.items() if name in self._named}
        columns |= _OF_A_TRAINER
        return {name: columns[name] for name in columns if name in self._named}

    def _grade(self, problem: Problem, completion: Completion, value: Any) -> Grade:
        try:
            number = math.nan if value is None or isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not self.low <= number <= self.high:
            wanted = f"a number in [{self.low:g}, {self.high:g}]"
            return Grade(
                GradeStatus.ERROR, None, detail=f"the reward function returned {value!r:.100}, which is not {wanted}"
            )
        reward = (number - self.low) / (self.high - self.low)
        answer = extract_answer(completion.text, "last_box")
        status = GradeStatus.CORRECT if reward > 0.5 else GradeStatus.WRONG
        return Grade(status, reward, answer.strip() if answer else None, exact_match=answer == problem.answer)


def _parameters(function: UserFunction) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function; TypeError where it cannot be called with prompts and completions by name."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        raise TypeError(
            f"{_name(function)} does not say what arguments it takes; wrap it in a Python function"
        ) from None
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    by_place = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_ONLY]
    if by_place or not (takes_all or "completions" in parameters):
        signature = "def my_reward(prompts, completions, answer, **columns)"
        got = f"{_name(function)}({', '.join(parameters)})"
        raise TypeError(f"{got} does not take completions by name; write {signature}")
    return parameters


def _name(function: UserFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


async def _finish(awaited: Awaitable[Any]) -> Any:
    return await awaited
