"""Where the exact flow of an objective ends, from which start, and where training on samples ends instead.

One logit per response (the tabular softmax policy). With v from `response_values` and h = c - o the objective is
J = E_pi[v] + h H(pi). For h > 0 it has one basin. For h = 0 (sharpening, task reward, hybrid) the vertex of the largest v
draws in every start that gives it probability. For h < 0 (entropy minimisation) J is convex: every vertex has a basin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import integrate
from torch import Tensor

from bsharp.algorithm import Objective, ScoreInputs, leave_one_out, reinforce
from bsharp.statistics.intervals import Estimate
from bsharp.theory.dynamics import flow_limit
from bsharp.theory.stability import binomial_share, response_values
from bsharp.theory.world import FiniteWorld

__all__ = [
    "SampledEnds",
    "committed_limit",
    "euclidean_end",
    "natural_basins",
    "sampled_ends",
    "simplex_grid",
    "vertex",
]

VERTEX_MASS = 1 - 1e-6


def simplex_grid(resolution: int) -> Float[Tensor, "M 3"]:
    """Log-probabilities of (resolution + 1)(resolution + 2)/2 interior points of the 3-response simplex, evenly spaced.

    Raises ValueError for a negative resolution.
    """
    if resolution < 0:
        raise ValueError(f"simplex_grid needs resolution >= 0, got {resolution}; 20 gives 231 points")
    points = [(i + 1, j + 1, resolution - i - j + 1) for i in range(resolution + 1) for j in range(resolution - i + 1)]
    return torch.log(torch.tensor(points, dtype=torch.float64) / (resolution + 3))


def vertex(log_policy: Float[Tensor, "M N"]) -> Int[Tensor, " M"]:
    """The response that holds all but 1e-6 of the mass of each policy; -1 where none does."""
    largest, index = log_policy.max(-1)
    return torch.where(largest.exp() > VERTEX_MASS, index, -1)


def natural_basins(starts: Float[Tensor, "M N"], world: FiniteWorld, objective: Objective) -> Int[Tensor, " M"]:
    """The vertex in which the exact natural-gradient flow from each log-policy ends, -1 where it ends in no vertex.

        h = 0:  argmax v, from every start: one basin
        h < 0:  argmax of log pi_0 + v/|h|: basins bounded by surfaces pi_0(y)/pi_0(z) = exp((v(z) - v(y))/|h|)
        h > 0:  -1, one smooth optimum for all

    -1 also on a boundary, where responses tie (see `flow_limit`). For entropy minimisation the basin of y is where y is
    the likeliest response.
    """
    return vertex(torch.stack([flow_limit(start, world, objective) for start in starts]))


def euclidean_end(
    start: Float[Tensor, "M N"], world: FiniteWorld, objective: Objective, time: float
) -> Float[Tensor, "M N"]:
    """Log-policies after `time` of the exact gradient flow on softmax logits, one logit per response, from M starts.

        d theta_y / dt = pi(y) (R(y) - E_pi[R]),    R = v - h log pi

    integrated by an explicit Runge–Kutta method of order 8, relative error 1e-8. Near a vertex the rest of the mass
    vanishes like 1/t, not exponentially as under the natural gradient, and a start that gives the best response
    probability p waits for a time of order 1/p (arXiv 2005.06392). `start` must be finite.
    """
    if not bool(start.isfinite().all()):
        raise ValueError("a softmax policy gives every response probability; give finite log-probabilities")
    values, weight = response_values(world, objective), objective.entropy_weight
    if not bool(values.isfinite().all()):
        raise ValueError("the base gives some response probability 0; leave it out of the world")

    def velocity(_: float, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        log_policy = torch.log_softmax(torch.as_tensor(logits).view(start.shape), -1)
        policy, scores = log_policy.exp(), values - weight * log_policy
        flow: NDArray[np.float64] = (policy * (scores - (policy * scores).sum(-1, keepdim=True))).flatten().numpy()
        return flow

    solved = integrate.solve_ivp(
        velocity, (0.0, time), start.flatten().numpy(), "DOP853", t_eval=[time], rtol=1e-8, atol=1e-10
    )
    return torch.log_softmax(torch.as_tensor(solved.y[:, -1]).view(start.shape), -1)


# --------------------------------------------------------------------------------------------- training on samples


@dataclass(frozen=True)
class SampledEnds:
    """Where independent training runs on samples stand at their end."""

    policies: Float[Tensor, "runs N"]  # probabilities after the last step
    at_vertex: Bool[Tensor, " runs"]  # whether one response holds more than 0.99
    shares: tuple[Estimate, ...]  # per response: the share of runs whose likeliest response it is, 95 % interval


def sampled_ends(
    start: Float[Tensor, " N"],
    world: FiniteWorld,
    objective: Objective,
    learning_rate: float,
    group_size: int,
    steps: int,
    runs: int,
    rng: np.random.Generator,
) -> SampledEnds:
    """`runs` independent trainings of softmax logits: `group_size` samples a step, leave-one-out advantages, plain SGD.

        theta <- theta + learning_rate * 1/G sum_i A_i grad log pi(y_i)

    Unbiased in every step, yet it need not end where the flow ends: a response that is drawn seldom can be lost for good
    before it is drawn (arXiv 2110.15572). The probability of every end is estimated with its binomial interval.
    Raises ValueError for group_size < 2.
    """
    if group_size < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples a step, got group_size={group_size}; raise it")
    logits = start.repeat(runs, 1)
    group_index = torch.arange(runs).repeat_interleave(group_size)
    valid = torch.ones(runs * group_size, dtype=torch.bool)
    for _ in range(steps):
        leaf = logits.requires_grad_(True)
        log_policy = torch.log_softmax(leaf, -1)
        cumulative = log_policy.detach().exp().cumsum(-1)
        uniform = torch.as_tensor(rng.random((runs, group_size))) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform, right=True).clamp(max=world.size - 1)
        chosen = log_policy.gather(-1, drawn).flatten()[:, None]
        advantages = leave_one_out(_scores(world, objective, drawn.flatten(), chosen.detach()), group_index, valid)
        loss = reinforce(chosen, advantages, valid[:, None]).sum() / group_size
        (gradient,) = torch.autograd.grad(loss, leaf)
        logits = (leaf - learning_rate * gradient).detach()
    policies = torch.softmax(logits, -1)
    largest, likeliest = policies.max(-1)
    counts = torch.bincount(likeliest, minlength=world.size).tolist()
    shares = tuple(binomial_share(count, runs, "training runs") for count in counts)
    return SampledEnds(policies, largest > 0.99, shares)


def _scores(
    world: FiniteWorld, objective: Objective, rows: Int[Tensor, " B"], own: Float[Tensor, "B 1"]
) -> Float[Tensor, " B"]:
    """Training scores of the drawn responses; a tabular policy has no tokens, so l(y) stands on the first one."""
    mask = world.mask[rows]
    behaviour = torch.where(torch.arange(mask.shape[1]) == 0, own, 0.0)
    return objective.score(ScoreInputs(world.rewards[rows], world.base_token_logprobs[rows], behaviour, mask))


def committed_limit(policy: Float[Tensor, " N"], values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Where training with 2 samples a step ends as the learning rate grows without bound: probability of each response.

        P(y) = 2 pi(y) sum_{z: v(z) < v(y)} pi(z) / (1 - P(tie)),    P(tie) = sum_{v(y) = v(z)} pi(y) pi(z)

    The first pair of draws that differ in value decides: the better of the two takes all the mass, however far it is from
    the best. At the other end, as the learning rate tends to 0, training follows the flow. All values tied: NaN.
    """
    below = (values[:, None] > values).double() @ policy
    level = (values[:, None] == values).double() @ policy
    return 2 * policy * below / (1 - (policy * level).sum())
