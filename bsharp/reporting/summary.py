"""The figures of one evaluated model, for the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bsharp.reporting.cells import plain_text

__all__ = ["print_summary", "summary_table"]

_ROWS = (
    "accuracy", "exact_match", "greedy_accuracy", "pass_at_k", "maj_at_k", "reward_weighted_score", "length",
    "truncated", "unparseable", "ungraded", "distinct_answers", "entropy", "kl_to_base", "corr_reward_base_logprob",
)  # fmt: skip


def summary_table(summary: Mapping[str, Any], title: str) -> Table:
    """Every figure of a summary with its 95 % interval and unit; shares in per cent."""
    table = Table(title=plain_text(title), title_justify="left")
    table.add_column("figure")
    table.add_column("estimate", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("unit")
    for name, figure in _figures(summary):
        scale, unit = (100.0, "%") if figure["unit"] == "fraction" else (1.0, figure["unit"])
        shown = [None if figure[key] is None else f"{figure[key] * scale:.2f}" for key in ("estimate", "low", "high")]
        interval = f"[{shown[1]}, {shown[2]}]" if shown[1] and shown[2] else plain_text(figure.get("note", ""))
        table.add_row(name, shown[0] or "–", interval.replace("[", r"\["), plain_text(unit))
    return table


def print_summary(summary: Mapping[str, Any], console: Console, title: str) -> None:
    """Print `summary_table`, and what it rests on."""
    console.print(summary_table(summary, title))
    counts = summary["counts"]
    console.print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in counts.items()), highlight=False)


def _figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in _ROWS:
        figure = summary.get(name)
        if figure is None:
            continue
        if "estimate" in figure:
            yield name.replace("_", " "), figure
        else:
            for k, at_k in figure.items():
                yield f"{name.partition('_')[0]}@{k}", at_k
