"""A run's records graded again by another grader, without a model: what `bsharp regrade` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError, ProblemsConfig, as_dict, build_config
from bsharp.evaluation import problem_figures, summarize
from bsharp.experiment.comparison import comparable_config, write_results
from bsharp.experiment.finished import open_comparison
from bsharp.experiment.grading import grade_fields
from bsharp.experiment.setup import BASE, regimes_of
from bsharp.reporting import results_markdown
from bsharp.rewards import REWARD_KINDS, RewardFunction, load_reward, reward_for
from bsharp.rewards.agreement import Agreement, agreement_of
from bsharp.runlog import RunDirectory
from bsharp.statistics.intervals import Estimate
from bsharp.statistics.samples import mean_where_defined
from bsharp.tasks import load_task
from bsharp.types import Completion, FinishReason, Grade, GradeStatus, Problem

__all__ = ["Regraded", "regrade"]

Record = dict[str, Any]

FOLDER = "regraded"
AT_ONCE = 1024
"""Records in memory, graded in one call."""
_EVALUATED = "records.jsonl"
_GRADED = ("records_last.jsonl", "records_best.jsonl", "validation_last.jsonl")
_TAKEN_OVER = ("config.json", "manifest.json", "metrics.jsonl", "complete.json", "alarms.jsonl")


@dataclass(frozen=True)
class Regraded:
    """What changed when a run was graded again."""

    folder: Path  # where the new records lie
    grader: str
    accuracy: Mapping[str, tuple[Estimate, Estimate]]  # by model: before and after
    agreement: Agreement  # of the old grades with the new, greedy and validation completions included

    def markdown(self) -> str:
        """Accuracy of every model before and after, and the agreement of the two graders."""
        first, second = self.agreement.first, self.agreement.second
        lines = [f"| accuracy, % | {first} | {second} | change |", "|---|---|---|---|"]
        for name, (before, after) in self.accuracy.items():
            change = 100 * (after.estimate - before.estimate)
            shown = [figure.scaled(100, "percent").format() for figure in (before, after)]
            lines.append(f"| {name} | {shown[0]} | {shown[1]} | {change:+.1f} |")
        return "\n".join([*lines, "", self.agreement.markdown()])


def regrade(
    run: str | Path, settings: ProblemsConfig, on_progress: Callable[[str, int, int], None] | None = None
) -> Regraded:
    """Grade the records of an evaluation or of a finished comparison again, without sampling.

    Of `settings` only the grader counts: `grader`, `reward`, `grader_workers`, `grader_seconds`; where the problems came from
    is the run's own affair. The new records, with results or summary, a table and the disagreements, are written to
    `run`/regraded/<grader>/, a run directory of its own; the originals are left alone. Where in a completion the answer
    stands is the task's rule and does not change. What training saw does not change either: results.json says so.

    Records are read, graded and written AT_ONCE and a problem's rest at a time, so memory does not grow with the run, and a
    reward of your own that compares the completions of a problem sees them together.

    <grader> is the grader's name, or for a reward of your own its file, its function and eight digits of the file's SHA-256:
    another function, or the same one changed, has another folder. `on_progress(file, done, total)` counts files. Raises
    ConfigError for a folder without records, for one that regrade wrote, and for graders that need what records do not keep.
    """
    folder = Path(run)
    files = _record_files(folder)
    grader = _grader_name(settings)
    problems_of_run = _problems_config(folder)
    graders = _Graders(dataclasses.replace(_grading_of(settings), **_sources_of(problems_of_run)))
    out = RunDirectory(folder / FOLDER / grader)
    again = _Again(graders)
    done: dict[Path, Path] = {}
    try:
        for number, file in enumerate(files):
            place = file.relative_to(folder)
            if on_progress:
                on_progress(str(place), number, len(files))
            target = RunDirectory((out.path / place).parent)
            done[target.path / f"{place.name}.new"] = target.path / place.name
            target.write_rows(f"{place.name}.new", again.rows(RunDirectory(file.parent).rows(file.name)))
        for new, target_file in done.items():
            os.replace(new, target_file)
    finally:
        for new in done:
            new.unlink(missing_ok=True)
    agreement = again.agreement()
    for file in {file.parent for file in files} | {folder}:
        _take_over(file, out.path / file.relative_to(folder))
    manifest = out.read_json("manifest.json") or {}
    out.write_json("manifest.json", manifest | {"regraded": {"grader": grader, "original": str(folder.resolve())}})
    accuracy = _write_figures(folder, out, graders.settings)
    result = Regraded(out.path, grader, accuracy, agreement)
    out.write_json("agreement.json", agreement.as_json())
    (out.path / "agreement.md").write_text(result.markdown() + "\n", encoding="utf-8")
    if on_progress:
        on_progress("", len(files), len(files))
    return result


def _grader_name(settings: ProblemsConfig) -> str:
    if settings.reward is None:
        return settings.grader
    load_reward(settings.reward)  # says what is wrong with it, and knows where a module's file is
    place, _, function = settings.reward.rpartition(":")
    path = place if place.endswith(".py") else getattr(sys.modules[place], "__file__", None)
    content = Path(path).read_bytes() if path else settings.reward.encode()
    stem = re.sub(r"[^\w.]", "_", Path(place).stem if place.endswith(".py") else place)
    return f"{stem}-{function}-{hashlib.sha256(content).hexdigest()[:8]}"


def _grading_of(settings: ProblemsConfig) -> ProblemsConfig:
    return ProblemsConfig(
        grader=settings.grader,
        reward=settings.reward,
        grader_workers=settings.grader_workers,
        grader_seconds=settings.grader_seconds,
    )


def _sources_of(settings: ProblemsConfig) -> dict[str, Any]:
    names = ("data", "prompt_field", "answer_field", "split_field", "data_dir", "prompt_format")
    return {name: getattr(settings, name) for name in names}


def _problems_config(folder: Path) -> ProblemsConfig:
    """Where the problems of a run came from, as its config says; runs made before there was a choice have none."""
    config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) if (folder / "config.json").exists() else {}
    )
    return build_config(ProblemsConfig, config.get("problems") or {}, f"{folder}/config.json")


def _record_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"there is no run directory {folder}; give the one of a `bsharp compare` or `bsharp evaluate`"
        )
    told = (RunDirectory(folder).read_json("manifest.json") or {}).get("regraded")
    if told is not None:
        raise ConfigError(f"{folder} is a run graded again; name the original run, {told['original']}")
    if (folder / BASE).is_dir():
        comparison = open_comparison(folder)
        seeds = comparison.config.seeds
        folders = [
            folder / BASE,
            *(comparison.folder(name, s) for name in regimes_of(comparison.config) for s in seeds),
        ]
        files = [place / name for place in folders for name in _GRADED if (place / name).exists()]
    else:  # of a comparison's parts no figures can be made
        files = [folder / _EVALUATED] if (folder / _EVALUATED).exists() else []
    if not files:
        raise ConfigError(f"{folder} holds no records; give the directory of a `bsharp compare` or `bsharp evaluate`")
    return files


class _Graders:
    """The reward function of each task, made when it is first met."""

    def __init__(self, settings: ProblemsConfig) -> None:
        self.settings = settings
        self._known: dict[str, RewardFunction] = {}

    def __getitem__(self, name: str) -> RewardFunction:
        if name not in self._known:
            self._known[name] = _reward_of(name, self.settings)
        return self._known[name]


def _reward_of(name: str, settings: ProblemsConfig) -> RewardFunction:
    if settings.reward is not None:
        return reward_for("math", settings)
    task = load_task(name, settings)
    if REWARD_KINDS[task.reward_kind][0] == "reasoning_gym" and settings.grader == "default":
        raise ConfigError(
            f"{name} scores its answers from data that records do not keep; choose grader = normalised or math, which compare "
            "with the gold answer"
        )
    return reward_for(task, settings)


class _Again:
    """Records with new grades, and on the way the agreement of old and new grades."""

    def __init__(self, graders: _Graders) -> None:
        self._graders = graders
        self._found: Agreement | None = None
        # Names in order of appearance.
        self._before: dict[str, None] = {}
        self._now: dict[str, None] = {}

    def rows(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records with new grades, in order."""
        for chunk in _by_problem(records):
            yield from self._regraded(chunk)

    def agreement(self) -> Agreement:
        """That of all records so far."""
        assert self._found is not None
        before, now = " / ".join(self._before), " / ".join(self._now)
        return dataclasses.replace(self._found, first=f"{before} (before)", second=f"{now} (now)")

    def _regraded(self, records: Sequence[Record]) -> list[Record]:
        problems = [_problem_of(record) for record in records]
        completions = [_completion_of(record) for record in records]
        grades: list[Grade | None] = [None] * len(records)
        for name in dict.fromkeys(problem.task for problem in problems):
            places = [place for place, problem in enumerate(problems) if problem.task == name]
            given = self._graders[name]([problems[p] for p in places], [completions[p] for p in places])
            for place, grade in zip(places, given, strict=True):
                grades[place] = grade
        new = [grade for grade in grades if grade is not None]
        names = {problem.task: type(self._graders[problem.task]).__name__ for problem in problems}
        self._before |= dict.fromkeys(str(record["grader"]) for record in records)
        self._now |= dict.fromkeys(names.values())
        texts = [completion.text for completion in completions]
        found = agreement_of("before", "now", problems, texts, [_grade_of(record) for record in records], new)
        self._found = found if self._found is None else self._found.joined(found)
        return [
            record | grade_fields(grade) | {"exact_match": grade.exact_match, "grader": names[record["task"]]}
            for record, grade in zip(records, new, strict=True)
        ]


def _by_problem(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The records in order, AT_ONCE or a few more at a time: neighbours of one problem stay together."""
    chunk: list[Record] = []
    for record in records:
        if len(chunk) >= AT_ONCE and record["problem_id"] != chunk[-1]["problem_id"]:
            yield chunk
            chunk = []
        chunk.append(record)
    if chunk:
        yield chunk


def _problem_of(record: Record) -> Problem:
    keys = ("problem_id", "task", "family", "question", "gold", "difficulty")
    return Problem(*(record[key] for key in keys))


def _completion_of(record: Record) -> Completion:
    token_ids = tuple(record["token_ids"])
    # Only the sum of the log-probabilities is on record, and no grader looks at them.
    reason = FinishReason(record["finish_reason"])
    return Completion(token_ids, (math.nan,) * len(token_ids), reason, record["text"], record["policy_version"])


def _grade_of(record: Record) -> Grade:
    return Grade(
        GradeStatus(record["status"]), record["reward"], record["answer"], record["detail"], record["exact_match"]
    )


def _take_over(source: Path, target: Path) -> None:
    """What describes a run and is not graded is copied, so that the new folder can be read by itself."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _TAKEN_OVER:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def _write_figures(folder: Path, out: RunDirectory, settings: ProblemsConfig) -> dict[str, tuple[Estimate, Estimate]]:
    """Results or summary of the new records; accuracy of every model before and after."""

    def accuracy(name: str, files: Sequence[str]) -> tuple[Estimate, Estimate]:
        before, after = (_accuracy([run.samples(file) for file in files], name) for run in (RunDirectory(folder), out))
        return before, after

    if not (folder / BASE).is_dir():
        out.write_json("summary.json", summarize([out.samples(_EVALUATED)]))
        out.write_json("config.json", (out.read_json("config.json") or {}) | {"problems": as_dict(settings)})
        return {"model": accuracy("model", [_EVALUATED])}
    config = dataclasses.replace(open_comparison(folder).config, problems=settings)
    out.write_json("config.json", comparable_config(config))
    results = write_results(config, out, regimes_of(config))
    results["choices_using_labels"].append(
        "everything before the end of training (rewards, validation, the best checkpoint): the original run's grader; "
        "only the evaluations were graded again"
    )
    out.write_json("results.json", results)
    (out.path / "table.md").write_text(results_markdown(results), encoding="utf-8")
    folders = {BASE: [BASE]} | {name: [f"{name}/seed_{seed}" for seed in config.seeds] for name in regimes_of(config)}
    return {name: accuracy(name, [f"{place}/{_GRADED[0]}" for place in places]) for name, places in folders.items()}


def _accuracy(records_by_seed: Sequence[Iterable[Record]], name: str) -> Estimate:
    """Share of right answers among the graded samples, as in the results."""
    figures = problem_figures(records_by_seed, name)
    values = figures.values["accuracy"]
    values = values[0] if name in (BASE, "model") else values  # untrained, or trained elsewhere: there are no seeds
    return mean_where_defined(values, f"{name}/accuracy", figures.family_codes, "share", bounds=(0.0, 1.0))
