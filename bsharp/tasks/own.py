"""Problems of one's own, from a file: the task named `data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.tasks.base import Split, split_of
from bsharp.tasks.fields import UnusableRow, answer_text, did_you_mean, required_text
from bsharp.tasks.files import PlacedRow, read_rows
from bsharp.tasks.formats import template_of
from bsharp.tasks.listed import ListedTask, Listing, disjoint, question_key
from bsharp.types import Problem

__all__ = ["own_task"]

NAME = "data"
_SPLITS = {str(split): split for split in Split} | dict.fromkeys(("val", "valid", "dev"), Split.VALIDATION)


def own_task(settings: ProblemsConfig) -> ListedTask:
    """The problems of `settings.data`, read when they are first asked for.

    Question and answer are the fields `prompt_field` and `answer_field`; the other fields go to the metadata. Splits are those
    of `split_field`, or 80 % train, 10 % validation, 10 % test by the hash of the question. The answer may be left out where
    `settings.reward` judges. Rows without a question or an answer are left out and counted in `dropped`. Raises ConfigError
    where no file is named; reading raises it for a file that cannot be read, a field that no row has, an unknown split
    and a file of which nothing is left.
    """
    if settings.data is None:
        raise ConfigError(
            f"the task {NAME} needs a file of problems; pass --data FILE (.jsonl, .json, .csv or .parquet)"
        )
    path = Path(settings.data)

    def read(split: Split) -> dict[Split, Listing]:
        return _listings(path, read_rows(path), settings)

    where = f"by the split field {settings.split_field!r}" if settings.split_field else "by the hash of their questions"
    empty = dict.fromkeys(Split, f"none of the problems of {path} falls into it {where}")
    return ListedTask(NAME, "math", template_of(settings.prompt_format, "boxed"), read, empty)


def _listings(path: Path, rows: Sequence[PlacedRow], settings: ProblemsConfig) -> dict[Split, Listing]:
    _check_fields(path, rows, settings)
    parts: dict[Split, list[Problem]] = {split: [] for split in Split}
    unusable: Counter[str] = Counter()
    first = ""
    for number, (place, row) in enumerate(rows):
        try:
            problem = _problem(row, number, settings)
        except UnusableRow as reason:
            first = first or f"{place}: {reason}"
            unusable[str(reason)] += 1
            continue
        parts[_split(path, place, row, problem, settings.split_field)].append(problem)
    if not any(parts.values()):
        raise ConfigError(f"{path}: none of its {len(rows)} rows can be used; the first, {first}")
    # Which split an unusable row was meant for cannot be told without its question.
    return disjoint(parts, {Split.TRAIN: dict(unusable)})


def _problem(row: Mapping[str, Any], number: int, settings: ProblemsConfig) -> Problem:
    question = required_text(_value(row, settings.prompt_field, "question"), "question")
    if settings.reward is not None and row.get(settings.answer_field) is None:
        text = ""
    else:
        text = answer_text(_value(row, settings.answer_field, "answer"))
    metadata = {key: value for key, value in row.items() if key not in (settings.prompt_field, settings.answer_field)}
    return Problem(f"{NAME}/{number}", NAME, NAME, question, text, metadata=metadata)


def _value(row: Mapping[str, Any], name: str, what: str) -> Any:
    if row.get(name) is None:
        raise UnusableRow(f"the {what} is missing")
    return row[name]


def _split(path: Path, place: str, row: Mapping[str, Any], problem: Problem, split_field: str | None) -> Split:
    if split_field is None:
        return split_of(question_key(problem.question))
    value = row.get(split_field)
    if not isinstance(value, str) or value.strip().lower() not in _SPLITS:
        raise ConfigError(
            f"{path}, {place}: {split_field} = {value!r} is no split; write train, validation or test, or leave out "
            "--split-field to divide by the hash of the question"
        )
    return _SPLITS[value.strip().lower()]


def _check_fields(path: Path, rows: Sequence[PlacedRow], settings: ProblemsConfig) -> None:
    """A field that no row has is a wrong name, not a row to leave out."""
    wanted = {"--prompt-field": settings.prompt_field, "--split-field": settings.split_field}
    if settings.reward is None:
        wanted["--answer-field"] = settings.answer_field
    there = list(dict.fromkeys(name for _, row in rows for name in row))
    for option, name in wanted.items():
        if name is not None and name not in there:
            raise ConfigError(
                f"{path}, {rows[0][0]}: no field {name!r}{did_you_mean(name, there)}; its fields are {', '.join(there)}; "
                f"pass {option}"
            )
