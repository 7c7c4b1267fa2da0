"""What worker processes inherit, and when they are forked from one that has done the imports."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from work_pieces import Seen, seen_by_worker

from bsharp import processes
from bsharp.processes import inherit, prepare_workers, process_context

linux = pytest.mark.skipif(sys.platform != "linux", reason="only there are workers forked")


def seen(device: str) -> Seen:
    context = process_context(device)
    with ProcessPoolExecutor(1, context, initializer=inherit, initargs=(dict(os.environ),)) as pool:
        return pool.submit(seen_by_worker).result()


@linux
def test_a_forked_worker_finds_the_imports_done_and_the_environment_of_who_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare_workers()
    monkeypatch.setenv("BSHARP_TEST_VALUE", "set after the preparation")
    monkeypatch.delenv("HOME")
    worker = seen("cpu")
    assert worker.imported_before
    assert worker.environment["BSHARP_TEST_VALUE"] == "set after the preparation"
    assert "HOME" not in worker.environment
    assert not {"PYTHONSAFEPATH", "PYTHONPATH"} & (set(worker.environment) - set(os.environ))
    assert worker.package == os.path.dirname(processes.__file__)


@linux
def test_waiting_threads_of_workers_sleep_unless_somebody_asks_for_something_else() -> None:
    # tests/conftest.py does not set it.
    assert seen("cpu").environment["OMP_WAIT_POLICY"] == os.environ["OMP_WAIT_POLICY"] == "passive"


@linux
def test_what_the_imports_have_read_cannot_change_for_a_forked_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_workers()
    assert process_context("cpu").get_start_method() == "forkserver"
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    assert process_context("cpu").get_start_method() == "spawn"


def test_workers_on_an_accelerator_are_started_anew() -> None:
    assert process_context("cuda").get_start_method() == "spawn"
    assert process_context("cuda:1").get_start_method() == "spawn"
