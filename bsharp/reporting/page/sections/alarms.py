"""The alarms of the training runs, for the verdict's section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bsharp.reporting.cells import MISSING, plain_text
from bsharp.reporting.page.load import RunData, TrainingRun
from bsharp.reporting.page.parts import Callout, DataTable, Part

__all__ = ["alarms"]

MANY_ALARMS = 6


def alarms(run: RunData, running: bool = False) -> Iterator[Part]:
    """The alarms of all training runs; that there is none, or none so far; how a run that was cut off is finished."""
    if not running and _is_unfinished(run):
        command = "train" if run.kind == "training" else "compare"
        yield Callout(
            "note",
            f"Unfinished. Run the same `bsharp {command}` command again to finish it; it goes on from what is kept.",
        )
    found = [(job, alarm) for job in run.runs for alarm in job.alarms]
    if len(found) <= MANY_ALARMS:
        for job, alarm in found:
            yield Callout("warning", f"{_whose(job)}, step {alarm['step']}: {_alarm_text(alarm)}")
        if run.runs and not found:
            runs = _count(len(run.runs), "training run")
            if running or _is_unfinished(run):
                yield Callout("note", f"No collapse alarm so far in {runs}.")
            else:
                yield Callout("ok", f"No collapse alarm was raised in {runs}.")
        return
    stopped = sum(bool(alarm.get("stops")) for _, alarm in found)
    whose = len({job.name for job, _ in found})
    yield Callout(
        "warning",
        f"{len(found)} collapse alarms in {whose} of {_count(len(run.runs), 'training run')}, {stopped} of them grave "
        "enough to stop a run; each is a row below and a cross on the learning curves.",
    )
    yield DataTable(
        "alarms",
        "Alarms",
        "What the collapse alarm said during training. `since` is the step from which the figures are out of range.",
        ("regime", "seed", "step", "since", "kind", "what happened"),
        [
            (
                job.regime,
                str(job.seed),
                str(alarm["step"]),
                str(alarm.get("since", MISSING)),
                plain_text(alarm.get("kind", "")),
                _alarm_text(alarm),
            )
            for job, alarm in found
        ],
        numeric=(1, 2, 3),
    )


def _is_unfinished(run: RunData) -> bool:
    if run.kind == "comparison":
        return run.results is None
    return run.kind == "training" and not all(job.trained for job in run.runs)


def _alarm_text(alarm: Mapping[str, Any]) -> str:
    said = plain_text(alarm.get("sentence", "an alarm without a sentence"))
    advice = plain_text(alarm.get("advice") or "")
    return said if not advice or advice in said else f"{said.rstrip('.')}. {advice}"


def _whose(job: TrainingRun) -> str:
    return f"{plain_text(job.regime)}, seed {job.seed}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
