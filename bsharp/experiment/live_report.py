"""The page of a comparison, written while it runs and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bsharp.experiment.jobs import Event
from bsharp.reporting import write_report

__all__ = ["LiveReport"]

REFRESH_SECONDS = 30.0
SHARE = 0.01
"""Of the time that writing the page may take from the runs: the larger it grows, the more seldom it is written."""


class LiveReport:
    """Rewrites report.html at most every `seconds`, and more seldom where that would take more than SHARE of the time, while
    events come in. A page that fails never fails the comparison."""

    def __init__(
        self,
        folder: Path,
        jobs: int,
        to_do: int,
        on_event: Callable[[Event], None],
        seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._folder = folder
        self._jobs, self._complete = jobs, jobs - to_do
        self._on_event = on_event
        self._seconds, self._took = seconds, 0.0
        self._written = time.monotonic()
        self.failure: str | None = None

    def on_event(self, event: Event) -> None:
        """Hand the event on; a page whose time has come is written before the next one."""
        self._on_event(event)
        self._complete += event.phase == "complete"
        if time.monotonic() - self._written >= max(self._seconds, self._took / SHARE):
            self.write(f"running: {self._complete} of {self._jobs} runs done")

    def write(self, status: str | None = None) -> Path | None:
        """Write the page; None, with the reason in `failure`, where that is not possible."""
        started = time.monotonic()
        try:
            self.failure = None
            return write_report([self._folder], status=status)
        except Exception as error:  # the page is a view: whatever is wrong with it, the runs go on
            self.failure = f"the page could not be written: {type(error).__name__}: {error}"
            return None
        finally:
            self._written = time.monotonic()
            self._took = self._written - started
