"""Live progress of a comparison: a table on a terminal, one line per finished job elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from bsharp.experiment.jobs import Event, Job

__all__ = ["ProgressDisplay"]

EVALUATION_SHARE = 0.35
"""Rough share of a job's time that its evaluation takes; it only shapes the estimate of the time left."""


class ProgressDisplay:
    """Context manager around a comparison; hand its two methods to `compare`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: list[Job] = []
        self._shares: dict[str, float] = {}
        self._latest: dict[str, Event] = {}
        self._accuracy: dict[str, float] = {}
        self._to_do = 0
        self._started = time.monotonic()
        self._live: Live | None = None
        self._diagnostic = ""

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def on_start(self, jobs: Sequence[Job], to_do: Sequence[Job]) -> None:
        """Called once with all jobs and those that are not complete."""
        self._jobs = list(to_do)
        self._to_do = len(to_do)
        self._started = time.monotonic()
        reused = len(jobs) - len(to_do)
        note = f", {reused} already complete" if reused else ""
        self._console.print(f"{len(to_do)} of {len(jobs)} runs to do{note}", highlight=False)

    def on_event(self, event: Event) -> None:
        """Called for every event of every worker."""
        self._latest[event.job] = event
        if event.accuracy is not None:
            self._accuracy[event.job] = event.accuracy
        if event.warning:
            self._console.print(f"[yellow]{escape(event.job)}: {escape(event.warning)}[/yellow]", highlight=False)
        part = event.done / max(1, event.total)
        training = 1 - EVALUATION_SHARE if self._trains(event.job) else 0.0
        self._shares[event.job] = {
            "training": training * part,
            "evaluating": training + (1 - training) * part * 0.95,
            "complete": 1.0,
        }[event.phase]
        if event.phase == "complete" and not self._live:
            accuracy = self._accuracy.get(event.job)
            shown = "" if accuracy is None else f", validation accuracy {accuracy:.1%}"
            done = sum(latest.phase == "complete" for latest in self._latest.values())
            self._console.print(
                f"[{done}/{self._to_do}] {event.job} done{shown}, {self._remaining()}", highlight=False, markup=False
            )

    def on_diagnostic(self, name: str, done: int, total: int) -> None:
        """Called while the diagnostics of the finished runs are made."""
        self._diagnostic = "" if done == total else f"{name} {done}/{total}"

    def _trains(self, name: str) -> bool:
        return any(job.name == name and job.trains for job in self._jobs)

    def _weight(self, job: Job) -> float:
        return 1.0 if job.trains else EVALUATION_SHARE

    def _done(self) -> float:
        total = sum(self._weight(job) for job in self._jobs)
        return sum(self._weight(job) * self._shares.get(job.name, 0.0) for job in self._jobs) / max(total, 1e-9)

    def _remaining(self) -> str:
        done, elapsed = self._done(), time.monotonic() - self._started
        if done < 0.02:
            return f"{_clock(elapsed)} elapsed"
        return f"{_clock(elapsed)} elapsed, about {_clock(elapsed * (1 - done) / done)} left"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        running = [event for event in self._latest.values() if event.phase != "complete"]
        complete = sum(event.phase == "complete" for event in self._latest.values())
        table.add_row(
            "[bold]compare[/bold]",
            ProgressBar(total=1.0, completed=self._done(), width=30),
            f"{complete}/{self._to_do} runs",
            self._remaining(),
        )
        for event in running:
            accuracy = self._accuracy.get(event.job)
            unit = "steps" if event.phase == "training" else "completions"
            table.add_row(
                escape(event.job),
                ProgressBar(total=max(1, event.total), completed=event.done, width=30),
                f"{event.phase} {event.done}/{event.total} {unit}",
                "" if accuracy is None else f"validation accuracy {accuracy:.1%}",
            )
        if self._diagnostic:
            table.add_row("diagnostics", "", self._diagnostic, "")
        if not self._latest and not self._diagnostic:
            table.add_row("starting workers", "", "", "")
        return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
