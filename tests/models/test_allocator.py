"""Freed memory is kept for what comes next, that of threads too."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import os, resource, sys, threading, time
import torch
from bsharp.models.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()


def work():  # more than one of a thread's heaps holds
    torch.set_num_threads(1)
    for _ in range(2):
        tensors = [torch.ones(2**20) for _ in range(30)]
        del tensors


def run(target):
    tasks = len(os.listdir("/proc/self/task"))
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    # Python is done with a thread a little before the thread has handed on its memory.
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > tasks and time.monotonic() < deadline:
        time.sleep(0.001)


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


for _ in range(3):
    before = faults()
    for target in (work, work):
        run(target)
    print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_threads_are_given_again_the_memory_that_threads_before_them_have_freed() -> None:
    def last(how: str) -> int:
        command = [sys.executable, "-c", COUNT, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    pages = 2 * 2 * 30 * 2**22 // 4096
    assert last("as it is") > pages / 4, "nothing to gain here"
    assert last("kept") < pages / 50
