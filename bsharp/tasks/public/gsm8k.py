"""GSM8K (arXiv 2110.14168): grade-school word problems; the answer follows `####` in the last line of the solution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import UnusableRow, first_field, number_text, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["GSM8K"]


def _ask(row: Mapping[str, Any]) -> Asked:
    solution = required_text(first_field(row, "answer"), "answer")
    _, mark, answer = solution.rpartition("####")
    if not mark:
        raise UnusableRow("no #### in the answer")
    return Asked(
        required_text(first_field(row, "question"), "question"), number_text(answer), metadata={"solution": solution}
    )


GSM8K = Source(
    name="gsm8k",
    repository="openai/gsm8k",
    configuration="main",
    parts={"train": "train", "test": "test"},
    ask=_ask,
    fields="question, answer (solution, `####`, number)",
    licence="MIT",
    reward_kind="final_number",
    prompt_format="hash",
)
