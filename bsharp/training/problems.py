"""Which problems each training step sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bsharp.config import ConfigError, TrainConfig
from bsharp.seeding import stream_seed
from bsharp.tasks import ProceduralTask, Split, Task
from bsharp.types import Problem

__all__ = ["ProblemStream"]


class ProblemStream:
    """Training problems in a fixed order given the seed: no problem twice in a pass, tasks and families in turn.

    A pass over a task ends when its training problems are used up; the next one deals them in another order. Raises
    ConfigError without a task, and for a task that has no problems to train on.
    """

    def __init__(self, tasks: Mapping[str, Task], config: TrainConfig) -> None:
        if not tasks:
            raise ConfigError("tasks = () leaves nothing to train on; name at least one task")
        self._tasks = list(tasks.values())
        self._per_step = config.sampling.prompts_per_step
        self._seed = config.seed
        needed = -(-config.steps * self._per_step // len(self._tasks))
        self._pass_length = [_size(task, needed) for task in self._tasks]
        for name, length in zip(tasks, self._pass_length, strict=True):
            if length < 1:
                raise ConfigError(
                    f"task {name} has no training problems, only ones to evaluate on; train on another task and name this one "
                    "in evaluation_tasks"
                )
        self._passes: dict[tuple[int, int], Sequence[Problem]] = {}

    def problems(self, step: int) -> list[Problem]:
        """The problems of step 1, 2, …: drawn from the tasks in turn, across steps too."""
        first = (step - 1) * self._per_step
        return [self._problem(place) for place in range(first, first + self._per_step)]

    def _problem(self, place: int) -> Problem:
        task_index, turn = place % len(self._tasks), place // len(self._tasks)
        number, offset = divmod(turn, self._pass_length[task_index])
        key = (task_index, number)
        if key not in self._passes:
            task = self._tasks[task_index]
            seed = stream_seed(self._seed, "problems", task.name, number)
            # Of a small file there may be thousands of passes: only the one before is kept, which the same step may still see.
            self._passes.pop((task_index, number - 2), None)
            self._passes[key] = task.problems(Split.TRAIN, self._pass_length[task_index], seed)
        return self._passes[key][offset]


def _size(task: Task, needed: int) -> int:
    """The training problems of a task, at most as many as needed: procedural families hold tens of thousands to count."""
    size = task.size(Split.TRAIN, up_to=needed) if isinstance(task, ProceduralTask) else task.size(Split.TRAIN)
    return min(size, needed)
