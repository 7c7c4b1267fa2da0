"""The pieces of a comparison, done by worker processes: evaluate the base, or train and evaluate one policy."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bsharp.config import ConfigError, EvaluationConfig, TrainConfig, as_dict
from bsharp.evaluation.evaluate import Piece, joined
from bsharp.experiment.run import LastCheck, train, validation_config
from bsharp.experiment.saved import Record, SavedEvaluation, kept_workbench, records_of_piece
from bsharp.experiment.setup import set_threads
from bsharp.experiment.workbench import Workbench, workbench_arguments
from bsharp.models.loading import LanguageModel
from bsharp.models.placement import release_cached_memory
from bsharp.processes import end_pool, inherit, process_context
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
    context = process_context(jobs[0].config.device)
    events = context.Queue()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(events, dict(os.environ)))
    try:
        _work_off(pool, jobs, _evaluated_apart(jobs, workers), on_event, lambda: _drain(events, on_event))
    finally:
        end_pool(pool)
        events.cancel_join_thread()
        events.close()


def _evaluated_apart(jobs: Sequence[Job], workers: int) -> list[Job]:
    """The last jobs of several workers: their evaluations are dealt out piece by piece when all training has begun, so that
    no worker idles while another does a whole job. Policies with adapters stay where they are: loaded from their folder
    they give other last bits."""
    if workers == 1:
        return []
    last = jobs[-2 * workers :]
    return [job for job in last if job.evaluation is not None and job.config.weights.lora_rank is None]


def _work_off(
    pool: ProcessPoolExecutor,
    jobs: Sequence[Job],
    apart: Sequence[Job],
    on_event: Callable[[Event], None],
    drain: Callable[[], None],
) -> None:
    whose: dict[Future[Any], Job] = {pool.submit(_begin_job if job in apart else _run_job, job): job for job in jobs}
    dealt: dict[str, _DealtOut] = {}
    pending = set(whose)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
        drain()
        for future in done:
            job = whose[future]
            if (failure := future.exception()) is not None:
                kind = ConfigError if isinstance(failure, ConfigError) else JobFailed
                detail = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
                raise kind(f"{job.name}: {detail}") from failure
            if job.name in dealt:
                dealt[job.name].take(future, on_event)
            elif job in apart and future.result() is not None:
                dealt[job.name] = _DealtOut(job, future.result(), pool)
                whose |= dict.fromkeys(dealt[job.name].places, job)
                pending |= set(dealt[job.name].places)
    drain()


def _drain(events: Any, on_event: Callable[[Event], None]) -> None:
    while True:
        try:
            on_event(events.get_nowait())
        except queue.Empty:
            return


@dataclass(frozen=True)
class _Ended:
    """How the training of a job ended, and the pieces that each of its evaluations falls into."""

    last_step: int
    best_step: int | None
    stopped: str | None
    seconds: float  # of work on the job so far
    pieces: tuple[Piece, ...] = ()


class _DealtOut:
    """The evaluations of one trained job, submitted piece by piece; their files, and complete.json, as they come back."""

    def __init__(self, job: Job, ended: _Ended, pool: ProcessPoolExecutor) -> None:
        self._job, self._ended, self._seconds = job, ended, ended.seconds
        self._evaluations = _evaluations(job, ended)
        self._found: list[dict[int, list[list[Record]]]] = [{} for _ in self._evaluations]
        self._done = 0
        self.places: dict[Future[Any], tuple[int, int]] = {
            pool.submit(_timed_piece, evaluation, number): (which, number)
            for which, evaluation in enumerate(self._evaluations)
            for number in range(len(ended.pieces))
        }

    def take(self, future: Future[Any], on_event: Callable[[Event], None]) -> None:
        """Keep what a piece has given; write what is complete with it."""
        which, number = self.places[future]
        pieces, run = self._ended.pieces, RunDirectory(self._job.folder)
        records, seconds = future.result()
        self._found[which][number] = records
        self._seconds += seconds
        self._done += pieces[number].rows
        total = len(self._evaluations) * sum(piece.rows for piece in pieces)
        on_event(Event(self._job.name, "evaluating", self._done, total))
        if len(self._found[which]) == len(pieces):
            found = [self._found[which].pop(number) for number in range(len(pieces))]
            run.write_rows(f"records_{self._evaluations[which].checkpoint}.jsonl", joined(pieces, found))
        if self._done == total:
            _complete(run, self._ended, self._seconds)
            on_event(Event(self._job.name, "complete", 1, 1))


# ----------------------------------------------------------------------------------------------- in the worker

_events: Any = None


def _start_worker(events: Any, environment: Mapping[str, str]) -> None:
    global _events
    inherit(environment)
    _events = events


def _timed_piece(evaluation: SavedEvaluation, number: int) -> tuple[list[list[Record]], float]:
    started = time.perf_counter()
    return records_of_piece(evaluation, number), time.perf_counter() - started


def _run_job(job: Job) -> None:
    """Train unless trained, evaluate, write complete.json last."""
    started = time.perf_counter()
    run = RunDirectory(job.folder)
    if run.read_json("complete.json") is None:
        bench, policy, ended = _trained(job, run)

        def on_progress(done: int, total: int) -> None:
            _events.put(Event(job.name, "evaluating", done, total))

        for evaluation in _evaluations(job, ended):
            held = policy if evaluation.checkpoint == "last" else evaluation.load_policy(bench)
            records = evaluation.opened(bench, held).records(on_progress)
            run.write_rows(f"records_{evaluation.checkpoint}.jsonl", records)
        _complete(run, ended, time.perf_counter() - started)
    _events.put(Event(job.name, "complete", 1, 1))


def _begin_job(job: Job) -> _Ended | None:
    """Train unless trained; None where the job is complete. What is to be evaluated lies in its folder then."""
    run = RunDirectory(job.folder)
    if run.read_json("complete.json") is not None:
        _events.put(Event(job.name, "complete", 1, 1))
        return None
    bench, policy, ended = _trained(job, run)
    pieces = _evaluations(job, ended)[0].opened(bench, policy).pieces
    return replace(ended, pieces=pieces)


def _trained(job: Job, run: RunDirectory) -> tuple[Workbench, LanguageModel, _Ended]:
    """The job's policy, trained and validated; of the base, which is not trained, the validation alone."""
    started = time.perf_counter()
    release_cached_memory()  # of the job this process did before
    config = job.config
    set_threads(config.threads)
    bench = kept_workbench(workbench_arguments(config, job.evaluation_tasks))
    if job.identity is not None and (lines := differences(bench.manifest()["identity"], job.identity)):
        raise ConfigError(
            f"what the comparison began with has changed meanwhile ({lines[0]}); put it back, or begin anew"
        )
    policy, ended, records = bench.base, _Ended(0, None, None, 0.0), None
    if job.trains:
        policy, ended, records = _train(job, run, bench)
    else:
        run.write_json("config.json", as_dict(config))
        run.write_json("manifest.json", bench.manifest())
    if records is None:
        validation = validation_config(config, job.final_validation_samples)
        records = _evaluation(job, None, ended.last_step, validation).opened(bench, policy).records()
    run.write_rows("validation_last.jsonl", records)
    return bench, policy, replace(ended, seconds=time.perf_counter() - started)


def _train(job: Job, run: RunDirectory, bench: Workbench) -> tuple[LanguageModel, _Ended, list[Record] | None]:
    """The trained policy, how it ended, and the records of its last validation where that was after its last step."""
    config, reached = job.config, 0
    if latest_checkpoint(run.path / "checkpoints") is None:
        _events.put(Event(job.name, "training", 0, config.steps))

    def watch(step: int, metrics: Any) -> None:
        nonlocal reached
        reached = step
        _events.put(Event(job.name, "training", step, config.steps, metrics.get("validation/accuracy")))

    def warn(sentence: str) -> None:
        _events.put(Event(job.name, "training", reached, config.steps, warning=sentence))

    last_check = LastCheck(job.final_validation_samples)
    policy, progress = train(config, run.path, bench, [watch], warn, last_check)
    if progress.stopped:
        # The alarm's sentence has been told already.
        told = (
            f"stopped at step {progress.step}, as --stop-on-collapse asks" if progress.collapsed else progress.stopped
        )
        _events.put(Event(job.name, "training", progress.step, config.steps, warning=told))
    ended = _Ended(progress.step, progress.best_step, progress.stopped, 0.0)
    return policy, ended, last_check.records if progress.step == config.steps else None


def _evaluations(job: Job, ended: _Ended) -> list[SavedEvaluation]:
    """Of the last checkpoint, and of the best where that is another one; none without test problems."""
    if job.evaluation is None:
        return []
    if not job.trains:
        return [_evaluation(job, None, 0, job.evaluation)]
    found = [_evaluation(job, "last", ended.last_step, job.evaluation)]
    if ended.best_step is not None and ended.best_step != ended.last_step:
        found.append(_evaluation(job, "best", ended.best_step, job.evaluation))
    return found


def _evaluation(job: Job, checkpoint: str | None, step: int, config: EvaluationConfig) -> SavedEvaluation:
    """Of the job's last or best checkpoint, or, for None, of a policy at hand (its last checkpoint)."""
    return SavedEvaluation(
        bench=workbench_arguments(job.config, job.evaluation_tasks),
        policy=None if checkpoint is None else str(Path(job.folder) / checkpoint),
        base_logprobs="scored" if job.trains else "own",
        config=config,
        threads=job.config.threads,
        microbatch_rows=job.config.microbatch_rows,
        step=step,
        checkpoint=checkpoint or "last",
    )


def _complete(run: RunDirectory, ended: _Ended, seconds: float) -> None:
    summary = {"last_step": ended.last_step, "best_step": ended.best_step, "stopped": ended.stopped}
    run.write_json("complete.json", summary | {"seconds": seconds})
