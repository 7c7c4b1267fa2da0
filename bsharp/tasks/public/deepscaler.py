"""DeepScaleR's training problems: AIME up to 2023, AMC before 2023, Omni-MATH and STILL. There is no test set.

It holds problems of other sets: `bsharp.tasks.decontaminate` takes those out that are evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import answer_text, first_field, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["DEEPSCALER"]


def _ask(row: Mapping[str, Any]) -> Asked:
    metadata = {"solution": str(row["solution"])} if row.get("solution") else {}
    return Asked(
        required_text(first_field(row, "problem"), "question"),
        answer_text(first_field(row, "answer")),
        metadata=metadata,
    )


DEEPSCALER = Source(
    name="deepscaler",
    repository="agentica-org/DeepScaleR-Preview-Dataset",
    parts={"train": "train"},
    ask=_ask,
    fields="problem, answer, solution",
    licence="MIT",
    files=("deepscaler",),
    instead="math500, aime24, aime25 or amc23",
)
