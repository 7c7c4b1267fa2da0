"""A call of somebody else's Python function under a time limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Outcome", "call_within"]

R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What a call returned, or the exception it raised in words, or that its time was up."""

    value: R | None = None
    failure: str | None = None
    expired: bool = False


def call_within(time_limit: float, function: Callable[[], R]) -> Outcome[R]:
    """Call `function` and wait at most `time_limit` seconds for it.

    Works from any thread and process. Python cannot stop a function: one that is late is left behind in a daemon thread.
    """
    outcome: list[Outcome[R]] = []

    def run() -> None:
        try:
            outcome.append(Outcome(function()))
        except Exception as error:
            # The function is untrusted: whatever it raises can at worst fail the items it was given.
            outcome.append(Outcome(failure=f"{type(error).__name__}: {error}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(time_limit)
    if thread.is_alive():
        return Outcome(expired=True)
    return outcome[0] if outcome else Outcome(failure="SystemExit: it ended its thread")
