"""Grading without a model: completions from anywhere (`bsharp grade`), and a run's records again (`bsharp regrade`)."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.experiment.regrading import Regraded, grade_fields, regrade
from bsharp.rewards import REWARD_KINDS, RewardFunction, reward_for
from bsharp.rewards.extract import ExtractionRule, extract_gold
from bsharp.statistics.intervals import Estimate
from bsharp.statistics.samples import mean_where_defined
from bsharp.tasks import load_task
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

__all__ = ["GradedFile", "Regraded", "grade_file", "regrade"]

_AT_ONCE = 256  # lines between two reports of progress


@dataclass(frozen=True)
class GradedFile:
    """What a file of completions was worth."""

    out: Path
    lines: int  # without blank ones
    counts: Mapping[GradeStatus, int]  # completions by status
    accuracy: Estimate  # mean reward of a line's graded completions, over lines

    def text(self) -> str:
        """The figures in words."""
        total = sum(self.counts.values())
        parts = ", ".join(f"{self.counts.get(status, 0)} {status}" for status in GradeStatus)
        share = self.accuracy.scaled(100, "percent")
        note = f" ({share.note})" if share.note else ""
        return (
            f"{total} completions of {self.lines} lines: {parts}\n"
            f"mean reward, %: {share.format()} over {share.n} lines{note}\nWritten to {self.out}"
        )


def grade_file(
    path: str | Path,
    out: str | Path,
    task: str | None = None,
    settings: ProblemsConfig = ProblemsConfig(),
    text_field: str = "text",
    gold_field: str = "gold",
    on_progress: Callable[[int, int], None] | None = None,
) -> GradedFile:
    """Grade the completions of a JSONL file: one line in `out` per line of `path`, in order; blank ones are skipped.

    `text_field` holds a completion, or a list of them. `gold_field` holds the right answer as text or number, or a whole
    reference solution in which `task`'s rule finds it (GSM8K's `#### 18`, MATH's last box). `task` says how answers are
    found and compared, `settings.grader` changes the latter, `settings.reward` is a reward of your own; without a task
    the grader must be named. A reward of your own gets the text in the line's `settings.prompt_field`, where it has one, as
    its prompt, and the other fields as columns.

    A line of `out` has line (its number in `path`, from 1, blank lines counted), gold, and status, reward, answer and
    detail, or a list `grades` of these where there was a list of completions. The figure is the mean reward over lines,
    which are taken as independent problems. Raises ConfigError, naming the line, for anything that cannot be used; nothing
    is written then.
    """
    source, target = Path(path), Path(out)
    if source.resolve() == target.resolve():
        raise ConfigError(f"out = {str(out)!r} is the file that is graded; choose another name")
    kind = _kind_of(task, settings)
    rule = REWARD_KINDS[kind][1]
    numbers, problems, groups = _read(source, str(task or kind), rule, text_field, gold_field, settings.prompt_field)
    reward = reward_for(kind, settings)
    graded: list[list[Grade]] = []
    for start in range(0, len(problems), _AT_ONCE):
        graded += _grade_lines(reward, problems[start : start + _AT_ONCE], groups[start : start + _AT_ONCE])
        if on_progress:
            on_progress(len(graded), len(problems))
    rows = [
        {
            "line": number,
            "gold": problem.answer,
            **(grade_fields(grades[0]) if isinstance(texts, str) else _all(grades)),
        }
        for number, problem, texts, grades in zip(numbers, problems, groups, graded, strict=True)
    ]
    _write(target, rows)
    counts = Counter(grade.status for grades in graded for grade in grades)
    return GradedFile(target, len(rows), counts, _mean_reward(graded))


def _read(
    source: Path, family: str, rule: ExtractionRule, text_field: str, gold_field: str, prompt_field: str
) -> tuple[list[int], list[Problem], list[str | list[str]]]:
    """The number, the problem and the completions of every line."""
    numbers, problems, groups = [], [], []
    for number, row in _lines(source):
        where = f"{source}, line {number}"
        gold = extract_gold(_gold(_field(row, gold_field, where, "--gold-field"), gold_field, where), rule)
        others = {key: value for key, value in row.items() if key not in (text_field, gold_field)}
        # A conversation in this field stays a column: a question is text.
        question = others.pop(prompt_field) if isinstance(others.get(prompt_field), str) else ""
        problems.append(Problem(str(row.get("id", number)), family, family, question, gold, metadata=others))
        groups.append(_texts(_field(row, text_field, where, "--text-field"), text_field, where))
        numbers.append(number)
    return numbers, problems, groups


def _write(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All lines or, with a ConfigError, none."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {target}: {error.strerror}; choose another place") from None


def _all(grades: Sequence[Grade]) -> dict[str, Any]:
    return {"grades": [grade_fields(grade) for grade in grades]}


def _kind_of(task: str | None, settings: ProblemsConfig) -> str:
    if task is None:
        if settings.reward is None and settings.grader == "default":
            raise ConfigError("nothing says how to grade; name a task (e.g. gsm8k), a grader or a reward of your own")
        return "boxed" if settings.grader == "boxed" else "math"
    if task == "data":
        return "math"
    kind = load_task(task, settings).reward_kind
    if kind == "reasoning_gym" and settings.grader == "default" and settings.reward is None:
        raise ConfigError(
            f"task = {task!r} scores its own problems only; choose a grader, which compares with the gold answer"
        )
    return kind


def _grade_lines(
    reward: RewardFunction, problems: Sequence[Problem], groups: Sequence[str | list[str]]
) -> list[list[Grade]]:
    texts = [[group] if isinstance(group, str) else group for group in groups]
    repeated = [problem for problem, group in zip(problems, texts, strict=True) for _ in group]
    completions = [Completion((), (), FinishReason.EOS, text) for group in texts for text in group]
    grades = iter(reward(repeated, completions))
    return [[next(grades) for _ in group] for group in texts]


def _mean_reward(graded: Sequence[Sequence[Grade]]) -> Estimate:
    means = []
    for grades in graded:
        rewards = [grade.reward for grade in grades if grade.reward is not None]
        means.append(sum(rewards) / len(rewards) if rewards else math.nan)
    families = ["all"] * len(means)
    return mean_where_defined(
        np.asarray(means), "graded file", families, "share", reason="not graded", bounds=(0.0, 1.0)
    )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line numbers; ConfigError for a file or a line that cannot be used."""
    try:
        lines = [(number, line) for number, line in enumerate(path.read_bytes().splitlines(), start=1) if line.strip()]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from None
    if not lines:
        raise ConfigError(f"{path} is empty; give a file with one JSON object per line")
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number} is not JSON ({error}); one JSON object per line is needed"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(
                f"{path}, line {number} is {type(row).__name__}, not a JSON object; write {{…}} with named fields"
            )
        yield number, row


def _field(row: Mapping[str, Any], name: str, where: str, flag: str) -> Any:
    if name not in row:
        raise ConfigError(f"{where} has no field {name!r}; set {flag} to one of {', '.join(map(str, row)) or 'none'}")
    return row[name]


def _texts(value: Any, name: str, where: str) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return value
    shown = json.dumps(value, ensure_ascii=False)[:60]
    raise ConfigError(f"{where}: {name} = {shown} is no completion; give a text or a list of texts")


def _gold(value: Any, name: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    shown = json.dumps(value, ensure_ascii=False)[:60]
    raise ConfigError(f"{where}: {name} = {shown} is no answer; give a text or a number")
