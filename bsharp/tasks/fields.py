r"""From the fields of a row to question and answer, with a reason where that is not possible."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["UnusableRow", "answer_text", "did_you_mean", "first_field", "last_box", "number_text", "required_text"]

Row = Mapping[str, Any]

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(\{|[^\s{$])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class UnusableRow(ValueError):
    """A row that makes no problem; the message is a reason without values, so that rows can be counted by it."""


def first_field(row: Row, *names: str) -> Any:
    """The value of the first of the fields `names` that the row has. UnusableRow where it has none, or only empty ones."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise UnusableRow(f"no {' or '.join(names)}")


def required_text(value: Any, what: str) -> str:
    """Text without blanks around it; UnusableRow for anything else and for an empty one. `what` names it there."""
    if not isinstance(value, str):
        raise UnusableRow(f"the {what} is a {type(value).__name__}, not text")
    if not value.strip():
        raise UnusableRow(f"the {what} is empty")
    return value.strip()


def answer_text(value: Any) -> str:
    """An answer as text: 27.0 becomes `27`, blanks around it go. UnusableRow for an empty one, NaN, or what is no text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UnusableRow(f"the answer is a {type(value).__name__}, not text or a number")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnusableRow("the answer is not a finite number")
        value = int(value) if value == int(value) else repr(value)
    text = str(value).strip()
    if not text:
        raise UnusableRow("the answer is empty")
    return text


def number_text(value: Any) -> str:
    """A number as text: separators of thousands go, `27.0` becomes `27` and `025` becomes `25`. UnusableRow for others."""
    text = answer_text(value).replace(",", "").removeprefix("$")
    if not _NUMBER.fullmatch(text):
        raise UnusableRow("the answer is not a number")
    whole, _, decimals = text.partition(".")
    decimals = decimals.rstrip("0")
    digits = (whole.removeprefix("-").lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    return f"-{digits}" if whole.startswith("-") and digits != "0" else digits


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}` (or `\fbox`, `\framebox`, or `\boxed 5`) of a solution; None without one."""
    for match in reversed(list(_BOX.finditer(text))):
        if match[1] != "{":
            return match[1]
        end = _closing_brace(text, match.end())
        if end is not None:
            return text[match.end() : end].strip()
    return None


def _closing_brace(text: str, begin: int) -> int | None:
    depth, position = 1, begin
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1  # what a backslash precedes is not a brace
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position
        position += 1
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean x?)` where one of `known` is like `name`, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
