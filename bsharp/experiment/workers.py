"""Independent pieces of work in processes of their own."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from bsharp.processes import available_cores, end_pool, inherit, process_context

__all__ = ["Workers", "default_workers", "evaluation_workers"]

T = TypeVar("T")


def default_workers(device: str) -> int:
    """One per CPU core, or a single one on an accelerator, which has room for one base and its policy at a time."""
    return available_cores() if device == "cpu" else 1


def evaluation_workers(wanted: int, device: str, threads: int, pieces: int, megabytes: float) -> int:
    """Processes among which an evaluation of `pieces` equal pieces is dealt: `wanted`, or for 0 what the machine has room for.

    That is one for every `threads` CPU cores, as long as their models of `megabytes` each fill at most half of the memory that
    is free, and a single one on an accelerator.
    """
    if not wanted:
        wanted = default_workers(device) // threads if device == "cpu" else 1
        wanted = min(wanted, int(_free_megabytes() / 2 / max(megabytes, 1.0)))
    return max(1, min(wanted, pieces))


def _free_megabytes() -> float:
    """Memory that could be had without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return math.inf if kilobytes is None else kilobytes / 1000


class Workers:
    """Context manager of `count` processes; none is started before there is work, none outlives the block.

    Without a word about the `device` they compute on they are started so that each may use any that is there.
    """

    def __init__(self, count: int, device: str | None = None) -> None:
        if device is None:
            device = "accelerator" if torch.accelerator.is_available() else "cpu"
        self._pool = ProcessPoolExecutor(
            count, process_context(device), initializer=inherit, initargs=(dict(os.environ),)
        )
        self._count = count
        self._closed = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        end_pool(self._pool)

    def collect(
        self,
        function: Callable[..., T],
        pieces: Sequence[tuple[Any, ...]],
        report: Callable[[int, int], None] | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[T]:
        """`function(*piece)` of every piece, in order; `report(done, all)` as they finish, counted in pieces or in their `sizes`.

        Raises what a piece raises, the pieces after it then not begun but for those that a process had been handed already, and
        RuntimeError where the block ended meanwhile.
        """
        waiting = list(zip(pieces, [1] * len(pieces) if sizes is None else sizes, strict=True))[::-1]
        done, total = 0, sum(size for _, size in waiting)
        if report:
            report(0, total)
        futures: list[Future[T]] = []
        pending: dict[Future[T], int] = {}
        while pending or waiting:
            # As many as keep every process busy, so that none is ever taken back: see `end_pool`.
            while waiting and len(pending) <= self._count:
                piece, size = waiting.pop()
                futures.append(self._pool.submit(function, *piece))
                pending[futures[-1]] = size
            # A future that is cancelled with its pool wakes nobody up: hence the look at the clock.
            finished = wait(pending, timeout=0.2, return_when="FIRST_COMPLETED").done
            if self._closed.is_set():
                raise RuntimeError("the work was given up")
            for future in finished:
                future.result()
                done += pending.pop(future)
            if report and finished:
                report(done, total)
        return [future.result() for future in futures]
