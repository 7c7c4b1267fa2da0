"""The numbers given to the page: complete, finite, and equal to closed forms written out again in numpy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bsharp.algorithm import from_paper
from bsharp.theory.illustration import (
    NUDGES,
    SETTINGS,
    page_data,
    page_objectives,
    page_worlds,
    simplex_worlds,
    turning,
)
from bsharp.theory.targets import expectation, power


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return page_data()


@pytest.fixture(scope="module")
def worlds(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    columns = ("logprob", "length", "reward")
    return {w["id"]: {key: np.array(w[key]) for key in columns} for w in data["worlds"] + data["simplex"]}


def likelihood_of(world: dict[str, Any], settings: dict[str, Any]) -> Any:
    exponent = {"sum": 0.0, "mean": 1.0, "weighted_mean": settings["rho"]}[settings["normalisation"]]
    return world["logprob"] / world["length"] ** exponent


def tilted_by(world: dict[str, Any], exponent: Any) -> tuple[Any, float]:
    """pi_ref exp(exponent) / Z and log Z."""
    weights = world["logprob"] + exponent
    log_z = float(np.logaddexp.reduce(weights))
    return np.exp(weights - log_z), log_z


def test_every_world_is_a_distribution_sorted_by_likelihood_with_right_and_wrong_responses(
    data: dict[str, Any],
) -> None:
    assert {"random", "right_mode", "wrong_mode", "near_tie", "short_mode", "loop"} <= {w["id"] for w in data["worlds"]}
    for world in data["worlds"] + data["simplex"]:
        assert len({len(world[key]) for key in ("text", "logprob", "length", "reward")}) == 1
        assert np.exp(world["logprob"]).sum() == pytest.approx(1, abs=1e-12)
        assert world["logprob"] == sorted(world["logprob"], reverse=True)
        assert set(world["reward"]) == {0.0, 1.0}
        assert len(set(world["text"])) == len(world["text"])
        assert [len(text.split()) for text in world["text"]] == world["length"]


def test_the_data_is_plain_finite_json_and_its_worlds_are_the_same_every_time(data: dict[str, Any]) -> None:
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for shown, world in zip(data["worlds"], page_worlds().values(), strict=True):
        assert shown["logprob"] == world.base_logprob.sort(descending=True).values.tolist()


def test_tempered_and_tilted_figures_equal_the_closed_form_written_out(
    data: dict[str, Any], worlds: dict[str, Any]
) -> None:
    for row in data["reference"]:
        world, settings = worlds[row["world"]], row["settings"]
        likelihood = likelihood_of(world, settings)
        strengths = {
            "base": (0.0, 0.0),
            "tempered": (settings["alpha"] - 1, 0.0),
            "tilted": (settings["alpha"] - 1, settings["beta_inv"]),
        }
        if settings["c"] > 0:
            strengths |= {"sharpened": (1 / settings["c"], 0.0), "task": (0.0, 1 / settings["c"])}
        for regime, (s, w) in strengths.items():
            p, log_z = tilted_by(world, s * likelihood + w * world["reward"])
            figures = row["figures"][regime]
            assert figures["log_z"] == pytest.approx(log_z, rel=1e-12, abs=1e-12)
            success = p @ world["reward"]
            assert figures["reward"] == pytest.approx(success, rel=1e-10, abs=1e-12)
            assert figures["length"] == pytest.approx(p @ world["length"], rel=1e-10)
            own = np.log(np.maximum(p, 1e-300))
            assert figures["entropy"] == pytest.approx(-(p @ own), rel=1e-10, abs=1e-10)
            assert figures["kl"] == pytest.approx(p @ (own - world["logprob"]), rel=1e-10, abs=1e-10)
            assert figures["pass_at_k"] == pytest.approx(1 - (1 - success) ** settings["k"], rel=1e-9, abs=1e-12)


def test_without_a_kl_term_the_optima_are_the_best_by_likelihood_and_all_the_right_ones(
    data: dict[str, Any], worlds: dict[str, Any]
) -> None:
    for row in (row for row in data["reference"] if row["settings"]["c"] == 0):
        world, figures = worlds[row["world"]], row["figures"]
        best = int(likelihood_of(world, row["settings"]).argmax())
        assert figures["sharpened"]["reward"] == world["reward"][best]
        assert figures["sharpened"]["kl"] == pytest.approx(-world["logprob"][best], abs=1e-12)
        assert figures["task"]["reward"] == pytest.approx(1)


def test_log_z_is_given_for_the_optima_of_a_kl_term_only(data: dict[str, Any]) -> None:
    assert {row["settings"]["c"] > 0 for row in data["reference"]} == {True, False}
    for row in data["reference"]:
        given = {regime for regime, figures in row["figures"].items() if figures["log_z"] is not None}
        argmax = set() if row["settings"]["c"] > 0 else {"sharpened", "task"}
        assert given == {"base", "sharpened", "tempered", "tilted", "task"} - argmax


def test_the_slopes_are_the_differences_of_the_closed_form(data: dict[str, Any], worlds: dict[str, Any]) -> None:
    step = 1e-5
    for row in data["reference"]:
        world, settings = worlds[row["world"]], row["settings"]
        likelihood, alpha, tilt = likelihood_of(world, settings), settings["alpha"] - 1, settings["beta_inv"]

        def along(column: str, s: float, w: float, world: Any = world, likelihood: Any = likelihood) -> float:
            return float(tilted_by(world, s * likelihood + w * world["reward"])[0] @ world[column])

        found = {
            "reward_alpha": along("reward", alpha + step, 0) - along("reward", alpha - step, 0),
            "length_alpha": along("length", alpha + step, 0) - along("length", alpha - step, 0),
            "reward_lambda": along("reward", alpha, tilt + step) - along("reward", alpha, tilt - step),
        }
        for name, difference in found.items():
            assert row["slopes"][name] == pytest.approx(difference / (2 * step), abs=1e-7)


def test_a_nudge_past_the_gap_turns_the_sharpened_optimum_and_leaves_the_task_rewards_alone(
    data: dict[str, Any], worlds: dict[str, Any]
) -> None:
    rows = [row for row in data["nudges"] if row["world"] == "near_tie"]
    assert [row["epsilon"] for row in rows] == list(NUDGES)
    for row in (row for row in data["nudges"] if row["settings"]["c"] == 0):
        world = worlds[row["world"]]
        gap = -np.diff(np.sort(likelihood_of(world, row["settings"]))[::-1][:2])[0]
        if row["settings"]["normalisation"] == "sum":
            expected = row["second"] if row["epsilon"] > gap else row["best"]
            assert row["reward"]["sharpened"] == world["reward"][expected]
        assert row["reward"]["task"] == pytest.approx(1)
    assert rows[0]["reward"]["sharpened"] == 1.0


def test_the_turning_base_falls_first_and_rises_later() -> None:
    for seed in range(3):
        world = turning(seed)
        accuracy = [float(expectation(power(world, alpha), world.rewards)) for alpha in (1.0, 2.0, 10.0, 200.0)]
        assert accuracy[1] < accuracy[0] - 0.1
        assert accuracy[2] > accuracy[0]
        assert accuracy[3] == pytest.approx(1, abs=0.05)


def test_at_a_fixed_length_the_mean_orders_responses_like_the_sum(data: dict[str, Any]) -> None:
    world = next(world for world in data["worlds"] if world["id"] == "fixed_length")
    assert len(set(world["length"])) == 1


def test_the_three_response_worlds_are_what_their_titles_say() -> None:
    found = {name: world for name, (_, world) in simplex_worlds().items()}
    right = {name: bool(world.rewards[world.base_logprob.argmax()]) for name, world in found.items()}
    assert right == {"wrong_first": False, "right_first": True, "two_right": False}
    assert [int(world.rewards.sum()) for world in found.values()] == [1, 1, 2]


def test_flows_start_where_they_start_and_the_natural_one_follows_its_closed_form(
    data: dict[str, Any], worlds: dict[str, Any]
) -> None:
    for row in data["flows"]:
        world, settings = worlds[row["world"]], row["settings"]
        likelihood = likelihood_of(world, settings)
        weights = {  # w, s, c, o
            "task": (1.0, 0.0, settings["c"], 0.0),
            "sharpened": (0.0, 1.0, settings["c"], 0.0),
            "tempered": (0.0, settings["alpha"] - 1, 1.0, 0.0),
            "entropy": (0.0, 0.0, 0.0, 1.0),
        }
        if settings["beta_inv"]:
            scale = 1 / settings["beta_inv"]
            weights["tilted"] = (1.0, (settings["alpha"] - 1) * scale, scale, 0.0)
        w, s, c, o = weights.get(row["objective"], weights["tempered"])
        value, h = w * world["reward"] + s * likelihood + c * world["logprob"], c - o
        np.testing.assert_allclose(row["natural"][0], row["start"], atol=1e-12)
        np.testing.assert_allclose(row["euclidean"][0], row["start"], atol=1e-12)
        for time, policy in zip(row["times"], row["natural"], strict=True):
            gained = time if h == 0 else (1 - np.exp(-h * time)) / h
            raw = np.exp(-h * time) * np.log(row["start"]) + gained * value
            np.testing.assert_allclose(policy, np.exp(raw - np.logaddexp.reduce(raw)), atol=1e-10)


def test_the_pages_objectives_are_those_of_the_papers_knobs() -> None:
    for settings in SETTINGS:
        plain = settings | {"normalisation": "sum", "c": 0.0}
        found = page_objectives(plain)
        assert found["base"] is None
        assert found["sharpened"] == from_paper(1, 0, "sharpening")
        assert found["task"] == from_paper(0, 1, "task_reward")
        assert found["tempered"] == from_paper(plain["alpha"], 0, "tempered")
        if plain["beta_inv"]:
            assert found["tilted"] == from_paper(plain["alpha"], plain["beta_inv"], "tilted")


def test_at_alpha_0_the_tempered_and_tilted_objectives_still_are_what_the_page_draws() -> None:
    found = page_objectives(SETTINGS[0] | {"alpha": 0.0, "beta_inv": 4.0})
    assert found["tempered"] is not None
    assert (found["tempered"].base_loglikelihood, found["tempered"].kl_to_base) == (-1.0, 1.0)
    assert found["tilted"] is not None
    assert (found["tilted"].task, found["tilted"].base_loglikelihood, found["tilted"].kl_to_base) == (1.0, -0.25, 0.25)
