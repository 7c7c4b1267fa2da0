"""How the optimum moves as a knob turns: expectations, covariances and slopes along alpha, beta_inv and c.

Along every path the optimum is pi*(y) ~ pi_ref(y) exp(u(y)), and the slope of any expectation is a covariance with the
slope of u: d E[f] = Cov(f, du). No difference is taken anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import Normalisation, Objective, weighted
from bsharp.theory.at_k import answer_distribution, exact_pass_at_k, plurality_credit
from bsharp.theory.targets import Number, optimum
from bsharp.theory.world import FiniteWorld

__all__ = ["Path", "alpha_path", "beta_inv_path", "kl_path"]


@dataclass(frozen=True)
class Path:
    """Figures of the optimum at M values of one knob, (M,) each; nats and tokens per response."""

    knob: str  # "alpha", "beta_inv" or "kl_to_base"
    values: Float[Tensor, " M"]
    objectives: tuple[Objective, ...]  # what is maximised at each value
    log_partition: Float[Tensor, " M"]
    value: Float[Tensor, " M"]  # J(pi*)
    reward: Float[Tensor, " M"]  # E[r]
    length: Float[Tensor, " M"]  # E[T]
    base_loglikelihood: Float[Tensor, " M"]  # E[l_ref]
    entropy: Float[Tensor, " M"]
    kl_policy_base: Float[Tensor, " M"]  # KL(pi* || pi_ref)
    reward_variance: Float[Tensor, " M"]  # Var(r)
    base_loglikelihood_variance: Float[Tensor, " M"]  # Var(l_ref)
    reward_covariance: Float[Tensor, " M"]  # Cov(r, l_ref)
    length_covariance: Float[Tensor, " M"]  # Cov(T, l_ref)
    reward_slope: Float[Tensor, " M"]  # d E[r] / d knob; NaN at kl_to_base = 0, where the path may jump
    length_slope: Float[Tensor, " M"]  # d E[T] / d knob
    entropy_slope: Float[Tensor, " M"]  # d H / d knob
    kl_slope: Float[Tensor, " M"]  # d KL / d knob
    pass_at_k: dict[int, Float[Tensor, " M"]]
    maj_at_k: dict[int, Float[Tensor, " M"]]


def alpha_path(
    world: FiniteWorld,
    alphas: Sequence[Number],
    beta_inv: Number = 0.0,
    normalisation: Normalisation | str = "sum",
    rho: Number | None = None,
    ks: Sequence[int] = (),
) -> Path:
    """Along pi* ~ pi_ref exp((alpha - 1) N(l_ref) + beta_inv r); N = sum and beta_inv = 0 give pi_ref^alpha.

    Slopes are d E[f] / d alpha = Cov(f, N(l_ref)); any real alpha. pass@k, and maj@k where the world has answers, for
    every k in `ks`.
    """
    objectives = [weighted(beta_inv, alpha - 1.0, 1.0, normalisation=normalisation, rho=rho) for alpha in alphas]
    likelihood = _score(world, weighted(0.0, 1.0, normalisation=normalisation, rho=rho))
    return _path(world, "alpha", alphas, objectives, lambda _: likelihood, ks)


def beta_inv_path(
    world: FiniteWorld,
    beta_invs: Sequence[Number],
    alpha: Number = 1.0,
    normalisation: Normalisation | str = "sum",
    rho: Number | None = None,
    ks: Sequence[int] = (),
) -> Path:
    """Along pi* ~ pi_ref exp((alpha - 1) N(l_ref) + beta_inv r), beta_inv being the lambda of the tilt.

    Slopes are d E[f] / d beta_inv = Cov(f, r), so that E[r] never falls: its slope is Var(r). Any real beta_inv.
    """
    objectives = [weighted(lam, alpha - 1.0, 1.0, normalisation=normalisation, rho=rho) for lam in beta_invs]
    return _path(world, "beta_inv", beta_invs, objectives, lambda _: world.rewards, ks)


def kl_path(
    world: FiniteWorld,
    kls_to_base: Sequence[Number],
    task: Number = 1.0,
    base_loglikelihood: Number = 0.0,
    normalisation: Normalisation | str = "sum",
    rho: Number | None = None,
    ks: Sequence[int] = (),
) -> Path:
    """Along c = `kls_to_base` >= 0 of J = E[w r + s N(l_ref)] - c KL(pi || pi_ref): pi* ~ pi_ref exp(v / c), v = w r + s N.

    Slopes are d E[f] / d c = -Cov(f, v) / c^2. At c = 0 they are NaN: there the optimum is a uniform distribution over
    the responses of largest v, while c -> 0 tends to the base given that v is largest, so that E[T] or the entropy may
    jump; E[v] does not.
    """
    objectives = [weighted(task, base_loglikelihood, c, normalisation=normalisation, rho=rho) for c in kls_to_base]
    worth = _score(world, weighted(task, base_loglikelihood, normalisation=normalisation, rho=rho))
    return _path(world, "kl_to_base", kls_to_base, objectives, lambda c: worth / (-c * c if c > 0 else math.nan), ks)


def _score(world: FiniteWorld, objective: Objective) -> Float[Tensor, " N"]:
    """What an objective without own_loglikelihood and KL scores each response, whatever the policy."""
    return objective.score(world.score_inputs(torch.zeros_like(world.base_token_logprobs)))


def _path(
    world: FiniteWorld,
    knob: str,
    values: Sequence[Number],
    objectives: Sequence[Objective],
    direction: Callable[[Number], Float[Tensor, " N"]],
    ks: Sequence[int],
) -> Path:
    constants = torch.stack([world.rewards, world.lengths.double(), world.base_logprob])
    columns: dict[str, list[float]] = {}
    answers: list[tuple[Tensor, Tensor, Tensor]] = []
    passes: list[Tensor] = []
    for value, objective in zip(values, objectives, strict=True):
        target = optimum(world, objective)
        log_policy = target.log_policy
        mean, covariance = _covariances(log_policy, torch.cat([constants, log_policy[None], direction(value)[None]]))
        figures: dict[str, float | Tensor] = {
            "log_partition": target.log_partition,
            "value": target.value,
            "reward": mean[0],
            "length": mean[1],
            "base_loglikelihood": mean[2],
            "entropy": -mean[3],
            "kl_policy_base": mean[3] - mean[2],
            "reward_variance": covariance[0, 0],
            "base_loglikelihood_variance": covariance[2, 2],
            "reward_covariance": covariance[0, 2],
            "length_covariance": covariance[1, 2],
            "reward_slope": covariance[0, 4],
            "length_slope": covariance[1, 4],
            # dH = -E[dl] - Cov(l, du), and E[dl] = 0; likewise dKL = Cov(l - l_ref, du).
            "entropy_slope": -covariance[3, 4],
            "kl_slope": covariance[3, 4] - covariance[2, 4],
        }
        for name, figure in figures.items():
            columns.setdefault(name, []).append(float(figure))
        if ks:
            passes.append(exact_pass_at_k(log_policy, world, ks))
            answers += [] if world.answers is None else [answer_distribution(log_policy, world)]
    if not objectives:
        raise ValueError(f"a path needs at least one value of {knob}, got none")
    # One recursion for the whole path: its cost is in the number of steps, not of policies.
    votes = None
    if answers:
        shares, credits, silence = (torch.stack(parts) for parts in zip(*answers, strict=True))
        votes = plurality_credit(shares, credits, silence, ks)
    return Path(
        knob=knob,
        values=torch.tensor([float(value) for value in values], dtype=torch.float64),
        objectives=tuple(objectives),
        pass_at_k=dict(zip(ks, torch.stack(passes, -1), strict=True)) if passes else {},
        maj_at_k=dict(zip(ks, votes.T, strict=True)) if votes is not None else {},
        **{name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()},
    )


def _covariances(
    log_policy: Float[Tensor, " N"], columns: Float[Tensor, "F N"]
) -> tuple[Float[Tensor, " F"], Float[Tensor, "F F"]]:
    """Means and covariances of F functions of the response, as `expectation` and `covariance` have them one by one."""
    policy = log_policy.exp()
    possible = torch.where(log_policy > -math.inf, columns, 0.0)
    mean = possible @ policy
    centred = possible - mean[:, None]
    return mean, (centred * policy) @ centred.T
