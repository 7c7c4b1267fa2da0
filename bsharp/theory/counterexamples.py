"""Bases for which a statement that is only typical fails, found by a seeded search over random bases.

Each phenomenon names the statement it breaks and measures by how much a base breaks it. The search reports the base that
breaks it most, with the figures that prove it, and how many of the bases that the statement speaks of break it: one that
begins with "where" or "that falls" says nothing about other bases. The share counts bases that break it by more than a
margin, so it is a lower bound, and it is about the family of random bases searched, not about language models. The last
three are searched although a theorem excludes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bsharp.algorithm import entropy_minimisation, sharpening, task_reward
from bsharp.statistics.intervals import Estimate
from bsharp.statistics.samples import undefined
from bsharp.theory.dynamics import gradient_flow
from bsharp.theory.natural import autoregressive_at_base, cosine, tabular_at_base
from bsharp.theory.policy_gradient import exact_gradient
from bsharp.theory.score_noise import softmax_gradient_noise
from bsharp.theory.stability import binomial_share
from bsharp.theory.targets import correlation, covariance, expectation, moments, power, tilt, variance
from bsharp.theory.world import FiniteWorld, random_world

__all__ = ["PHENOMENA", "Example", "Family", "Find", "Phenomenon", "search", "search_all"]

ALPHAS = tuple(float(alpha) for alpha in np.geomspace(1.0, 16.0, 25))
LAMBDAS = tuple(float(lam) for lam in np.linspace(0.0, 20.0, 21))
GROUP_SIZE = 8
DRAWS = 8  # the k of pass@k
FLOW_TIME = 500.0  # 1 / nats
ROUNDING = 1e-12

Figures = dict[str, float]


@dataclass(frozen=True)
class Family:
    """Random bases of one shape, see `random_world`; one half of the responses is right, whatever their likelihood."""

    vocab_size: int = 3
    max_length: int = 4
    scale: float = 1.0
    success_share: float = 0.5

    def world(self, seed: int) -> FiniteWorld:
        """The base of this seed."""
        return random_world(seed, self.vocab_size, self.max_length, scale=self.scale, success_share=self.success_share)


@dataclass(frozen=True)
class Phenomenon:
    """A way in which a base can break a typical statement."""

    typical: str  # the statement that it breaks
    unit: str  # of the margin
    least: float  # margin beyond which a base counts
    measure: Callable[[Sequence[FiniteWorld]], tuple[float, Figures]]
    """The margin and the figures that prove it; NaN where the statement does not speak of the base."""
    prompts: int = 1  # worlds it needs
    theorem: bool = False  # no base can have it
    bases: int = 500  # searched unless told otherwise; fewer where a base takes long


@dataclass(frozen=True)
class Example:
    """A base, given by its seeds, and the figures that prove what it shows."""

    family: Family
    seeds: tuple[int, ...]  # one per prompt
    margin: float
    figures: Figures

    @property
    def worlds(self) -> tuple[FiniteWorld, ...]:
        """The base again, one world per prompt."""
        return tuple(self.family.world(seed) for seed in self.seeds)


@dataclass(frozen=True)
class Find:
    """What a search found."""

    name: str
    phenomenon: Phenomenon
    example: Example | None  # the base that shows it most clearly; None where no searched base has it
    found: int  # bases that break the statement by more than the least margin
    applicable: int  # bases that the statement speaks of
    searched: int
    share: Estimate  # found / applicable with the exact binomial 95 % interval; a lower bound, because of the margin


def search(name: str, bases: int | None = None, family: Family | None = None) -> Find:
    """Searches random bases of a family for the phenomenon `name` (a key of PHENOMENA).

    Deterministic: base b of a phenomenon of P prompts has the seeds bP … bP + P - 1. Raises ValueError for an unknown name
    and for bases < 1.
    """
    if name not in PHENOMENA:
        raise ValueError(f"unknown phenomenon {name!r}; known: {', '.join(PHENOMENA)}")
    phenomenon, family = PHENOMENA[name], family or Family()
    bases = phenomenon.bases if bases is None else bases
    if bases < 1:
        raise ValueError(f"search needs bases >= 1, got {bases}; 300 take seconds")
    best, found, applicable = None, 0, 0
    for base in range(bases):
        seeds = tuple(range(base * phenomenon.prompts, (base + 1) * phenomenon.prompts))
        margin, figures = phenomenon.measure([family.world(seed) for seed in seeds])
        applicable += not math.isnan(margin)
        if margin > phenomenon.least:
            found += 1
            if best is None or margin > best.margin:
                best = Example(family, seeds, margin, figures)
    unit = "random bases"
    none = undefined(unit, f"the statement speaks of none of the {bases} bases")
    share = binomial_share(found, applicable, unit) if applicable else none
    return Find(name, phenomenon, best, found, applicable, bases, share)


def search_all(bases: int | None = None, family: Family | None = None) -> list[Find]:
    """`search` for every phenomenon, in the order of PHENOMENA; about a minute by default."""
    return [search(name, bases, family) for name in PHENOMENA]


# ------------------------------------------------------------------------------------------------------ the measures


def _accuracy(world: FiniteWorld, alpha: float) -> float:
    """E[r] under pi_ref^alpha; alpha = inf: the mean over the modes."""
    if math.isinf(alpha):
        return float(world.rewards[world.base_logprob == world.base_logprob.max()].mean())
    return float(expectation(power(world, alpha), world.rewards))


def _lengthens(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    lengths = world.lengths.double()
    slope = float(covariance(world.base_logprob, lengths, world.base_logprob))
    mode = int(world.base_logprob.argmax())
    means = {f"E[T] at alpha={a:g}": float(expectation(power(world, a), lengths)) for a in (1.0, 2.0, 4.0)}
    return slope, {"Cov(T, l_ref)": slope, **means, "T of the mode": float(lengths[mode])}


def _mean_shortens(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    lengths = world.lengths.double()
    slope = float(covariance(world.base_logprob, lengths, world.base_logprob / lengths))
    means = {f"E[T] at alpha={a:g}": float(expectation(power(world, a, "mean"), lengths)) for a in (1.0, 2.0, 4.0)}
    return -slope, {"Cov(T, l_ref/T)": slope, **means}


def _turns(worlds: Sequence[FiniteWorld], sign: int) -> tuple[float, Figures]:
    """sign = +1: accuracy falls below that of the base and rises above it later; -1: rises, then falls below.

    The margin is the largest, over pairs of an earlier and a later alpha, of the smaller of the two changes; what the path
    does afterwards does not matter.
    """
    (world,) = worlds
    alphas = (*ALPHAS, math.inf)
    gains = np.array([_accuracy(world, alpha) for alpha in alphas])
    change = sign * (gains - gains[0])
    margins = np.minimum(-np.minimum.accumulate(change), change)
    second = int(np.where(margins == margins.max(), change, -math.inf).argmax())
    first = int(change[: second + 1].argmin())
    turns = change.min() < -ROUNDING
    return float(margins[second]) if turns else math.nan, {
        "E[r] at alpha=1": float(gains[0]),
        "first turn at alpha": alphas[first],
        "E[r] there": float(gains[first]),
        "then at alpha": alphas[second],
        "E[r] at that": float(gains[second]),
    }


def _misleading_correlation(worlds: Sequence[FiniteWorld], sign: int) -> tuple[float, Figures]:
    """sign = +1: likelihood predicts correctness, yet the mode is wrong; -1: the reverse."""
    (world,) = worlds
    limit = _accuracy(world, math.inf)
    related = float(correlation(world.base_logprob, world.rewards, world.base_logprob))
    if not sign * related > 0:
        return math.nan, {}
    misled = limit == (0.0 if sign > 0 else 1.0)
    figures = {"Corr(r, l_ref)": related}
    figures |= {f"E[r] at alpha={alpha:g}": _accuracy(world, alpha) for alpha in (1.0, 2.0, math.inf)}
    return sign * related if misled else -math.inf, figures


def _opposite_cosines(worlds: Sequence[FiniteWorld], autoregressive: bool) -> tuple[float, Figures]:
    (world,) = worlds
    log_policy, parameters = (autoregressive_at_base if autoregressive else tabular_at_base)(world)
    task, sharp = (exact_gradient(log_policy, parameters, world, regime) for regime in (task_reward(), sharpening()))
    euclidean = cosine(task, sharp)
    natural = float(correlation(world.base_logprob, world.rewards, world.base_logprob))
    margin = min(abs(euclidean), abs(natural))
    return margin if euclidean * natural < 0 else -margin, {"Euclidean cosine": euclidean, "Corr(r, l_ref)": natural}


def _less_noisy(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    base, table = world.base_logprob, world.base_table()
    reward, sharp = (
        softmax_gradient_noise(world, regime, table, GROUP_SIZE).signal_to_noise
        for regime in (task_reward(), sharpening())
    )
    spread, reward_spread = float(variance(base, base)), float(variance(base, world.rewards))
    figures = {"Var(r)": reward_spread, "Var(l_ref)": spread, "SNR of r": reward, "SNR of l_ref": sharp}
    return math.log(sharp / reward) if spread > reward_spread else math.nan, figures


def _pass_at_k(accuracies: Sequence[float]) -> float:
    return float(np.mean([1 - (1 - accuracy) ** DRAWS for accuracy in accuracies]))


def _pass_falls(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    before, after = ([_accuracy(world, alpha) for world in worlds] for alpha in (1.0, 2.0))
    gain = float(np.mean(after) - np.mean(before))
    loss = _pass_at_k(before) - _pass_at_k(after)
    return min(gain, loss) if gain > ROUNDING else math.nan, {
        "E[r] at alpha=1": float(np.mean(before)),
        "E[r] at alpha=2": float(np.mean(after)),
        f"pass@{DRAWS} at alpha=1": _pass_at_k(before),
        f"pass@{DRAWS} at alpha=2": _pass_at_k(after),
    }


def _mean_raises_entropy(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    entropies = {alpha: moments(power(world, alpha, "mean"), world).entropy for alpha in (1.0, 2.0)}
    return entropies[2.0] - entropies[1.0], {f"H at alpha={alpha:g}": value for alpha, value in entropies.items()}


def _raises_entropy(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    entropies = np.array([moments(power(world, alpha), world).entropy for alpha in ALPHAS])
    step = int(np.diff(entropies).argmax())
    return float(entropies[step + 1] - entropies[step]), {
        "alpha": ALPHAS[step],
        "H there": float(entropies[step]),
        "H at the next": float(entropies[step + 1]),
    }


def _tilting_lowers(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    (world,) = worlds
    gains = np.array([float(expectation(tilt(world, lam), world.rewards)) for lam in LAMBDAS])
    step = int(np.diff(gains).argmin())
    return float(gains[step] - gains[step + 1]), {
        "lambda": LAMBDAS[step],
        "E[r] there": float(gains[step]),
        "E[r] at the next": float(gains[step + 1]),
    }


def _leaves_the_mode(worlds: Sequence[FiniteWorld]) -> tuple[float, Figures]:
    """Entropy minimisation by exact Euclidean gradient flow on logits per prefix, from the base.

    A response that holds 0.99 keeps growing: each of its tokens then scores above every other token at its prefix.
    """
    (world,) = worlds
    log_policy, table = autoregressive_at_base(world)
    end = gradient_flow(log_policy, table, world, entropy_minimisation(), [FLOW_TIME], 1e-6, 1e-9).log_policies[-1]
    base = world.base_logprob
    mode, last = int(base.argmax()), int(end.argmax())
    figures = {
        "pi_ref of the mode": float(base[mode].exp()),
        "pi_ref of the end": float(base[last].exp()),
        "pi of the end": float(end[last].exp()),
        "T of the mode": float(world.lengths[mode]),
        "T of the end": float(world.lengths[last]),
    }
    return float(base[mode] - base[last]) if figures["pi of the end"] > 0.99 else -math.inf, figures


PHENOMENA: dict[str, Phenomenon] = {
    "sharpening_lengthens": Phenomenon(
        "sharpening by sum shortens responses: Cov(T, l_ref) < 0", "Cov(T, l_ref)", 0.01, _lengthens
    ),
    "mean_shortens": Phenomenon(
        "sharpening by mean lengthens responses: Cov(T, l_ref/T) > 0", "-Cov(T, l_ref/T)", 0.01, _mean_shortens
    ),
    "mean_raises_entropy": Phenomenon(
        "pi_ref exp((alpha-1) l_ref/T) has less entropy at alpha = 2 than at 1", "nats", 0.01, _mean_raises_entropy
    ),
    "falls_then_rises": Phenomenon(
        "accuracy that falls along alpha stays below the base's", "accuracy", 0.01, lambda worlds: _turns(worlds, 1)
    ),
    "rises_then_falls": Phenomenon(
        "accuracy that rises along alpha stays above the base's", "accuracy", 0.01, lambda worlds: _turns(worlds, -1)
    ),
    "positive_correlation_wrong_mode": Phenomenon(
        "where Corr(r, l_ref) > 0 the likeliest response is right",
        "Corr(r, l_ref)",
        0.05,
        lambda worlds: _misleading_correlation(worlds, 1),
    ),
    "negative_correlation_right_mode": Phenomenon(
        "where Corr(r, l_ref) < 0 the likeliest response is wrong",
        "-Corr(r, l_ref)",
        0.05,
        lambda worlds: _misleading_correlation(worlds, -1),
    ),
    "opposite_cosine_tabular": Phenomenon(
        "the Euclidean cosine has the sign of Corr(r, l_ref) (one logit per response)",
        "smaller of the two sizes",
        0.02,
        lambda worlds: _opposite_cosines(worlds, False),
    ),
    "opposite_cosine_autoregressive": Phenomenon(
        "the Euclidean cosine has the sign of Corr(r, l_ref) (logits per prefix)",
        "smaller of the two sizes",
        0.02,
        lambda worlds: _opposite_cosines(worlds, True),
    ),
    "larger_variance_less_noise": Phenomenon(
        "where Var(l_ref) > Var(r), sharpening's gradient is the noisier relative to its signal",
        "log ratio of the signal-to-noise ratios",
        0.0,
        _less_noisy,
    ),
    "pass_at_k_falls": Phenomenon(
        f"where powering raises mean accuracy it raises mean pass@{DRAWS} (4 problems)",
        "smaller of the two changes",
        0.005,
        _pass_falls,
        prompts=4,
    ),
    "entropy_flow_leaves_the_mode": Phenomenon(
        "entropy minimisation by gradient flow ends in the base's mode (logits per prefix)",
        "nats between mode and end under the base",
        0.01,
        _leaves_the_mode,
        bases=100,
    ),
    "pass_at_k_falls_on_one_problem": Phenomenon(
        f"where powering raises a problem's accuracy it raises its pass@{DRAWS}",
        "smaller of the two changes",
        ROUNDING,
        _pass_falls,
        theorem=True,
    ),
    "sharpening_raises_entropy": Phenomenon(
        "the entropy of pi_ref^alpha falls along alpha >= 1", "nats", ROUNDING, _raises_entropy, theorem=True
    ),
    "tilting_lowers_accuracy": Phenomenon(
        "E[r] under pi_ref exp(lambda r) rises along lambda", "accuracy", ROUNDING, _tilting_lowers, theorem=True
    ),
}
