"""`bsharp compare`: one base, several regimes and seeds, one engine, one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bsharp.algorithm import Objective
from bsharp.config import (
    EMBEDDED_MODEL,
    SHIPPED_LEARNING_RATES,
    CompareConfig,
    ConfigError,
    DiagnoseConfig,
    OptimizerConfig,
    TrainConfig,
    as_dict,
)
from bsharp.evaluation import RegimeRecords, build_results
from bsharp.experiment.diagnose import CHEAP, DiagnosticsFailed, diagnose
from bsharp.experiment.jobs import Event, Job, is_complete, run_jobs
from bsharp.experiment.live_report import REFRESH_SECONDS, LiveReport
from bsharp.experiment.measured import settled
from bsharp.experiment.run import check_same_run
from bsharp.experiment.setup import BASE, check_comparable, check_runnable, objective_of, regimes_of
from bsharp.experiment.workbench import told_left_out, workbench_of
from bsharp.experiment.workers import default_workers
from bsharp.models.placement import release_cached_memory
from bsharp.reporting import results_markdown
from bsharp.runlog import RunDirectory

__all__ = ["compare", "plan_jobs"]


def compare(
    config: CompareConfig,
    out: str | Path,
    on_start: Callable[[Sequence[Job], Sequence[Job]], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_diagnostic: Callable[[str, int, int], None] | None = None,
    diagnose_settings: DiagnoseConfig | None = None,
    refresh_seconds: float = REFRESH_SECONDS,
) -> dict[str, Any]:
    """Train and evaluate every regime × seed from the same base and return the results written to `out`/results.json.

    report.html is refreshed while the runs go on and written at the end, with the diagnostics that cost little (diagnose.CHEAP).
    `on_start(all jobs, jobs still to do)`, `on_event` and `on_diagnostic` show progress. Directories of finished jobs are
    used again where config, base and code are equal; ConfigError shows the difference otherwise. Nothing is deleted.
    """
    regimes = regimes_of(config)
    config = dataclasses.replace(
        config,
        workers=config.workers or default_workers(config.device),
        learning_rates=learning_rates_of(config),
        weights=settled(config.weights, config.model, config.device, out),
    )
    jobs = plan_jobs(config, regimes, Path(out))
    bench = workbench_of(config)
    check_comparable(config, bench)
    for job in jobs:
        check_runnable(job.config, bench)
    run = RunDirectory(out)
    ours = bench.manifest()
    check_same_run(run, comparable_config(config), ours)
    del bench
    release_cached_memory()  # the workers may need all of the GPU
    todo = [dataclasses.replace(job, identity=ours["identity"]) for job in jobs if not is_complete(job)]
    if on_start:
        on_start(jobs, todo)
    notify = on_event or (lambda event: None)
    if left_out := ours.get("problems_left_out"):
        notify(Event(BASE, "evaluating", 0, 1, warning=told_left_out(left_out)))
    report = LiveReport(run.path, len(jobs), len(todo), notify, refresh_seconds)
    try:
        run_jobs(todo, config.workers, report.on_event)
        results = write_results(config, run, regimes)
    except BaseException:
        report.write()  # a page that says "running" would say so for ever
        raise
    settings = diagnose_settings or DiagnoseConfig(workers=config.workers)
    try:
        diagnose(run.path, settings, CHEAP, on_diagnostic, cheaply=True)
    except DiagnosticsFailed as error:  # the results stand; what is missing is named on the page
        notify(Event("diagnostics", "complete", 1, 1, warning=str(error)))
    if report.write() is None:
        notify(Event("report", "complete", 1, 1, warning=report.failure))
    return results


def learning_rates_of(config: CompareConfig) -> dict[str, float]:
    """The rates by regime: those of the config, or the shipped ones for the embedded model's regimes."""
    if config.learning_rates or config.model != EMBEDDED_MODEL or config.optimizer != OptimizerConfig():
        return dict(config.learning_rates)
    shipped = {objective_of(spec): rate for spec, rate in SHIPPED_LEARNING_RATES.items()}
    return {name: shipped[objective] for name, objective in regimes_of(config).items() if objective in shipped}


def comparable_config(config: CompareConfig) -> dict[str, Any]:
    """The config without the number of workers, which changes when a run is done and not what it computes."""
    return as_dict(config) | {"workers": "any"}


def write_results(config: CompareConfig, run: RunDirectory, regimes: Mapping[str, Objective]) -> dict[str, Any]:
    """results.json and table.md from the records of a finished comparison; no model is needed."""
    base = RunDirectory(run.path / BASE)
    specs = dict(zip(regimes, config.regimes, strict=True))
    collected = {name: _collect(config, run, name, spec) for name, spec in specs.items()}
    results = build_results(
        base_records=list(base.rows("records_last.jsonl")),
        regimes=collected,
        config=as_dict(config),
        manifest=run.read_json("manifest.json"),
        choices_using_labels=choices_using_labels(config),
    )
    run.write_json("results.json", results)
    (run.path / "table.md").write_text(results_markdown(results), encoding="utf-8")
    return results


def plan_jobs(config: CompareConfig, regimes: Mapping[str, Objective], out: Path) -> list[Job]:
    """The base, then every regime × seed; the slow ones are not left for the end."""
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"seeds = {config.seeds} names a seed twice; a repeated run is no second observation")
    specs = dict(zip(regimes, config.regimes, strict=True))
    samples, evaluation = config.final_validation_samples, config.evaluation
    base = train_config(config, "task_reward", "task_reward", config.seeds[0])
    tasks = config.evaluation_tasks
    jobs = [Job(BASE, str(out / BASE), base, False, samples, evaluation, tasks)]
    for seed in config.seeds:
        for name, spec in specs.items():
            folder = out / name / f"seed_{seed}"
            run = train_config(config, name, spec, seed)
            jobs.append(Job(f"{name}/seed_{seed}", str(folder), run, True, samples, evaluation, tasks))
    return jobs


def train_config(config: CompareConfig, name: str, spec: str, seed: int) -> TrainConfig:
    """The config of one training run of the comparison."""
    rate = config.learning_rates.get(name, config.optimizer.learning_rate)
    return TrainConfig(
        model=config.model,
        tasks=config.tasks,
        problems=config.problems,
        chat=config.chat,
        weights=config.weights,
        difficulties=config.difficulties,
        objective=spec,
        seed=seed,
        steps=config.steps,
        sampling=config.sampling,
        algorithm=config.algorithm,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        validation=config.validation,
        watch=dataclasses.replace(config.watch, objectives=config.watch.objectives or config.regimes),
        stop_on_collapse=config.stop_on_collapse,
        microbatch_rows=config.microbatch_rows,
        checkpoint_every=config.validation.every,
        threads=1,
        device=config.device,
    )


def choices_using_labels(config: CompareConfig) -> list[str]:
    """Every choice that looked at right answers, in words: for a label-free regime that is already a task reward."""
    choices = ["the best checkpoint of each run: validation accuracy (the last checkpoint uses no label)"]
    if any(not objective.label_free for objective in regimes_of(config).values()):
        choices.append(
            "the best label-free regime in the verdict: validation accuracy of last checkpoints, chosen again in every "
            "bootstrap replicate"
        )
    rates = "".join(f"{name} {rate:g}, " for name, rate in config.learning_rates.items())
    rates = f"{rates}{'other regimes ' if rates else ''}{config.optimizer.learning_rate:g}"
    unset = dataclasses.replace(config, learning_rates={})
    if config.model == EMBEDDED_MODEL and learning_rates_of(unset) == dict(config.learning_rates):
        choices.append(f"the shipped learning rates ({rates}): validation accuracy over one grid for every regime")
    else:
        choices.append(f"the learning rates of this run ({rates}): by whoever set them, perhaps with labels")
    return choices


def _collect(config: CompareConfig, run: RunDirectory, name: str, spec: str) -> RegimeRecords:
    folders = [RunDirectory(run.path / name / f"seed_{seed}") for seed in config.seeds]
    last = [list(folder.rows("records_last.jsonl")) for folder in folders]
    best = [list(folder.rows("records_best.jsonl")) or last[i] for i, folder in enumerate(folders)]
    complete = [folder.read_json("complete.json") for folder in folders]
    return RegimeRecords(
        objective=spec,
        seeds=list(config.seeds),
        learning_rate=config.learning_rates.get(name, config.optimizer.learning_rate),
        last=last,
        metrics=[list(folder.rows("metrics.jsonl")) for folder in folders],
        validation_samples=config.validation.problems * config.validation.samples,
        validation_last=[list(folder.rows("validation_last.jsonl")) for folder in folders],
        best=best,
        best_steps=[item["best_step"] for item in complete],
        last_steps=[item["last_step"] for item in complete],
        stopped=[item["stopped"] for item in complete],
    )
