"""The results of a comparison from its records: figures of every regime, pairwise differences, stability and verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsharp.algorithm import parse_objective
from bsharp.evaluation.problem_figures import ProblemFigures, problem_figures
from bsharp.evaluation.schema import SCHEMA_VERSION, validate_results
from bsharp.evaluation.summary import accuracy_difference, summarize_figures
from bsharp.seeding import generator
from bsharp.statistics import SeedTrace, gain_beyond_best, judge_stability
from bsharp.statistics.samples import Record
from bsharp.statistics.stability import StabilityWord
from bsharp.statistics.verdict import Answers, nothing_to_compare

__all__ = ["TASK_REWARD", "RegimeRecords", "build_results", "seed_trace"]

TASK_REWARD = "task_reward"
"""Name of the regime that the verdict holds against the label-free ones."""

_TRACES = {
    "entropy": "entropy/exact_nats_per_token",
    "kl": "kl(policy||base)/k1_nats_per_sequence",
    "grad_norm": "grad_norm",
    "mean_length": "completions/mean_length",
    "truncation_rate": "completions/clipped_ratio",
}
_NULL_IS_NOT_FINITE = ("entropy", "kl", "grad_norm")
NO_SIGNAL = "no signal"
"""Stability word of a regime that was never right, so that nothing could have declined, or never graded."""


@dataclass(frozen=True)
class RegimeRecords:
    """What one regime left behind; every sequence has one entry per seed, in the order of `seeds`.

    Records are read once each, so an entry may be a file that is read as it is iterated (`RunDirectory.samples`).
    """

    objective: str  # as asked for: `constructor(argument=value)` or `name=constructor(argument=value)`
    seeds: Sequence[int]
    learning_rate: float
    last: Sequence[Iterable[Record]]  # evaluation records of the last checkpoint
    metrics: Sequence[Sequence[Mapping[str, Any]]]  # rows of metrics.jsonl in order of steps
    last_steps: Sequence[int]  # the step whose weights `last` is about
    stopped: Sequence[str | None]  # why a run ended early; its weights were put back to the checkpoint of last_steps
    validation_samples: int  # problems × completions behind each validation accuracy in `metrics`
    validation_last: Sequence[Iterable[Record]] | None = None  # the last checkpoint's, for the choice in the verdict
    best: Sequence[Iterable[Record]] | None = None  # evaluation records of the best checkpoint by validation
    best_steps: Sequence[int | None] | None = None  # None: stopped before its first check; `best` then holds `last`

    def __post_init__(self) -> None:
        if (self.best is None) != (self.best_steps is None):
            raise ValueError(f"{self.objective}: best and best_steps belong together; give both or neither")
        names = ("last", "metrics", "last_steps", "stopped", "validation_last", "best", "best_steps")
        for name in names:
            part = getattr(self, name)
            if part is not None and len(part) != len(self.seeds):
                raise ValueError(
                    f"{self.objective}: {name} has {len(part)} entries for {len(self.seeds)} seeds; give one per seed"
                )


def build_results(
    base_records: Iterable[Record],
    regimes: Mapping[str, RegimeRecords],
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    choices_using_labels: Sequence[str],
) -> dict[str, Any]:
    """The content of results.json, checked against its schema (docs/results-schema.md).

    Regimes keep the order and the names they are given in. Raises ValueError where records are incomplete, regimes have
    other problems than the base, regimes differ in their seeds, or the objective of task_reward has no task reward.
    """
    if len({tuple(regime.seeds) for regime in regimes.values()}) > 1:
        listed = ", ".join(f"{name} {list(regime.seeds)}" for name, regime in regimes.items())
        raise ValueError(f"regimes must have the same seeds to be compared, got {listed}; complete the missing runs")
    if TASK_REWARD in regimes and _label_free(regimes[TASK_REWARD]):
        raise ValueError(
            f"{TASK_REWARD} is the name of the regime the verdict is about, but {regimes[TASK_REWARD].objective} uses no task "
            "reward; give it another name"
        )
    base = problem_figures([base_records], "base")
    figures = {name: problem_figures(regime.last, name) for name, regime in regimes.items()}
    results = {
        "schema_version": SCHEMA_VERSION,
        "base": summarize_figures(base, None, is_base=True),
        "regimes": {name: _regime(regime, figures[name], base) for name, regime in regimes.items()},
        "differences": _differences(list(figures.values())),
        "verdict": _verdict(base, figures, regimes, config.get("evaluation") or {}),
        "choices_using_labels": list(choices_using_labels),
        "config": dict(config),
        "manifest": dict(manifest),
    }
    validate_results(results)
    return results


def seed_trace(
    metrics: Sequence[Mapping[str, Any]],
    final_accuracy: float,
    checks: int | None = None,
    stopped: str | None = None,
) -> SeedTrace:
    """One seed's metrics rows, the check before training (step 0) included, as the series that the stability rule reads.

    A run that was `stopped` early, and why, has fewer than `checks` validation checks; its last one stands for those it
    missed, NaN if it had none. A null of the gradient norm, the entropy or the KL was not finite: NaN; of the lengths
    it is a step without a value, left out, as is a row that lacks the key.
    """
    validation = [row["validation/accuracy"] for row in metrics if row.get("validation/accuracy") is not None]
    if checks:
        validation += (validation[-1:] or [math.nan]) * (checks - len(validation))
    series = {
        name: [
            math.nan if row[key] is None else row[key]
            for row in metrics
            if key in row and (name in _NULL_IS_NOT_FINITE or row[key] is not None)
        ]
        for name, key in _TRACES.items()
    }
    return SeedTrace(final_accuracy, validation_accuracy=validation, stopped=stopped, **series)


def _regime(regime: RegimeRecords, figures: ProblemFigures, base: ProblemFigures) -> dict[str, Any]:
    summary = summarize_figures(figures, base)
    best = None
    if regime.best is not None and regime.best_steps is not None:
        if all(theirs is ours or theirs == ours for theirs, ours in zip(regime.best, regime.last, strict=True)):
            best = {key: value for key, value in summary.items() if key not in ("tasks", "families", "roles", "modes")}
        else:
            best = summarize_figures(
                problem_figures(regime.best, f"{figures.name} (best checkpoint)"), base, slices=False
            )
        best = best | {"steps": list(regime.best_steps)}
    return summary | {
        "objective": regime.objective,
        "label_free": _label_free(regime),
        "learning_rate": regime.learning_rate,
        "seeds": list(regime.seeds),
        "last_steps": list(regime.last_steps),
        "stopped": list(regime.stopped),
        "stability": _stability(regime, figures),
        "best_by_validation": best,
    }


def _label_free(regime: RegimeRecords) -> bool:
    return parse_objective(regime.objective)[1].label_free


def _stability(regime: RegimeRecords, figures: ProblemFigures) -> dict[str, Any]:
    checks = max(sum(row.get("validation/accuracy") is not None for row in rows) for rows in regime.metrics)
    with np.errstate(invalid="ignore"):
        accuracies = [
            float(np.nanmean(row)) if np.isfinite(row).any() else math.nan for row in figures.values["accuracy"]
        ]
    traces = [
        seed_trace(rows, accuracy, checks, stopped)
        for rows, accuracy, stopped in zip(regime.metrics, accuracies, regime.stopped, strict=True)
    ]
    graded = bool(figures.graded.any())
    if not graded:
        # That the grader failed says nothing about the policy: the accuracy must not count as one that broke down.
        traces = [dataclasses.replace(trace, final_accuracy=0.0) for trace in traces]
    verdict = judge_stability(
        traces,
        validation_samples=regime.validation_samples,
        test_samples=len(figures.problem_ids) * figures.samples,
    )
    word, why = str(verdict.word), verdict.phrase
    seen = [accuracy for trace in traces for accuracy in (*trace.validation_accuracy, trace.final_accuracy)]
    # Without any reward the entropy of the graded rows is no number either: that is no collapse.
    judged = graded or any(row.get("reward") is not None for rows in regime.metrics for row in rows)
    if (verdict.word is not StabilityWord.COLLAPSED or not judged) and not any(seen):
        cause = "no completion is right in any check or at the end" if graded else "no test completion could be graded"
        word, why = NO_SIGNAL, f"{cause}, so nothing could have declined; {why}"
    return {
        "word": word,
        "why": why,
        "figures": {name: value if math.isfinite(value) else None for name, value in verdict.figures.items()},
    }


def _differences(figures: Sequence[ProblemFigures]) -> dict[str, dict[str, Any]]:
    """Each regime minus each later one."""
    return {
        ours.name: {theirs.name: accuracy_difference(ours, theirs) for theirs in figures[place + 1 :]}
        for place, ours in enumerate(figures[:-1])
    }


def _verdict(
    base: ProblemFigures,
    figures: Mapping[str, ProblemFigures],
    regimes: Mapping[str, RegimeRecords],
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    answers = _answers([base, *figures.values()])
    reason = nothing_to_compare(
        answers, evaluation.get("max_new_tokens"), fixed_length=bool(evaluation.get("fixed_length"))
    )
    verdict = _no_verdict(reason, "nothing to compare") if reason else _gain(figures, regimes)
    return verdict | {"comparable": not reason, "answers": answers.as_json()}


def _answers(tables: Sequence[ProblemFigures]) -> Answers:
    """Counts over the sampled completions of all models; the tables hold the same problems in the same order."""
    return Answers(
        models=len(tables),
        problems=len(tables[0].problem_ids),
        solved=int(np.any([table.correct.any(axis=(0, 2)) for table in tables], axis=0).sum()),
        completions=sum(table.graded.size for table in tables),
        correct=sum(int(table.correct.sum()) for table in tables),
        unparseable=sum(int((table.unparseable & table.graded).sum()) for table in tables),
        ungraded=sum(table.ungraded_samples for table in tables),
        truncated=sum(int(table.truncated.sum()) for table in tables),
    )


def _gain(figures: Mapping[str, ProblemFigures], regimes: Mapping[str, RegimeRecords]) -> dict[str, Any]:
    rivals = [name for name in regimes if name != TASK_REWARD and _label_free(regimes[name])]
    if TASK_REWARD not in regimes:
        return _no_verdict(f"no regime is named {TASK_REWARD}, so there is no gain to hold against sharpening")
    if not rivals:
        return _no_verdict("no label-free regime (sharpening, tempered) was run, so task reward has no rival")
    validation = {}
    for name in rivals:
        records = regimes[name].validation_last
        if records is None:
            return _no_verdict(
                f"{name} has no validation records, so the best rival cannot be chosen without test labels"
            )
        validation[name] = problem_figures(records, f"{name} on validation")
    for name in rivals[1:]:
        validation[name].require_paired(validation[rivals[0]])
    test_tables, test_kept = _complete({name: figures[name] for name in (TASK_REWARD, *rivals)})
    validation_tables, validation_kept = _complete(validation)
    if min(test_kept.sum(), validation_kept.sum()) < 2:
        return _no_verdict("fewer than 2 graded problems on test or validation")
    verdict = gain_beyond_best(
        test_tables.pop(TASK_REWARD),
        test_tables,
        validation_tables,
        rng=generator(0, "interval", "verdict"),
        # Resampling within families holds the mix of families as it was set.
        test_strata=figures[TASK_REWARD].family_codes[test_kept],
        validation_strata=validation[rivals[0]].family_codes[validation_kept],
    ).as_json()
    verdict["sentence"] += "".join(
        f"; {name}: seed {seed} stopped early, the weights of step {step} are evaluated"
        for name in (TASK_REWARD, verdict["chosen"])
        for seed, step, reason in zip(regimes[name].seeds, regimes[name].last_steps, regimes[name].stopped, strict=True)
        if reason is not None
    )
    test_left_out, validation_left_out = int((~test_kept).sum()), int((~validation_kept).sum())
    if test_left_out or validation_left_out:
        verdict["sentence"] += (
            f"; {test_left_out} test and {validation_left_out} validation problems without a grade left out"
        )
    return verdict


def _no_verdict(reason: str, begin: str = "no verdict") -> dict[str, Any]:
    return {"sentence": f"{begin}: {reason}", "chosen": None, "gain": None, "choice_shares": {}, "level": 0.95}


def _complete(figures: Mapping[str, ProblemFigures]) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """Accuracies (S, P) at the problems that have one in every regime and seed, and which problems those are."""
    stacked = np.stack([item.values["accuracy"] for item in figures.values()])
    kept: NDArray[np.bool_] = np.asarray(np.isfinite(stacked).all(axis=(0, 1)))
    return {name: table[:, kept] for name, table in zip(figures, stacked, strict=True)}, kept
