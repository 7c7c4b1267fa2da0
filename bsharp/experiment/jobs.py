"""The pieces of a comparison, each done by one worker process: evaluate the base, or train and evaluate one policy."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError, EvaluationConfig, TrainConfig, as_dict
from bsharp.evaluation import evaluate
from bsharp.experiment.run import Record, train, validation_config
from bsharp.experiment.setup import set_threads
from bsharp.experiment.workbench import Workbench, workbench_of
from bsharp.generation import generator_for
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.placement import release_cached_memory
from bsharp.runlog import RunDirectory, differences
from bsharp.training import latest_checkpoint

__all__ = ["Event", "Job", "JobFailed", "is_complete", "run_jobs"]


@dataclass(frozen=True)
class Job:
    """One directory of work. Without a regime it is the base, evaluated and not trained."""

    name: str  # e.g. task_reward/seed_0
    folder: str
    config: TrainConfig
    trains: bool
    final_validation_samples: int
    evaluation: EvaluationConfig | None  # None: no test problem is touched (tuning)
    evaluation_tasks: tuple[str, ...] = ()  # where they are not those trained on
    identity: Mapping[str, Any] | None = None  # of the comparison that the job belongs to


@dataclass(frozen=True)
class Event:
    """Progress of a job: `done` of `total` units of its current phase, and what can be said meanwhile."""

    job: str
    phase: str  # training, evaluating, complete
    done: int
    total: int
    accuracy: float | None = None
    warning: str | None = None


class JobFailed(RuntimeError):
    """A worker could not finish its job; the other jobs' results are kept, and calling again resumes."""


def is_complete(job: Job) -> bool:
    """Whether the job's directory holds a finished run; that it is one of this config follows from the comparison's own."""
    return (Path(job.folder) / "complete.json").exists()


def run_jobs(jobs: Sequence[Job], workers: int, on_event: Callable[[Event], None]) -> None:
    """Do what is not complete yet, `workers` at a time, in processes of `config.threads` threads each.

    Raises ConfigError where a job's directory belongs to another run, JobFailed with the reason of the first failure; the
    other workers are stopped then. What was finished or checkpointed before stays, and is used next time.
    """
    if not jobs:
        return
    context = get_context("spawn")
    events = context.Queue()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(events,))
    try:
        futures = {pool.submit(_run_job, job): job for job in jobs}
        for future in _as_completed(futures, lambda: _drain(events, on_event)):
            failure = future.exception()
            if failure is not None:
                for other in futures:
                    other.cancel()
                kind = ConfigError if isinstance(failure, ConfigError) else JobFailed
                detail = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
                raise kind(f"{futures[future].name}: {detail}") from failure
        _drain(events, on_event)
    finally:
        workers_left = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in workers_left:
            process.terminate()
        events.cancel_join_thread()
        events.close()


def _as_completed(futures: Iterable[Future[None]], between: Callable[[], None]) -> Iterator[Future[None]]:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
        between()
        yield from done


def _drain(events: Any, on_event: Callable[[Event], None]) -> None:
    while True:
        try:
            on_event(events.get_nowait())
        except queue.Empty:
            return


_events: Any = None


def _start_worker(events: Any) -> None:
    global _events
    _events = events
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run_job(job: Job) -> None:
    """In the worker: train unless trained, evaluate, write complete.json last."""
    started = time.perf_counter()
    run = RunDirectory(job.folder)
    if run.read_json("complete.json") is not None:
        _events.put(Event(job.name, "complete", 1, 1))
        return
    release_cached_memory()  # of the job this process did before
    config = job.config
    set_threads(config.threads)
    bench = workbench_of(config, job.evaluation_tasks)
    if job.identity is not None and (lines := differences(bench.manifest()["identity"], job.identity)):
        raise ConfigError(
            f"what the comparison began with has changed meanwhile ({lines[0]}); put it back, or begin anew"
        )
    best_step, stopped, last_step = None, None, 0
    policy = bench.base
    if job.trains:
        if latest_checkpoint(run.path / "checkpoints") is None:
            _events.put(Event(job.name, "training", 0, config.steps))

        reached = 0

        def watch(step: int, metrics: Any) -> None:
            nonlocal reached
            reached = step
            _events.put(Event(job.name, "training", step, config.steps, metrics.get("validation/accuracy")))

        def warn(sentence: str) -> None:
            _events.put(Event(job.name, "training", reached, config.steps, warning=sentence))

        policy, progress = train(config, run.path, bench, [watch], warn)
        best_step, stopped, last_step = progress.best_step, progress.stopped, progress.step
        if stopped:
            # The alarm's sentence has been told already.
            told = f"stopped at step {last_step}, as --stop-on-collapse asks" if progress.collapsed else stopped
            _events.put(Event(job.name, "training", last_step, config.steps, warning=told))
    else:
        run.write_json("config.json", as_dict(config))
        run.write_json("manifest.json", bench.manifest())
    summary: dict[str, Any] = {"last_step": last_step, "best_step": best_step, "stopped": stopped}
    validation = validation_config(config, job.final_validation_samples)
    run.write_rows("validation_last.jsonl", _records(job, bench, policy, validation, last_step, quiet=True))
    if job.evaluation is not None:
        run.write_rows("records_last.jsonl", _records(job, bench, policy, job.evaluation, last_step))
        if best_step is not None and best_step != last_step:
            best = load_language_model(str(run.path / "best"), config.weights.dtype, config.device, config.chat)
            run.write_rows("records_best.jsonl", _records(job, bench, best, job.evaluation, best_step, "best"))
    run.write_json("complete.json", summary | {"seconds": time.perf_counter() - started})
    _events.put(Event(job.name, "complete", 1, 1))


def _records(
    job: Job,
    bench: Workbench,
    policy: LanguageModel,
    config: EvaluationConfig,
    step: int,
    checkpoint: str = "last",
    quiet: bool = False,
) -> list[Record]:
    def on_progress(done: int, total: int) -> None:
        if not quiet:
            _events.put(Event(job.name, "evaluating", done, total))

    is_base = policy is bench.base
    return evaluate(
        policy,
        generator_for(policy, config.max_rows, config.backend, policy_version=step),
        None if is_base else bench.base,
        list((bench.evaluation_tasks if config.split == "test" else bench.tasks).values()),
        bench.rewards,
        config,
        on_progress,
        microbatch_rows=job.config.microbatch_rows,
        is_base=is_base,
        checkpoint=checkpoint,
    )
