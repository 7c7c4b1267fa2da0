"""What a measured process does: build one variant, then one step for every line on stdin, one JSON line for each.

The process blocks in a read between its steps, so that only one of several computes at a time. The first line it writes says
what is resident once the model is loaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from speed.timing import peak_bytes, resident_bytes
from speed.workloads import Workload

__all__ = ["serve"]


class _Line:
    """Standard output for reports alone; whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def __call__(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self._file, flush=True)


def serve(specification: dict[str, Any]) -> None:
    """Run the variant that `specification` names: its `kind`, `folder`, `workload` and the arguments of that kind."""
    line = _Line()
    torch.set_num_threads(os.cpu_count() or 1)
    arguments = dict(specification)
    kind = arguments.pop("kind")
    if "workload" in arguments:
        arguments["workload"] = Workload(**arguments["workload"])
    loaded: dict[str, int] = {}

    def ready() -> None:
        loaded["resident"] = resident_bytes()
        line({"loaded_bytes": loaded["resident"], "threads": torch.get_num_threads()})

    def report(values: dict[str, Any]) -> None:
        peak = peak_bytes()
        device = {"device_peak_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
        line(values | {"peak_bytes": peak, "step_bytes": max(0, peak - loaded["resident"])} | device)

    if kind == "trl":
        from speed.trl_side import TrlRun

        run = TrlRun(**arguments)
        ready()
        run.train(_gate, report)
        return
    step = _stepper(kind, arguments)
    ready()
    while _gate():
        report(step())


def _gate() -> bool:
    """Wait for the parent: True for a step, False at the end. In between it may ask for what the allocator keeps unused."""
    while (order := sys.stdin.readline().strip()) == "trim":
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    return bool(order)


def _stepper(kind: str, arguments: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    if kind == "ours":
        from speed.ours import OurStep

        return OurStep(**arguments).run
    if kind == "peak":
        from speed.section_limits import peak_stepper

        return peak_stepper(**arguments)
    if kind == "logprobs":
        from speed.section_memory import logprobs_stepper

        return logprobs_stepper(**arguments)
    from speed.generation import STEPPERS

    return STEPPERS[kind](**arguments)
