"""The command `bsharp`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bsharp.processes import prepare_workers

__all__ = ["main"]

_LEAVE_WORKERS = frozenset({"--base", "--model", "--out", "--task", "--tasks"})
"""Flags of `bsharp evaluate` beside which its default stands: that several processes share the work on the CPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit status 0: done; 1: failed; 2: the command line or a config is wrong; 130: interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    flags = {argument.partition("=")[0] for argument in argv[1:] if argument.startswith("-")}
    if argv[:1] == ["evaluate"] and flags <= _LEAVE_WORKERS:
        prepare_workers()  # what workers import takes longer than all before them: it begins while the command is read
    from bsharp.cli.dispatch import run

    run(argv)
