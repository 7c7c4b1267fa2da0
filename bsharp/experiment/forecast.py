"""What `bsharp forecast` does: base samples, drawn here or read from a file, and what they say about training to come."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bsharp.config import ChatConfig, ConfigError, EvaluationConfig, ForecastConfig, ProblemsConfig, as_dict
from bsharp.diagnostics.forecast import NumberedRecord, forecast
from bsharp.experiment.run import evaluate_model
from bsharp.experiment.setup import objective_of
from bsharp.reporting.forecast import forecast_markdown, write_forecast_page
from bsharp.runlog import RunDirectory, code_hash

__all__ = ["forecast_model", "forecast_records"]

_FORECAST_CODE = ("algorithm", "diagnostics/forecast", "seeding.py", "statistics")


def forecast_model(
    model: str,
    tasks: Sequence[str],
    settings: ForecastConfig,
    out: str | Path,
    difficulties: Sequence[int] = (),
    threads: int = 1,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    *,
    problems: ProblemsConfig = ProblemsConfig(),
    chat: ChatConfig = ChatConfig(),
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> dict[str, Any]:
    """Sample the base `model` on problems of `settings.split` and forecast every regime from the samples alone.

    Writes the records, forecast.json, forecast.md and forecast.html into `out`, and returns what forecast.json holds. Samples
    that lie there already are used again where model, problems, settings and code are equal; ConfigError shows the
    difference otherwise.
    """
    _check(settings)
    evaluation = EvaluationConfig(
        problems=settings.problems,
        samples=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        fixed_length=settings.fixed_length,
        greedy=True,
        split=settings.split,
        seed=settings.seed,
        max_rows=settings.max_rows,
    )
    folder = RunDirectory(out)
    records = evaluate_model(
        model,
        tasks,
        evaluation,
        folder.path,
        None,
        difficulties,
        threads,
        device,
        on_progress,
        reuse=True,
        problems=problems,
        chat=chat,
        dtype=dtype,
    )
    source = {"model": model, "records": None, "tasks": list(tasks), "split": settings.split}
    return _write(folder, records, settings, source)


def forecast_records(records: str | Path, settings: ForecastConfig, out: str | Path) -> dict[str, Any]:
    """The forecast from base samples in a JSONL file, drawn by whatever sampler; no model is loaded.

    A line needs `problem_id`, `reward` (or `status`), `logprob` (nats, summed over the response tokens, EOS included, under
    the base at temperature 1) and `length`; docs/forecast.md lists what else is read. Writes as `forecast_model` does.
    Raises ConfigError where the file cannot be read or holds no line, ValueError for samples that carry no forecast.
    """
    _check(settings)
    path = Path(records)
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name the file of records, e.g. {path / 'records.jsonl'}")
    try:
        rows = _read_rows(path)
    except OSError as error:
        raise ConfigError(f"cannot read records {path}: {error.strerror}; check the path") from None
    if not rows:
        raise ConfigError(f"{path} holds no record; give one JSON object a line, one line a sample")
    names = sorted({str(row["task"]) for row in rows if row.get("task")})
    source = {"model": None, "records": str(path), "tasks": names, "split": None}
    folder = RunDirectory(out)
    if (folder.path / "records.jsonl").exists() and (folder.path / "records.jsonl").resolve() != path.resolve():
        raise ConfigError(f"{folder.path} holds samples of its own; choose another --out")
    return _write(folder, rows, settings, source)


def _check(settings: ForecastConfig) -> None:
    """Find out before anything is sampled what could not be forecast."""
    for spec in settings.regimes:
        objective_of(spec)
    if len(set(settings.regimes)) < len(settings.regimes):
        raise ConfigError(f"regimes = {settings.regimes} names a regime twice; keep one of them")


def _read_rows(path: Path) -> list[NumberedRecord]:
    rows: list[NumberedRecord] = []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                array = "is this one JSON array? Write" if not rows and line.lstrip().startswith("[") else "write"
                raise ConfigError(f"{path}, line {number} is not JSON ({error}); {array} one object a line") from None
            if not isinstance(row, dict):
                array = "is this one JSON array? Write one object a line" if isinstance(row, list) else "write {…}"
                raise ConfigError(f"{path}, line {number} holds {line.strip()[:40]!r}, not an object; {array}")
            rows.append(NumberedRecord(number, row))
    return rows


def _write(
    folder: RunDirectory,
    records: Sequence[Mapping[str, Any]],
    settings: ForecastConfig,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    found = forecast(
        records, settings.regimes, alphas=settings.alphas, beta_invs=settings.beta_invs, source=dict(source)
    )
    found["config"] = as_dict(settings)
    found["code"] = code_hash(_FORECAST_CODE)
    folder.write_json("forecast.json", found)
    (folder.path / "forecast.md").write_text(forecast_markdown(found), encoding="utf-8")
    write_forecast_page(found, folder.path / "forecast.html")
    return found
