"""The Harvard-MIT Mathematics Tournament of February 2025, as MathArena publishes it (arXiv 2505.23281)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import answer_text, first_field, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["HMMT"]


def _ask(row: Mapping[str, Any]) -> Asked:
    metadata = {"subject": row["problem_type"]} if row.get("problem_type") else {}
    return Asked(
        required_text(first_field(row, "problem"), "question"),
        answer_text(first_field(row, "answer")),
        metadata=metadata,
    )


HMMT = Source(
    name="hmmt",
    repository="MathArena/hmmt_feb_2025",
    parts={"test": "train"},
    ask=_ask,
    fields="problem, answer, problem_type",
    licence="CC BY-NC-SA 4.0",
    folders=("hmmt25",),
    instead="deepscaler",
)
