"""Seconds by part of a step, and the memory of this process."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Clock", "peak_bytes", "resident_bytes"]


class Clock:
    """Adds up the seconds spent in wrapped functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def reset(self) -> None:
        self.seconds.clear()

    def timed(
        self, name: str, function: Callable[..., Any], only: Callable[[], bool] | None = None
    ) -> Callable[..., Any]:
        """`function` with its seconds counted under `name`; calls at which `only` says no are not counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if only is not None and not only():
                return function(*args, **kwargs)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return counted


def peak_bytes() -> int:
    """Highest resident memory of this process so far: VmHWM, or ru_maxrss where there is no /proc.

    On Linux ru_maxrss begins with that of the process which started this one.
    """
    found = _status("VmHWM")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_bytes() -> int:
    """Resident memory of this process now; its peak where there is no /proc."""
    found = _status("VmRSS")
    return peak_bytes() if found is None else found


def _status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status, or None."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
