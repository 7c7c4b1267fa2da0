"""Which problems a step sees, also where a file has few of them or none to train on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bsharp.config import ConfigError, SamplingConfig, TrainConfig
from bsharp.seeding import generator
from bsharp.tasks import Split, base, load_task
from bsharp.training.problems import ProblemStream
from bsharp.types import Problem


class SmallFile:
    """A task with a handful of training problems."""

    families: Mapping[str, Any] = {}

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self._size = size
        self.asked = 0

    def size(self, split: Split) -> int:
        return self._size if split == Split.TRAIN else 50

    def problems(self, split: Split, count: int, seed: int, *rest: Sequence[str]) -> list[Problem]:
        assert count <= self.size(split)
        self.asked += 1
        order = generator(seed, "order").permutation(self._size)[:count]
        return [Problem(f"{self.name}/{i}", self.name, "all", 1, str(i), str(i)) for i in order]


def stream(tasks: Sequence[SmallFile], steps: int, per_step: int) -> ProblemStream:
    config = TrainConfig(steps=steps, sampling=SamplingConfig(prompts_per_step=per_step))
    return ProblemStream({task.name: task for task in tasks}, config)  # type: ignore[misc]


def test_every_pass_over_a_small_file_asks_each_problem_once_in_another_order() -> None:
    problems = stream([SmallFile("few", 5)], steps=30, per_step=4)
    ids = [problem.problem_id for step in range(1, 31) for problem in problems.problems(step)]
    passes = [tuple(ids[start : start + 5]) for start in range(0, 120, 5)]
    assert all(len(set(part)) == 5 for part in passes)
    assert len(set(passes)) > 10
    again = stream([SmallFile("few", 5)], steps=30, per_step=4)
    assert [problem.problem_id for problem in again.problems(30)] == ids[-4:]  # as after a resume


def test_a_step_with_more_problems_than_the_file_has_runs_over_several_passes() -> None:
    problems = stream([SmallFile("two", 2), SmallFile("many", 40)], steps=3, per_step=14)
    counts = Counter(problem.problem_id for problem in problems.problems(2))
    assert sorted(counts[f"two/{i}"] for i in range(2)) == [3, 4]
    assert max(counts[f"many/{i}"] for i in range(40)) == 1


def test_a_task_without_training_problems_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"task aime24 has no training problems.*train on another task") as refused:
        stream([SmallFile("few", 5), SmallFile("aime24", 0)], steps=1, per_step=2)
    assert "\n" not in str(refused.value)


def test_no_more_of_a_procedural_task_is_counted_than_the_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    task = dataclasses.replace(load_task("math_mini"), name="a task of its own")
    original = base.split_of

    def counting(content: str) -> Split:
        nonlocal asked
        asked += 1
        return original(content)

    monkeypatch.setattr(base, "split_of", counting)
    base._size.cache_clear()
    ProblemStream({task.name: task}, TrainConfig(steps=30, sampling=SamplingConfig(prompts_per_step=24)))
    assert asked < 2 * 30 * 24
    whole = task.size(Split.TRAIN)
    assert [task.size(Split.TRAIN, up_to=count) for count in (1, 720, whole, whole + 1)] == [1, 720, whole, whole]
