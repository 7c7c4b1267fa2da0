"""Input sensitivity: how often the answer changes when the prompt changes and the problem does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.config import Backend
from bsharp.generation import GenerationRequest, SamplingParams, generator_for
from bsharp.models.loading import LanguageModel
from bsharp.rewards import RewardFunction
from bsharp.rollouts import grade_completions
from bsharp.seeding import generator, stream_seed
from bsharp.statistics import Estimate, bootstrap_interval, problem_and_seed_interval
from bsharp.tasks import Task
from bsharp.tasks.variants import CHANGES, KEEPS_ANSWER, changed_problem
from bsharp.types import Grade, GradeStatus, Problem

__all__ = ["SENSITIVITY_SCHEMA", "sensitivity_table"]

SENSITIVITY_SCHEMA = 1
BASE = "base"
SHARES = ("answer_changed", "correctness_changed", "accuracy_original", "accuracy_changed")
_RIGHT = ("right_before", "right_both")

Array = NDArray[np.float64]
NOTES = (
    "Answers are compared between greedy completions, which are deterministic: no sampling noise is in these shares. "
    "Two completions without an answer count as the same answer.",
    "The control decodes the unchanged prompts a second time, beside other prompts; anything but 0 is rounding.",
    "A model that is seldom right has little correctness to lose: read correctness_changed beside right_kept.",
    "A change of answer is not an error: a wrong answer may change into another one, or into the right one.",
)


@dataclass(frozen=True)
class _Plan:
    """What is asked of every model: the problems, and for each change which of them it alters and how."""

    problems: list[Problem]
    changed: dict[str, dict[int, Problem]]  # change → place of the original → changed problem

    @property
    def all(self) -> list[Problem]:
        return [*self.problems, *(variant for variants in self.changed.values() for variant in variants.values())]

    def places(self, change: str) -> tuple[list[int], list[int]]:
        """Places of the originals and of their changed forms in `all`."""
        start = len(self.problems)
        for name, variants in self.changed.items():
            if name == change:
                return list(variants), list(range(start, start + len(variants)))
            start += len(variants)
        raise KeyError(change)


@dataclass(frozen=True)
class _Answers:
    """One policy on every problem of `_Plan.all`, N of them; NaN where a grade could not be had."""

    answers: list[str | None]  # greedy, in canonical form
    correct: Array  # (N,) 0 or 1, greedy
    accuracy: Array  # (N,) share of the samples
    control: Array  # (P,) 1 where the unchanged prompt gave another greedy answer when decoded again


def sensitivity_table(
    base: LanguageModel,
    policies: Mapping[str, Sequence[Callable[[], LanguageModel]]],
    tasks: Mapping[str, Task],
    rewards: Mapping[str, RewardFunction],
    *,
    problems: Sequence[Problem],
    samples: int,
    seed: int,
    max_new_tokens: int,
    fixed_length: bool = False,
    max_rows: int = 512,
    backend: Backend = "auto",
) -> dict[str, Any]:
    """For each harmless change of `bsharp.tasks.variants` and each model: how often the answer and its correctness change.

    `answer_changed`: the share of problems whose greedy completion has another extracted answer after the change (two
    without an answer are equal); null for other numbers, where the answer must change. `correctness_changed`: the share
    where one of the two is right and the other not. `right_kept`: of the problems right before the change, the share still
    right after it, which does not reward a model for having little to lose. `accuracy_original`, `accuracy_changed`: the
    share of right among `samples` completions at temperature 1. `…_delta`: regime − base, paired by problem. Problems that
    a change does not apply to leave its row. `overall`: over the changes that keep the answer, each problem's mean over
    those it has. `control`: `answer_changed` for the unchanged prompt, decoded twice.

    A change that leaves the model's prompt as it was, token for token, counts as one that does not apply.

    Shares with 95 % intervals for new problems, and new seeds in a regime of several. Problems whose grade is missing
    (timeout, error) leave the figures that need it, which shows in n; a change that applies to none has n = 0 and nulls.
    `policies` holds one loader per seed and regime; a loaded policy is dropped before the next is asked for. Raises
    ValueError without a problem or a sample, and for a regime without policies.
    """
    _check(policies, problems, samples)
    plan = _plan(base, tasks, problems, seed)
    ask = _Asker(plan, tasks, rewards, samples, seed, max_new_tokens, fixed_length, max_rows, backend)
    answers = {BASE: [ask(base)]}
    for name, loaders in policies.items():
        answers[name] = [ask(loader()) for loader in loaders]
    rows = []
    for change, description in CHANGES.items():
        figures = {name: _figures(plan, found, [change]) for name, found in answers.items()}
        place = next(iter(plan.changed[change]), None)
        example = None if place is None else [plan.problems[place].question, plan.changed[change][place].question]
        rows.append(
            {
                "change": change,
                "description": description,
                "example": example,
                "problems": len(plan.changed[change]),
                "models": _estimates(figures, change, seed, change in KEEPS_ANSWER),
            }
        )
    overall = {name: _figures(plan, found, KEEPS_ANSWER) for name, found in answers.items()}
    control = {name: {"answer_changed": np.stack([one.control for one in found])} for name, found in answers.items()}
    return {
        "schema": SENSITIVITY_SCHEMA,
        "problems": len(problems),
        "samples": samples,
        "notes": list(NOTES),
        "changes": rows,
        "overall": _estimates(overall, "overall", seed),
        "control": _estimates(control, "control", seed),
    }


def _check(
    policies: Mapping[str, Sequence[Callable[[], LanguageModel]]], problems: Sequence[Problem], samples: int
) -> None:
    if not problems:
        raise ValueError("no problem to change; give at least one")
    if samples < 1:
        raise ValueError(f"samples = {samples}; draw at least 1 completion for the accuracies")
    empty = [name for name, loaders in policies.items() if not loaders]
    if empty:
        raise ValueError(f"regime {empty[0]!r} has no policy; give one loader per seed, or leave the regime out")


def _plan(base: LanguageModel, tasks: Mapping[str, Task], problems: Sequence[Problem], seed: int) -> _Plan:
    changed: dict[str, dict[int, Problem]] = {change: {} for change in CHANGES}

    def prompt(problem: Problem) -> list[int]:
        return base.encode(tasks[problem.task].prompt(problem))

    for place, problem in enumerate(problems):
        original = prompt(problem)
        for change in CHANGES:
            rng = generator(seed, "diagnostics/sensitivity/changes", change, problem.problem_id)
            variant = changed_problem(tasks[problem.task], problem, change, rng)
            # A chat template that trims blanks, or a tokenizer that joins them, can undo a change.
            if variant is not None and prompt(variant) != original:
                changed[change][place] = variant
    return _Plan(list(problems), changed)


class _Asker:
    """Puts a plan to a policy."""

    def __init__(
        self,
        plan: _Plan,
        tasks: Mapping[str, Task],
        rewards: Mapping[str, RewardFunction],
        samples: int,
        seed: int,
        max_new_tokens: int,
        fixed_length: bool,
        max_rows: int,
        backend: Backend,
    ) -> None:
        self._plan, self._tasks, self._rewards = plan, tasks, rewards
        self._samples, self._seed, self._max_rows, self._backend = samples, seed, max_rows, backend
        self._greedy = SamplingParams(max_new_tokens, greedy=True, fixed_length=fixed_length)
        self._sampled = SamplingParams(max_new_tokens, fixed_length=fixed_length)

    def __call__(self, policy: LanguageModel) -> _Answers:
        everything, originals = self._plan.all, self._plan.problems
        greedy = [group[0] for group in self._grades(policy, everything, 1, self._greedy)]
        again = [group[0] for group in self._grades(policy, originals, 1, self._greedy)]
        repeated = zip(greedy[: len(originals)], again, strict=True)
        sampled = self._grades(policy, everything, self._samples, self._sampled)
        return _Answers(
            answers=[grade.answer for grade in greedy],
            correct=np.array([_mean_correct([grade]) for grade in greedy]),
            accuracy=np.array([_mean_correct(group) for group in sampled]),
            control=np.array([float(first.answer != second.answer) for first, second in repeated]),
        )

    def _grades(
        self, policy: LanguageModel, problems: Sequence[Problem], count: int, params: SamplingParams
    ) -> list[tuple[Grade, ...]]:
        requests = [
            GenerationRequest(
                tuple(policy.encode(self._tasks[problem.task].prompt(problem))),
                count,
                stream_seed(self._seed, "diagnostics/sensitivity", problem.problem_id),
            )
            for problem in problems
        ]
        completions = generator_for(policy, self._max_rows, self._backend).generate(requests, params)
        return grade_completions(self._rewards, problems, completions)


def _mean_correct(grades: Sequence[Grade]) -> float:
    graded = [grade.status is GradeStatus.CORRECT for grade in grades if grade.reward is not None]
    return sum(graded) / len(graded) if graded else math.nan


def _figures(plan: _Plan, found: Sequence[_Answers], changes: Sequence[str]) -> dict[str, Array]:
    """Each figure as (S, P): per seed and problem the mean over the changes it has; NaN where it has none, or no grade."""
    totals = {key: np.zeros((len(found), len(plan.problems))) for key in (*SHARES, *_RIGHT)}
    count = np.zeros(len(plan.problems))
    for change in changes:
        originals, variants = plan.places(change)
        count[originals] += 1
        for s, one in enumerate(found):
            before, after = one.correct[originals], one.correct[variants]
            differs = [one.answers[a] != one.answers[b] for a, b in zip(originals, variants, strict=True)]
            ungraded = np.isnan(before + after)
            totals["answer_changed"][s, originals] += np.where(ungraded, np.nan, differs)
            totals["correctness_changed"][s, originals] += np.abs(before - after)
            # Adding 0 · the other makes both undefined together: the two accuracies are over the same problems.
            totals["accuracy_original"][s, originals] += one.accuracy[originals] + 0 * one.accuracy[variants]
            totals["accuracy_changed"][s, originals] += one.accuracy[variants] + 0 * one.accuracy[originals]
            totals["right_before"][s, originals] += np.where(ungraded, np.nan, before)
            totals["right_both"][s, originals] += before * after
    with np.errstate(invalid="ignore"):  # 0/0 where no change applies: NaN is what is meant
        return {key: total / count for key, total in totals.items()}


def _estimates(
    found: Mapping[str, Mapping[str, Array]], row: str, seed: int, answers_comparable: bool = True
) -> dict[str, dict[str, Any]]:
    """Model → figure → estimate, with the paired differences of regimes from the base."""
    base = found[BASE]
    table: dict[str, dict[str, Any]] = {}
    for name, figures in found.items():
        cells: dict[str, Any] = {}
        for key, values in figures.items():
            rng = generator(seed, "diagnostics/sensitivity/intervals", row, name, key)
            if key == "answer_changed" and not answers_comparable:
                cells[key] = None
            elif key not in _RIGHT:
                # The base has no seeds: its interval covers problems, and there is nothing to warn of.
                cells[key] = _mean(values[0] if name == BASE else values, rng, bounds=(0.0, 1.0))
            if name != BASE and key in ("answer_changed", "correctness_changed"):
                undefined = cells[key] is None
                cells[f"{key}_delta"] = None if undefined else _mean(values - base[key], rng, share_difference=True)
        if "right_before" in figures:
            rng = generator(seed, "diagnostics/sensitivity/intervals", row, name, "right_kept")
            cells["right_kept"] = _right_kept([figures], rng)
            if name != BASE:
                cells["right_kept_delta"] = _right_kept([figures, base], rng)
        table[name] = cells
    return table


def _mean(values: Array, rng: np.random.Generator, **bounds: Any) -> dict[str, Any]:
    known = ~np.isnan(np.atleast_2d(values)).any(axis=0)
    if not known.any():
        return Estimate(math.nan, math.nan, math.nan, 0, "share", "no problem with this change and a grade").as_json()
    return problem_and_seed_interval(values[..., known], rng=rng, **bounds).as_json()


def _right_kept(models: Sequence[Mapping[str, Array]], rng: np.random.Generator) -> dict[str, Any]:
    """Σ right before and after / Σ right before, over problems; of two models the difference, seed by seed."""
    tables = [(figures["right_before"], figures["right_both"]) for figures in models]
    known = ~np.isnan(np.concatenate([part for table in tables for part in table])).any(axis=0)
    if not known.any():
        return Estimate(math.nan, math.nan, math.nan, 0, "share", "no problem with this change and a grade").as_json()
    tables = [(before[:, known], both[:, known]) for before, both in tables]

    extremes = [_extreme(before, both) for before, both in tables]
    if None not in extremes and len(set(extremes)) == 1:
        # Resampling cannot show what lies beyond a bound on which every problem sits.
        right = min(int(before.any(axis=0).sum()) for before, _ in tables)
        if len(models) == 2:
            return problem_and_seed_interval(np.zeros(right), rng=rng, share_difference=True).as_json()
        return problem_and_seed_interval(np.full(right, extremes[0]), rng=rng, bounds=(0.0, 1.0)).as_json()

    def share(indices: NDArray[np.intp]) -> Array:
        with np.errstate(invalid="ignore"):  # 0/0 where nothing was right: NaN, and the estimate says so
            ours, *theirs = (both[:, indices].sum(1) / before[:, indices].sum(1) for before, both in tables)
        return np.asarray(ours - theirs[0] if theirs else ours)

    bounds = (0.0, 1.0) if len(models) == 1 else (-1.0, 1.0)
    return bootstrap_interval(share, int(known.sum()), rng=rng, unit="share", bounds=bounds).as_json()


def _extreme(before: Array, both: Array) -> float | None:
    """1 where all that was right stayed right, 0 where none of it did, None between and where nothing was right."""
    if not before.any(axis=1).all():
        return None
    return 0.0 if not both.any() else 1.0 if np.array_equal(before, both) else None
