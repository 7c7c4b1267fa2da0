"""`bsharp diagnose`: what the records, gradients and weights of a finished comparison tell beyond its table.

Each diagnostic is one file in `diagnostics/` of the comparison, with the settings it was made with; one that is there with
equal settings, code and runs is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from bsharp.config import ConfigError, DiagnoseConfig, EvaluationConfig, as_dict
from bsharp.diagnostics.alignment import alignment_point
from bsharp.diagnostics.calibration import calibration
from bsharp.diagnostics.drift import drift
from bsharp.diagnostics.gained_lost import gained_lost
from bsharp.diagnostics.mistakes import has_typed_mistakes, mistake_table
from bsharp.diagnostics.sensitivity import sensitivity_table
from bsharp.evaluation import problem_set
from bsharp.experiment.finished import (
    Comparison,
    base_gradients,
    in_worker,
    open_comparison,
    start_of,
    training_rollouts,
)
from bsharp.experiment.setup import BASE, regimes_of
from bsharp.experiment.surface import surface_of
from bsharp.experiment.workers import Workers, default_workers
from bsharp.runlog import RunDirectory, code_hash

__all__ = ["CHEAP", "DIAGNOSTICS", "Diagnostic", "DiagnosticsFailed", "diagnose"]

Diagnostic = Literal["drift", "calibration", "problems", "alignment", "mistakes", "sensitivity", "surface"]
DIAGNOSTICS: tuple[Diagnostic, ...] = get_args(Diagnostic)
CHEAP: tuple[Diagnostic, ...] = ("drift", "calibration", "problems", "alignment", "mistakes")
"""What `compare` computes by itself; alignment then at the base only."""
SCHEMA = 1
_DIAGNOSTIC_CODE = (
    "algorithm",
    "diagnostics",
    "evaluation/evaluate.py",
    "experiment/diagnose.py",
    "experiment/finished.py",
    "experiment/setup.py",
    "experiment/surface.py",
    "generation",
    "masking.py",
    "models",
    "rewards",
    "rollouts",
    "seeding.py",
    "statistics",
    "tasks",
)

OnProgress = Callable[[str, int, int], None]
"""(what is being made, pieces done, pieces in all)."""


class DiagnosticsFailed(RuntimeError):
    """Some diagnostics could not be made; the message names them with the reason. The others are written."""


def diagnose(
    path: str | Path,
    settings: DiagnoseConfig | None = None,
    only: Sequence[Diagnostic] = DIAGNOSTICS,
    on_progress: OnProgress | None = None,
    cheaply: bool = False,
) -> list[Path]:
    """Make the diagnostics named in `only` for the finished comparison at `path`; returns the files, made or found.

    Gradients are compared at the base and at the last checkpoint of every regime's first seed. `cheaply` does what `compare`
    does by itself: the base alone, and what was made before with other settings stays. Raises ConfigError where `path` holds
    no finished comparison, or one of another base than its config now loads, DiagnosticsFailed where some could not be made.
    """
    settings = settings or DiagnoseConfig()
    unknown = [name for name in only if name not in DIAGNOSTICS]
    if unknown:
        raise ConfigError(f"there is no diagnostic {unknown[0]!r}; choose from {', '.join(DIAGNOSTICS)}")
    comparison = open_comparison(path)
    folder = RunDirectory(comparison.run.path / "diagnostics")

    def make(name: Diagnostic, workers: Workers) -> None:
        checkpoints = _alignment_checkpoints(comparison, not cheaply) if name == "alignment" else []
        stamp = _stamp(comparison, settings, name, checkpoints)
        found = (folder.read_json(f"{name}.json") or {}).get("made_with", {})
        if found == stamp or (cheaply and found | {"settings": None} == stamp | {"settings": None}):
            return
        report = partial(on_progress, name) if on_progress else None
        result = _MAKERS[name](comparison, settings, workers, checkpoints, report)
        folder.write_json(f"{name}.json", {"schema": SCHEMA, **result, "made_with": stamp})

    failures: dict[str, Exception] = {}
    # Threads only wait here: the work is done by the processes, and one diagnostic's last piece need not hold up the next.
    # The processes end first: after an interruption the threads then have nothing left to wait for.
    count = settings.workers or default_workers(comparison.config.device)
    with ThreadPoolExecutor(len(only) or 1) as threads, Workers(count) as workers:
        futures = {name: threads.submit(make, name, workers) for name in only}
        for name, future in futures.items():
            try:
                future.result()
            except Exception as error:  # the others are worth having whatever became of this one
                failures[name] = error
    refusal = next((error for error in failures.values() if isinstance(error, ConfigError)), None)
    if refusal:
        raise refusal
    if failures:
        raise DiagnosticsFailed("; ".join(f"{name}: {_first_line(error)}" for name, error in failures.items()))
    return [folder.path / f"{name}.json" for name in only]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _stamp(comparison: Comparison, settings: DiagnoseConfig, name: str, checkpoints: Sequence[str]) -> dict[str, Any]:
    """What a diagnostic depends on: its settings, the code, and the runs it is about."""
    # Mistakes and surface use the gradients of the alignment's batch.
    gradients = ("alignment", "gradient")
    prefixes = {"alignment": gradients, "mistakes": ("mistake", *gradients), "surface": ("surface", *gradients)}
    prefix = () if name in ("drift", "calibration", "problems") else prefixes.get(name, (name,))
    relevant = {key: value for key, value in as_dict(settings).items() if key == "seed" or key.startswith(prefix)}
    return {
        "settings": relevant | ({"checkpoints": list(checkpoints)} if checkpoints else {}),
        "code": code_hash(_DIAGNOSTIC_CODE),
        "runs": comparison.run.read_json("manifest.json")["identity"],
    }


# ------------------------------------------------------------------------------------------------- from records


def _from_records(
    name: str,
    comparison: Comparison,
    settings: DiagnoseConfig,
    workers: Workers,
    checkpoints: Sequence[str],
    report: Any,
) -> dict[str, Any]:
    # In a process of its own: the records of a large comparison should not stay in this one.
    return workers.collect(_records_piece, [(name, str(comparison.run.path))], report)[0]


def _records_piece(name: str, path: str) -> dict[str, Any]:
    makers: dict[str, Callable[..., dict[str, Any]]] = {
        "drift": drift,
        "calibration": calibration,
        "problems": gained_lost,
    }
    return makers[name](open_comparison(path).records())


# ----------------------------------------------------------------------------------------------- from gradients


def _alignment(
    comparison: Comparison, settings: DiagnoseConfig, workers: Workers, checkpoints: Sequence[str], report: Any
) -> dict[str, Any]:
    pieces = [(str(comparison.run.path), settings, checkpoint) for checkpoint in checkpoints]
    return {"points": workers.collect(_alignment_piece, pieces, report)}


def _alignment_checkpoints(comparison: Comparison, trained: bool) -> list[str]:
    seed = comparison.config.seeds[0]
    return [BASE, *(f"{name}/seed_{seed}" for name in regimes_of(comparison.config) if trained)]


def _alignment_piece(path: str, settings: DiagnoseConfig, checkpoint: str) -> dict[str, Any]:
    comparison, bench = in_worker(path)
    if checkpoint == BASE:
        policy, step = start_of(comparison, bench), 0
    else:
        folder = comparison.run.path / checkpoint
        policy, step = comparison.load_policy(folder), RunDirectory(folder).read_json("complete.json")["last_step"]
        policy.model.requires_grad_(True)
    return alignment_point(
        policy,
        bench.base,
        training_rollouts(comparison, bench, settings, policy),
        regimes_of(comparison.config),
        comparison.config.algorithm,
        comparison.config.sampling,
        checkpoint=checkpoint,
        step=step,
        microbatch_rows=comparison.config.microbatch_rows,
        seed=settings.seed,
        megabytes=settings.gradient_megabytes,
    )


def _mistakes(
    comparison: Comparison, settings: DiagnoseConfig, workers: Workers, checkpoints: Sequence[str], report: Any
) -> dict[str, Any]:
    return workers.collect(_mistakes_piece, [(str(comparison.run.path), settings)], report)[0]


def _mistakes_piece(path: str, settings: DiagnoseConfig) -> dict[str, Any]:
    comparison, bench = in_worker(path)
    vectors = {}
    if has_typed_mistakes(bench.tasks):
        gradients = base_gradients(comparison, bench, settings)
        vectors = {name: gradients.vector(name) for name in gradients.names}
    return mistake_table(
        start_of(comparison, bench),
        comparison.policies(),
        bench.tasks,
        vectors,
        problems_per_family=settings.mistake_problems,
        seed=settings.seed,
        microbatch_rows=comparison.config.microbatch_rows,
        temperature=comparison.config.sampling.temperature,
        fixed_length=comparison.config.sampling.fixed_length,
    )


# ----------------------------------------------------------------------------------------------- from new samples


def _sensitivity(
    comparison: Comparison, settings: DiagnoseConfig, workers: Workers, checkpoints: Sequence[str], report: Any
) -> dict[str, Any]:
    return workers.collect(_sensitivity_piece, [(str(comparison.run.path), settings)], report)[0]


def _sensitivity_piece(path: str, settings: DiagnoseConfig) -> dict[str, Any]:
    comparison, bench = in_worker(path)
    wanted = EvaluationConfig(problems=settings.sensitivity_problems, split="test", seed=settings.seed)
    sampling = comparison.config.sampling
    return sensitivity_table(
        bench.base,
        comparison.policies(),
        bench.evaluation_tasks,
        bench.rewards,
        problems=problem_set(list(bench.evaluation_tasks.values()), wanted),
        samples=settings.sensitivity_samples,
        seed=settings.seed,
        max_new_tokens=comparison.config.evaluation.max_new_tokens,
        fixed_length=sampling.fixed_length,
        max_rows=sampling.max_rows,
        backend=sampling.backend,
    )


Maker = Callable[[Comparison, DiagnoseConfig, Workers, Sequence[str], Any], dict[str, Any]]
_MAKERS: Mapping[str, Maker] = {
    "drift": partial(_from_records, "drift"),
    "calibration": partial(_from_records, "calibration"),
    "problems": partial(_from_records, "problems"),
    "alignment": _alignment,
    "mistakes": _mistakes,
    "sensitivity": _sensitivity,
    "surface": surface_of,
}
