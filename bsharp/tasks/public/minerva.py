r"""Minerva's undergraduate problems (arXiv 2206.14858) from MIT OpenCourseWare; the answer is the last `\boxed{}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import UnusableRow, answer_text, first_field, last_box, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["MINERVA"]


def _ask(row: Mapping[str, Any]) -> Asked:
    answer, metadata = row.get("answer"), {}
    if row.get("solution") is not None:
        metadata["solution"] = required_text(row["solution"], "solution")
        answer = last_box(metadata["solution"]) if answer is None else answer
    if answer is None:
        raise UnusableRow("no answer and no box in the solution")
    if row.get("type"):
        metadata["subject"] = str(row["type"])
    return Asked(
        required_text(first_field(row, "problem", "question"), "question"), answer_text(answer), metadata=metadata
    )


MINERVA = Source(
    name="minerva",
    repository="math-ai/minervamath",
    parts={"test": "test"},
    ask=_ask,
    fields="question (or problem), answer (or solution), type",
    licence="not stated",
    folders=("minerva_math",),
)
