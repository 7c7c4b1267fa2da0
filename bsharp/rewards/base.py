"""What a reward function is, and the finding of boxed answers in text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from bsharp.types import Completion, Grade, Problem

__all__ = ["RewardFunction", "boxed_answers", "check_paired"]

_BOX = re.compile(r"\\boxed\{")
_LOOSE_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\boxed\s+([+-]?[\d.,]*\d)")


class RewardFunction(Protocol):
    """Grades completions: `completions[i]` answers `problems[i]`, and grade i of as many grades judges it.

    It may be slow. It never raises because of what a completion says: that is a grade.
    """

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]: ...


def check_paired(problems: Sequence[Problem], completions: Sequence[Completion]) -> None:
    """ValueError unless there is one problem per completion."""
    if len(problems) != len(completions):
        raise ValueError(
            f"{len(completions)} completions but {len(problems)} problems; repeat each problem once per completion"
        )


def boxed_answers(text: str, loose: bool = False) -> Iterator[str]:
    r"""The contents of the complete `\boxed{...}` of a text, left to right; a box within a box is not told apart.

    Braces must balance, and `\{` and `\}` count as text. A box that never closes is passed over, but complete ones inside
    it are found. With `loose` also `\boxed 5` (a number without braces), `\boxed {5}` and `\fbox{5}` are boxes.
    """
    pattern = _LOOSE_BOX if loose else _BOX
    found = pattern.search(text)
    while found:
        begin = found.end()
        if loose and found[1]:
            yield found[1]
            end = None
        else:
            end = _closing_brace(text, begin)
            if end is not None:
                yield text[begin:end]
        found = pattern.search(text, begin if end is None else end + 1)


def _closing_brace(text: str, begin: int) -> int | None:
    depth, position = 1, begin
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # what a backslash precedes is not a brace
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None
