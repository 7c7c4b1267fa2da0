"""`bsharp compare --tune`: the same learning-rate grid for every regime, judged on validation problems only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bsharp.config import CompareConfig, WatchConfig
from bsharp.experiment.comparison import comparable_config, plan_jobs
from bsharp.experiment.jobs import Event, Job, is_complete, run_jobs
from bsharp.experiment.measured import settled
from bsharp.experiment.run import check_same_run, validation_metrics
from bsharp.experiment.setup import check_runnable, regimes_of
from bsharp.experiment.workbench import workbench_of
from bsharp.experiment.workers import default_workers
from bsharp.models.placement import release_cached_memory
from bsharp.runlog import RunDirectory

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

    For each regime and rate: the validation accuracy of the last checkpoint by seed, and `stopped`, the seeds that
    blew up and were put back to an earlier checkpoint. `chosen` is the rate of the highest mean per regime among those
    at which no seed was stopped (null where every rate was); `common` the rate with the highest mean over all regimes.
    """
    regimes = regimes_of(config)
    config = dataclasses.replace(
        config,
        workers=config.workers or default_workers(config.device),
        learning_rates={},
        weights=settled(config.weights, config.model, config.device, out),
    )
    bench = workbench_of(config)
    jobs: list[Job] = []
    for rate in grid:
        at_rate = dataclasses.replace(config, learning_rates=dict.fromkeys(regimes, rate))
        jobs += [
            dataclasses.replace(
                job,
                name=f"{job.name} at {rate:g}",
                config=dataclasses.replace(job.config, watch=WatchConfig(snapshot_megabytes=0)),
                evaluation=None,
            )
            for job in plan_jobs(at_rate, regimes, Path(out) / f"rate_{rate:g}")
            if job.trains
        ]
    for job in jobs:
        check_runnable(job.config, bench)
    run = RunDirectory(out)
    check_same_run(run, comparable_config(config) | {"learning_rate_grid": list(grid)}, bench.manifest())
    del bench
    release_cached_memory()  # the workers may need all of the GPU
    todo = [job for job in jobs if not is_complete(job)]
    if on_start:
        on_start(jobs, todo)
    run_jobs(todo, config.workers, on_event or (lambda event: None))
    result = _summary(config, run, list(regimes), grid)
    run.write_json("tune.json", result)
    return result


def _summary(config: CompareConfig, run: RunDirectory, names: Sequence[str], grid: Sequence[float]) -> dict[str, Any]:
    accuracy: dict[str, dict[str, list[float]]] = {}
    stopped: dict[str, dict[str, list[int]]] = {}
    for name in names:
        folders = {
            f"{rate:g}": [RunDirectory(run.path / f"rate_{rate:g}" / name / f"seed_{seed}") for seed in config.seeds]
            for rate in grid
        }
        accuracy[name] = {
            rate: [
                validation_metrics(list(seed.rows("validation_last.jsonl")))["validation/accuracy"] for seed in seeds
            ]
            for rate, seeds in folders.items()
        }
        stopped[name] = {
            rate: [
                seed
                for seed, folder in zip(config.seeds, seeds, strict=True)
                if folder.read_json("complete.json")["stopped"]
            ]
            for rate, seeds in folders.items()
        }

    def mean(name: str, rate: float) -> float:
        return sum(accuracy[name][f"{rate:g}"]) / len(config.seeds)

    sound = {name: [rate for rate in grid if not stopped[name][f"{rate:g}"]] for name in names}
    return {
        "grid": list(grid),
        "seeds": list(config.seeds),
        "accuracy": accuracy,
        "stopped": stopped,
        "chosen": {name: max(sound[name], key=lambda rate: mean(name, rate), default=None) for name in names},
        "common": max(
            (rate for rate in grid if all(rate in sound[name] for name in names)),
            key=lambda rate: sum(mean(name, rate) for name in names),
            default=None,
        ),
    }
