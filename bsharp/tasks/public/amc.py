"""The American Mathematics Competitions of 2023, those problems whose answer is a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import first_field, number_text, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["AMC23"]


def _ask(row: Mapping[str, Any]) -> Asked:
    metadata = {"url": str(row["url"])} if row.get("url") else {}
    return Asked(
        required_text(first_field(row, "question", "problem"), "question"),
        number_text(first_field(row, "answer")),
        metadata=metadata,
    )


AMC23 = Source(
    name="amc23",
    repository="math-ai/amc23",
    parts={"test": "test"},
    ask=_ask,
    fields="question, answer",
    licence="not stated",
    instead="deepscaler",
)
