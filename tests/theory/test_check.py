"""The check of all statements: it passes on the library as it is and fails on a library with a flipped sign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from bsharp.algorithm import Objective, optimum_log_weights
from bsharp.theory import natural, targets
from bsharp.theory.check import ORDER, Check, check, check_worlds
from bsharp.theory.statements import gradients, learning, length, optima, paths, sides


@pytest.fixture(scope="module")
def rows() -> list[Check]:
    return check(0)


def test_every_statement_holds_on_every_world(rows: list[Check]) -> None:
    assert [row for row in rows if not row.holds] == []
    assert max(row.error for row in rows if row.kind == "equality") < 1e-8
    assert max(row.bound for row in rows if row.kind == "equality") <= 1e-8


def test_a_limit_is_close_and_its_bound_says_something(rows: list[Check]) -> None:
    for row in rows:
        if row.kind == "limit":
            assert row.bound < 0.7, row


def test_every_family_of_statements_visits_its_worlds_in_the_order_of_the_document(rows: list[Check]) -> None:
    numbers = [(ORDER.index(row.statement[0]), int(row.statement[1:])) for row in rows]
    assert numbers == sorted(numbers)
    assert {row.statement[0] for row in rows} == set(ORDER)
    worlds = set(check_worlds(0))
    visited = Counter(row.statement for row in rows if row.world in worlds)
    assert visited["A1"] == visited["B2"] == visited["E1"] == len(worlds)
    assert visited["A6"] > len(worlds)  # the modes of the sum and of the mean
    assert visited["C4"] == visited["E10"] == 2  # worlds of a fixed length


def test_no_statement_compares_zeros_only(rows: list[Check]) -> None:
    zero_by_statement = {"G1", "F3", "D4", "E8", "B6", "C5", "A6"}
    for name in {row.statement for row in rows} - zero_by_statement:
        assert any(abs(row.right) > 1e-3 for row in rows if row.statement == name), name


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(rows: list[Check]) -> None:
    def on_one_world(seed: int) -> list[Check]:
        return check(seed, {"random": check_worlds(seed)["random"]})

    again, other = on_one_world(0), on_one_world(1)
    assert [row for row in again if row.world == "random"] == [row for row in rows if row.world == "random"]
    assert [row for row in other if not row.holds] == []
    assert [row.left for row in other] != [row.left for row in again]


def flipped(function: Callable[..., object]) -> Callable[..., object]:
    return lambda *args, **kwargs: -function(*args, **kwargs)  # type: ignore[operator]


def forgetting_the_reward(objective: Objective, base: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    lengths, rewards = rest
    return optimum_log_weights(objective, base, lengths, torch.zeros_like(rewards))


def failing() -> set[str]:
    worlds = check_worlds(0)
    return {
        row.statement for row in check(0, {name: worlds[name] for name in ("random", "wrong mode")}) if not row.holds
    }


def test_a_flipped_covariance_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (paths, length):
        monkeypatch.setattr(module, "covariance", flipped(targets.covariance))
    assert {"A1", "A2", "A7", "C1", "P3", "P4", "P5"} <= failing()


def test_an_optimum_that_forgets_the_reward_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "optimum_log_weights", forgetting_the_reward)
    assert {"A2", "A4", "A5", "D6", "E4", "F4", "F5", "O3", "R1"} <= failing()


def test_a_flipped_natural_gradient_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural, "natural_gradient", flipped(natural.natural_gradient))
    monkeypatch.setattr(learning, "natural_gradient", flipped(natural.natural_gradient))
    assert {"B1"} <= failing()


def test_a_flipped_gradient_and_a_flipped_objective_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "exact_gradient", flipped(gradients.exact_gradient))
    monkeypatch.setattr(optima, "exact_objective", flipped(optima.exact_objective))
    assert {"G2", "O1", "O2"} <= failing()
