"""The surface: geometry on plain vectors, values with a small random model and with the embedded one."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import every_response, plain_logprob, small_model
from torch import Tensor

from bsharp.config import EvaluationConfig
from bsharp.diagnostics.surface import (
    Plane,
    RunPath,
    SurfacePlan,
    assemble_surface,
    grid_axis,
    plan_surface,
    surface,
)
from bsharp.diagnostics.surface_points import QUANTITIES, Point, PointValues, SurfaceSampling, evaluate_points
from bsharp.evaluation import evaluate, problem_set
from bsharp.generation import Decoder
from bsharp.models import LanguageModel, clone_model, load_language_model
from bsharp.models.weights import flat_weights, set_flat_weights
from bsharp.rewards import reward_for
from bsharp.tasks import load_task
from bsharp.types import Completion, Grade, GradeStatus, Problem

# --- a small world: token 0 ends a response, which is right where it holds as many tokens as the problem asks ---------

SAMPLING = SurfaceSampling(samples=3, seed=5, max_new_tokens=4, max_rows=16, microbatch_rows=8)


class LengthTask:
    name = "length"
    families: Mapping[str, Any] = {}

    def problems(self, split: str, count: int, seed: int) -> list[Problem]:
        return [
            Problem(f"length/{split}/{seed}/{i}", "length", "any", "1 2 3"[: 1 + 2 * (i % 3)], "2")
            for i in range(count)
        ]

    def size(self, split: str) -> int:
        return 1000

    def prompt(self, problem: Problem) -> str:
        return problem.question


class LengthReward:
    """Right are responses of 2 tokens; those of 3 cannot be graded."""

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
        return [self.grade(len(completion.token_ids)) for completion in completions]

    def grade(self, length: int) -> Grade:
        if length == 3:
            return Grade(GradeStatus.TIMEOUT, None)
        return Grade(GradeStatus.CORRECT if length == 2 else GradeStatus.WRONG, float(length == 2), str(length))


def apart(base: LanguageModel, seed: int, size: float) -> Tensor:
    """A random direction in the weights of `base`, `size` in the typical weight."""
    random = torch.Generator().manual_seed(seed)
    return size * torch.randn(len(flat_weights(base.model)), generator=random, dtype=torch.float64)


def points_values(
    base: LanguageModel, directions: Mapping[str, Tensor], points: Sequence[Point], problems: int = 7
) -> list[PointValues]:
    task = LengthTask()
    chosen = task.problems("test", problems, SAMPLING.seed)
    return evaluate_points(base, directions, points, chosen, {"length": task}, {"length": LengthReward()}, SAMPLING)


def from_records(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of every quantity from an evaluation's records, problem by problem."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["problem_id"], []).append(record)
    rewards = [[r["reward"] for r in group if r["reward"] is not None] for group in groups.values()]
    per_problem = {
        "reward": [sum(group) / len(group) for group in rewards if group],
        "base_logprob": [np.mean([r["base_logprob"] for r in group]) for group in groups.values()],
        "kl": [np.mean([r["logprob"] - r["base_logprob"] for r in group]) for group in groups.values()],
    }
    expected = {
        name: (float(np.mean(v)), float(np.std(v, ddof=1)) / math.sqrt(len(v))) for name, v in per_problem.items()
    }
    surprise = np.array([-sum(r["logprob"] for r in group) for group in groups.values()])
    tokens = np.array([sum(r["length"] for r in group) for group in groups.values()])
    ratio = surprise.sum() / tokens.sum()
    error = np.std(surprise - ratio * tokens, ddof=1) / math.sqrt(len(tokens)) / tokens.mean()
    return expected | {"entropy": (float(ratio), float(error))}


def assert_values(values: PointValues, expected: Mapping[str, tuple[float, float]], tolerance: float) -> None:
    assert set(values) == set(expected) == set(QUANTITIES)
    for quantity, (mean, error) in expected.items():
        assert values[quantity]["mean"] == pytest.approx(mean, abs=tolerance), quantity
        assert values[quantity]["standard_error"] == pytest.approx(error, abs=tolerance), quantity


# --- values ------------------------------------------------------------------------------------------------------------


def test_the_point_of_the_base_is_the_evaluation_of_the_base() -> None:
    base = load_language_model("embedded:tiny")
    task = load_task("math_mini")
    config = EvaluationConfig(problems=24, samples=3, max_new_tokens=24, seed=3, greedy=False)
    rewards = {"math_mini": reward_for(task)}
    records = evaluate(base, Decoder(base), None, [task], rewards, config, is_base=True)
    sampling = SurfaceSampling(samples=3, seed=3, max_new_tokens=24)
    problems = problem_set([task], config)
    (values,) = evaluate_points(base, {}, [()], problems, {"math_mini": task}, rewards, sampling)
    expected = from_records(records)
    assert 0 < expected["reward"][0] < 1
    assert_values(values, expected, 1e-9)
    assert values["kl"] == {"mean": 0.0, "standard_error": 0.0}


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize(("temperature", "fixed_length"), [(1.0, False), (1.7, False), (1.0, True)])
def test_the_ends_of_a_line_are_the_evaluations_of_its_checkpoints(
    t: float, temperature: float, fixed_length: bool
) -> None:
    base = small_model(dtype=torch.float64)
    directions = {"first": apart(base, 1, 0.2), "second": apart(base, 2, 0.3)}
    policy = clone_model(base)
    set_flat_weights(policy.model, flat_weights(base.model) + directions["second" if t else "first"])
    drawn: dict[str, Any] = {"samples": 3, "max_new_tokens": 4, "seed": 5, "max_rows": 16}
    drawn |= {"temperature": temperature, "fixed_length": fixed_length}
    config = EvaluationConfig(problems=7, greedy=False, **drawn)
    task, reward = LengthTask(), LengthReward()
    records = evaluate(policy, Decoder(policy), base, [task], {"length": reward}, config)
    assert fixed_length or any(record["reward"] is None for record in records)
    line = plan_surface(directions, ["first", "second"], grid=3).lines[-1]
    assert (line.label_from, line.label_to) == ("first", "second")
    problems, sampling = task.problems("test", 7, 5), SurfaceSampling(**drawn)
    (values,) = evaluate_points(
        base, directions, [line.point(t)], problems, {"length": task}, {"length": reward}, sampling
    )
    assert_values(values, from_records(records), 1e-9)


def test_values_estimate_the_exact_expectations() -> None:
    """Every response enumerated. False-alarm probability below 4 · 7e-6 (|z| < 4.5 for four figures)."""
    base = small_model(vocab_size=4, seed=3)
    direction = apart(base, 1, 0.15)
    policy = clone_model(base)
    set_flat_weights(policy.model, flat_weights(base.model) + direction)
    exact: dict[str, float] = dict.fromkeys(("reward", "graded", "base_logprob", "kl", "surprise", "tokens"), 0.0)
    with torch.no_grad():
        for response in every_response(4, 4, (0,)):
            ours, theirs = (float(plain_logprob(model, [1], response)) for model in (policy, base))
            share = math.exp(ours)
            exact["reward"] += share * (len(response) == 2)
            exact["base_logprob"] += share * theirs
            exact["kl"] += share * (ours - theirs)
            exact["surprise"] -= share * ours
            exact["tokens"] += share * len(response)
    task = LengthTask()
    problems = [Problem(f"{i}", "length", "any", "1", "2") for i in range(150)]
    reward = LengthReward()
    reward.grade = lambda length: Grade(GradeStatus.CORRECT, float(length == 2))  # type: ignore[method-assign]
    sampling = SurfaceSampling(samples=10, max_new_tokens=4)
    point: Point = (("there", 1.0),)
    (values,) = evaluate_points(
        base, {"there": direction}, [point], problems, {"length": task}, {"length": reward}, sampling
    )
    exact["entropy"] = exact["surprise"] / exact["tokens"]
    assert exact["kl"] > 0.05  # so that its reverse, or its negative, would be seen
    for quantity in QUANTITIES:
        mean, error = values[quantity]["mean"], values[quantity]["standard_error"]
        assert mean is not None
        assert error is not None
        assert abs(mean - exact[quantity]) < 4.5 * error, quantity
        assert error < 0.06


def test_equal_weights_give_equal_values_by_whatever_coefficients() -> None:
    base = small_model(seed=2)
    direction = apart(base, 1, 0.25)
    directions = {"a": direction, "b": 2 * direction}
    one, other, elsewhere = points_values(base, directions, [(("a", 1.0),), (("b", 0.5),), (("a", -1.0),)])
    assert one == other
    assert one != elsewhere


def test_points_may_be_dealt_in_any_way_and_leave_the_base_alone() -> None:
    base = small_model(seed=2)
    before = flat_weights(base.model)
    directions = {"a": apart(base, 1, 0.25)}
    points: list[Point] = [(), (("a", 0.5),), (("a", 1.0),)]
    together = points_values(base, directions, points)
    assert together[::-1] == [points_values(base, directions, [point])[0] for point in points[::-1]]
    assert torch.equal(flat_weights(base.model), before)


def test_weights_that_give_no_distribution_have_null_values_and_harm_no_other_point() -> None:
    base = small_model(seed=2)
    directions = {"a": apart(base, 1, 0.25)}
    nothing, fine = points_values(base, directions, [(("a", 1e308),), (("a", 1.0),)])
    assert nothing == {quantity: {"mean": None, "standard_error": None} for quantity in QUANTITIES}
    assert fine == points_values(base, directions, [(("a", 1.0),)])[0]


def test_one_problem_has_values_without_standard_errors() -> None:
    (values,) = points_values(small_model(), {}, [()], problems=1)
    assert all(value["standard_error"] is None for value in values.values())
    assert values["entropy"]["mean"] is not None


def test_the_standard_error_of_entropy_is_that_of_the_jackknife_for_many_problems() -> None:
    base = small_model()
    task = LengthTask()
    problems = task.problems("test", 300, SAMPLING.seed)
    tasks, rewards = {"length": task}, {"length": LengthReward()}
    (values,) = evaluate_points(base, {}, [()], problems, tasks, rewards, SAMPLING)
    config = EvaluationConfig(problems=300, samples=3, max_new_tokens=4, seed=5, greedy=False)
    records = evaluate(base, Decoder(base), None, [task], rewards, config, is_base=True)
    sums = np.array([[-r["logprob"], r["length"]] for r in records]).reshape(300, 3, 2).sum(1)
    surprise, tokens = (sums.sum(0) - sums).T
    ratios = surprise / tokens
    jackknife = math.sqrt(299 / 300 * float(((ratios - ratios.mean()) ** 2).sum()))
    assert values["entropy"]["standard_error"] == pytest.approx(jackknife, rel=0.02)


def test_progress_counts_points() -> None:
    base, seen = small_model(), []
    task = LengthTask()
    evaluate_points(
        base, {}, [(), ()], task.problems("test", 2, 0), {"length": task}, {"length": LengthReward()}, SAMPLING,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]


def test_a_direction_of_another_size_or_name_is_refused() -> None:
    base = small_model()
    with pytest.raises(ValueError, match="'a' is missing"):
        points_values(base, {}, [(("a", 1.0),)])
    with pytest.raises(ValueError, match=r"'a' is \(3,\)"):
        points_values(base, {"a": torch.ones(3)}, [(("a", 1.0),)])
    with pytest.raises(ValueError, match="no problem"):
        points_values(base, {}, [()], problems=0)


# --- geometry ----------------------------------------------------------------------------------------------------------

FIRST = torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0], dtype=torch.float64)
SECOND = torch.tensor([1.0, 2.0, -1.0, 0.0, 2.0], dtype=torch.float64)
TOY = {"first": FIRST, "second": SECOND, "up": 7 * SECOND, "down": FIRST - 2 * SECOND}


def axes_of(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Gram–Schmidt by QR, with its signs turned to those of the directions."""
    q, r = torch.linalg.qr(torch.stack([first, second], dim=1))
    return q[:, 0] * r[0, 0].sign(), q[:, 1] * r[1, 1].sign()


def weights_at(point: Point) -> Tensor:
    return sum((c * TOY[name] for name, c in point), torch.zeros(5, dtype=torch.float64))


@given(st.floats(-9, 9), st.floats(-9, 9))
def test_a_point_of_the_plane_is_x_u_plus_y_v(x: float, y: float) -> None:
    plane = plan_surface(TOY, ["first", "second"]).planes[0]
    u, v = axes_of(FIRST, SECOND)
    there = weights_at(plane.point(x, y))
    assert torch.allclose(there, x * u + y * v, atol=1e-12)
    assert plane.project(TOY, there) == pytest.approx((x, y), abs=1e-12)


def test_the_checkpoints_plane_holds_base_and_checkpoints_as_anchors_within_its_grid() -> None:
    plane = plan_surface(TOY, ["first", "second"], grid=21).planes[0]
    expected = {"base": torch.zeros(5, dtype=torch.float64), "first": FIRST, "second": SECOND}
    assert [name for name, _, _ in plane.anchors] == list(expected)
    for name, x, y in plane.anchors:
        assert torch.allclose(weights_at(plane.point(x, y)), expected[name], atol=1e-12)
    for axis, extents in ((plane.x, [x for _, x, _ in plane.anchors]), (plane.y, [y for *_, y in plane.anchors])):
        low, high = min(extents), max(extents)
        assert axis[0] <= low - 0.249 * (high - low)
        assert axis[-1] >= high + 0.249 * (high - low)
    assert plane.norms == pytest.approx((5.0, math.sqrt(10)))
    assert math.cos(plane.angle) == pytest.approx(-1 / (5 * math.sqrt(10)))


def test_the_gradients_plane_reaches_as_far_as_the_farther_checkpoint_or_the_radius() -> None:
    for radius, reach in ((None, 5.0), (2.0, 2.0)):
        plan = plan_surface(TOY, ["first", "second"], ("up", "down"), radius=radius)
        plane = plan.planes[1]
        assert (plane.name, plane.norms) == ("initial gradients", pytest.approx((7 * math.sqrt(10), math.sqrt(69))))
        for name, x, y in plane.anchors[1:]:
            assert torch.allclose(weights_at(plane.point(x, y)), reach * TOY[name] / TOY[name].norm(), atol=1e-12)


@given(st.floats(0, 10), st.floats(0.01, 10), st.integers(3, 12))
def test_a_grid_is_even_holds_zero_exactly_and_covers_its_range(below: float, above: float, points: int) -> None:
    axis = grid_axis(-below, above, points)
    assert len(axis) == points
    assert 0.0 in axis
    assert axis[0] <= -below * (1 - 1e-12)
    assert axis[-1] >= above * (1 - 1e-12)
    assert np.ptp(np.diff(axis)) < 1e-9


def test_every_plane_and_line_holds_the_base_and_no_point_occurs_twice() -> None:
    plan = plan_surface(TOY, ["first", "second"], ("up", "down"), grid=5)
    for plane in plan.planes:
        assert plane.point(0.0, 0.0) == ()
        assert 0.0 in plane.x
        assert 0.0 in plane.y
    assert [(line.label_from, line.label_to) for line in plan.lines] == [
        ("base", "second"),
        ("base", "first"),
        ("first", "second"),
    ]
    for line in plan.lines:
        assert line.t[0] == -0.25
        assert line.t[-1] == 1.25
        assert {0.0, 1.0} <= set(line.t)
        for label, t in ((line.label_from, 0.0), (line.label_to, 1.0)):
            assert line.point(t) == (() if label == "base" else ((label, 1.0),))
    assert plan.points[0] == ()
    # Two planes and three lines; the base is in four of them, each checkpoint at the end of two lines.
    assert len(set(plan.points)) == len(plan.points) == 2 * 25 + 3 * 13 - 3 - 2


def quadratic(point: Point) -> PointValues:
    """‖θ − θ_second‖² as the mean of everything, and the squared distance from the base as its error."""
    there = weights_at(point)
    value = {"mean": float((there - SECOND).square().sum()), "standard_error": float(there.square().sum())}
    return dict.fromkeys(QUANTITIES, value)


def toy_surface(plan: SurfacePlan, paths: Sequence[RunPath] = ()) -> dict[str, Any]:
    return assemble_surface(plan, TOY, [quadratic(point) for point in plan.points], paths, 7, SAMPLING)


def test_rows_follow_y_and_columns_x() -> None:
    plan = plan_surface(TOY, ["first", "second"], grid=5)
    (plane,) = toy_surface(plan)["planes"]
    u, v = axes_of(FIRST, SECOND)
    values = plane["values"]["reward"]
    for j, y in enumerate(plane["y"]):
        for i, x in enumerate(plane["x"]):
            there = x * u + y * v
            assert values["mean"][j][i] == pytest.approx(float((there - SECOND).square().sum()))
            assert values["standard_error"][j][i] == pytest.approx(x * x + y * y, abs=1e-9)
    # The bowl's lowest point is the second checkpoint, which lies at positive y.
    j, _ = np.unravel_index(np.argmin(values["mean"]), (5, 5))
    assert plane["y"][j] > 0


def test_lines_run_from_their_first_label_to_their_second() -> None:
    for line in toy_surface(plan_surface(TOY, ["first", "second"]))["lines"]:
        start, end = (torch.zeros(5) if line[key] == "base" else TOY[line[key]] for key in ("label_from", "label_to"))
        expected = [float((start + t * (end - start) - SECOND).square().sum()) for t in line["t"]]
        assert line["values"]["kl"]["mean"] == pytest.approx(expected)
        assert line["name"] == f"{line['label_from']} → {line['label_to']}"


def project(plane: Plane, differences: Sequence[Tensor]) -> dict[str, Any]:
    path = RunPath("task_reward", 3, iter(enumerate(differences)))  # read once
    (found,) = toy_surface(SurfacePlan((plane,), ()), [path])["planes"][0]["paths"]
    return dict(found)


def test_a_path_in_the_plane_is_explained_wholly_and_one_across_it_not_at_all() -> None:
    plane = plan_surface(TOY, ["first", "second"], grid=3).planes[0]
    u, v = axes_of(FIRST, SECOND)
    across = torch.linalg.qr(torch.stack([FIRST, SECOND, torch.ones(5, dtype=torch.float64)], dim=1)).Q[:, 2]
    zero = torch.zeros(5, dtype=torch.float64)
    inside = project(plane, [zero, 2 * u, 2 * u - 3 * v])
    assert (inside["regime"], inside["seed"], inside["steps"]) == ("task_reward", 3, [0, 1, 2])
    assert inside["x"] == pytest.approx([0, 2, 2])
    assert inside["y"] == pytest.approx([0, 0, -3], abs=1e-12)
    assert inside["explained"] == [None, pytest.approx(1), pytest.approx(1)]
    assert inside["explained_overall"] == pytest.approx(1)
    outside = project(plane, [across, -4 * across])
    assert outside["explained"] == pytest.approx([0, 0], abs=1e-12)
    assert outside["explained_overall"] == pytest.approx(0, abs=1e-12)
    # 3² of 3² + 4², then nothing of 5²: 9 of 50 overall.
    mixed = project(plane, [3 * v + 4 * across, 5 * across])
    assert mixed["explained"] == pytest.approx([0.36, 0], abs=1e-12)
    assert mixed["explained_overall"] == pytest.approx(0.18)


def test_a_path_that_never_left_the_base_has_no_share() -> None:
    plane = plan_surface(TOY, ["first", "second"], grid=3).planes[0]
    still = project(plane, [torch.zeros(5)])
    assert (still["x"], still["y"], still["explained"], still["explained_overall"]) == ([0.0], [0.0], [None], None)


def test_a_plane_explains_two_in_n_of_a_random_displacement() -> None:
    """Shares are Beta(1, N/2 − 1): 1000 draws at N = 40 have a standard error of 0.05 · 0.975 / √1000; 4.5 of them, false
    alarm 7e-6.
    """
    random = torch.Generator().manual_seed(0)
    directions = {name: torch.randn(40, generator=random) for name in ("first", "second")}
    plan = SurfacePlan((plan_surface(directions, ["first", "second"], grid=3).planes[0],), ())
    steps = [(step, torch.randn(40, generator=random)) for step in range(1000)]
    values = [{key: {"mean": 0.0, "standard_error": 0.0} for key in QUANTITIES} for _ in plan.points]
    found = assemble_surface(plan, directions, values, [RunPath("walk", 0, steps)], 1, SAMPLING)
    shares = found["planes"][0]["paths"][0]["explained"]
    assert abs(float(np.mean(shares)) - 2 / 40) < 4.5 * 0.05 * 0.975 / math.sqrt(1000)


# --- the whole ---------------------------------------------------------------------------------------------------------


def test_the_surface_is_plain_json_with_the_base_at_its_origin() -> None:
    base = small_model(seed=2)
    directions = {name: apart(base, seed, 0.2) for seed, name in enumerate(("sharpening", "task_reward", "g1", "g2"))}
    task = LengthTask()
    problems = task.problems("test", 4, SAMPLING.seed)
    paths = [RunPath("task_reward", 0, [(5, directions["task_reward"].float())])]
    found = surface(
        base, directions, ["sharpening", "task_reward"], problems, {"length": task}, {"length": LengthReward()}, SAMPLING,
        gradients=("g1", "g2"), paths=paths, grid=3, line_points=7,
    )  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["schema"], found["problems"], found["samples"], found["seed"]) == (1, 4, 3, 5)
    assert [plane["name"] for plane in found["planes"]] == ["checkpoints", "initial gradients"]
    (at_base,) = points_values(base, {}, [()], problems=4)
    for plane in found["planes"]:
        j, i = plane["y"].index(0.0), plane["x"].index(0.0)
        for quantity in QUANTITIES:
            assert plane["values"][quantity]["mean"][j][i] == at_base[quantity]["mean"]
    assert found["planes"][0]["paths"][0]["explained"] == [pytest.approx(1)]
    assert found["planes"][1]["paths"][0]["explained_overall"] < 0.1
    line = found["lines"][0]["values"]["kl"]["mean"]
    assert line[1] == 0.0
    assert line[5] > 0.0


def test_a_plan_travels_to_other_processes() -> None:
    plan = plan_surface(TOY, ["first", "second"], ("up", "down"))
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert pickle.loads(pickle.dumps(plan)).points == plan.points


def test_a_single_checkpoint_gives_its_line_and_the_gradients_plane() -> None:
    plan = plan_surface(TOY, ["second"], ("first", "down"))
    assert [plane.name for plane in plan.planes] == ["initial gradients"]
    assert [(line.label_from, line.label_to) for line in plan.lines] == [("base", "second")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoints": []}, "one or two checkpoints"),
        ({"checkpoints": ["first", "second", "up"]}, "one or two checkpoints"),
        ({"checkpoints": ["first", "first"]}, "all different"),
        ({"checkpoints": ["first", "elsewhere"]}, "among the directions"),
        ({"checkpoints": ["first", "base"]}, "among the directions"),
        ({"checkpoints": ["second", "up"]}, "parallel"),
        ({"checkpoints": ["first", "still"]}, "has the norm 0.0"),
        ({"checkpoints": ["first", "broken"]}, "has the norm nan"),
        ({"grid": 2}, "at least 3 points"),
        ({"line_points": 12}, "would miss t = 0 or 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    directions = TOY | {"still": 0 * FIRST, "broken": math.nan * FIRST, "base": SECOND}
    with pytest.raises(ValueError, match=message):
        plan_surface(directions, **({"checkpoints": ["first", "second"]} | changed))


def test_a_value_is_needed_for_every_point() -> None:
    plan = plan_surface(TOY, ["first", "second"], grid=3)
    with pytest.raises(ValueError, match="evaluate every point"):
        assemble_surface(plan, TOY, [], [], 7, SAMPLING)
