"""No problem that is evaluated may be trained or validated on, in whatever data set it stands."""

from __future__ import annotations

from collections.abc import Iterable

from bsharp.config import ConfigError
from bsharp.tasks.base import Split, Task
from bsharp.tasks.listed import ListedTask, question_key

__all__ = ["decontaminate"]

_REASON = "an evaluated test problem"


def decontaminate(
    train_tasks: Iterable[Task], evaluation_tasks: Iterable[Task]
) -> tuple[dict[str, Task], dict[str, int]]:
    """The tasks to train on, by name, without the questions that stand in the test split of any evaluated task.

    MATH holds every problem of MATH-500, DeepScaleR many of AIME and AMC. Training and validation problems whose
    `question_key` is that of a test problem are left out; the second result counts them by task. Questions that are put in
    other words are not found. Tasks whose problems are generated are returned as they are: their splits are disjoint by hash,
    and they share no problem with published sets. Raises ConfigError where a task loses all its training problems.
    """
    evaluated = frozenset(
        question_key(problem.question)
        for task in evaluation_tasks
        if isinstance(task, ListedTask)
        for problem in task.listing(Split.TEST).problems
    )
    kept: dict[str, Task] = {}
    left_out: dict[str, int] = {}
    for task in train_tasks:
        kept[task.name], left_out[task.name] = task, 0
        if not isinstance(task, ListedTask):
            continue
        clean = task.without(evaluated, _REASON)
        before = task.size(Split.TRAIN)
        if before and not clean.size(Split.TRAIN):
            raise ConfigError(
                f"{task.name}: all {before} training problems are also test problems of the evaluated tasks; train on others"
            )
        left_out[task.name] = sum(task.size(s) - clean.size(s) for s in (Split.TRAIN, Split.VALIDATION))
        if left_out[task.name]:
            kept[task.name] = clean
    return kept, left_out
