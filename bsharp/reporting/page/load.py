"""A run directory as the page reads it: a comparison (finished or still running), a training run or an evaluation.

Nothing here fails for a file that is half written, cut off or missing: what cannot be read is left out and named in
`RunData.unreadable`. Records are large and are read from disk each time they are iterated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bsharp.reporting.cells import BASE, plain_text, require_results
from bsharp.runlog import RunDirectory, SampleFile

__all__ = ["DIAGNOSTICS", "Records", "RunData", "TrainingRun", "finite", "known", "load_run", "regime_name"]

Kind = Literal["comparison", "training", "evaluation"]
Row = dict[str, Any]

DIAGNOSTICS = ("alignment", "mistakes", "sensitivity", "surface", "drift", "calibration", "problems")
"""The names of the files in diagnostics/, each NAME.json."""


@dataclass(frozen=True)
class Records:
    """The samples of a file, read anew by every iteration; a broken line ends it and is named in `unreadable`.

    `token_ids` is left as text (`SampleFile`).
    """

    path: Path
    unreadable: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        return _objects(SampleFile(self.path), self.path, self.unreadable)


@dataclass(frozen=True)
class TrainingRun:
    """One seed of one regime: its directory and what is small enough to be held."""

    regime: str
    seed: int
    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    complete: Mapping[str, Any] | None  # of a comparison's run that was trained and evaluated
    progress: Mapping[str, Any]  # of its last checkpoint; empty before the first
    metrics: Sequence[Row]
    alarms: Sequence[Row]
    gradients: Sequence[Row]

    @property
    def name(self) -> str:
        """`task_reward/seed_0`."""
        return f"{self.regime}/seed_{self.seed}"

    @property
    def last_step(self) -> int:
        """The last step that was done, 0 before the first."""
        done = [row["step"] for row in self.metrics[-1:]]
        done += [step for key in ("step", "stopped_at") if isinstance(step := self.progress.get(key), int)]
        return max(done, default=0)

    @property
    def trained(self) -> bool:
        """Whether training has ended, at its last step or before it."""
        steps = self.config.get("steps")
        return self.complete is not None or bool(self.stopped) or (isinstance(steps, int) and self.last_step >= steps)

    @property
    def stopped(self) -> str:
        """Why training ended before its last step, or ""."""
        return plain_text((self.progress if self.complete is None else self.complete).get("stopped") or "")

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric; steps at which it was not logged, or not a finite number, are left out."""
        pairs = [(row["step"], finite(row.get(key))) for row in self.metrics]
        kept = [(step, value) for step, value in pairs if value is not None]
        return [step for step, _ in kept], [value for _, value in kept]

    def last(self, key: str) -> float | None:
        """The last value of a metric, if it was ever logged."""
        values = self.series(key)[1]
        return values[-1] if values else None


@dataclass(frozen=True)
class RunData:
    """Everything the page says about one run directory."""

    path: Path
    kind: Kind
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    results: Mapping[str, Any] | None  # of a finished comparison
    summary: Mapping[str, Any] | None  # of an evaluation
    regimes: Sequence[str]
    runs: Sequence[TrainingRun]
    base_complete: Mapping[str, Any] | None
    diagnostics: Mapping[str, Mapping[str, Any]]
    unreadable: list[str]  # one sentence per file that could not be read in full

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def planned(self) -> list[str]:
        """Every job of a comparison by name: the base, then regime by regime each seed of the config."""
        seeds = self.config.get("seeds") or sorted({run.seed for run in self.runs})
        return [BASE, *(f"{regime}/seed_{seed}" for regime in self.regimes for seed in seeds)]

    @property
    def finished(self) -> list[str]:
        """The jobs that wrote complete.json."""
        done = [BASE] if self.base_complete is not None else []
        return done + [run.name for run in self.runs if run.complete is not None]

    @cached_property
    def models(self) -> list[str]:
        """The base and every regime, in order."""
        return [BASE, *self.regimes]

    def of(self, regime: str) -> list[TrainingRun]:
        """The seeds of a regime that have begun."""
        return [run for run in self.runs if run.regime == regime]

    def records(self) -> dict[str, dict[int, Records]]:
        """The test samples of every model and seed whose file is there; those of the last checkpoint."""
        if self.kind == "evaluation":
            return {self._label(): {0: Records(self.path / "records.jsonl", self.unreadable)}}
        found: dict[str, dict[int, Records]] = {}
        base = self.path / BASE / "records_last.jsonl"
        if base.is_file():
            found[BASE] = {0: Records(base, self.unreadable)}
        for run in self.runs:
            path = run.path / "records_last.jsonl"
            if path.is_file():
                found.setdefault(run.regime, {})[run.seed] = Records(path, self.unreadable)
        return found

    def _label(self) -> str:
        return BASE if self.config.get("base") is None else "model"


def load_run(path: str | Path) -> RunData:
    """Recognise and read the run directory `path`; ValueError, one line, for anything else."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no directory; give the directory that compare, train or evaluate wrote into")
    unreadable: list[str] = []
    config = _json(folder / "config.json", unreadable)
    kind = _kind(folder, config)
    results = _json(folder / "results.json", unreadable) if kind == "comparison" else {}
    regimes = [] if kind == "evaluation" else _regimes(folder, config, results, kind)
    if kind == "comparison":
        runs = [run for regime in regimes for run in _seeds(folder / regime, regime, unreadable)]
    else:
        runs = [_training_run(folder, regimes[0], config.get("seed"), unreadable)] if kind == "training" else []
    base_complete = _json(folder / BASE / "complete.json", unreadable) if kind == "comparison" else {}
    diagnostics = {name: known(_json(folder / "diagnostics" / f"{name}.json", unreadable)) for name in DIAGNOSTICS}
    return RunData(
        path=folder,
        kind=kind,
        config=config,
        manifest=_json(folder / "manifest.json", unreadable),
        results=require_results(results) if results else None,
        summary=(_json(folder / "summary.json", unreadable) or None) if kind == "evaluation" else None,
        regimes=regimes,
        runs=runs,
        base_complete=base_complete or None,
        diagnostics={name: content for name, content in diagnostics.items() if content},
        unreadable=unreadable,
    )


def finite(value: object) -> float | None:
    """`value` as a number, or None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def regime_name(spec: object) -> str:
    """The name that a regime of the config has: `x=tilted(alpha=2)` is x, `tilted(alpha=2)` is tilted."""
    return str(spec).partition("(")[0].partition("=")[0].strip()


def _kind(folder: Path, config: Mapping[str, Any]) -> Kind:
    if "regimes" in config or (folder / "results.json").is_file() or any(folder.glob("*/seed_*")):
        return "comparison"
    if (folder / "metrics.jsonl").is_file() or "objective" in config:
        return "training"
    if (folder / "records.jsonl").is_file():
        return "evaluation"
    inside = sorted(child.name for child in folder.iterdir() if child.is_dir() and (child / "config.json").is_file())
    remedy = f"did you mean {folder / inside[0]}?" if inside else "give what compare, train or evaluate wrote"
    raise ValueError(f"{folder} holds no run (no results.json, metrics.jsonl or records.jsonl); {remedy}")


def _regimes(folder: Path, config: Mapping[str, Any], results: Mapping[str, Any], kind: Kind) -> list[str]:
    if kind == "training":
        return [regime_name(config.get("objective") or folder.resolve().name)]
    named = list(results.get("regimes") or []) + [regime_name(spec) for spec in config.get("regimes") or []]
    found = sorted({child.parent.name for child in folder.glob("*/seed_*")} - {BASE})
    return list(dict.fromkeys(named + found))


def _seeds(folder: Path, regime: str, unreadable: list[str]) -> list[TrainingRun]:
    seeds = {int(match[1]): child for child in folder.glob("seed_*") if (match := _SEED.fullmatch(child.name))}
    return [_training_run(seeds[seed], regime, seed, unreadable) for seed in sorted(seeds)]


_SEED = re.compile(r"seed_(\d+)")


def _training_run(folder: Path, regime: str, seed: object, unreadable: list[str]) -> TrainingRun:
    rows = {name: list(_rows(folder / f"{name}.jsonl", unreadable)) for name in ("metrics", "alarms", "gradients")}
    rows["gradients"] = [known(row) for row in rows["gradients"]]
    complete = _json(folder / "complete.json", unreadable) or None
    return TrainingRun(
        regime=regime,
        seed=seed if isinstance(seed, int) else 0,
        path=folder,
        config=_json(folder / "config.json", unreadable),
        manifest=_json(folder / "manifest.json", unreadable),
        complete=complete,
        progress={} if complete else _progress(folder / "checkpoints", unreadable),
        **{name: [row for row in found if isinstance(row.get("step"), int)] for name, found in rows.items()},
    )


def _progress(checkpoints: Path, unreadable: list[str]) -> dict[str, Any]:
    """What the newest complete checkpoint knows; empty before the first."""
    found = {int(match[1]): path for path in checkpoints.glob("step_*") if (match := _STEP.fullmatch(path.name))}
    return _json(found[max(found)] / "progress.json", unreadable) if found else {}


_STEP = re.compile(r"step_(\d+)")  # a checkpoint that is being written has another name


def known(content: dict[str, Any]) -> dict[str, Any]:
    """`content` without the keys whose value is null, in objects inside of it too: null is the same as missing."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if item is not None}
        return [kept(item) for item in value] if isinstance(value, list) else value  # positions in lists matter

    return dict(kept(content))


def _json(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """The object in `path`; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, OSError, RecursionError) as error:
        unreadable.append(f"{path.name} could not be read ({_first_line(error)}) and is left out.")
        return {}
    if not isinstance(content, dict):
        unreadable.append(f"{path.name} holds no object and is left out.")
        return {}
    return content


def _rows(path: Path, unreadable: list[str]) -> Iterator[Row]:
    """The objects of a JSONL file, as `_objects` gives them; none of a file that is not there."""
    return _objects(RunDirectory(path.parent).rows(path.name), path, unreadable) if path.is_file() else iter(())


def _objects(lines: Iterable[Any], path: Path, unreadable: list[str]) -> Iterator[Row]:
    """What is an object up to the first broken line; the cut-off last line of a running job is no error."""
    try:
        for row in lines:
            if isinstance(row, dict):
                yield row
    except (ValueError, OSError, RecursionError) as error:
        sentence = f"{path.parent.name}/{path.name} is read up to a broken line only ({_first_line(error)})."
        if sentence not in unreadable:
            unreadable.append(sentence)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
