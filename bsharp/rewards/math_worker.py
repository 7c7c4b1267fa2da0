"""The process in which one math-verify worker runs: a JSON line with pairs in, a JSON line out for each pair."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import sys

from bsharp.rewards.math_equality import canonical, equal
from bsharp.rewards.math_reading import Reading, as_text, read

__all__ = ["judge", "main"]

_LONGEST_VOTE = 2_000  # characters
_MEMORY_LIMIT = 4 << 30  # bytes; an answer such as a tower of powers must not fill the machine


def judge(gold: str, answer: str | None) -> dict[str, str]:
    """The status of an answer and its canonical form, by which answers vote.

    A gold answer that the parser cannot read is compared as normalised text, so that it is decided the same way for every
    answer; one with neither letter nor digit is an error. Equal texts are equal answers without any parsing.
    """
    golds = _read(gold)
    gold_text = as_text(gold)
    if golds is None and not any(map(str.isalnum, gold_text)):
        return {"status": "error", "detail": f"the gold answer {gold[:100]!r} cannot be read as mathematics"}
    if answer is None:
        return {"status": "unparseable", "detail": "no answer"}
    answers = _read(answer)
    same_text = as_text(answer) == gold_text
    if answers is None:
        if same_text or (golds is None and any(map(str.isalnum, as_text(answer)))):
            return {
                "status": "correct" if same_text else "wrong",
                "answer": as_text(answer),
                "detail": "compared as text",
            }
        return {"status": "unparseable", "detail": f"{answer[:100]!r} cannot be read as mathematics"}
    correct = same_text or (golds is not None and any(equal(g, a) for g in golds for a in answers))
    reply = {"status": "correct" if correct else "wrong", "answer": _vote(answers[0], answer)}
    return reply | ({"detail": "compared as text"} if golds is None else {})


def _vote(reading: Reading, answer: str) -> str:
    try:
        found = canonical(reading)
    except Exception:
        # Python does not print integers of thousands of digits.
        return as_text(answer)
    return found if len(found) <= _LONGEST_VOTE else as_text(answer)


@functools.lru_cache(maxsize=256)  # one gold answer is asked about once per completion
def _read(text: str) -> tuple[Reading, ...] | None:
    try:
        return read(text) or None
    except RecursionError:  # brackets nested hundreds deep
        return None


def main() -> None:
    """Answer lines of standard input until it ends. Ends by SIGPROF where one pair takes more than its seconds."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    has_clock = hasattr(signal, "setitimer")
    if has_clock:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the system ends the process, whatever it is computing
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    replies = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may be taken for a reply
    judge(r"\frac{1}{2}", r"\sqrt{2}x")  # imports and warms up everything before the first limit runs
    print(json.dumps({"status": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        for gold, answer in request["pairs"]:
            try:
                if has_clock:
                    signal.setitimer(signal.ITIMER_PROF, float(request["seconds"]))
                reply = judge(gold, answer)
            except Exception as error:
                # Any failure belongs to this answer alone.
                reply = {"status": "error", "detail": f"{type(error).__name__}: {error}"[:300]}
            if has_clock:
                signal.setitimer(signal.ITIMER_PROF, 0.0)
            # Sent at once: what the next pair does to this process must not cost this reply.
            print(json.dumps(reply), file=replies, flush=True)
