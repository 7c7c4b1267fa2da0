"""Section 10: what the run was made with, what it cost, the glossary and the raw files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bsharp.reporting.cells import BASE, MISSING, plain_text, rows
from bsharp.reporting.page.glossary import axis_title, definitions
from bsharp.reporting.page.load import RunData, TrainingRun, finite
from bsharp.reporting.page.parts import DataTable, Definitions, FileLinks, Fold, Glossary, Part, Preformatted, Section
from bsharp.reporting.page.sections.common import estimate, section_of

__all__ = ["section", "training_tokens"]

FEW_ROWS = 8
"""A longer table of jobs is folded."""


def section(run: RunData, folder: Path) -> Section:
    """Config, versions, hashes, machine, times, cost, glossary, files; links are relative to `folder`."""
    parts: list[Part] = [_what(run), *_times(run), Preformatted("Config", _pretty(run.config))]
    if run.runs:
        configs = {job.name: job.config for job in run.runs if job.config}
        if run.kind == "comparison" and configs:
            parts.append(Preformatted("Config of every training run", _pretty(configs)))
    files = list(_files(run, folder))
    parts += [Fold(f"Raw files ({len(files)})", [FileLinks(files)]), Glossary(definitions())]
    return section_of("manifest", "Manifest and glossary", parts, "")


def _pretty(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False)


def _what(run: RunData) -> Definitions:
    manifest = run.manifest or next((job.manifest for job in run.runs if job.manifest), {})
    items = [("Run", f"{run.kind} in {plain_text(run.path)}"), ("Model", plain_text(run.config.get("model", MISSING)))]
    for key, term in (("identity", "Hashes"), ("versions", "Versions"), ("machine", "Machine")):
        content = manifest.get(key)
        if isinstance(content, Mapping):
            items.append(
                (term, ", ".join(f"{name.replace('_', ' ')} {plain_text(value)}" for name, value in content.items()))
            )
    for key in sorted(set(manifest) - {"identity", "versions", "machine"}):
        items.append((key.replace("_", " ").capitalize(), plain_text(manifest[key])))
    return Definitions(items)


def _times(run: RunData) -> Iterator[Part]:
    if run.kind != "comparison":
        seconds = _logged_seconds(run.runs[0]) if run.runs else None
        if seconds is not None:
            yield Definitions(
                [("Time", f"{seconds:.0f} s of rollouts and updates, {_tokens(training_tokens(run.runs[0]))} sampled")]
            )
        return
    table, total, core_seconds, tokens = [], 0.0, 0.0, 0
    jobs: list[tuple[str, TrainingRun | None, Mapping[str, Any] | None]] = [(BASE, None, run.base_complete)]
    jobs += [(job.name, job, job.complete) for job in run.runs]
    for name, job, complete in jobs:
        seconds = finite((complete or {}).get("seconds"))
        threads = finite((job.config if job else {}).get("threads")) or 1.0
        sampled = training_tokens(job) if job else 0
        total += seconds or 0.0
        core_seconds += (seconds or 0.0) * threads
        tokens += sampled
        told = "not finished" if seconds is None else f"{seconds:.0f}"
        table.append([name, told, f"{threads:.0f}", _tokens(sampled) if job else MISSING])
    evaluated = _evaluation_tokens(run)
    cost = f"{core_seconds / 3600:.2f} CPU core-hours ({total:.0f} s of jobs), {_tokens(tokens)} sampled in training"
    cost += f" and {_tokens(evaluated)} in the evaluation on test problems" if evaluated else ""
    yield Definitions([("Cost", f"{cost}. A job that was resumed counts only its last part.")])
    yield DataTable(
        "times",
        "Times",
        "Wall-clock time of each job: training, validation and evaluation.",
        ("job", axis_title("seconds"), "threads", "tokens sampled in training"),
        table,
        numeric=(1, 2, 3),
        folded=len(table) > FEW_ROWS,
    )


def training_tokens(run: TrainingRun) -> int:
    """Completion tokens sampled in training: Σ over logged steps of mean length × problems × rollouts per problem."""
    sampling = run.config.get("sampling") or {}
    rollouts = (finite(sampling.get("prompts_per_step")) or 0) * (finite(sampling.get("group_size")) or 0)
    return round(sum(run.series("completions/mean_length")[1]) * rollouts)


def _evaluation_tokens(run: RunData) -> int:
    if run.results is None:
        return 0
    found = 0.0
    for row in rows(run.results):
        counts = row.summary["counts"]
        found += (
            (estimate(row.summary["length"]) or 0.0)
            * counts["problems"]
            * counts["samples_per_problem"]
            * counts["seeds"]
        )
    return round(found)


def _logged_seconds(run: TrainingRun) -> float | None:
    spent = [value for key in ("time/rollout_seconds", "time/update_seconds") for value in run.series(key)[1]]
    return sum(spent) if spent else None


def _tokens(count: int) -> str:
    for size, name in ((1_000_000, "million"), (1_000, "thousand")):
        if count >= size:
            return f"{count / size:.1f} {name} tokens"
    return f"{count} tokens"


def _files(run: RunData, folder: Path) -> Iterator[tuple[str, str]]:
    """Every file of results, metrics and records of the run that exists, by its path inside the run directory."""
    wanted = ["results.json", "table.md", "config.json", "manifest.json", "summary.json", "records.jsonl"]
    wanted += ["metrics.jsonl", "alarms.jsonl", "gradients.jsonl"]
    found = [run.path / name for name in wanted]
    found += sorted((run.path / "diagnostics").glob("*.json"))
    if run.kind == "comparison":
        for job in (run.path / BASE, *(job.path for job in run.runs)):
            found += sorted(path for path in job.glob("*.json*") if path.suffix in (".json", ".jsonl"))
    for path in found:
        if path.is_file():
            yield plain_text(os.path.relpath(path, run.path)), os.path.relpath(path, folder)
