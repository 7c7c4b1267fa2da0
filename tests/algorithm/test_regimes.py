"""Regimes as strings."""

from __future__ import annotations

import pytest

from bsharp.algorithm import (
    CONSTRUCTORS,
    Objective,
    entropy_minimisation,
    hybrid,
    parse_objective,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.config import DEFAULT_REGIMES


@pytest.mark.parametrize(
    ("spec", "name", "objective"),
    [
        ("task_reward", "task_reward", task_reward()),
        ("task_reward()", "task_reward", task_reward()),
        ("tilted(alpha=1,beta_inv=100)", "tilted", tilted(1, 100)),
        (" mild = tilted( alpha = 1.25 , beta_inv = 1e4 ) ", "mild", tilted(1.25, 1e4)),
        ("sharpening", "sharpening", sharpening()),
        ("sharpening_mean=sharpening(normalisation=mean)", "sharpening_mean", sharpening("mean")),
        ("w-1=sharpening(normalisation='weighted_mean',rho=.5)", "w-1", sharpening("weighted_mean", 0.5)),
        ("tempered(alpha=2)", "tempered", tempered(2)),
        ("hybrid(alpha=-1,beta_inv=50)", "hybrid", hybrid(-1, 50)),
        ("entropy_minimisation", "entropy_minimisation", entropy_minimisation()),
        ("mine=weighted(task=1,own_loglikelihood=-0.01)", "mine", weighted(task=1, own_loglikelihood=-0.01)),
    ],
)
def test_a_spec_is_its_constructor_call(spec: str, name: str, objective: Objective) -> None:
    assert parse_objective(spec) == (name, objective)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "cannot read regime"),
        ("tilted(alpha=1", "cannot read regime"),
        ("a=b=tilted", "cannot read regime"),
        ("sharpenning", "did you mean sharpening"),
        ("zzz", "known: task_reward, tilted"),
        ("1x=tilted", "regime name '1x' cannot be used"),
        ("../x=tilted", "cannot be used"),
        ("=tilted", "regime name '' cannot be used"),
        ("tilted(2)", "argument '2' has no name"),
        ("tilted(alfa=2)", "did you mean alpha"),
        ("task_reward(alpha=2)", "task_reward takes no argument"),
        ("tilted(alpha=2,alpha=3)", "given twice"),
        ("tilted(alpha=two)", "alpha = 'two' is not a number"),
        ("tilted(alpha=-1)", "tilted needs alpha > 0, got alpha = -1"),
        ("sharpening(normalisation=avg)", "unknown normalisation 'avg'"),
        ("hybrid(alpha=1)", "hybrid needs beta_inv; write hybrid"),
    ],
)
def test_a_wrong_spec_says_what_to_write(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective(spec)
    assert "\n" not in str(caught.value)


def test_the_default_regimes_parse_under_distinct_names() -> None:
    names = [parse_objective(spec)[0] for spec in DEFAULT_REGIMES]
    assert len(set(names)) == len(names)


def test_every_constructor_is_reachable_by_its_own_name() -> None:
    assert all(function.__name__ == name for name, function in CONSTRUCTORS.items())
