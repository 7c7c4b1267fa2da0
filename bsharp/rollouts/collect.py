"""problem → prompt → completion → grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bsharp.generation.interface import GenerationRequest, Generator, SamplingParams
from bsharp.rewards import RewardFunction
from bsharp.seeding import stream_seed
from bsharp.tasks import Task
from bsharp.types import Completion, Grade, Problem, RolloutGroup

if TYPE_CHECKING:
    from bsharp.models.loading import LanguageModel

__all__ = ["collect_rollouts", "grade_completions"]


def collect_rollouts(
    generator: Generator,
    language_model: LanguageModel,
    tasks: Mapping[str, Task],
    rewards: Mapping[str, RewardFunction],
    problems: Sequence[Problem],
    group_size: int,
    params: SamplingParams,
    run_seed: int,
    step: int,
) -> list[RolloutGroup]:
    """G graded completions for every problem, in order; the random stream of each is (run seed, step, place)."""
    prompts = [tuple(language_model.encode(tasks[problem.task].prompt(problem))) for problem in problems]
    requests = [
        GenerationRequest(prompt, group_size, stream_seed(run_seed, "rollouts", step, place))
        for place, prompt in enumerate(prompts)
    ]
    completions = generator.generate(requests, params)
    grades = grade_completions(rewards, problems, completions)
    return [RolloutGroup(*parts) for parts in zip(problems, prompts, completions, grades, strict=True)]


def grade_completions(
    rewards: Mapping[str, RewardFunction], problems: Sequence[Problem], completions: Sequence[Sequence[Completion]]
) -> list[tuple[Grade, ...]]:
    """One grade per completion, in order; each task's completions go to its reward function in one call.

    Raises ValueError where a reward function returns another number of grades than it was given completions.
    """
    graded: list[list[Grade | None]] = [[None] * len(group) for group in completions]
    for task_name in dict.fromkeys(problem.task for problem in problems):
        places = [
            (p, g)
            for p, problem in enumerate(problems)
            if problem.task == task_name
            for g in range(len(completions[p]))
        ]
        grades = rewards[task_name]([problems[p] for p, _ in places], [completions[p][g] for p, g in places])
        if len(grades) != len(places):
            raise ValueError(
                f"the reward function of {task_name} returned {len(grades)} grades for {len(places)} completions; "
                "it must return exactly one per completion, in order"
            )
        for (p, g), grade in zip(places, grades, strict=True):
            graded[p][g] = grade
    return [tuple(grade for grade in group if grade is not None) for group in graded]
