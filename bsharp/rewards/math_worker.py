"""The process in which one math-verify worker runs: a JSON line in, a JSON line out. Started by path, not imported."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from typing import Any

_MEMORY_LIMIT = 4 << 30  # bytes; an answer such as a tower of powers must not fill the machine
_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")


def _parse(text: str) -> Any | None:
    """A sympy object, or None where the text cannot be read. Decimals become exact rationals."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Basic, Float, MatrixBase, Rational

    # A bare word would be read as a product of letters, and so equal its anagrams.
    # Dollars inside would make several expressions of one answer, any of which math-verify would accept.
    cleaned = re.sub(r"(?<!\\)\$", "", text).strip()
    if _WORDS.fullmatch(cleaned):
        cleaned = f"\\text{{{cleaned}}}"
    found = parse(f"${cleaned}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    parsed = next((item for item in found if isinstance(item, (Basic, MatrixBase))), None)
    if parsed is None:
        return None
    return parsed.xreplace({number: Rational(str(number)) for number in parsed.atoms(Float)})


def _canonical(parsed: Any) -> str:
    from sympy import Eq, Symbol

    if isinstance(parsed, Eq) and isinstance(parsed.lhs, Symbol):
        parsed = parsed.rhs  # `x = 3` votes with `3`
    with contextlib.suppress(Exception):
        parsed = parsed.doit()
    return str(parsed)


def judge(gold: str, answer: str | None) -> dict[str, str]:
    """The status of an answer and its canonical form."""
    from math_verify import verify

    parsed_gold = _parse(gold)
    if parsed_gold is None:
        return {"status": "error", "detail": f"the gold answer {gold[:100]!r} cannot be read as mathematics"}
    parsed = None if answer is None else _parse(answer)
    if answer is None or parsed is None:
        return {"status": "unparseable", "detail": f"{(answer or '')[:100]!r} cannot be read as mathematics"}
    equal = verify(parsed_gold, parsed, numeric_precision=30, timeout_seconds=None, raise_on_error=True)
    return {"status": "correct" if equal else "wrong", "answer": _canonical(parsed)}


def main() -> None:
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    replies = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may be taken for a reply
    judge("1", "1")  # imports and warms up everything before the first limit runs
    print(json.dumps({"status": "ready"}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = judge(**json.loads(line))
        except Exception as error:
            # Any failure belongs to this answer alone.
            reply = {"status": "error", "detail": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
