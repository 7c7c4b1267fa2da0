"""What is asked: procedural tasks with their families and roles, public data sets, problems of one's own, reasoning-gym.

>>> problem = load_task("math_mini").problems(Split.TEST, 1, seed=0)[0]
>>> load_task("math_mini").prompt(problem).startswith("Q: ")
True
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from bsharp.config import EMBEDDED_TASKS, ConfigError, ProblemsConfig
from bsharp.tasks.base import (
    DIFFICULTIES,
    ENUMERATION_CAP,
    Family,
    ProceduralTask,
    Role,
    Solution,
    Split,
    Task,
    distinct_contents,
    split_of,
)
from bsharp.tasks.decontamination import decontaminate
from bsharp.tasks.fields import did_you_mean
from bsharp.tasks.formats import FORMATS, template_of
from bsharp.tasks.gsm8k_lite import GSM8K_LITE
from bsharp.tasks.gym import PREFIX, GymTask, gym_task
from bsharp.tasks.listed import ListedTask, question_key
from bsharp.tasks.math_mini import MATH_MINI
from bsharp.tasks.own import own_task
from bsharp.tasks.public import PUBLIC, public_task
from bsharp.types import Problem

__all__ = [
    "DIFFICULTIES",
    "FORMATS",
    "TASK_NAMES",
    "Family",
    "GymTask",
    "ListedTask",
    "ProceduralTask",
    "Role",
    "Solution",
    "Split",
    "Task",
    "content_key",
    "decontaminate",
    "distinct_problems",
    "embedded_task",
    "load_task",
    "split_of",
]

_EMBEDDED: Mapping[str, ProceduralTask] = {task.name: task for task in (MATH_MINI, GSM8K_LITE)}
assert tuple(_EMBEDDED) == EMBEDDED_TASKS
TASK_NAMES: tuple[str, ...] = (*_EMBEDDED, *PUBLIC)
"""Every task that has a name of its own; beside them there are `data` and `reasoning_gym:<data set>`."""


def load_task(name: str, settings: ProblemsConfig = ProblemsConfig()) -> Task:
    """The task of that name, its problems worded as `settings.prompt_format` says.

    `name` is one of `TASK_NAMES`, `data` (the file `settings.data`) or `reasoning_gym:<data set>`. Public data sets come from
    `settings.data_dir` or the Hugging Face hub, and are read when problems (or a size) are first asked for. Raises ConfigError
    for an unknown name or format, `data` without a file, and a reasoning-gym data set that cannot be made.
    """
    if name in _EMBEDDED:
        task = _EMBEDDED[name]
        template = template_of(settings.prompt_format, "qa")
        return task if template == task.template else dataclasses.replace(task, template=template)
    if name in PUBLIC:
        return public_task(PUBLIC[name], settings)
    if name == "data":
        return own_task(settings)
    if name.startswith(PREFIX):
        return gym_task(name, settings)
    raise ConfigError(
        f"unknown task {name!r}{did_you_mean(name, (*TASK_NAMES, 'data', PREFIX))}; choose from {', '.join(TASK_NAMES)}, "
        f"{PREFIX}<data set>, or data with a file of your own"
    )


def embedded_task(name: str) -> ProceduralTask:
    """The procedural task of that name; ConfigError for any other."""
    if name not in _EMBEDDED:
        raise ConfigError(f"{name!r} is no embedded task; choose from {', '.join(_EMBEDDED)}")
    return _EMBEDDED[name]


def content_key(problem: Problem) -> str:
    """What a problem asks, whatever its wording or layout; the split is a hash of this key alone.

    Of an embedded problem it is the arithmetic with commuting operands sorted: two wordings of the same arithmetic, in
    whatever family or task, have the same key and so fall into the same split. Of any other it is the normalised question.
    """
    if problem.task in _EMBEDDED:
        return str(problem.metadata["content"])
    return question_key(problem.question)


def distinct_problems(task: ProceduralTask, cap: int = ENUMERATION_CAP) -> dict[str, dict[Split, int]]:
    """Distinct problems (by content) per family and split, by enumeration.

    A family with more than `cap` is enumerated up to `cap`: its counts, which then sum to `cap`, are lower bounds.
    """
    counts = {}
    for name, family in task.families.items():
        splits = Counter(map(split_of, distinct_contents(family, cap)))
        counts[name] = {split: splits[split] for split in Split}
    return counts
