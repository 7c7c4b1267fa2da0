"""What the verdict rests on: problems, samples and seeds, and whether they are too few to conclude from."""

from __future__ import annotations

from collections.abc import Iterator

from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Callout

__all__ = ["FEW", "basis", "too_few"]

FEW = 200
"""Test problems. With fewer, an accuracy near a half is known to ± 7 points at best (1.96 · √(0.25 / 200))."""


def basis(run: RunData) -> str:
    """`512 test problems × 16 samples, 3 training seeds`; empty for a run without results."""
    if run.results is None:
        return ""
    counts, seeds = run.results["base"]["counts"], _seeds(run)
    fewest, most = min(seeds, default=0), max(seeds, default=0)
    told = f"{most}" if fewest == most else f"{fewest} to {most}"
    return (
        f"{_count(counts['problems'], 'test problem')} × {_count(counts['samples_per_problem'], 'sample')}, "
        f"{told} training seed{'s' * (most != 1)}"
    )


def too_few(run: RunData) -> Iterator[Callout]:
    """A warning where a finished comparison has a regime of one seed, or fewer than `FEW` test problems."""
    if run.results is None:
        return
    problems, seeds = run.results["base"]["counts"]["problems"], _seeds(run)
    reasons = []
    if 1 in seeds:
        reasons.append("one seed" if set(seeds) == {1} else "one seed of some regimes")
    if problems < FEW:
        reasons.append(_count(problems, "problem"))
    if reasons:
        yield Callout("warning", f"Too few to conclude from: {', '.join(reasons)}.")


def _seeds(run: RunData) -> list[int]:
    return [int(regime["counts"]["seeds"]) for regime in (run.results or {}).get("regimes", {}).values()]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
