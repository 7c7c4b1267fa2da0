"""Several variants, each in a process of its own, measured in turn: one step of each, round after round."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Lock", "Measured", "measure"]

WORKER = Path(__file__).resolve().parent
TAIL = 2000
OTHERS = 0.05
"""Share of all cores that other processes may use during a step; beyond it the step is repeated."""
DISTURBED = 3
TRIMMING = 0.5
"""Seconds in which the waiting processes give memory back."""


class Lock:
    """A file lock around measurements, for a machine on which others measure too: exclusive in steps, shared elsewhere."""

    def __init__(self, path: str | None = None, seconds: float = 110.0) -> None:
        """An exclusive lock is handed back between two steps once it has been held for `seconds`."""
        self._path, self._seconds = path, seconds
        self._file: int | None = None
        self._since = 0.0

    def exclusive(self) -> None:
        """Have the lock for a step that begins now."""
        if self._path is None or (self._file is not None and time.monotonic() - self._since < self._seconds):
            return
        self._take(fcntl.LOCK_EX)

    def shared(self) -> None:
        """Have it for work that is not timed."""
        if self._path is not None:
            self._take(fcntl.LOCK_SH)

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take(self, how: int) -> None:
        assert self._path is not None
        self.release()
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._file, how)
        self._since = time.monotonic()


@dataclass
class Measured:
    """What one variant reported: a dictionary for every counted step."""

    name: str
    loaded_bytes: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    def values(self, key: str) -> list[float]:
        """Of all counted steps that report it."""
        return [step[key] for step in self.steps if key in step]

    def as_dict(self) -> dict[str, Any]:
        return {"loaded_bytes": self.loaded_bytes, "steps": self.steps} | ({"error": self.error} if self.error else {})


class _Process:
    """A worker (see `speed.worker`) and what it has reported."""

    def __init__(self, name: str, specification: Mapping[str, Any]) -> None:
        self.measured = Measured(name)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), "--worker", json.dumps(specification)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    @property
    def alive(self) -> bool:
        return self.measured.error is None

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if text:
            return dict(json.loads(text))
        self._process.wait()
        self._errors.seek(0)
        self.measured.error = f"exit code {self._process.returncode}: {self._errors.read()[-TAIL:]}"
        return None

    def load(self) -> None:
        found = self._read()
        if found:
            self.measured.loaded_bytes = found["loaded_bytes"]

    def step(self) -> dict[str, Any] | None:
        if not self.alive:
            return None
        self._tell("go")
        return self._read()

    def undisturbed_step(self) -> dict[str, Any] | None:
        """A step during which other processes used little of the machine, repeated up to DISTURBED times; else the best of them.

        `others` is their share of all cores.
        """
        best: dict[str, Any] | None = None
        for _ in range(DISTURBED + 1):
            before = self._processor_seconds()
            started = time.monotonic()
            values = self.step()
            if values is None:
                return best
            all_of_it, own = (new - old for new, old in zip(self._processor_seconds(), before, strict=True))
            elapsed = max(time.monotonic() - started, 1e-3)
            values["others"] = max(0.0, all_of_it - own) / elapsed / (os.cpu_count() or 1)
            if best is None or values["others"] < best["others"]:
                best = values
            if values["others"] <= OTHERS:
                break
        return best

    def _processor_seconds(self) -> tuple[float, float]:
        """Busy seconds of all cores so far, and of this process."""
        times = psutil.cpu_times()
        # Linux counts a guest's seconds among those of the user too.
        apart = ("idle", "iowait", "guest", "guest_nice")
        busy = sum(times) - sum(getattr(times, name, 0.0) for name in apart)
        try:
            own = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return busy, 0.0
        return busy, own.user + own.system

    def trim(self) -> None:
        """Give back memory that the allocator keeps for the next step, which then has to ask for it anew."""
        if self.alive:
            self._tell("trim")

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the next reading says why

    def close(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._errors.close()


def measure(
    variants: Mapping[str, Mapping[str, Any]],
    rounds: int,
    warmup: int = 1,
    lock: Lock | None = None,
    longest: float | None = None,
    ahead: int = 0,
) -> dict[str, Measured]:
    """Each variant by name: `warmup` steps that are not counted and `rounds` that are, all variants taking turns.

    With `ahead` every turn begins with so many steps that are not counted: steps of a run follow each other, and a short one
    behind other processes' would find threads asleep and caches full of what is theirs.

    All processes are started at once, load side by side and then wait; odd rounds go through the variants backwards, so
    that a machine that grows slower or faster favours none. One that fails keeps its error and drops out. With `longest` a
    warm-up step beyond so many seconds is the last: neither that variant nor those behind it are measured.

    A step during which other processes computed is repeated (see OTHERS). Where less than a fifth of the machine's memory is
    left, the waiting processes are made to give theirs back.
    """
    lock = lock or Lock()
    processes: list[_Process] = []
    try:
        lock.shared()
        processes += [_Process(name, specification) for name, specification in variants.items()]
        for process in processes:
            process.load()
        lock.release()
        for number in range(-warmup, rounds):
            for process in _order(processes, number):
                lock.exclusive()
                _make_room(processes)
                if number >= 0:
                    for _ in range(ahead):
                        process.step()
                values = process.undisturbed_step() if number >= 0 else process.step()
                if values is not None and number >= 0:
                    process.measured.steps.append(values)
                if number < 0 and longest and values is not None and values["seconds"] > longest:
                    for later in processes[processes.index(process) :]:
                        later.close()
                    del processes[processes.index(process) :]
                    break
    finally:
        lock.release()
        for process in processes:
            process.close()
    for process in processes:
        if process.measured.error:
            print(f"{process.measured.name}: {process.measured.error}", file=sys.stderr)
    return {process.measured.name: process.measured for process in processes}


def _make_room(processes: Sequence[_Process]) -> None:
    memory = psutil.virtual_memory()
    if memory.available < memory.total / 5:
        for process in processes:
            process.trim()
        time.sleep(TRIMMING)


def _order(processes: Sequence[_Process], number: int) -> Sequence[_Process]:
    return list(processes if number % 2 == 0 or number < 0 else processes[::-1])
