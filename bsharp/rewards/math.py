"""Grading of LaTeX answers by math-verify, in worker processes that can be killed.

math-verify keeps its time limits with signals, which work in the main thread only and cannot interrupt every computation.
Here each worker is a process of its own: a limit holds from any thread of any process, whatever the answer makes sympy do.
The limit is of processor time, so that a busy machine makes no right answer late.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from bsharp.rewards.base import check_paired
from bsharp.rewards.extract import ExtractionRule, extract_answer
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["MathVerifyReward"]

_PACKAGE = Path(__file__).parents[2]
_MAX_ANSWER_CHARACTERS = 2_000
BATCH = 32
"""Answers that a worker is given at once: asking takes about as long as judging a number."""
_BATCHES_PER_WORKER = 4
_START_LIMIT = 120.0  # seconds to import sympy on a busy machine; not part of an item's limit
_STARVED = (
    20.0  # a worker that waits instead of computing is given up after this many times its limit of processor time
)
Pair = tuple[str, str | None]
Reply = dict[str, str]
_BY_CLOCK = os.name != "posix"  # no limit of processor time there


class MathVerifyReward:
    r"""1 where the answer is mathematically equal to the gold answer, else 0. `extraction` says where the answer stands.

    math-verify's parser reads expressions. Around them this grader is stricter than math-verify: decimals are exact numbers
    (0.4999999 is not 0.5, and 0.333 is not 1/3); an answer of several values must have all of them and no other
    ("1331 and 1728" is not answered by "1728"); tuples keep their order and intervals their ends; numbers are equal or
    not, however small their difference; capital and small letters are different symbols. docs/grading.md has the table.
    A percent sign may be left out or counted (50% equals both 0.5 and 50); units may be left out (5 cm equals 5, not 5 m).

    UNPARSEABLE (no answer found, or nothing that can be read as mathematics in it): reward 0 and no answer. TIMEOUT (not
    decided within `time_limit` seconds of processor time): no reward. ERROR (the gold answer cannot be read, or the
    worker died): no reward. A gold answer of words, or one that the parser cannot read, is compared as normalised text.

    `workers` processes grade at once; each is started at first use and stopped by `close`, by the context manager or at exit.
    They are given up to BATCH answers at a time, each of which has its own limit. Equal answers to equal golds are judged once
    per call. A copy in another process starts workers of its own.
    """

    def __init__(self, time_limit: float = 10.0, workers: int = 1, extraction: ExtractionRule = "last_box") -> None:
        if not time_limit > 0:
            raise ValueError(f"time_limit = {time_limit} must be positive: seconds per answer, 10 by default")
        if workers < 1:
            raise ValueError(f"workers = {workers} must be at least 1")
        self.time_limit = time_limit
        self.workers = workers
        self.extraction: ExtractionRule = extraction
        self._fresh_workers()

    def __reduce__(self) -> tuple[type[MathVerifyReward], tuple[float, int, ExtractionRule]]:
        return MathVerifyReward, (self.time_limit, self.workers, self.extraction)

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        if self._process_id != os.getpid():
            self._fresh_workers()  # after a fork the old ones are the parent's, and so may be their locks
        golds = [problem.answer for problem in problems]
        found = [extract_answer(completion.text, self.extraction) for completion in completions]
        asked = list(dict.fromkeys((gold, _short(answer)) for gold, answer in zip(golds, found, strict=True)))
        # Several batches a worker, so that none has long to wait for the last one.
        size = min(BATCH, max(1, len(asked) // (_BATCHES_PER_WORKER * self.workers)))
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        if self.workers == 1 or len(batches) < 2:
            replies = [self._ask(batch) for batch in batches]
        else:
            with ThreadPoolExecutor(min(self.workers, len(batches))) as threads:
                replies = list(threads.map(self._ask, batches))
        reply_to = dict(zip(asked, itertools.chain.from_iterable(replies), strict=True))
        return [_grade(gold, answer, reply_to[gold, _short(answer)]) for gold, answer in zip(golds, found, strict=True)]

    def close(self) -> None:
        """Stops the workers; they start again when needed."""
        if self._process_id != os.getpid():
            return
        workers = [self._idle.get() for _ in range(self.workers)]
        for worker in workers:
            worker.stop()
            self._idle.put(worker)

    def __enter__(self) -> MathVerifyReward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _fresh_workers(self) -> None:
        self._process_id = os.getpid()
        self._workers = [_Worker() for _ in range(self.workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def _ask(self, pairs: Sequence[Pair]) -> list[Reply]:
        # A gold answer is checked even where there is no answer: one that cannot be read is an error for everyone.
        worker = self._idle.get()
        try:
            return worker.ask(pairs, self.time_limit)
        finally:
            self._idle.put(worker)


def _short(answer: str | None) -> str | None:
    return answer if answer is not None and len(answer) <= _MAX_ANSWER_CHARACTERS else None


def _grade(gold: str, answer: str | None, reply: Reply) -> Grade:
    status = GradeStatus(reply["status"])
    if status is GradeStatus.UNPARSEABLE and _short(answer) is None:
        detail = "no complete box" if answer is None else f"the answer has {len(answer)} characters"
        return Grade(status, 0.0, detail=detail)
    rewards = {GradeStatus.CORRECT: 1.0, GradeStatus.WRONG: 0.0, GradeStatus.UNPARSEABLE: 0.0}
    canonical = reply.get("answer") if status in (GradeStatus.CORRECT, GradeStatus.WRONG) else None
    return Grade(status, rewards.get(status), canonical, reply.get("detail", ""), answer == gold)


class _Worker:
    """One process that answers a JSON line with pairs by one JSON line a pair. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[str], int], _Worker] | None = None

    def ask(self, pairs: Sequence[Pair], time_limit: float) -> list[Reply]:
        """A reply to each pair; the one at which the process ends, by its limit or otherwise, costs no other."""
        replies: list[Reply] = []
        while len(replies) < len(pairs):
            replies += self._replies(pairs[len(replies) :], time_limit)
        return replies

    def _replies(self, pairs: Sequence[Pair], time_limit: float) -> list[Reply]:
        """Replies to the first of the pairs, one at least."""
        wait = time_limit if _BY_CLOCK else _STARVED * time_limit
        found: list[Reply] = []
        expired = False
        try:
            if self._process is None and not self._start():
                return [
                    {"status": "error", "detail": "the math-verify worker did not start; is math-verify installed?"}
                ]
            found, expired = self._exchange(json.dumps({"seconds": time_limit, "pairs": pairs}), len(pairs), wait)
        except OSError as error:
            detail = f"the math-verify worker cannot be reached: {error}"
        else:
            detail = "the math-verify worker died"
        if len(found) == len(pairs):
            return found
        # The worker's own alarm clock ends it where it computes for too long.
        expired = expired or (not _BY_CLOCK and self._ended_by() == signal.SIGPROF)
        self.stop()
        if expired:
            return [*found, {"status": "timeout", "detail": f"not decided within {time_limit:g} s"}]
        return [*found, {"status": "error", "detail": detail}]

    def stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _ended_by(self) -> int | None:
        """The signal that ended the process, if one did."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return -self._process.wait(5.0)  # its output may close a moment before it is gone
        return None

    def _start(self) -> bool:
        # -P keeps the current folder off the path, where a file named math.py would do harm.
        program = (
            f"import sys; sys.path.insert(0, {str(_PACKAGE)!r}); from bsharp.rewards.math_worker import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())
        ready, _ = self._exchange(None, 1, _START_LIMIT)
        if not ready:
            self.stop()
        return bool(ready)

    def _exchange(self, line: str | None, replies: int, time_limit: float) -> tuple[list[Reply], bool]:
        """The replies before the process ended, and whether it was ended because one took longer than the limit."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        found: list[Reply] = []
        with _Clock(time_limit, process.kill) as clock:  # the end of the process ends the blocking read
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            while len(found) < replies and (reply := process.stdout.readline()).endswith("\n"):
                clock.begin()
                found.append(json.loads(reply))
        # A reply that came just as the limit struck still counts; the process is gone then, and the next call restarts it.
        if clock.expired.is_set() and len(found) == replies:
            self.stop()
        return found, clock.expired.is_set()


class _Clock:
    """Calls `strike` once where `limit` seconds pass without `begin`; one thread for all of them."""

    def __init__(self, limit: float, strike: Callable[[], None]) -> None:
        self.expired = threading.Event()
        self._limit, self._strike, self._over = limit, strike, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._deadline = time.monotonic() + self._limit

    def __enter__(self) -> _Clock:
        self.begin()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self.expired.set()
                self._strike()
                return


def _end(process: subprocess.Popen[str], started_by: int) -> None:
    if os.getpid() != started_by:
        process.returncode = 0  # a forked copy: the process is not ours, and neither is its end
        return
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
