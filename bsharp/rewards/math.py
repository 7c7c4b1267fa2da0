"""Grading of LaTeX answers by math-verify, in worker processes that can be killed.

math-verify keeps its time limits with signals, which work in the main thread only and cannot interrupt every computation.
Here each worker is a process of its own: a limit holds from any thread, whatever the answer makes sympy do.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from bsharp.rewards.base import boxed_answers, check_paired
from bsharp.types import Completion, Grade, GradeStatus, Problem

__all__ = ["MathVerifyReward"]

_WORKER = Path(__file__).with_name("math_worker.py")
_MAX_ANSWER_CHARACTERS = 2_000
_START_LIMIT = 120.0  # seconds to import sympy on a busy machine; not part of an item's limit


class MathVerifyReward:
    r"""1 where the last complete `\boxed{...}` is mathematically equal to the gold answer, else 0.

    Stricter than math-verify where that is lax: decimals are exact numbers (0.4999999 is not 0.5, and 0.333 is not 1/3),
    and an answer of several values must have all of them ("1331 and 1728" is not answered by "1728"). It keeps math-verify's
    reading of percentages (50% equals both 0.5 and 50) and of units (5 cm equals 5).

    UNPARSEABLE (no complete box, or nothing that can be read as mathematics in it): reward 0 and no answer. TIMEOUT (not
    decided within `time_limit` seconds): no reward. ERROR (the gold answer cannot be read, or the worker died): no reward.
    One process per worker is started at first use and stopped by `close`, by the context manager or at exit.
    """

    def __init__(self, time_limit: float = 10.0, workers: int = 1) -> None:
        if not time_limit > 0:
            raise ValueError(f"time_limit = {time_limit} must be positive: seconds per answer, 10 by default")
        if workers < 1:
            raise ValueError(f"workers = {workers} must be at least 1")
        self.time_limit = time_limit
        self.workers = workers
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(_Worker())

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        check_paired(problems, completions)
        golds = [problem.answer for problem in problems]
        texts = [completion.text for completion in completions]
        if self.workers == 1:
            return [self._grade(gold, text) for gold, text in zip(golds, texts, strict=True)]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self._grade, golds, texts))

    def close(self) -> None:
        """Stops the workers; they start again when needed."""
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

    def _grade(self, gold: str, text: str) -> Grade:
        extracted: str | None
        *_, extracted = (None, *boxed_answers(text))
        # The gold answer is checked even where there is no box: a gold that cannot be read is an error for everyone.
        answer = extracted if extracted is not None and len(extracted) <= _MAX_ANSWER_CHARACTERS else None
        worker = self._idle.get()
        try:
            reply = worker.ask({"gold": gold, "answer": answer}, self.time_limit)
        finally:
            self._idle.put(worker)
        status = GradeStatus(reply["status"])
        if status is GradeStatus.UNPARSEABLE and answer is None:
            detail = "no complete box" if extracted is None else f"the box holds {len(extracted)} characters"
            return Grade(status, 0.0, detail=detail)
        rewards = {GradeStatus.CORRECT: 1.0, GradeStatus.WRONG: 0.0, GradeStatus.UNPARSEABLE: 0.0}
        canonical = reply.get("answer") if status in (GradeStatus.CORRECT, GradeStatus.WRONG) else None
        return Grade(status, rewards.get(status), canonical, reply.get("detail", ""), extracted == gold)


class _Worker:
    """One process that answers one JSON line with one JSON line. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[str]], _Worker] | None = None

    def ask(self, request: dict[str, str | None], time_limit: float) -> dict[str, str]:
        try:
            if self._process is None and self._start() is None:
                return {"status": "error", "detail": "the math-verify worker did not start; is math-verify installed?"}
            reply, expired = self._exchange(json.dumps(request), time_limit)
        except OSError as error:
            reply, expired = None, False
            detail = f"the math-verify worker cannot be reached: {error}"
        else:
            detail = "the math-verify worker died"
        if reply is not None:
            return reply
        self.stop()
        if expired:
            return {"status": "timeout", "detail": f"not decided within {time_limit:g} s"}
        return {"status": "error", "detail": detail}

    def stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _start(self) -> dict[str, str] | None:
        # -P keeps the worker's folder off sys.path: this very module would hide the standard library's math.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._finalizer = weakref.finalize(self, _end, self._process)
        ready, _ = self._exchange(None, _START_LIMIT)
        if ready is None:
            self.stop()
        return ready

    def _exchange(self, line: str | None, time_limit: float) -> tuple[dict[str, str] | None, bool]:
        """The reply, or None and whether the limit was the reason."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()  # ends the blocking read below

        timer = threading.Timer(time_limit, expire)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            reply = process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()
        # A reply that came just as the limit struck still counts; the process is gone then, and the next call restarts it.
        if expired.is_set():
            self.stop()
        return (json.loads(reply) if reply.endswith("\n") else None), expired.is_set()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
