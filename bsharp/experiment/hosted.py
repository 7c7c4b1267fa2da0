"""An evaluation all of whose steps worker processes take, for a process that has imported nothing of what they need.

Two processes that import torch and transformers side by side slow each other down by a fifth, and the command `bsharp evaluate`
would wait for its own import only to hand the work to workers. Here one process imports, every worker is forked from it, the
first one opens the evaluation, all share its pieces, and whoever is free makes records and summary of them. What goes through
this process are bytes that it does not read. The records are those of `evaluate_model`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from bsharp.processes import end_pool, held_interrupts, inherit, process_context

__all__ = ["evaluate_hosted"]


@dataclass(frozen=True)
class _Begun:
    """An evaluation that a worker has opened and bound to its directory."""

    plan: bytes  # a pickled `bsharp.experiment.run.EvaluationPlan`
    order: tuple[tuple[int, int], ...]  # number and rows of every piece, the one to begin with first
    workers: int


def evaluate_hosted(
    request: Mapping[str, Any], most_workers: int, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Carry out an `EvaluationRequest` of these fields on the CPU, with at most so many processes; write summary.json too.

    Returns the summary. `on_progress(done, total)` counts completions. Raises what `evaluate_model` raises.
    """
    pool = ProcessPoolExecutor(most_workers, process_context("cpu"), initializer=inherit, initargs=(dict(os.environ),))
    try:
        with held_interrupts():  # the first worker is there when the imports are
            beginning = pool.submit(_begin, dict(request))
        begun = beginning.result()
        pieces = _records(pool, begun, on_progress)
        return pool.submit(_finish, begun.plan, pieces).result()
    finally:
        end_pool(pool)


def _records(pool: ProcessPoolExecutor, begun: _Begun, on_progress: Callable[[int, int], None]) -> dict[int, bytes]:
    """The pickled records of every piece, by its number; no more pieces at a time than workers."""
    waiting, total, done = list(begun.order), sum(rows for _, rows in begun.order), 0
    running: dict[Future[bytes], tuple[int, int]] = {}
    found: dict[int, bytes] = {}
    on_progress(0, total)
    while waiting or running:
        while waiting and len(running) < begun.workers:
            number, rows = waiting.pop(0)
            running[pool.submit(_piece, begun.plan, number)] = (number, rows)
        for future in wait(running, return_when="FIRST_COMPLETED").done:
            number, rows = running.pop(future)
            found[number] = future.result()
            done += rows
        on_progress(done, total)
    return found


def _begin(request: dict[str, Any]) -> _Begun:
    from bsharp.experiment.run import EvaluationRequest, plan_evaluation
    from bsharp.experiment.saved import in_order, keep_opened, kept_workbench
    from bsharp.experiment.workbench import own_problems_only

    tasks = own_problems_only(request["tasks"], request["problems"])
    plan, evaluation = plan_evaluation(EvaluationRequest(**request | {"tasks": tasks}), kept_workbench)
    keep_opened(plan.evaluation, evaluation)
    order = tuple((number, plan.pieces[number].rows) for number in in_order(plan.pieces))
    return _Begun(pickle.dumps(plan), order, plan.workers)


def _piece(pickled: bytes, number: int) -> bytes:
    from bsharp.experiment.saved import records_of_piece
    from bsharp.models.products import set_product_library

    plan = pickle.loads(pickled)
    set_product_library(plan.library)
    return pickle.dumps(records_of_piece(plan.evaluation, number))


def _finish(pickled: bytes, pieces: dict[int, bytes]) -> dict[str, Any]:
    from bsharp.evaluation import summarize
    from bsharp.evaluation.evaluate import joined
    from bsharp.runlog import RunDirectory

    plan = pickle.loads(pickled)
    records = joined(plan.pieces, [pickle.loads(pieces[number]) for number in range(len(plan.pieces))])
    run = RunDirectory(plan.out)
    run.write_rows("records.jsonl", records)
    summary = summarize([records])
    run.write_json("summary.json", summary)
    return summary
