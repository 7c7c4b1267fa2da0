"""Learning with infinitely many samples and infinitely small steps: flows of an exact gradient on a finite world.

Under natural-gradient flow the tabular policy follows the replicator equation (Hofbauer & Sigmund 1998)

    d pi(y)/dt = pi(y) (R(y) - E_pi[R]),    R = v - h l,    v = w r + s N(l_ref) + c l_ref,    h = c - o

which is linear in log pi and solved in closed form. Euclidean gradient flow moves logits by pi(y) (R(y) - E_pi[R]),
so that rare responses hardly move, and depends on the parametrisation; it is integrated numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.integrate import solve_ivp
from torch import Tensor

from bsharp.algorithm import Objective
from bsharp.theory.natural import natural_gradient
from bsharp.theory.policy_gradient import LogPolicy, exact_gradient, exact_objective, exact_scores
from bsharp.theory.targets import Moments, moments, variance
from bsharp.theory.world import FiniteWorld

__all__ = [
    "Trajectory",
    "flow_limit",
    "gradient_flow",
    "natural_gradient_flow",
    "parametric_natural_gradient_flow",
    "score_variance",
    "trajectory",
]

MAX_EXPONENT = 600.0  # |h| t beyond which exp leaves float64
MAX_EVALUATIONS = 20_000  # of a velocity, in one integration
TIE_TOLERANCE = 1e-9  # relative; two responses this close in value are tied in the limit


@dataclass(frozen=True)
class Trajectory:
    """A policy at S times: what it is, what it is worth, what it is like."""

    times: Float[Tensor, " S"]  # in 1 / units of the score; steps where training is sampled
    log_policies: Float[Tensor, "S N"]  # nats
    objective: Float[Tensor, " S"]  # J
    moments: tuple[Moments, ...]

    @property
    def policies(self) -> Float[Tensor, "S N"]:
        """Probabilities of the N responses at the S times."""
        return self.log_policies.exp()

    def total_variation(self, log_target: Float[Tensor, " N"]) -> Float[Tensor, " S"]:
        """TV(pi_t, target) = (1/2) sum_y |pi_t(y) - target(y)|, in [0, 1]."""
        return (self.policies - log_target.exp()).abs().sum(-1) / 2


def trajectory(
    times: Tensor, log_policies: Float[Tensor, "S N"], world: FiniteWorld, objective: Objective
) -> Trajectory:
    """The policies with their objective and moments."""
    values = torch.stack([exact_objective(row, world, objective) for row in log_policies])
    return Trajectory(times, log_policies, values, tuple(moments(row, world) for row in log_policies))


def score_variance(log_policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective) -> float:
    """Var_pi(R) = grad J^T F^-1 grad J >= 0: the rate at which J rises along the tabular natural-gradient flow."""
    return float(variance(log_policy, exact_scores(log_policy, world, objective)))


def natural_gradient_flow(
    initial_log_policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective, times: npt.ArrayLike
) -> Trajectory:
    """The replicator flow from `initial_log_policy` at the given times >= 0, in closed form (tabular, Fisher metric).

        log pi_t = e^{-ht} log pi_0 + ((1 - e^{-ht}) / h) v + const,     h -> 0:  log pi_0 + t v + const

    h > 0 relaxes to the optimum at the rate h; h = 0 grows every gap of v linearly in t; h < 0 grows gaps
    exponentially. Responses of probability 0 stay there. For h < 0 times beyond 600 / |h| are taken as 600 / |h|, where
    all but ties has gone. Raises ValueError for times that are negative, not rising or not finite, and where a response
    of positive probability has no finite score.
    """
    grid = _times(times)
    value = _value(initial_log_policy, world, objective)
    possible = initial_log_policy > -math.inf
    start = torch.where(possible, initial_log_policy, 0.0)
    h = objective.entropy_weight
    exponent = (-h * grid).clamp(max=MAX_EXPONENT)
    gained = grid if h == 0 else torch.expm1(exponent) / -h
    raw = exponent.exp()[:, None] * start + gained[:, None] * value
    log_policies = torch.log_softmax(torch.where(possible, raw, -math.inf), -1)
    return trajectory(grid, log_policies, world, objective)


def flow_limit(
    initial_log_policy: Float[Tensor, " N"], world: FiniteWorld, objective: Objective
) -> Float[Tensor, " N"]:
    """Where the tabular natural-gradient flow from `initial_log_policy` ends as t -> inf, log-probabilities.

    h > 0   pi ~ exp(v / h) on the support of pi_0: one basin
    h = 0   pi_0 restricted to argmax v: one basin, ties keep their proportions
    h < 0   pi_0 restricted to argmax of log pi_0 + v / |h|: as many basins as responses; ties, whose bracket is the
            same, weigh exp(-v / |h|), which are again their proportions in pi_0
    """
    value = _value(initial_log_policy, world, objective)
    possible = initial_log_policy > -math.inf
    nowhere = torch.full_like(initial_log_policy, -math.inf)
    h = objective.entropy_weight
    if h > 0:
        return torch.log_softmax(torch.where(possible, value / h, nowhere), -1)
    height = value if h == 0 else initial_log_policy - value / h
    height = torch.where(possible, height, nowhere)
    best = height.max()
    tied = height >= best - TIE_TOLERANCE * best.abs().clamp(min=1.0)
    return torch.log_softmax(torch.where(tied, initial_log_policy, nowhere), -1)


def gradient_flow(
    log_policy: LogPolicy,
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
    times: npt.ArrayLike,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> Trajectory:
    """Euclidean gradient flow d theta/dt = grad J(theta) from `parameters`, at the given times >= 0.

    Integrated by scipy's DOP853 to the given tolerances; -inf parameters stay. Raises ValueError for times that are
    negative, not rising or not finite, and where the integration fails.
    """
    return _integrate(
        lambda theta: exact_gradient(log_policy, theta, world, objective),
        log_policy,
        parameters,
        world,
        objective,
        times,
        (rtol, atol),
    )


def parametric_natural_gradient_flow(
    log_policy: LogPolicy,
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
    times: npt.ArrayLike,
    rtol: float = 1e-10,
    atol: float = 1e-12,
) -> Trajectory:
    """Natural-gradient flow d theta/dt = F(theta)^+ grad J(theta) of any parametrisation, as `gradient_flow`.

    The flow of policies does not depend on the parametrisation where it reaches all distributions: on a full
    autoregressive table it is that of `natural_gradient_flow`. Meant for times at which no response is rarer than about
    1e-26, beyond which `natural_gradient` loses it and the steps become tiny.
    """
    return _integrate(
        lambda theta: natural_gradient(log_policy, theta, world, objective),
        log_policy,
        parameters,
        world,
        objective,
        times,
        (rtol, atol),
    )


def _times(times: npt.ArrayLike) -> Float[Tensor, " S"]:
    values = torch.as_tensor(np.asarray(times, dtype=np.float64))
    if values.ndim != 1 or not len(values) or not bool(values.isfinite().all()):
        raise ValueError(f"times must be a list of finite numbers, got {times!r}; give at least one")
    if float(values[0]) < 0 or bool((values.diff() <= 0).any()):
        raise ValueError(f"times must rise from 0 or later, got {values.tolist()}; sort them and list each once")
    return values


def _value(initial_log_policy: Tensor, world: FiniteWorld, objective: Objective) -> Float[Tensor, " N"]:
    """v, the part of the score that does not change: R at l = 0; 0 where the policy is 0."""
    possible = initial_log_policy > -math.inf
    silent = torch.zeros_like(world.base_token_logprobs)
    value = torch.where(possible, objective.score(world.score_inputs(silent)), 0.0)
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).nonzero()[0, 0])
        raise ValueError(f"response {row} has no finite score but positive probability; give it base probability > 0")
    return value


def _integrate(
    velocity: Callable[[Tensor], Tensor],
    log_policy: LogPolicy,
    parameters: Tensor,
    world: FiniteWorld,
    objective: Objective,
    times: npt.ArrayLike,
    tolerances: tuple[float, float],
) -> Trajectory:
    grid = _times(times)
    start = parameters.detach()
    free = start.isfinite()
    end = float(grid[-1])
    evaluations = 0

    def full(values: npt.NDArray[np.float64]) -> Tensor:
        return start.masked_scatter(free, torch.as_tensor(values))

    def right_hand_side(t: float, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        nonlocal evaluations
        evaluations += 1
        if evaluations > MAX_EVALUATIONS:
            raise ValueError(
                f"the flow needed more than {MAX_EVALUATIONS} evaluations at t={t:g} of {end:g}; shorten times"
            )
        slope: npt.NDArray[np.float64] = velocity(full(values))[free].numpy()
        return slope

    columns = np.repeat(start[free].numpy()[:, None], len(grid), axis=1)
    if end > 0:
        rtol, atol = tolerances
        solution = solve_ivp(right_hand_side, (0.0, end), columns[:, 0], "DOP853", grid.numpy(), rtol=rtol, atol=atol)
        if not solution.success:
            raise ValueError(
                f"the flow could not be followed to t={end:g}: {solution.message}; shorten times or raise rtol"
            )
        columns = solution.y
    log_policies = torch.stack([log_policy(full(np.ascontiguousarray(column))) for column in columns.T])
    return trajectory(grid, log_policies.detach(), world, objective)
