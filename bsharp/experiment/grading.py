"""Completions from anywhere graded without a model: what `bsharp grade` does. Imports neither torch nor what trains a model."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bsharp.config import ConfigError, ProblemsConfig
from bsharp.rewards import REWARD_KINDS, RewardFunction, reward_for
from bsharp.rewards.extract import ExtractionRule, extract_gold
from bsharp.statistics.intervals import Estimate
from bsharp.statistics.samples import mean_where_defined
from bsharp.tasks import load_task
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

__all__ = ["GradedFile", "grade_fields", "grade_file"]

_AT_ONCE = 256  # lines in memory, graded in one call and between two reports of progress


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
    counts: Counter[GradeStatus] = Counter()
    means = array("d")
    with _Source(source) as lines:
        # All lines are read before the first is graded: grading a million answers to find the last line broken helps nobody.
        total = sum(1 for _ in _read(lines, text_field, gold_field))
        reward = reward_for(kind, settings)
        family = str(task or kind)
        with _Target(target) as file:
            asked = (_line(read, family, rule, settings.prompt_field) for read in _read(lines, text_field, gold_field))
            while batch := list(itertools.islice(asked, _AT_ONCE)):
                graded = _grade_lines(reward, batch)
                for line, grades in zip(batch, graded, strict=True):
                    found = grade_fields(grades[0]) if isinstance(line.texts, str) else _all(grades)
                    file.write(
                        json.dumps({"line": line.number, "gold": line.problem.answer, **found}, ensure_ascii=False)
                    )
                    counts.update(grade.status for grade in grades)
                    means.append(_mean(grades))
                if on_progress:
                    on_progress(len(means), total)
    return GradedFile(target, len(means), counts, _mean_reward(np.asarray(means)))


def grade_fields(grade: Grade) -> dict[str, Any]:
    """A grade as the fields of a record; the reward is null where nothing could be said."""
    reward = None if grade.reward is None else float(grade.reward)
    return {"status": str(grade.status), "detail": grade.detail, "answer": grade.answer, "reward": reward}


@dataclass(frozen=True, slots=True)
class _Line:
    """What a line of the graded file asks."""

    number: int  # from 1, blank lines counted
    problem: Problem
    texts: str | list[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """A line of the file with what it says about its answer; nothing but its fields has been looked at."""

    number: int
    identity: str
    row: dict[str, Any]  # without the two fields below
    gold: str
    texts: str | list[str]


def _read(lines: Iterable[tuple[str, int, dict[str, Any]]], text_field: str, gold_field: str) -> Iterator[_Read]:
    for place, number, row in lines:
        where = f"{place}, line {number}"
        gold = _gold(_field(row, gold_field, where, "--gold-field"), gold_field, where)
        texts = _texts(_field(row, text_field, where, "--text-field"), text_field, where)
        identity = str(row.get("id", number))
        for field in {text_field, gold_field}:
            del row[field]
        yield _Read(number, identity, row, gold, texts)


def _line(read: _Read, family: str, rule: ExtractionRule, prompt_field: str) -> _Line:
    others = read.row
    # A conversation in this field stays a column: a question is text.
    question = others.pop(prompt_field) if isinstance(others.get(prompt_field), str) else ""
    gold = extract_gold(read.gold, rule)
    return _Line(read.number, Problem(read.identity, family, family, question, gold, metadata=others), read.texts)


class _Source:
    """The JSON objects of a file with their place and line numbers, read anew by every iteration.

    ConfigError for a file or a line that cannot be used. What can be read only once, such as a pipe, is kept in a temporary file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Source:
        with self._readable():
            self._file = self._path.open("rb")
            if not self._path.is_file():
                kept = tempfile.TemporaryFile()
                with self._file as once:
                    shutil.copyfileobj(once, kept)
                self._file = kept
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        assert self._file is not None
        with self._readable():
            self._file.seek(0)
        # A carriage return ends a line as well: `bytes.splitlines`.
        lines = itertools.chain.from_iterable(part.splitlines() for part in self._file)
        empty = True
        for number, line in enumerate(lines, start=1):
            if line.strip():
                empty = False
                yield str(self._path), number, self._parsed(number, line)
        if empty:
            raise ConfigError(f"{self._path} is empty; give a file with one JSON object per line")

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self._path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is not JSON ({error}); one JSON object per line is needed") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is {type(row).__name__}, not a JSON object; write {{…}} with named fields")
        return row

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}; check the path") from None


class _Target:
    """A file that is written line by line and there as a whole or, where the work on it fails, not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        self._file: IO[str] | None = None

    def __enter__(self) -> _Target:
        with self._writable():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._file = self._temporary.open("w", encoding="utf-8")
        return self

    def write(self, line: str) -> None:
        """Add `line` and an end of line."""
        assert self._file is not None
        with self._writable():
            self._file.write(line + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        try:
            with self._writable():
                self._file.close()
                if kind is None:
                    os.replace(self._temporary, self._path)
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}; choose another place") from None


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


def _grade_lines(reward: RewardFunction, lines: Sequence[_Line]) -> list[list[Grade]]:
    texts = [[line.texts] if isinstance(line.texts, str) else line.texts for line in lines]
    repeated = [line.problem for line, group in zip(lines, texts, strict=True) for _ in group]
    completions = [Completion((), (), FinishReason.EOS, text) for group in texts for text in group]
    grades = iter(reward(repeated, completions))
    return [[next(grades) for _ in group] for group in texts]


def _mean(grades: Sequence[Grade]) -> float:
    """Mean reward of the graded ones; NaN where there is none."""
    rewards = [grade.reward for grade in grades if grade.reward is not None]
    return sum(rewards) / len(rewards) if rewards else math.nan


def _mean_reward(means: NDArray[np.float64]) -> Estimate:
    alike = np.zeros(len(means), dtype=np.intp)
    return mean_where_defined(means, "graded file", alike, "share", reason="not graded", bounds=(0.0, 1.0))


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
