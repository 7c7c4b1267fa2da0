"""What worker processes inherit, and when they are forked from one that has done the imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from work_pieces import Seen, seen_by_worker

from bsharp import processes
from bsharp.processes import held_interrupts, inherit, prepare_workers, process_context

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


@linux
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_end_with_the_process_that_wants_them_however_it_ends(method: str) -> None:
    script = f"""
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from bsharp.processes import inherit

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(1, context, initializer=inherit, initargs=(dict(os.environ),)) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not _runs(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker waits for work from a process that is gone")


def _runs(pid: int) -> bool:
    """Whether the process is there and not a zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_is_imported_to_stay_is_never_looked_at_again_by_the_collector() -> None:
    script = """
import gc
from bsharp.processes import import_to_stay
assert gc.get_freeze_count() == 0 and gc.isenabled()
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
import_to_stay("bsharp.config")
assert collections == [], collections
assert gc.isenabled()
assert gc.get_freeze_count() > 10_000
import bsharp.config
classes = [thing for thing in gc.get_objects() if thing is bsharp.config.TrainConfig]
assert not classes
gc.disable()
import_to_stay("bsharp.types")
assert not gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_ctrl_c_is_told_at_the_end_of_a_block_that_holds_it() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []

    def interrupted() -> None:
        with held_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with held_interrupts():
        pass
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
