"""`bsharp compare --tune`: the same learning-rate grid for every regime, judged on validation problems only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bsharp.config import CompareConfig, as_dict
from bsharp.experiment.comparison import plan_jobs, regimes_of
from bsharp.experiment.jobs import Event, Job, is_complete, run_jobs
from bsharp.experiment.run import check_same_run
from bsharp.models.loading import load_language_model, weights_hash
from bsharp.runlog import RunDirectory, manifest

__all__ = ["LEARNING_RATE_GRID", "tune"]

LEARNING_RATE_GRID = (3e-4, 1e-3, 3e-3, 1e-2)


def tune(
    config: CompareConfig,
    out: str | Path,
    grid: Sequence[float] = LEARNING_RATE_GRID,
    on_start: Callable[[Sequence[Job], Sequence[Job]], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Train every regime × rate × seed, touch no test problem, and return (and write tune.json) what to choose.

    For each regime and rate: the validation accuracy of the last checkpoint, mean over seeds, with each seed's value.
    `chosen` holds the rate of the highest mean per regime, `common` the rate of the highest mean of task_reward alone
    (or of the first regime), for those who want one rate for all.
    """
    regimes = regimes_of(config)
    config = dataclasses.replace(config, workers=config.workers or (os.cpu_count() or 1), learning_rates={})
    run = RunDirectory(out)
    ours = manifest(weights_hash(load_language_model(config.model, config.dtype, config.device).model))
    check_same_run(run, as_dict(config) | {"workers": "any", "learning_rate_grid": list(grid)}, ours)
    jobs: list[Job] = []
    for rate in grid:
        at_rate = dataclasses.replace(config, learning_rates=dict.fromkeys(regimes, rate))
        jobs += [
            dataclasses.replace(job, name=f"{job.name} at {rate:g}", evaluation=None)
            for job in plan_jobs(at_rate, regimes, run.path / f"rate_{rate:g}")
            if job.trains
        ]
    todo = [job for job in jobs if not is_complete(job)]
    if on_start:
        on_start(jobs, todo)
    run_jobs(todo, config.workers, on_event or (lambda event: None))
    accuracies = {
        name: {
            f"{rate:g}": [
                _accuracy(RunDirectory(run.path / f"rate_{rate:g}" / name / f"seed_{seed}")) for seed in config.seeds
            ]
            for rate in grid
        }
        for name in regimes
    }
    chosen = {name: max(grid, key=lambda rate: sum(accuracies[name][f"{rate:g}"])) for name in regimes}
    first = "task_reward" if "task_reward" in regimes else next(iter(regimes))
    result = {"grid": list(grid), "accuracy": accuracies, "chosen": chosen, "common": chosen[first]}
    run.write_json("tune.json", result)
    return result


def _accuracy(run: RunDirectory) -> float:
    rewards = [row["reward"] for row in run.rows("validation_last.jsonl") if row["reward"] is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0
