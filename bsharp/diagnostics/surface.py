"""The loss surface: planes and lines through base and trained checkpoints, and the paths of the runs projected on them.

What is drawn over the weights is not one run's loss but what every regime is about: expected reward, E[ℓ_ref], KL to the
base and entropy, each estimated from fresh samples at each point (`surface_points`). Three stages, so that the dear one can
be dealt to processes: `plan_surface` → points, `evaluate_points` → values, `assemble_surface` → one JSON object.

Lines between weights follow Goodfellow et al. 2015 (arXiv 1412.6544), planes and projected paths Li et al. 2018 (arXiv
1712.09913); directions here are displacements of training or gradients as they are, without their filter normalisation, and
distances are Euclidean in weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.config import WeightsConfig
from bsharp.diagnostics.surface_points import (
    QUANTITIES,
    Point,
    PointValues,
    SurfaceSampling,
    evaluate_points,
)
from bsharp.models.loading import LanguageModel
from bsharp.rewards import RewardFunction
from bsharp.tasks import Task
from bsharp.types import Problem

__all__ = [
    "Line",
    "Plane",
    "RunPath",
    "SurfacePlan",
    "assemble_surface",
    "grid_axis",
    "no_surface",
    "plan_surface",
    "surface",
]

Directions = Mapping[str, Float[Tensor, " N"]]

PARTS = ("mean", "standard_error")

MARGIN = 0.25
"""How far a grid goes beyond base and anchors, in their extent along the axis."""


def no_surface(weights: WeightsConfig) -> str:
    """Why there is no loss surface for runs of these weights, in one sentence; empty where there is one."""
    if weights.lora_rank is not None:
        return "the runs trained adapters: their weights are not the base's, so that no plane goes through both"
    if weights.dtype != "float32":
        return f"weights in {weights.dtype} are too coarse: a step between two points of the grid would be lost in rounding"
    return ""


@dataclass(frozen=True)
class Plane:
    """Weights base + x·u + y·v with u = d₁/‖d₁‖ and v = (d₂ − ⟨d₂,u⟩u)/‖·‖ (Gram–Schmidt) of two named directions.

    x and y are Euclidean distances in weights, whatever the directions' own units.
    """

    name: str
    labels: tuple[str, str]  # names of d₁ and d₂
    norms: tuple[float, float]  # ‖d₁‖, ‖d₂‖
    angle: float  # between d₁ and d₂, radians
    x: tuple[float, ...] = (0.0,)
    y: tuple[float, ...] = (0.0,)
    anchors: tuple[tuple[str, float, float], ...] = ()  # named points of the plane

    def point(self, x: float, y: float) -> Point:
        """(x, y) as coefficients of d₁ and d₂."""
        across = y / math.sin(self.angle)
        return _point(
            {
                self.labels[0]: (x - across * math.cos(self.angle)) / self.norms[0],
                self.labels[1]: across / self.norms[1],
            }
        )

    def project(self, directions: Directions, difference: Float[Tensor, " N"]) -> tuple[float, float]:
        """x = ⟨θ − base, u⟩ and y = ⟨θ − base, v⟩ of the weights θ = base + `difference`."""
        first, second = (
            _dot(difference, directions[label]) / norm for label, norm in zip(self.labels, self.norms, strict=True)
        )
        return first, (second - first * math.cos(self.angle)) / math.sin(self.angle)


@dataclass(frozen=True)
class Line:
    """Weights (1 − t)·from + t·to; an end is the name of a direction, or "base"."""

    label_from: str
    label_to: str
    t: tuple[float, ...]

    def point(self, t: float) -> Point:
        """The weights at t as coefficients of the directions."""
        return _point({label: c for label, c in ((self.label_from, 1 - t), (self.label_to, t)) if label != "base"})


@dataclass(frozen=True)
class SurfacePlan:
    """Which weights to evaluate: all points once, and the planes and lines that they make up."""

    planes: tuple[Plane, ...]
    lines: tuple[Line, ...]

    @property
    def points(self) -> list[Point]:
        """Every different point, the base first."""
        points: dict[Point, None] = {(): None}
        for plane in self.planes:
            points |= {plane.point(x, y): None for y in plane.y for x in plane.x}
        for line in self.lines:
            points |= {line.point(t): None for t in line.t}
        return list(points)


@dataclass(frozen=True)
class RunPath:
    """Where a run was: (step, weights − base) in order. The snapshots are gone through once, so they may be read lazily."""

    regime: str
    seed: int
    snapshots: Iterable[tuple[int, Float[Tensor, " N"]]]


def plan_surface(
    directions: Directions,
    checkpoints: Sequence[str],
    gradients: tuple[str, str] | None = None,
    *,
    grid: int = 9,
    line_points: int = 13,
    radius: float | None = None,
) -> SurfacePlan:
    """The planes and lines through the base and the directions named in `checkpoints` and `gradients`.

    `directions` are flat differences to the base: of checkpoints (weights − base), and gradients (of ascent). Planes of
    `grid` × `grid` points:

    - "checkpoints": x towards checkpoints[0], y along the part of checkpoints[1] that is orthogonal to it;
    - "initial gradients": the same for the two gradients, which end at `radius` from the base (anchors of that plane); by
      default at the distance of the farther checkpoint. Only their directions count.

    Lines base → each checkpoint, and from the first to the second, at `line_points` values of t from −0.25 to 1.25, 0 and 1
    among them. One checkpoint gives its line and no plane. Every grid holds the base exactly.

    Raises ValueError for names that are not in `directions`, "base" as a name, more than two checkpoints, directions that are
    zero, not finite or parallel, a grid of fewer than 3 points a side, and line_points other than 7, 13, 19, ….
    """
    used = [*checkpoints, *(gradients or ())]
    if not 1 <= len(checkpoints) <= 2 or len(set(used)) < len(used) or "base" in used or set(used) - set(directions):
        raise ValueError(
            f"checkpoints = {tuple(checkpoints)}, gradients = {gradients}: name one or two checkpoints and two gradients, all "
            f"different, among the directions {', '.join(directions)}"
        )
    if line_points < 7 or (line_points - 1) % 6:
        raise ValueError(f"line_points = {line_points} would miss t = 0 or 1; choose 7, 13, 19, …")
    norms = {name: math.sqrt(_dot(directions[name], directions[name])) for name in used}
    for name, norm in norms.items():
        if not 0 < norm < math.inf:
            raise ValueError(f"direction {name!r} has the norm {norm}; leave out what did not move or is not finite")
    planes = []
    if len(checkpoints) == 2:
        first, second = checkpoints
        planes.append(_plane("checkpoints", directions, (first, second), norms, (norms[first], norms[second]), grid))
    if gradients is not None:
        reach = max(norms[name] for name in checkpoints) if radius is None else radius
        planes.append(_plane("initial gradients", directions, gradients, norms, (reach, reach), grid))
    # In this form t = 0 and t = 1 come out exact.
    t = tuple((6 * i - (line_points - 1)) / (4 * (line_points - 1)) for i in range(line_points))
    ends = [("base", name) for name in reversed(checkpoints)]
    ends += [(checkpoints[0], checkpoints[1])] if len(checkpoints) == 2 else []
    return SurfacePlan(tuple(planes), tuple(Line(*pair, t) for pair in ends))


def assemble_surface(
    plan: SurfacePlan,
    directions: Directions,
    values: Sequence[PointValues],
    paths: Iterable[RunPath],
    problems: int,
    sampling: SurfaceSampling,
) -> dict[str, Any]:
    """The JSON object of the surface from the values at `plan.points`, in that order, and the runs' paths.

    Rows of a plane's values follow y, columns x. A path is projected on each plane: x_k = ⟨θ_k − θ_0, u⟩, y_k = ⟨θ_k − θ_0, v⟩;
    the share of it that the plane explains is (x_k² + y_k²)/‖θ_k − θ_0‖² per step (null at the base, where it is 0/0) and
    Σ(x² + y²)/Σ‖θ_k − θ_0‖² overall. Read it with care: a random walk in N weights has 2/N of its squared length in a plane
    drawn without looking at it, so any visible share is structure; but a plane through the end of a path explains much of
    that path by construction, of its last step all.

    Raises ValueError where the values are not one per point.
    """
    points = plan.points
    if len(values) != len(points):
        raise ValueError(f"{len(values)} values for {len(points)} points; evaluate every point of the plan, in order")
    found = dict(zip(points, values, strict=True))
    planes = [_plane_json(plane, found) for plane in plan.planes]
    for path in paths:
        for plane, projected in zip(planes, _project_path(plan.planes, directions, path), strict=True):
            plane["paths"].append(projected)
    return {
        "schema": 1,
        "problems": problems,
        "samples": sampling.samples,
        "seed": sampling.seed,
        "quantities": {name: dict(about) for name, about in QUANTITIES.items()},
        "planes": planes,
        "lines": [_line_json(line, found) for line in plan.lines],
    }


def surface(
    base: LanguageModel,
    directions: Directions,
    checkpoints: Sequence[str],
    problems: Sequence[Problem],
    tasks: Mapping[str, Task],
    rewards: Mapping[str, RewardFunction],
    sampling: SurfaceSampling,
    *,
    gradients: tuple[str, str] | None = None,
    paths: Iterable[RunPath] = (),
    grid: int = 9,
    line_points: int = 13,
    radius: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """`plan_surface`, `evaluate_points` and `assemble_surface` in one process; see there."""
    plan = plan_surface(directions, checkpoints, gradients, grid=grid, line_points=line_points, radius=radius)
    values = evaluate_points(base, directions, plan.points, problems, tasks, rewards, sampling, on_progress)
    return assemble_surface(plan, directions, values, paths, len(problems), sampling)


def grid_axis(low: float, high: float, points: int) -> tuple[float, ...]:
    """`points` equally spaced numbers, 0 exactly among them, that cover [low, high] ∋ 0 as closely as they can.

    Of the places 0 can take among the points, the one with the smallest spacing. Raises ValueError for fewer than 3 points.
    """
    if points < 3:
        raise ValueError(f"grid = {points}; an axis needs at least 3 points to go beyond the base on both sides")
    spacing, below = min((max(-low / below, high / (points - 1 - below)), below) for below in range(1, points - 1))
    return tuple(spacing * (i - below) for i in range(points))


def _plane(
    name: str,
    directions: Directions,
    labels: tuple[str, str],
    norms: Mapping[str, float],
    reach: tuple[float, float],
    grid: int,
) -> Plane:
    """The plane of two directions; its anchors lie on them at the distances `reach`."""
    first, second = labels
    cosine = _dot(directions[first], directions[second]) / (norms[first] * norms[second])
    if not abs(cosine) < 1 - 1e-9:
        raise ValueError(
            f"{first!r} and {second!r} are parallel (cosine {cosine:.6f}) and span no plane; choose another"
        )
    angle = math.acos(cosine)
    anchors = (
        ("base", 0.0, 0.0),
        (first, reach[0], 0.0),
        (second, reach[1] * math.cos(angle), reach[1] * math.sin(angle)),
    )
    axes = []
    for places in ([x for _, x, _ in anchors], [y for _, _, y in anchors]):
        low, high = min(places), max(places)
        axes.append(grid_axis(low - MARGIN * (high - low), high + MARGIN * (high - low), grid))
    return Plane(name, labels, (norms[first], norms[second]), angle, axes[0], axes[1], anchors)


def _plane_json(plane: Plane, found: Mapping[Point, PointValues]) -> dict[str, Any]:
    rows = [[found[plane.point(x, y)] for x in plane.x] for y in plane.y]
    return {
        "name": plane.name,
        "axes": [{"label": label, "norm": norm} for label, norm in zip(plane.labels, plane.norms, strict=True)],
        "angle_degrees": math.degrees(plane.angle),
        "x": list(plane.x),
        "y": list(plane.y),
        "values": {
            quantity: {part: [[values[quantity][part] for values in row] for row in rows] for part in PARTS}
            for quantity in QUANTITIES
        },
        "anchors": [{"name": name, "x": x, "y": y} for name, x, y in plane.anchors],
        "paths": [],
    }


def _line_json(line: Line, found: Mapping[Point, PointValues]) -> dict[str, Any]:
    row = [found[line.point(t)] for t in line.t]
    return {
        "name": f"{line.label_from} → {line.label_to}",
        "label_from": line.label_from,
        "label_to": line.label_to,
        "t": list(line.t),
        "values": {
            quantity: {part: [values[quantity][part] for values in row] for part in PARTS} for quantity in QUANTITIES
        },
    }


def _project_path(planes: Sequence[Plane], directions: Directions, path: RunPath) -> list[dict[str, Any]]:
    """The path on each plane; its snapshots are read once."""
    steps: list[int] = []
    norms_squared: list[float] = []
    places: list[list[tuple[float, float]]] = [[] for _ in planes]
    for step, difference in path.snapshots:
        steps.append(step)
        norms_squared.append(_dot(difference, difference))
        for plane, seen in zip(planes, places, strict=True):
            seen.append(plane.project(directions, difference))
    projected = []
    for seen in places:
        inside = [x * x + y * y for x, y in seen]
        projected.append(
            {
                "regime": path.regime,
                "seed": path.seed,
                "steps": steps,
                "x": [x for x, _ in seen],
                "y": [y for _, y in seen],
                "explained": [_share(part, whole) for part, whole in zip(inside, norms_squared, strict=True)],
                "explained_overall": _share(math.fsum(inside), math.fsum(norms_squared)),
            }
        )
    return projected


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _point(coefficients: Mapping[str, float]) -> Point:
    """In one form, so that the same coefficients are one point; the base is ()."""
    return tuple(sorted((name, value) for name, value in coefficients.items() if value != 0))


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.cpu().double(), second.cpu().double()))
