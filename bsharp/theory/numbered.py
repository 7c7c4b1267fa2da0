"""The numbered statements of docs/theory.md: which function says each, with which settings, and on which worlds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from bsharp.algorithm import (
    Objective,
    entropy_minimisation,
    hybrid,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.theory import statements as say
from bsharp.theory.place import Place
from bsharp.theory.policy_gradient import autoregressive_log_policy, tabular_log_policy
from bsharp.theory.statements import Sides, joined
from bsharp.theory.world import FiniteWorld
from bsharp.theory.worlds import loop

__all__ = ["EXAMPLES", "STATEMENTS", "Example", "Statement"]

SMOOTH: Mapping[str, Objective] = {
    "tilted": tilted(2.0, 5.0),
    "tilted, mean": tilted(2.0, 5.0, "mean"),
    "tempered": tempered(2.0),
    "everything": weighted(0.7, -0.3, 0.2, -0.4, "weighted_mean", 0.25),
}
VERTEX: Mapping[str, Objective] = {
    "task reward": task_reward(),
    "sharpening": sharpening(),
    "sharpening, mean": sharpening("mean"),
    "hybrid": hybrid(1.0, 5.0),
    "entropy minimisation": entropy_minimisation(),
}
ALPHAS = (0.5, 1.0, 2.0, 4.0)
RHOS = (0.0, 0.5, 1.0)
LAMBDAS = (0.5, 2.0, 5.0)


@dataclass(frozen=True)
class Statement:
    """A statement that is true of every world it asks for."""

    name: str  # its number in docs/theory.md
    equation: str
    sides: Callable[[Place], Sides]
    where: Callable[[Place], bool] = lambda place: True  # what it asks of a world


def _over_alpha(statement: Callable[..., Sides], place: Place) -> Sides:
    return joined([statement(place.world, alpha) for alpha in ALPHAS])


def _over_alpha_and_rho(statement: Callable[..., Sides], place: Place) -> Sides:
    return joined([statement(place.world, alpha, rho) for alpha in ALPHAS for rho in RHOS])


def _over_lambda(statement: Callable[..., Sides], place: Place) -> Sides:
    return joined([statement(place.world, lam) for lam in LAMBDAS])


def _over_rho(statement: Callable[..., Sides], place: Place) -> Sides:
    return joined([statement(place.world, rho) for rho in RHOS])


def _replicator(place: Place) -> Sides:
    policies = ((tabular_log_policy, place.policies()[0]), (autoregressive_log_policy(place.world), place.table()))
    objectives = (task_reward(), sharpening(), tilted(2.0, 5.0))
    replicator = say.natural_gradient_is_the_replicator
    return joined([replicator(place.world, objective, *policy) for objective in objectives for policy in policies])


def _odds(place: Place) -> Sides:
    knobs = ((0.5, 0.0), (1.0, 3.0), (4.0, 0.0), (2.0, 3.0))
    return joined([say.odds_are_amplified(place.world, place.delta(), alpha, lam) for alpha, lam in knobs])


def _small_odds_move(place: Place) -> Sides:
    sizes = (0.01, 0.1, 1.0)
    far = say.smooth_optimum_moves_this_far_at_most
    return joined([far(place.world, place.delta(size), alpha) for size in sizes for alpha in (1.0, 4.0)])


def _tight_variance(place: Place) -> Sides:
    p0 = place.world.base_logprob[place.world.rewards >= 0.5].exp().sum()
    half = -torch.logit(p0)  # where a binary reward has E[r] = 1/2
    return say.reward_variance_is_at_most_a_quarter(place.world, torch.stack([half, half + 1, half * 0]))


def _optima() -> Iterator[Statement]:
    yield Statement(
        "O1",
        "J(π) = h log Z − h KL(π‖π*),  h = c − o > 0",
        lambda at: joined(
            [say.objective_falls_by_a_divergence(at.world, o, at.policies()[:3]) for o in SMOOTH.values()]
        ),
    )
    yield Statement(
        "O2",
        "J(π) ≤ J(π*),  h ≤ 0: a vertex",
        lambda at: joined([say.no_policy_beats_the_optimum(at.world, o, at.policies()) for o in VERTEX.values()]),
    )
    yield Statement(
        "O3",
        "log π*/π_ref = −log Z + (α−1) ℓ_ref + λ r",
        lambda at: joined([say.knobs_give_this_log_ratio(at.world, a, lam) for a in ALPHAS for lam in LAMBDAS]),
    )
    yield Statement(
        "G2",
        "∇J = E_π[R ∇ℓ],  ℓ in R a constant",
        lambda at: joined(
            [say.scores_give_the_gradient(at.world, o, at.table()) for o in (*SMOOTH.values(), *VERTEX.values())]
        ),
    )
    yield Statement("G1", "E_π[∇ℓ] = 0", lambda at: say.score_has_mean_zero(at.world, at.table()))


def _paths() -> Iterator[Statement]:
    yield Statement(
        "P1",
        "d/dt E_{p_t}[f] = Cov_{p_t}(f, v),  p_t ∝ q e^{tv}, any f",
        lambda at: say.mean_follows_its_covariance_with_the_score(at.world, at.policies()[1], 1.5, 2.0),
    )
    yield Statement(
        "P2", "d/dα log Z(α) = E_{p_α}[ℓ_ref]", partial(_over_alpha, say.log_partition_is_a_generating_function)
    )
    yield Statement(
        "P3", "d/dα E_{p_α}[N] = Var_{p_α}(N) ≥ 0", partial(_over_alpha_and_rho, say.likelihood_follows_its_variance)
    )
    yield Statement(
        "P4",
        "d/dα KL(p_α‖π_ref) = (α−1) Var_{p_α}(N)",
        partial(_over_alpha_and_rho, say.divergence_grows_along_the_path),
    )
    yield Statement("P5", "d/dα H(p_α) = −α Var_{p_α}(ℓ_ref)", partial(_over_alpha, say.entropy_falls_along_the_path))
    yield Statement(
        "A1",
        "d/dα E_{p_α}[r] = Cov_{p_α}(r, N)",
        partial(_over_alpha_and_rho, say.sharpened_reward_follows_a_covariance),
    )
    yield Statement("A2", "d/dλ E_{p_λ}[r] = Var_{p_λ}(r)", partial(_over_lambda, say.reward_follows_its_variance))
    grid = torch.linspace(0.25, 12.0, 48, dtype=torch.float64)
    yield Statement("A3", "E_{p_λ}[r] ≤ E_{p_μ}[r],  λ ≤ μ", lambda at: say.reward_never_falls(at.world, grid))
    binary = _is_binary
    yield Statement(
        "A4",
        "E_{p_λ}[r] = p₀e^λ/(p₀e^λ + 1 − p₀)",
        partial(_over_lambda, say.tilted_success_in_closed_form),
        binary,
    )
    yield Statement("A5", "E_{p_λ}[r] → 1  (λ → ∞)", lambda at: say.reward_tends_to_one(at.world, 12.0), binary)
    yield Statement(
        "A6",
        "E_{p_α}[r] → r(mode)  (α → ∞)",
        lambda at: say.sharpened_reward_tends_to_the_mode(at.world),
        partial(_untied, rho=0.0),
    )
    yield Statement(
        "A6",
        "E_{p_α}[r] → r(mode of ℓ_ref/T)  (α → ∞)",
        lambda at: say.sharpened_reward_tends_to_the_mode(at.world, rho=1.0),
        partial(_untied, rho=1.0),
    )
    yield Statement(
        "A7",
        "E_{p_α}[r] − E_{π_ref}[r] = ∫₁^α Cov_{p_a}(r, N) da",
        lambda at: joined([say.whole_change_is_the_integral(at.world, 4.0, rho) for rho in RHOS]),
    )


def _is_binary(place: Place) -> bool:
    return place.binary


def _untied(place: Place, rho: float) -> bool:
    return place.gap(rho) > 1e-4


def _alignment() -> Iterator[Statement]:
    yield Statement(
        "B1", "⟨∇J_task, ∇J_sharp⟩_{F⁻¹} = Cov(r, N)", partial(_over_rho, say.fisher_product_is_a_covariance)
    )
    yield Statement("B2", "cos_{F⁻¹}(∇J_task, ∇J_sharp) = Corr(r, N)", partial(_over_rho, say.cosine_is_a_correlation))
    yield Statement(
        "B3",
        "the same cosine on autoregressive logits",
        lambda at: say.cosine_is_a_correlation(at.world, 0.0, "autoregressive"),
    )
    yield Statement(
        "B5",
        "∇J_task · ∇J_sharp = Σ π_ref² (r − E r)(N − E N) on logits",
        partial(_over_rho, say.euclidean_product_weights_by_squares),
    )


def _length() -> Iterator[Statement]:
    yield Statement(
        "C1",
        "d/dα E_{p_α}[T] = Cov_{p_α}(T, N)",
        partial(_over_alpha_and_rho, say.sharpened_length_follows_a_covariance),
    )
    yield Statement(
        "C2",
        "Cov(T, ℓ_ref) = −u Var(T) + (log 1/q − H) Cov(T, 1{T=L})",
        lambda at: say.memoryless_length_covariance(at.world, at.token_distribution(), 0),
        lambda at: at.ends_with_eos,
    )
    rhos = torch.linspace(0.0, 1.0, 21, dtype=torch.float64)
    yield Statement(
        "C3",
        "T(argmax ℓ_ref/T^ρ) ≤ T(argmax ℓ_ref/T^σ),  ρ ≤ σ",
        lambda at: say.stronger_normalisation_is_longer(at.world, rhos),
    )
    yield Statement(
        "C4",
        "p^mean at 1 + T(α−1) = p^sum at α,  T fixed",
        partial(_over_alpha, say.one_path_at_fixed_length),
        lambda at: at.fixed_length,
    )


def _instability() -> Iterator[Statement]:
    yield Statement("D1", "Δ log-odds of π* = α Δ log-odds of π_ref", _odds)
    yield Statement(
        "D2",
        "Δ log p_α(y) = α (δ(y) − E_{p_α}[δ]) + O(δ²)",
        lambda at: say.first_order_change(at.world, at.delta(1e-4), 4.0),
    )
    yield Statement(
        "D3",
        "error(δ)/error(δ/2) → 4  (δ → 0)",
        lambda at: say.halving_quarters_the_error(at.world, at.delta(), 2.0),
    )
    yield Statement(
        "D4",
        "c = 0: TV(π*, π*′) = 0 below the gap, 1 above",
        lambda at: say.sharpened_optimum_jumps(at.world),
        partial(_untied, rho=0.0),
    )
    yield Statement("D5", "TV(p_α, p_α′) ≤ tanh(α range(δ)/4)", _small_odds_move)
    yield Statement(
        "D6",
        "argmax_π E_π[r] under π_ref′: any π on argmax r",
        lambda at: say.reward_optimum_ignores_the_base(at.world, at.delta()),
    )


def _learning() -> Iterator[Statement]:
    yield Statement("E1", "π̇ = π (R − E_π[R]) along F⁺∇J", _replicator)
    yield Statement(
        "E2",
        "log π_t(y)/π_t(y′) = log π₀(y)/π₀(y′) + t (R(y) − R(y′))",
        lambda at: joined(
            [say.gaps_grow_linearly(at.world, o, at.policies()[0], 2.0) for o in (task_reward(), sharpening("mean"))]
        ),
    )
    yield Statement(
        "E3", "flow of E[ℓ_ref] from π_ref: π_t = p_{α=1+t}", partial(_over_lambda, say.flow_of_sharpening_is_the_power)
    )
    yield Statement(
        "E4", "flow of E[r] from π_ref: π_t = p_{λ=t}", partial(_over_lambda, say.flow_of_the_reward_is_the_tilt)
    )
    yield Statement(
        "E5",
        "log π_t/π* = e^{−ht} log π₀/π* + const,  h > 0",
        lambda at: joined(
            [
                say.flow_relaxes_to_the_optimum(at.world, o, at.policies()[0], 2.0)
                for o in (tempered(2.0), tilted(2.0, 5.0))
            ]
        ),
    )
    yield Statement(
        "E7",
        "KL(point mass on the mode‖π_ref) = −ℓ_ref(mode)",
        lambda at: say.point_mass_costs_its_surprise(at.world),
        partial(_untied, rho=0.0),
    )
    yield Statement(
        "E8",
        "KL(π_t‖π_ref) → −ℓ_ref(mode), H(π_t) → 0  (t → ∞)",
        lambda at: say.divergence_tends_to_the_modes_surprise(at.world),
        partial(_untied, rho=0.0),
    )
    yield Statement("E9", "Var_π(r) ≤ 1/4", _tight_variance)
    yield Statement(
        "E10",
        "Var(ℓ_ref) = T Var₁,  memoryless base, T fixed",
        lambda at: say.return_variance_grows_with_length(at.world, at.token_distribution()),
        lambda at: at.fixed_length,
    )


def _keeping() -> Iterator[Statement]:
    yield Statement("F1", "p_λ(y | r = v) = π_ref(y | r = v)", partial(_over_lambda, say.tilt_keeps_conditionals))
    yield Statement(
        "F2", "log-odds inside {r = v} under p_α = α × under π_ref", partial(_over_alpha, say.power_raises_odds_inside)
    )
    yield Statement(
        "F3", "π_ref(y) = 0 ⇒ π*(y) = 0", lambda at: say.support_never_grows(at.world, 2.0, 5.0), _two_right
    )
    yield Statement(
        "F4", "KL(p_λ‖π_ref) = λ E_{p_λ}[r] − log E_{π_ref}[e^{λr}]", partial(_over_lambda, say.tilted_divergence)
    )
    yield Statement(
        "F5", "KL(p_λ‖π_ref) → −log p₀  (λ → ∞)", lambda at: say.reward_costs_log_p0(at.world, 12.0), _is_binary
    )


def _samples() -> Iterator[Statement]:
    yield Statement(
        "S1", "E_{π_ref}[(p_α/π_ref)²] = Z(2α−1)/Z(α)²", partial(_over_alpha, say.weights_have_this_second_moment)
    )
    yield Statement(
        "S3",
        "E[r(likeliest of n)] = Σ r(y_i) ((1 − F_{i−1})ⁿ − (1 − F_i)ⁿ)",
        lambda at: joined([say.likeliest_of_n_in_closed_form(at.world, draws) for draws in (1, 2, 3)]),
    )


def _two_right(place: Place) -> bool:
    return int((place.world.rewards == place.world.rewards.max()).sum()) > 1


@dataclass(frozen=True)
class Example:
    """A statement about all worlds together, or about one world of its own."""

    name: str
    equation: str
    world: str
    sides: Callable[[Sequence[FiniteWorld], int], Sides]  # from all worlds and the seed


STATEMENTS: tuple[Statement, ...] = (
    *_optima(),
    *_paths(),
    *_alignment(),
    *_length(),
    *_instability(),
    *_learning(),
    *_keeping(),
    *_samples(),
)
"""Statements that are true of every world that they ask for."""

LOOP_TOKENS = 9
LOOP_SURPRISE = 0.22 - math.log(0.3)  # of the repetition in `loop`, however long

EXAMPLES: tuple[Example, ...] = (
    Example(
        "B4",
        "cosine over prompts = Σ Cov / √(Σ Var r · Σ Var N)",
        "all as prompts",
        lambda worlds, seed: say.cosine_pools_before_it_divides(worlds),
    ),
    Example(
        "B6",
        "cos(∇J_task, ∇J_sharp) · Corr(r, ℓ_ref) < 0 somewhere",
        "three responses",
        lambda worlds, seed: say.euclidean_cosine_can_have_the_other_sign(say.where_the_cosines_part()),
    ),
    Example(
        "C5",
        "max ℓ_ref/T → 0  (L → ∞), taken by a loop of L tokens",
        f"loop of {LOOP_TOKENS} tokens",
        lambda worlds, seed: say.loop_mean_tends_to_zero(loop(seed, max_length=LOOP_TOKENS), LOOP_SURPRISE),
    ),
    Example(
        "R1",
        "least squares of log π*/π_ref on (ℓ_ref, r) = (α−1, λ)",
        "all as prompts",
        lambda worlds, seed: say.regression_reads_the_knobs(worlds, 1.5, 3.0),
    ),
)
