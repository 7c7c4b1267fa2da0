"""Independent pieces of work in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Workers", "available_cores"]

T = TypeVar("T")


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Context manager of `count` processes; none is started before there is work, none outlives the block."""

    def __init__(self, count: int) -> None:
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def collect(
        self,
        function: Callable[..., T],
        pieces: Sequence[tuple[Any, ...]],
        report: Callable[[int, int], None] | None = None,
    ) -> list[T]:
        """`function(*piece)` of every piece, in order; `report(done, all)` as they finish. Raises what a piece raises."""
        if report:
            report(0, len(pieces))
        futures = [self._pool.submit(function, *piece) for piece in pieces]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if report:
                report(done, len(pieces))
        return [future.result() for future in futures]


def _start() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
