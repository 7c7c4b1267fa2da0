"""Worker processes: results in order, and an end that comes whatever a piece does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from work_pieces import square_after

from bsharp.experiment.workers import Workers


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
