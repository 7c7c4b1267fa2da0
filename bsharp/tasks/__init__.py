"""What is asked: procedural tasks, their families, roles and splits.

>>> problem = load_task("math_mini").problems(Split.TEST, 1, seed=0)[0]
>>> load_task("math_mini").prompt(problem).startswith("Q: ")
True
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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
from bsharp.tasks.gsm8k_lite import GSM8K_LITE
from bsharp.tasks.math_mini import MATH_MINI
from bsharp.types import Problem

__all__ = [
    "DIFFICULTIES",
    "TASK_NAMES",
    "Family",
    "ProceduralTask",
    "Role",
    "Solution",
    "Split",
    "Task",
    "content_key",
    "distinct_problems",
    "load_task",
    "split_of",
]

_TASKS: Mapping[str, ProceduralTask] = {task.name: task for task in (MATH_MINI, GSM8K_LITE)}
TASK_NAMES: tuple[str, ...] = tuple(_TASKS)


def load_task(name: str) -> ProceduralTask:
    """The embedded task of that name; ValueError names the known ones."""
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; choose from {', '.join(TASK_NAMES)}")
    return _TASKS[name]


def content_key(problem: Problem) -> str:
    """The arithmetic a problem asks for, commuting operands sorted; the split is a hash of this key alone.

    Two wordings of the same arithmetic, in whatever family or task, have the same key and so fall into the same split.
    """
    return str(problem.metadata["content"])


def distinct_problems(task: ProceduralTask, cap: int = ENUMERATION_CAP) -> dict[str, dict[Split, int]]:
    """Distinct problems (by content) per family and split, by enumeration.

    A family with more than `cap` is enumerated up to `cap`: its counts, which then sum to `cap`, are lower bounds.
    """
    counts = {}
    for name, family in task.families.items():
        splits = Counter(map(split_of, distinct_contents(family, cap)))
        counts[name] = {split: splits[split] for split in Split}
    return counts
