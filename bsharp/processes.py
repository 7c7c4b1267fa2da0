"""How worker processes are started. Standard library only: this may run before anything heavy is imported.

Importing torch and transformers takes a process several seconds. Where nothing but the CPU computes, one process imports them
once, in the background, and every worker is forked from it in milliseconds. That process has run nothing of torch and has a
single thread, so that the fork is safe; a fork of the process that trains would not be. With an accelerator every worker is
started anew: a context of CUDA does not survive a fork.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = [
    "available_cores",
    "end_pool",
    "held_interrupts",
    "import_to_stay",
    "inherit",
    "prepare_workers",
    "process_context",
]

_IMPORTED = ["bsharp.experiment.worker_imports"]
_SERVED = sys.platform == "linux"

# The variables that the imported libraries read once, when they are imported.
_READ_AT_IMPORT = (
    "CUDA_", "HF_", "HUGGINGFACE_", "KMP_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TRANSFORMERS_", "XDG_"
)  # fmt: skip

# Waiting threads of two processes on the same cores must sleep: spinning, they cost up to 30 times. It counts where
# torch is first imported, so it is set before a process is started.
_SETTINGS = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}

_environment: dict[str, str] | None = None  # what of it the workers' imports have read


def available_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_to_stay(*modules: str) -> None:
    """Import modules for as long as the process lives: the garbage collector neither interrupts them nor looks at them again.

    Looking at the hundreds of thousands of objects of torch and transformers again and again is a fifth of their import,
    most of what it takes a process to end, and makes a forked worker copy the pages they lie on. For processes of this
    package's own (its command, its workers): a program that imports it keeps its collector as it is.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def prepare_workers() -> None:
    """Begin to import what workers need, in the background. The earlier, the less the first pool waits."""
    global _environment
    if not _SERVED or _environment is not None:
        return
    _apply_settings()
    multiprocessing.get_context("forkserver").set_forkserver_preload(_IMPORTED)
    # Modules must be found where this process finds them, and not in the current folder first, where a file may have any name.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with _set({"PYTHONSAFEPATH": "1", "PYTHONPATH": path}), _ignoring_interrupts():
        forkserver.ensure_running()
    _environment = _read_at_import()


def process_context(device: str) -> BaseContext:
    """The multiprocessing context for workers that compute on `device`; they call `inherit` first.

    What the imports have read from the environment stays as it was then, so workers under a changed one are started anew.
    """
    _apply_settings()
    if _SERVED and device.partition(":")[0] == "cpu":
        prepare_workers()
        if _read_at_import() == _environment:
            return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def inherit(environment: Mapping[str, str]) -> None:
    """In a worker: the environment of the process that wants it, whatever it was forked from, and no life beyond its."""
    os.environ.clear()
    os.environ.update(environment)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def end_pool(pool: ProcessPoolExecutor) -> None:
    """End a pool and its processes at once, whatever they are doing. Its futures fail, or are cancelled and wake nobody.

    None may be cancelled by hand: a broken pool fails on a future that is cancelled already (CPython 3.11), with a traceback
    on the terminal.
    """
    processes = getattr(pool, "_processes", None)
    pool.shutdown(wait=False, cancel_futures=True)
    # Looked at after the shutdown: another thread may be starting one more process until then.
    for process in list((processes or {}).values()):
        process.terminate()


def _end_with(parent: BaseProcess) -> None:
    """A parent that is killed closes no pool: workers that wait for work would wait for ever."""
    parent.join()
    os._exit(1)


def _apply_settings() -> None:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def _read_at_import() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_IMPORT)}


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Ctrl-C inside raises KeyboardInterrupt at the end of the block.

    For the start of a worker: one that is asked for and then forgotten would come to life without its parent, and complain.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # it is the main thread that is interrupted
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """What is started inside ignores Ctrl-C: whoever wants the workers ends them, and an import says nothing of it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@contextmanager
def _set(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
