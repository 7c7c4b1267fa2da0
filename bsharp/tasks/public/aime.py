"""The American Invitational Mathematics Examinations of 2024 and 2025; every answer is a whole number from 0 to 999."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import first_field, number_text, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["AIME24", "AIME25"]


def _ask(row: Mapping[str, Any]) -> Asked:
    metadata = {key: str(row[key]) for key in ("solution", "url") if row.get(key)}
    return Asked(
        required_text(first_field(row, "problem", "question"), "question"),
        number_text(first_field(row, "answer")),
        metadata=metadata,
    )


AIME24 = Source(
    name="aime24",
    repository="HuggingFaceH4/aime_2024",
    parts={"test": "train"},
    ask=_ask,
    fields="problem, answer, solution",
    licence="not stated",
    instead="deepscaler",
)
AIME25 = Source(
    name="aime25",
    repository="math-ai/aime25",
    parts={"test": "test"},
    ask=_ask,
    fields="problem, answer",
    licence="not stated",
    instead="deepscaler",
)
