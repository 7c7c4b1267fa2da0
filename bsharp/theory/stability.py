"""What a perturbation of the base does to the optimum: how far it moves, and when it flips.

The base's log-probabilities go from l_ref to l_ref + delta. A smooth optimum (c > o) then moves by kappa * delta up to
a constant, kappa = (s/T^rho + c)/(c - o) per response: alpha for pi_ref^alpha, 1 for pi_ref exp(lambda r). A linear one
(c = o) stays, or jumps to another vertex. With N = sum a constant in delta changes no optimum, so that l_ref + delta
need not be normalised; with a length normalisation it counts, because it is divided by the length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import integrate, special, stats
from torch import Tensor

from bsharp.algorithm import Objective, optimum_log_weights, tempered
from bsharp.algorithm.objectives import TIE_TOLERANCE
from bsharp.statistics.intervals import Estimate
from bsharp.theory.targets import covariance, expectation, power
from bsharp.theory.world import FiniteWorld

__all__ = [
    "AmplificationCurve",
    "Flip",
    "OptimumChange",
    "amplification_curve",
    "binomial_share",
    "flip_distance",
    "flip_probability",
    "flip_share_under_table_noise",
    "optimum_change",
    "response_values",
    "table_perturbation",
    "tied",
    "total_variation_bound",
    "value_sensitivity",
]


def response_values(
    world: FiniteWorld, objective: Objective, base_logprob: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """v(y) = w r + s l_ref / T^rho + c l_ref, so that J = E_pi[v] + h H(pi) with h = c - o; nats.

    `base_logprob` replaces the world's l_ref. -inf for responses of base probability 0.
    """
    # optimum_log_weights is v / h; with o = c - 1 the entropy weight h is 1, and o is in no v.
    unit = dataclasses.replace(objective, own_loglikelihood=objective.kl_to_base - 1.0)
    logprob = world.base_logprob if base_logprob is None else base_logprob
    return optimum_log_weights(unit, logprob, world.lengths, world.rewards)


def tied(values: Float[Tensor, "*batch N"]) -> Bool[Tensor, "*batch N"]:
    """Which responses share the largest value, within the relative tolerance of `optimum_log_weights`."""
    best = values.amax(-1, keepdim=True)
    return values >= best - TIE_TOLERANCE * best.abs().clamp(min=1.0)


def value_sensitivity(world: FiniteWorld, objective: Objective) -> Float[Tensor, " N"]:
    """dv(y)/dl_ref(y) = s / T^rho + c of each response; 0 outside the base's support, and where the base does not count."""
    logprob = world.base_logprob.requires_grad_(True)
    values = response_values(world, objective, logprob)
    (slope,) = torch.autograd.grad(values[values > -math.inf].sum(), logprob, allow_unused=True)
    return torch.zeros_like(values) if slope is None else slope


def table_perturbation(world: FiniteWorld, noise: Float[Tensor, "K V"]) -> Float[Tensor, " N"]:
    """delta(y) = log pi_ref'(y) - log pi_ref(y) for a base whose next-token logits are moved by `noise`, nats.

    Every prefix is normalised by itself, so that sum_y pi_ref(y) e^delta(y) = 1: the base stays a base.
    """
    moved = world.with_table(world.base_table() + noise).base_logprob
    return torch.where(world.base_logprob > -math.inf, moved - world.base_logprob, 0.0)


def total_variation_bound(amplification: float, size: float) -> float:
    """tanh(amplification size / 2): the furthest that a perturbation of |delta| <= `size` nats moves a distribution.

    The total variation between p and p e^(a delta) / Z is at most tanh(a size / 2), for any p and any number of
    responses, reached by delta = +size on a set of probability 1/(1 + e^(a size)) and -size elsewhere. With a = alpha,
    the amplification of pi_ref^alpha, it tends to 1: as alpha grows a perturbation of any size may move all the mass.
    """
    if not (amplification >= 0 and size >= 0):
        raise ValueError(
            f"needs amplification >= 0 and size >= 0, got {amplification} and {size}; give absolute values"
        )
    return math.tanh(amplification * size / 2)


# -------------------------------------------------------------------------------------------------- smooth optima


@dataclass(frozen=True)
class OptimumChange:
    """How a smooth optimum p moves to p' when l_ref moves to l_ref + delta; nats."""

    change: Float[Tensor, " N"]  # log p' - log p, exact; 0 where the base has no probability
    first_order: Float[Tensor, " N"]  # kappa delta - E_p[kappa delta]
    remainder: float  # change - first_order, one number for all responses: -KL(p || p') <= 0
    pairwise_amplification: float  # range of `change` over range of delta, over the support; NaN for a constant delta
    total_variation: float  # 1/2 sum |p' - p|
    total_variation_first_order: float  # 1/2 E_p |first_order|


def optimum_change(world: FiniteWorld, objective: Objective, delta: Float[Tensor, " N"]) -> OptimumChange:
    """The exact and the first-order change of a smooth optimum p = pi* under l_ref -> l_ref + delta.

        log p'(y) - log p(y) = kappa delta - log E_p[exp(kappa delta)]
        first order          = kappa delta - E_p[kappa delta],    kappa = (s / T^rho + c) / (c - o)

    `delta` is log pi_ref' - log pi_ref, up to a constant where N = sum. EXACT is every difference between two responses:
    log p'(y)/p'(z) moves by kappa(y) delta(y) - kappa(z) delta(z), for pi_ref^alpha by alpha (delta(y) - delta(z)),
    whatever the size of delta. FIRST ORDER is only the constant that all responses share; what it misses is KL(p || p'),
    of second order in delta, between 0 and (range of kappa delta)^2 / 8 (Hoeffding's lemma). Raises ValueError where
    c <= o: such an optimum does not move smoothly, see `flip_distance`; and for a delta that is not finite.
    """
    if objective.entropy_weight <= 0:
        raise ValueError(
            f"the optimum of {objective.describe()} is a vertex and does not move smoothly; use flip_distance"
        )
    _require_finite(delta)
    base = world.base_logprob
    supported = base > -math.inf
    before, after = (
        torch.log_softmax(optimum_log_weights(objective, logprob, world.lengths, world.rewards), -1)
        for logprob in (base, base + delta)
    )
    change = torch.where(supported, after - before, 0.0)
    driven = value_sensitivity(world, objective) / objective.entropy_weight * delta
    first_order = torch.where(supported, driven - expectation(before, driven), 0.0)
    spread = _range(delta[supported])
    return OptimumChange(
        change=change,
        first_order=first_order,
        remainder=float(expectation(before, change - first_order)),
        pairwise_amplification=_range(change[supported]) / spread if spread > 0 else math.nan,
        total_variation=0.5 * float((after.exp() - before.exp()).abs().sum()),
        total_variation_first_order=0.5 * float(expectation(before, first_order.abs())),
    )


@dataclass(frozen=True)
class AmplificationCurve:
    """One perturbation of the base seen through pi_ref^alpha; arrays over alpha."""

    alpha: NDArray[np.float64]
    pairwise_amplification: NDArray[np.float64]  # alpha, exactly
    total_variation: NDArray[np.float64]  # between the two optima
    total_variation_first_order: NDArray[np.float64]
    total_variation_bound: NDArray[np.float64]  # tanh(alpha max|delta| / 2)
    remainder: NDArray[np.float64]  # what the first order of log p_alpha misses, nats
    reward_change: NDArray[np.float64]  # E[r] under the perturbed optimum minus E[r] under the unperturbed
    reward_change_first_order: NDArray[np.float64]  # alpha Cov_{p_alpha}(r, delta)


def amplification_curve(world: FiniteWorld, alphas: Sequence[float], delta: Float[Tensor, " N"]) -> AmplificationCurve:
    """How p_alpha ~ pi_ref^alpha answers l_ref -> l_ref + delta, for each alpha > 0; see `optimum_change`.

    The susceptibility of a figure f, at eps = 0 for l_ref + eps delta, is d/d eps E_{p_alpha}[f] = alpha Cov_{p_alpha}(f,
    delta); here f = r.
    """
    rows = []
    size = float(delta.abs().max())
    for alpha in alphas:
        moved = optimum_change(world, tempered(alpha), delta)
        before = power(world, alpha)
        after = before + moved.change
        rows.append(
            (
                alpha,
                moved.pairwise_amplification,
                moved.total_variation,
                moved.total_variation_first_order,
                total_variation_bound(alpha, size),
                moved.remainder,
                float(expectation(after, world.rewards) - expectation(before, world.rewards)),
                alpha * float(covariance(before, world.rewards, delta)),
            )
        )
    return AmplificationCurve(*np.array(rows, dtype=np.float64).T)


# --------------------------------------------------------------------------------------------------- linear optima


@dataclass(frozen=True)
class Flip:
    """The smallest change of the base that moves a linear optimum."""

    optimum: int  # the response, the first of those tied
    rival: int | None  # the response that overtakes it; None where none can
    gap: float  # v(optimum) - v(rival), in units of J; inf without a rival
    distance: float  # smallest max|delta| after which the rival is tied, nats; inf where the base does not count


def flip_distance(world: FiniteWorld, objective: Objective) -> Flip:
    """The smallest max-norm of a perturbation of l_ref that changes the set of maximisers of a linear J (c = o).

        min over rivals z of (v(y*) - v(z)) / (|kappa(y*)| + |kappa(z)|),    kappa = dv/dl_ref = s / T^rho + c

    For N = sum and s = 1 half the gap in l_ref to the second likeliest response. Reached by lowering y* and raising z by
    the distance; no smaller delta does it, whether l_ref + delta is normalised or not. 0 for tied optima; inf for the
    task reward, whose optima the base does not touch as long as it gives them any probability. Raises ValueError where
    c != o.
    """
    values, slopes = _linear_values(world, objective)
    best = int(values.argmax())
    reach = slopes[best] + slopes
    gaps = torch.where(tied(values), 0.0, values[best] - values)
    distance = torch.where(reach > 0, gaps / reach, math.inf)
    distance[best] = math.inf
    rival = int(distance.argmin())
    if not math.isfinite(float(distance[rival])):
        return Flip(best, None, math.inf, math.inf)
    return Flip(best, rival, float(gaps[rival]), float(distance[rival]))


def flip_probability(world: FiniteWorld, objective: Objective, sd: float) -> float:
    """Probability that independent normal noise of standard deviation `sd` nats on every l_ref(y) moves a linear optimum.

        1 - integral phi(x) prod_{z != y*} Phi((v(y*) - v(z) + |kappa(y*)| sd x) / (|kappa(z)| sd)) dx

    by quadrature (absolute error below 1e-8); l_ref + noise is not normalised again, which for N = sum makes no
    difference. Two responses: Phi(-gap / (sd sqrt(kappa(y*)^2 + kappa(z)^2))), near a tie 1/2. 0 for the task reward; of
    tied responses the first counts as the optimum. Raises ValueError where c != o or sd <= 0.
    """
    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"flip_probability needs sd > 0, got {sd}; give a positive number of nats")
    values, slopes = _linear_values(world, objective)
    best = int(values.argmax())
    if not bool(slopes.any()):
        return 0.0
    others = torch.ones_like(values, dtype=torch.bool).index_fill(0, torch.tensor(best), False) & (values > -math.inf)
    gaps, widths = (values[best] - values[others]).numpy(), (slopes[others] * sd).numpy()
    own = float(slopes[best]) * sd

    def stays(x: float) -> float:
        return math.exp(special.log_ndtr((gaps + own * x) / widths).sum() - x * x / 2) / math.sqrt(2 * math.pi)

    probability, _ = integrate.quad(stays, -12.0, 12.0, epsabs=1e-10, epsrel=1e-10, limit=400)
    return min(max(1.0 - probability, 0.0), 1.0)


def flip_share_under_table_noise(
    world: FiniteWorld, objective: Objective, sd: float, draws: int, rng: np.random.Generator
) -> Estimate:
    """Share of `draws` perturbed next-token tables under which the set of maximisers of a linear J changes.

    Normal noise of standard deviation `sd` on every next-token logit: the perturbation of an autoregressive base, whose
    responses share prefixes and so do not move independently. Monte Carlo, with the exact binomial 95 % interval.
    """
    values, _ = _linear_values(world, objective)
    chosen = tied(values)
    flips = 0
    for _ in range(draws):
        noise = torch.as_tensor(rng.normal(scale=sd, size=(world.num_prefixes, world.vocab_size)))
        moved = response_values(world, objective, world.base_logprob + table_perturbation(world, noise))
        flips += not torch.equal(tied(moved), chosen)
    return binomial_share(flips, draws, "perturbed bases")


def binomial_share(count: int, total: int, unit: str) -> Estimate:
    """count/total with the exact (Clopper–Pearson) 95 % interval; 0 of n still has an upper end."""
    interval = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    return Estimate(count / total, float(interval.low), float(interval.high), total, unit)


def _linear_values(world: FiniteWorld, objective: Objective) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    if objective.entropy_weight != 0:
        raise ValueError(
            f"flips are about linear objectives (c = o), got {objective.describe()}; use optimum_change where c > o"
        )
    return response_values(world, objective), value_sensitivity(world, objective).abs()


def _range(values: Float[Tensor, " M"]) -> float:
    return float(values.max() - values.min())


def _require_finite(delta: Float[Tensor, " N"]) -> None:
    if not bool(delta.isfinite().all()):
        raise ValueError("a perturbation must be finite; set it to 0 where the base has no probability")
