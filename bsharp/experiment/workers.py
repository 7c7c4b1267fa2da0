"""Independent pieces of work in processes of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Workers", "available_cores", "default_workers"]

T = TypeVar("T")


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """One per CPU core, or a single one on an accelerator, which has room for one base and its policy at a time."""
    return available_cores() if device == "cpu" else 1


class Workers:
    """Context manager of `count` processes; none is started before there is work, none outlives the block."""

    def __init__(self, count: int) -> None:
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start)
        self._closed = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        # Looked at after the shutdown: another thread may be starting one more process until then.
        processes = getattr(self._pool, "_processes", None) or {}
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(processes.values()):
            process.terminate()

    def collect(
        self,
        function: Callable[..., T],
        pieces: Sequence[tuple[Any, ...]],
        report: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """`function(*piece)` of every piece, in order; `report(done, all)` as they finish.

        Raises what a piece raises, the pieces after it then not begun, and RuntimeError where the block ended meanwhile.
        """
        if report:
            report(0, len(pieces))
        futures = [self._pool.submit(function, *piece) for piece in pieces]
        pending = set(futures)
        try:
            while pending:
                # A future that is cancelled with its pool wakes nobody up: hence the look at the clock.
                finished, pending = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED")
                if self._closed.is_set():
                    raise RuntimeError("the work was given up")
                for future in finished:
                    future.result()
                if report and finished:
                    report(len(futures) - len(pending), len(pieces))
        finally:
            for future in pending:
                future.cancel()
        return [future.result() for future in futures]


def _start() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
