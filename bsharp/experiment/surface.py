"""The loss surface of a finished comparison: planned once, its points dealt to worker processes, its paths projected."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bsharp.config import DiagnoseConfig, EvaluationConfig
from bsharp.diagnostics.surface import RunPath, SurfacePlan, assemble_surface, no_surface, plan_surface
from bsharp.diagnostics.surface_points import Point, PointValues, SurfaceSampling, evaluate_points
from bsharp.evaluation import problem_set
from bsharp.experiment.finished import Comparison, base_gradients, in_worker
from bsharp.experiment.setup import regimes_of
from bsharp.experiment.workbench import Workbench
from bsharp.experiment.workers import Workers
from bsharp.models.weights import flat_weights, load_difference
from bsharp.types import Problem

__all__ = ["surface_of"]

SURFACE_CHUNK = 8  # points a worker takes at a time
GRADIENT_REACH = 0.25  # radius of the plane of initial gradients, as a share of the distance of the farther checkpoint


def surface_of(
    comparison: Comparison, settings: DiagnoseConfig, workers: Workers, checkpoints: Sequence[str], report: Any
) -> dict[str, Any]:
    """Directions and plan in one process, the points dealt to all, the paths projected in one again.

    The planes are spanned by the first label-free regime and the first with labels (else by the first two), at the last
    checkpoint of the first seed.
    """
    if note := no_surface(comparison.config.weights):
        return {"planes": [], "lines": [], "note": note}
    path = str(comparison.run.path)
    if report:
        report(0, 1)
    plan, note = workers.collect(_plan, [(path, settings)])[0]
    if plan is None:
        return {"planes": [], "lines": [], "note": note}
    points = plan.points
    chunks = [points[start : start + SURFACE_CHUNK] for start in range(0, len(points), SURFACE_CHUNK)]
    try:
        values = workers.collect(_values, [(path, settings, chunk) for chunk in chunks], report)
        found = [value for chunk in values for value in chunk]
        surface = workers.collect(_assembled, [(path, settings, plan, found)])[0]
    finally:
        _directions_file(comparison).unlink(missing_ok=True)
    return surface | ({"note": note} if note else {})


def _names(comparison: Comparison) -> list[str]:
    """The regimes that span the planes: the first label-free one and the first with labels; else the first two there are."""
    regimes = regimes_of(comparison.config)
    free = [name for name, objective in regimes.items() if objective.label_free]
    labelled = [name for name, objective in regimes.items() if not objective.label_free]
    return free[:1] + labelled[:1] if free and labelled else list(regimes)[:2]


def _directions(
    comparison: Comparison, bench: Workbench, settings: DiagnoseConfig
) -> tuple[dict[str, Tensor], list[str], tuple[str, str] | None]:
    """Flat differences of the two last checkpoints (first seed) and the two initial gradients, and their names."""
    names = _names(comparison)
    seed = comparison.config.seeds[0]
    origin = flat_weights(bench.base.model)
    directions: dict[str, Tensor] = {}
    for name in names:
        trained = comparison.load_policy(comparison.folder(name, seed))
        directions[name] = flat_weights(trained.model) - origin
    if len(names) < 2:
        return directions, names, None
    try:
        gradients = base_gradients(comparison, bench, settings)
    except ValueError:  # too large for the memory allowed, or no reward anywhere: the other plane is worth having
        return directions, names, None
    bench.base.model.requires_grad_(False)
    pair = tuple(f"gradient of {name}" for name in names)
    directions |= {label: gradients.vector(name) for label, name in zip(pair, names, strict=True)}
    return directions, names, (pair[0], pair[1])


def _plan(path: str, settings: DiagnoseConfig) -> tuple[SurfacePlan | None, str]:
    """The plan, and what had to be left out of it: directions that did not move or are parallel span no plane."""
    comparison, bench = in_worker(path)
    directions, names, gradients = _directions(comparison, bench, settings)
    grid = settings.surface_grid + 1 - settings.surface_grid % 2
    # A gradient holds only near the base: at the distance that training covers, its direction leads into nonsense.
    radius = GRADIENT_REACH * max(float(directions[name].double().norm()) for name in names)
    attempts = [(names, gradients), (names, None), *(([name], None) for name in reversed(names))]
    note = ""
    for checkpoints, pair in attempts:
        try:
            plan = plan_surface(directions, checkpoints, pair, grid=grid, radius=radius)
        except ValueError as error:
            note = note or str(error)
            continue
        save_file(directions, _directions_file(comparison))
        return plan, note
    return None, note


def _directions_file(comparison: Comparison) -> Path:
    return comparison.run.path / "diagnostics" / "surface_directions.safetensors"


def _values(path: str, settings: DiagnoseConfig, points: Sequence[Point]) -> list[PointValues]:
    comparison, bench = in_worker(path)
    directions = load_file(_directions_file(comparison))
    problems = _problems(comparison, bench, settings)
    sampling = _sampling(comparison, settings)
    return evaluate_points(bench.base, directions, points, problems, bench.tasks, bench.rewards, sampling)


def _assembled(path: str, settings: DiagnoseConfig, plan: SurfacePlan, values: Sequence[PointValues]) -> dict[str, Any]:
    comparison, bench = in_worker(path)
    directions = load_file(_directions_file(comparison))
    problems = len(_problems(comparison, bench, settings))
    paths = _paths(comparison, bench)
    return assemble_surface(plan, directions, values, paths, problems, _sampling(comparison, settings))


def _paths(comparison: Comparison, bench: Workbench) -> Iterator[RunPath]:
    """The snapshots of every run that kept some, read one at a time."""
    for name in regimes_of(comparison.config):
        for seed in comparison.config.seeds:
            files = sorted((comparison.folder(name, seed) / "snapshots").glob("step_*.safetensors"))
            if files:
                origin = torch.zeros_like(flat_weights(bench.base.model))
                kept = (
                    (int(file.stem.removeprefix("step_")), load_difference(file, bench.base.model)) for file in files
                )
                yield RunPath(name, seed, itertools.chain([(0, origin)], kept))


def _problems(comparison: Comparison, bench: Workbench, settings: DiagnoseConfig) -> list[Problem]:
    wanted = EvaluationConfig(problems=settings.surface_problems, split="validation", seed=settings.seed)
    return problem_set(list(bench.tasks.values()), wanted)


def _sampling(comparison: Comparison, settings: DiagnoseConfig) -> SurfaceSampling:
    sampling = comparison.config.sampling
    return SurfaceSampling(
        samples=settings.surface_samples,
        seed=settings.seed,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        fixed_length=sampling.fixed_length,
        max_rows=sampling.max_rows,
        backend=sampling.backend,
    )
