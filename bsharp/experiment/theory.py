"""What `bsharp theory` does, and finite worlds from real models on real problems."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bsharp.models.enumerate import enumerate_responses
from bsharp.models.loading import LanguageModel
from bsharp.reporting.theory_page import write_theory_page
from bsharp.rewards import RewardFunction, reward_for
from bsharp.tasks import Task
from bsharp.theory.check import check
from bsharp.theory.illustration import page_data
from bsharp.theory.world import FiniteWorld, from_arrays
from bsharp.types import Completion, FinishReason, Problem

__all__ = ["check_theory", "theory_page", "world_of_problem"]


def theory_page(out: str | Path) -> Path:
    """Write the page of the exact small world to the file `out`; returns its path."""
    return write_theory_page(page_data(), Path(out))


def check_theory(seed: int = 0) -> list[dict[str, Any]]:
    """Both sides of every statement on every world it is checked on, one row each; `holds` says whether they agree."""
    return [asdict(row) for row in check(seed)]


def world_of_problem(
    language_model: LanguageModel,
    task: Task,
    problem: Problem,
    reward: RewardFunction | None = None,
    opening: str = r" \boxed{",
    closing: str = "}",
    max_digits: int = 4,
) -> FiniteWorld:
    """The answers of a real model to a real problem as a finite world, in which nothing has to be sampled.

    The model is asked the problem and made to open its answer at once; a response is then one to `max_digits` digits and
    `closing`, the model's distribution being restricted to these tokens and renormalised. With 4 digits these are 11,110
    responses and the empty one. The reward is the grader's (an ungraded response counts 0), and responses of equal answers share
    an answer class. Raises ValueError where a digit or the closing text is not one token.
    """
    digits = [_one_token(language_model, str(digit)) for digit in range(10)]
    end = _one_token(language_model, closing)
    prompt = language_model.encode(task.prompt(problem) + opening)
    found = enumerate_responses(language_model, prompt, max_digits + 1, [*digits, end], [end], must_end=True)
    completions = [
        Completion(row, tuple(values[: len(row)]), FinishReason.EOS, opening + language_model.decode(row))
        for row, values in zip(found.responses(), found.token_logprobs.tolist(), strict=True)
    ]
    grades = (reward or reward_for(task))([problem] * found.size, completions)
    classes: dict[str, int] = {}
    answers = [-1 if grade.answer is None else classes.setdefault(grade.answer, len(classes)) for grade in grades]
    return from_arrays(
        found.token_ids, found.mask, found.token_logprobs, [grade.reward or 0.0 for grade in grades], answers=answers
    )


def _one_token(language_model: LanguageModel, text: str) -> int:
    # Without special tokens: a tokenizer that begins every text with BOS must not do so here.
    ids = list(language_model.tokenizer.encode(text, add_special_tokens=False))
    if len(ids) != 1:
        raise ValueError(
            f"{text!r} is {len(ids)} tokens of {language_model.name}; a world of digits needs a tokenizer that keeps each alone"
        )
    return int(ids[0])
