"""SVAMP (arXiv 2103.07191): short word problems with distracting facts; the question is Body and Question together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import first_field, number_text, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["SVAMP"]


def _ask(row: Mapping[str, Any]) -> Asked:
    body, question = (
        required_text(first_field(row, "Body"), "question"),
        required_text(first_field(row, "Question"), "question"),
    )
    metadata = {key.lower(): str(row[key]) for key in ("Equation", "Type", "ID") if row.get(key)}
    return Asked(f"{body} {question}", number_text(first_field(row, "Answer")), metadata=metadata)


SVAMP = Source(
    name="svamp",
    repository="ChilleD/SVAMP",
    parts={"train": "train", "test": "test"},
    ask=_ask,
    fields="Body, Question, Answer (a float)",
    licence="MIT",
    reward_kind="final_number",
    instead="gsm8k",
)
