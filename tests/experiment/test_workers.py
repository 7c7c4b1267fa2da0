"""Worker processes: results in order, and an end that comes whatever a piece does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from work_pieces import process_after, square_after

from bsharp.experiment import workers as workers_module
from bsharp.experiment.workers import Workers, evaluation_workers


def test_results_come_in_the_order_of_the_pieces_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    with Workers(2) as workers:
        pieces = [(0.2, 3), (0.0, 4), (0.0, 5)]
        assert workers.collect(square_after, pieces, lambda done, total: told.append((done, total))) == [9, 16, 25]
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)


def test_a_piece_that_fails_raises_at_once_and_the_rest_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="no square"), Workers(1) as workers:
        workers.collect(square_after, [(0.0, -1), *[(20.0, 1)] * 30])
    assert time.monotonic() - started < 15


def test_no_piece_is_taken_back_by_whoever_gives_up(cancelled_here: list[object]) -> None:
    # A pool that is terminated with a cancelled future in it prints a traceback (CPython 3.11): one run in twenty-five.
    with pytest.raises(ValueError, match="no square"), Workers(1) as workers:
        workers.collect(square_after, [(0.0, -1), *[(20.0, 1)] * 30])
    assert not cancelled_here


def test_as_many_processes_work_as_there_are() -> None:
    with Workers(3, "cpu") as workers:
        seen = workers.collect(process_after, [(0.8,)] * 6)
    assert len(set(seen)) == 3


def test_a_thread_that_waits_is_set_free_when_the_block_ends() -> None:
    begun = threading.Event()

    def wait(workers: Workers) -> None:
        begun.set()
        workers.collect(square_after, [(60.0, 1)] * 8)

    started = time.monotonic()
    with ThreadPoolExecutor(1) as threads, Workers(1) as workers:
        future = threads.submit(wait, workers)
        begun.wait()
    assert time.monotonic() - started < 30
    assert future.exception() is not None


def test_progress_can_be_counted_in_the_sizes_of_the_pieces() -> None:
    told: list[tuple[int, int]] = []
    with Workers(1, "cpu") as workers:
        workers.collect(square_after, [(0.0, 1), (0.3, 2)], lambda *call: told.append(call), sizes=[30, 5])
    assert told[0] == (0, 35)
    assert told[-1] == (35, 35)


@pytest.mark.parametrize(
    ("wanted", "device", "threads", "pieces", "megabytes", "count"),
    [
        (0, "cpu", 1, 99, 2.0, 8),  # one for every core
        (0, "cpu", 3, 99, 2.0, 2),  # cores // threads
        (0, "cpu", 16, 99, 2.0, 1),
        (0, "cpu", 1, 3, 2.0, 3),  # none without a piece
        (0, "cpu", 1, 99, 1500.0, 2),  # two fit into half of 6000 MB
        (0, "cpu", 1, 99, 9000.0, 1),
        (0, "cuda", 1, 99, 2.0, 1),
        (5, "cpu", 3, 99, 9000.0, 5),  # as asked
        (5, "cuda", 1, 4, 2.0, 4),
        (1, "cpu", 1, 99, 2.0, 1),
    ],
)
def test_an_evaluation_gets_as_many_processes_as_cores_memory_and_pieces_allow(
    wanted: int,
    device: str,
    threads: int,
    pieces: int,
    megabytes: float,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "available_cores", lambda: 8)
    monkeypatch.setattr(workers_module, "_free_megabytes", lambda: 6000.0)
    assert evaluation_workers(wanted, device, threads, pieces, megabytes) == count
