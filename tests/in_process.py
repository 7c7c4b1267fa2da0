"""The jobs of a comparison without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsharp.experiment import jobs

__all__ = ["run_here"]


def run_here(todo: Sequence[jobs.Job], workers: int, on_event: Callable[[jobs.Event], None]) -> None:
    """`run_jobs` in this process: starting another takes longer than what it is to do."""

    class Told:
        put = staticmethod(on_event)

    previous, jobs._events = jobs._events, Told()
    try:
        for job in todo:
            jobs._run_job(job)
    finally:
        jobs._events = previous
