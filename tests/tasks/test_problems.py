"""Laws of problem sets: disjoint splits, distinct contents, determinism, sizes."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from scipy.stats import chisquare

from bsharp.config import EMBEDDED_TASKS
from bsharp.tasks import Role, Split, content_key, distinct_problems, load_task, split_of
from bsharp.tasks.base import DIFFICULTIES, ProceduralTask
from bsharp.tasks.table import tasks_document

TASKS = [load_task(name) for name in EMBEDDED_TASKS]
counted = cache(distinct_problems)
BY_TASK = pytest.mark.parametrize("task", TASKS, ids=EMBEDDED_TASKS)


def test_splits_are_disjoint_by_content_across_families_tasks_and_seeds() -> None:
    contents: dict[Split, set[str]] = {split: set() for split in Split}
    for task, split, seed in itertools.product(TASKS, Split, range(3)):
        contents[split].update(map(content_key, task.problems(split, 600, seed)))
    for left, right in itertools.combinations(Split, 2):
        assert not contents[left] & contents[right]


@BY_TASK
def test_commuted_problems_are_one_content_and_noncommuting_ones_are_not(task: ProceduralTask) -> None:
    if task.name == "math_mini":
        add, mixed, bracket = (task.families[name] for name in ("add", "mixed", "bracket"))
        assert add.content((347, 125)) == add.content((125, 347))
        assert mixed.content((12, 3, 8)) == mixed.content((12, 8, 3)) != mixed.content((13, 3, 8))
        assert bracket.content((50, 20, 10)) != bracket.content((50, 10, 20))
        assert load_task("gsm8k_lite").families["bags"].content((12, 3, 8)) == mixed.content((12, 3, 8))
    else:
        rows = task.families["rows"]
        assert rows.content((3, 8, 4, 6)) == rows.content((6, 4, 8, 3))


@BY_TASK
@pytest.mark.parametrize("split", list(Split))
def test_problems_are_distinct_deterministic_prefixes_dealt_evenly(task: ProceduralTask, split: Split) -> None:
    problems = task.problems(split, 330, seed=5)
    assert len({content_key(problem) for problem in problems}) == 330
    assert problems == task.problems(str(split), 330, seed=5)
    assert problems[:100] == task.problems(split, 100, seed=5)
    assert problems != task.problems(split, 330, seed=6)
    counts = Counter(problem.family for problem in problems)
    assert max(counts.values()) - min(counts.values()) <= 1
    roles = {task.families[name].role for name in counts}
    assert roles == (set(Role) - {Role.TRANSFER} if split is Split.TRAIN else set(Role))
    assert all(split_of(content_key(problem)) is split for problem in problems)


@BY_TASK
def test_split_shares_are_80_10_10(task: ProceduralTask) -> None:
    """Chi-square over the largest family, fixed contents; a hash without bias fails with probability 1e-4."""
    counts = counted(task)["mean" if task.name == "math_mini" else "crates"]
    total = sum(counts.values())
    expected = [0.8 * total, 0.1 * total, 0.1 * total]
    assert chisquare([counts[split] for split in Split], expected).pvalue > 1e-4


@BY_TASK
def test_every_family_has_enough_distinct_problems(task: ProceduralTask) -> None:
    counts = counted(task)
    assert min(splits[Split.TEST] for splits in counts.values()) >= 60
    assert min(splits[Split.VALIDATION] for splits in counts.values()) >= 60
    assert sum(splits[Split.TEST] for splits in counts.values()) >= 512


def test_document_is_the_generated_one() -> None:
    path = Path(__file__).parents[2] / "docs" / "tasks.md"
    remedy = "docs/tasks.md is out of date; run python -m bsharp.tasks.table > docs/tasks.md"
    assert path.read_text(encoding="utf-8") == tasks_document(), remedy


def test_size_is_the_largest_count_that_problems_gives() -> None:
    task = load_task("gsm8k_lite")
    size = task.size(Split.TEST)
    with pytest.raises(ValueError, match=f"only {size} distinct ones exist"):
        task.problems(Split.TEST, size + 1, seed=1)
    assert len(task.problems("test", 2000, seed=1)) == 2000 < size  # small families are used up, larger ones go on


@BY_TASK
def test_size_counts_the_families_that_take_part(task: ProceduralTask) -> None:
    """At least the largest family, at most all: families may share contents."""
    for split in Split:
        counts = [
            splits[split]
            for name, splits in counted(task).items()
            if split is not Split.TRAIN or task.families[name].role is not Role.TRANSFER
        ]
        assert max(counts) <= task.size(split) <= sum(counts)


def test_counted_problems_are_the_ones_that_can_be_drawn() -> None:
    """Drawing until a family is used up finds as many contents as enumeration."""
    task = load_task("math_mini")
    for name in ("multiply", "sum_times"):
        count = counted(task)[name][Split.TEST]
        assert len(task.problems(Split.TEST, count, seed=2, families=[name])) == count
        with pytest.raises(ValueError, match="ask for fewer"):
            task.problems(Split.TEST, count + 1, seed=2, families=[name])


@BY_TASK
def test_a_training_stream_is_drawn_in_under_a_second(task: ProceduralTask) -> None:
    start = time.process_time()
    task.problems(Split.TRAIN, 1280, seed=0)
    assert time.process_time() - start < 1


@BY_TASK
def test_families_and_difficulties_can_be_chosen(task: ProceduralTask) -> None:
    names = list(task.families)[-2:]  # TRANSFER families, also for training where they are asked for by name
    problems = task.problems(Split.TRAIN, 40, seed=0, families=names, difficulties=[3])
    assert {problem.family for problem in problems} == set(names)
    assert {problem.difficulty for problem in problems} == {3}


@BY_TASK
def test_larger_difficulties_have_larger_numbers(task: ProceduralTask) -> None:
    for family in task.families.values():
        middles = [math.prod(numbers[0] + numbers[-1] for numbers in family.ranges(level)) for level in DIFFICULTIES]
        assert middles[0] < middles[1] < middles[2], family.name


def test_unusable_requests_get_an_error_that_says_what_to_ask_instead() -> None:
    task = load_task("math_mini")
    with pytest.raises(ValueError, match=r"unknown task 'nope'; choose from math_mini, gsm8k_lite"):
        load_task("nope")
    with pytest.raises(ValueError, match="unknown split 'dev'; choose from train, validation, test"):
        task.problems("dev", 1, 0)
    with pytest.raises(ValueError, match=r"no family \['division'\]; choose from add"):
        task.problems("test", 1, 0, families=["division"])
    with pytest.raises(ValueError, match=r"choose from \[1, 2, 3\]"):
        task.problems("test", 1, 0, difficulties=[4])
    with pytest.raises(ValueError, match="negative"):
        task.problems("test", -1, 0)


def test_problem_ids_tell_problems_apart_and_do_not_depend_on_the_seed() -> None:
    task = load_task("gsm8k_lite")
    pool = [problem for seed in range(4) for problem in task.problems(Split.TEST, 500, seed)]
    by_id: dict[str, str] = {}
    for problem in pool:
        assert by_id.setdefault(problem.problem_id, problem.question) == problem.question
    assert len(set(by_id.values())) == len(by_id)
