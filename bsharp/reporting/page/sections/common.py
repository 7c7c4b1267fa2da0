"""What sections share: figures as text, why something is absent and the command that computes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.page.load import RunData, finite, regime_name
from bsharp.reporting.page.parts import Part, Section

__all__ = [
    "diagnose",
    "estimate",
    "figure_text",
    "half_width",
    "not_computed",
    "notes_in",
    "number_of",
    "numbers",
    "percent_text",
    "section_of",
    "shown",
    "task_objective",
]

Figure = Mapping[str, Any] | None


def diagnose(run: RunData, *only: str) -> str:
    """The command that computes the diagnostics of this run, those named or all."""
    names = f" --only {' '.join(only)}" if only else ""
    return f"bsharp diagnose {shlex.quote(plain_text(run.path))}{names}"


def not_computed(run: RunData, what: str, *only: str) -> str:
    """Why there is nothing to show: `what` was not computed, with the command that does (diagnostics `only`)."""
    if run.kind == "evaluation":
        return f"{what}: not part of an evaluation; run `bsharp compare`, then `bsharp diagnose` on what it wrote."
    if run.kind == "training":
        return f"{what}: computed for comparisons only; run `bsharp compare`, then `bsharp diagnose` on what it wrote."
    if run.results is None:
        return f"{what}: not computed yet, the comparison is unfinished. Once it has ended: `{diagnose(run, *only)}`."
    return f"{what}: not computed for this run. Compute it with `{diagnose(run, *only)}`."


def section_of(section_id: str, title: str, parts: Sequence[Part | None], absent: str) -> Section:
    """The section with the parts that exist, or with `absent` where there are none."""
    kept = [part for part in parts if part is not None]
    return Section(section_id, title, kept, None if kept else absent)


def estimate(figure: Figure, scale: float = 1.0) -> float | None:
    """The estimate of a figure, or None."""
    value = finite(figure.get("estimate")) if figure else None
    return None if value is None else value * scale


def figure_text(figure: Figure, scale: float = 1.0, digits: int = 2, signed: bool = False) -> str:
    """`1.42 [1.30, 1.55]`; a dash where there is none, without the bracket where there is no interval."""
    if not figure:
        return MISSING
    numbers = [finite(figure.get(key)) for key in ("estimate", "low", "high")]
    if numbers[0] is None:
        return MISSING
    told = [None if value is None else f"{value * scale:{'+' if signed else ''}.{digits}f}" for value in numbers]
    zero = {f"{'+' if signed else ''}{0:.{digits}f}", f"-{0:.{digits}f}"}
    told = [f"{0:.{digits}f}" if text in zero else text for text in told]
    return f"{told[0]} [{told[1]}, {told[2]}]" if told[1] and told[2] else str(told[0])


def percent_text(figure: Figure, signed: bool = False) -> str:
    """A share in per cent, a difference of shares in points."""
    return figure_text(figure, 100, 1, signed)


def half_width(figure: Figure, scale: float = 100.0) -> float | None:
    """Half the width of the 95 % interval, or None where there is none."""
    if not figure:
        return None
    low, high = finite(figure.get("low")), finite(figure.get("high"))
    return None if low is None or high is None else scale * (high - low) / 2


def number_of(figure: Mapping[str, Any], key: str, otherwise: float) -> float:
    """A number of a figure, or `otherwise` where it is undefined."""
    value = finite(figure.get(key))
    return otherwise if value is None else value


def notes_in(content: object) -> Iterator[str]:
    """Every note of the estimates anywhere inside `content`; a note of several parts is split at `; `."""
    if isinstance(content, Mapping):
        note = content.get("note")
        if isinstance(note, str):
            yield from (plain_text(part) for part in note.split("; ") if part)
        for value in content.values():
            yield from notes_in(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from notes_in(value)


def task_objective(run: RunData, names: Sequence[str]) -> str | None:
    """The one of `names` that is the task reward alone, by what the run says about its objectives; None where there is none.

    First what the gradients over training were compared with, then the specs of results and config, of which a name may
    stand before the constructor (`r=task_reward`).
    """
    said = [str(row["task"]) for job in run.runs for row in job.gradients[:1] if row.get("task")]
    regimes = (run.results or {}).get("regimes") or {}
    said += [name for name, regime in regimes.items() if not regime["label_free"] and _is_task(regime["objective"])]
    specs = [*(run.config.get("regimes") or []), *((run.config.get("watch") or {}).get("objectives") or [])]
    said += [regime_name(spec) for spec in (*specs, run.config.get("objective", "")) if _is_task(spec)]
    return next((name for name in said if name in names), None)


def _is_task(spec: object) -> bool:
    return str(spec).partition("(")[0].rpartition("=")[2].strip() == "task_reward"


def shown(mapping: object) -> dict[str, Mapping[str, Any]]:
    """The entries of a mapping that are mappings themselves; none where it is not one."""
    found = mapping.items() if isinstance(mapping, Mapping) else ()
    return {str(name): value for name, value in found if isinstance(value, Mapping)}


def numbers(values: object, count: int) -> list[float | None]:
    """`count` numbers, None where a value is missing or undefined; an estimate counts by its figure."""
    found = list(values) if isinstance(values, list | tuple) else []
    found = [value.get("estimate") if isinstance(value, Mapping) else value for value in found]
    return [finite(value) for value in found[:count]] + [None] * (count - len(found))
