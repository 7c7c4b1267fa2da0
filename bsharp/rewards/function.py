"""A user's Python function as a reward function."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from bsharp.rewards.base import boxed_answers, check_paired
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["FunctionReward"]

UserFunction = Callable[..., Sequence[float | None]]


class FunctionReward:
    """Wraps `reward_func(prompts, completions, **columns) -> list[float | None]`, the signature TRL uses.

    `prompts` and `completions` are texts. The columns, one value per completion, are `answer` (gold), `problem_id`, `task`,
    `family`, `difficulty`, `metadata`, `completion_ids` and `finish_reason`; a function without `**columns` gets those that
    its signature names.

    A number in [low, high] becomes the reward (value - low) / (high - low), with status CORRECT above one half and WRONG
    otherwise. None, NaN, an infinity, a number outside the range or something that is no number is an ERROR without a
    reward, for that completion alone. Where the function raises or returns the wrong number of rewards, it is called again
    with one completion at a time and only those that fail again are errors; a function that compares the completions of a
    batch with each other must therefore not raise. A call that takes longer than `time_limit` seconds gives TIMEOUT to
    every completion of that call; Python cannot stop it, it is left behind in a daemon thread.
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
        parameters = inspect.signature(function).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        self._columns = None if takes_all else frozenset(parameters)

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
        arguments: dict[str, list[Any]] = {
            "prompts": [self.prompt(problem) for problem in problems],
            "completions": [completion.text for completion in completions],
            "answer": [problem.answer for problem in problems],
            "problem_id": [problem.problem_id for problem in problems],
            "task": [problem.task for problem in problems],
            "family": [problem.family for problem in problems],
            "difficulty": [problem.difficulty for problem in problems],
            "metadata": [dict(problem.metadata) for problem in problems],
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "finish_reason": [str(completion.finish_reason) for completion in completions],
        }
        if self._columns is not None:
            arguments = {name: values for name, values in arguments.items() if name in self._columns}
        outcome: list[Any] = []

        def run() -> None:
            try:
                returned = list(self.function(**arguments))
                wrong = f"the reward function returned {len(returned)} rewards for {len(completions)} completions"
                outcome.append(returned if len(returned) == len(completions) else wrong)
            except Exception as error:
                # Reward code is untrusted: whatever it raises can at worst fail the completions it was given.
                outcome.append(f"the reward function raised {type(error).__name__}: {error}"[:300])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.time_limit)
        if thread.is_alive():
            return Grade(GradeStatus.TIMEOUT, None, detail=f"the reward function took more than {self.time_limit:g} s")
        return outcome[0] if outcome else "the reward function ended its thread"

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
        *_, answer = (None, *boxed_answers(completion.text))
        status = GradeStatus.CORRECT if reward > 0.5 else GradeStatus.WRONG
        return Grade(status, reward, answer.strip() if answer else None, exact_match=answer == problem.answer)
