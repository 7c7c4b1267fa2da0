r"""MATH (arXiv 2103.03874) and its test subset MATH-500 (arXiv 2305.20050); the answer is the last `\boxed{}` of the solution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bsharp.tasks.fields import UnusableRow, answer_text, first_field, last_box, required_text
from bsharp.tasks.public.source import Asked, Source

__all__ = ["MATH", "MATH500"]


def _ask(row: Mapping[str, Any]) -> Asked:
    solution = row.get("solution")
    answer = row.get("answer")
    if answer is None:
        answer = last_box(required_text(first_field(row, "solution"), "solution"))
        if answer is None:
            raise UnusableRow("no box in the solution")
    # MATH-500 is also passed on without subjects, under ids such as test/precalculus/807.json.
    identity = str(row.get("unique_id") or row.get("id") or "")
    subject = row.get("subject") or row.get("type") or identity.partition("/")[2].partition("/")[0]
    level = re.search(r"[1-5]", str(row.get("level") or ""))
    found = {"solution": solution, "subject": subject, "level": row.get("level"), "unique_id": identity}
    return Asked(
        required_text(first_field(row, "problem", "prompt", "question"), "question"),
        answer_text(answer),
        re.sub(r"[^a-z0-9]+", "_", str(subject).lower().replace("&", "and")) or None,
        int(level[0]) if level else 1,
        {key: value for key, value in found.items() if value},
    )


MATH = Source(
    name="math",
    repository="DigitalLearningGmbH/MATH-lighteval",
    parts={"train": "train", "test": "test"},
    ask=_ask,
    fields="problem, solution, level, type",
    licence="MIT",
    folders=("MATH", "hendrycks_math", "EleutherAI/hendrycks_math"),
    instead="math",
)
MATH500 = Source(
    name="math500",
    repository="HuggingFaceH4/MATH-500",
    parts={"test": "test"},
    ask=_ask,
    fields="problem (or prompt), answer, solution, subject, level",
    licence="MIT (of MATH)",
    folders=("math_500",),
)
