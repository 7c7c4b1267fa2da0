r"""How a problem is worded for the model: named formats, and templates of one's own.

A format is a text in which `{question}` stands for the question. Chat templates come on top, elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from bsharp.config import ConfigError

__all__ = ["FORMATS", "PLACE", "template_of", "worded"]

PLACE = "{question}"

FORMATS: Mapping[str, str] = {
    # The wording of the runs in arXiv 2604.16259.
    "paper": (
        "Think step-by-step to solve the following problem. Output your answer inside of \\boxed{} tags.:\n"
        "{question}\n\nLet's think step-by-step"
    ),
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "hash": '{question}\n\nLet\'s think step by step and output the final answer after "####".',
    "tags": "{question}\n\nThink step by step, then write the final answer between <answer> and </answer>.",
    "plain": "{question}",
    "qa": "Q: {question} A:",
}
"""Name → template. Each task has one of them as its default."""


def template_of(prompt_format: str, default: str) -> str:
    """The template that `prompt_format` names: a name of `FORMATS`, "default" for `default`, or a text with `{question}`.

    Raises ConfigError for a name that is not known and a text that has no `{question}`.
    """
    if prompt_format == "default":
        return FORMATS[default]
    if prompt_format in FORMATS:
        return FORMATS[prompt_format]
    if PLACE in prompt_format:
        return prompt_format
    raise ConfigError(
        f"prompt_format = {prompt_format!r} is not known; choose from default, {', '.join(FORMATS)}, or write a text with "
        f"{PLACE} in it"
    )


def worded(template: str, question: str) -> str:
    r"""The template with the question in its place; other braces, as in `\boxed{}`, are text."""
    return template.replace(PLACE, question)
