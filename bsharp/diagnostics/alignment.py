"""How the gradients of several objectives agree on the same rollouts: cosines, their noise, and the signal in each.

Two inner products are in use and each figure names its own. Euclidean: that of the network's parameters, in which an
optimizer's step is taken. Fisher: for a softmax table at π = π_ref the cosine of the natural gradients of E[R_a] and E[R_b]
is the correlation of the scores, Σ_x Cov_x(R_a, R_b) / √(Σ_x Var_x R_a · Σ_x Var_x R_b); it needs no network at all.

Three Euclidean figures answer three questions. The cosine of two objectives says how the two gradients of THIS batch agree;
both come from the same rollouts and share their noise, which may add to it or take from it. The noise floor is the cosine
of an objective with ITSELF between halves of the batch: near 0 the batch says nothing about where that objective points. It
bounds no cosine between objectives, which may exceed it by the noise they share. The debiased cosine is about the expected
gradients, without any noise of a batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bsharp.algorithm import Objective, task_reward
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.diagnostics.objective_gradients import MEGABYTES, ObjectiveGradients, objective_gradients
from bsharp.models.loading import LanguageModel
from bsharp.rollouts import RolloutBatch
from bsharp.seeding import generator
from bsharp.statistics import Estimate, within_problem_correlation
from bsharp.statistics.gradient_noise import GradientNoise, gradient_noise

__all__ = ["Alignment", "alignment_point", "gradient_probe"]

Array = NDArray[np.float64]
NO_GRADIENT = "every advantage is 0: no gradient"
NO_SPREAD = "the scores differ within no problem: no correlation"
NO_SIGNAL = "the squared norm of the expected gradient is estimated at 0 or below"
LEVEL = 0.95


def alignment_point(
    policy: LanguageModel,
    base: LanguageModel,
    batch: RolloutBatch,
    objectives: Mapping[str, Objective],
    algorithm: AlgorithmConfig,
    sampling: SamplingConfig,
    *,
    checkpoint: str,
    step: int,
    microbatch_rows: int,
    seed: int,
    megabytes: float = MEGABYTES,
) -> dict[str, Any]:
    """Everything `Alignment` knows about rollouts of one checkpoint, as JSON values.

    `batch` holds rollouts of `policy`, B rows; see `objective_gradients` for what is differentiated and what it raises.
    Keys: checkpoint, step, problems, samples (rows that count), objectives; "advantage" (the one used: leave_one_out in place of
    gae); "euclidean": cosine "matrix", "noise_floor" and "debiased" matrix; "groups": the first two per module group, and each
    objective's "share_of_norm" (squared); "fisher": matrix of score correlations; "variance": variance_trace and
    signal_squared in (score per parameter)², and their ratio. Intervals are 95 %: jackknife over blocks of problems for
    gradients, bootstrap over problems for scores. What is undefined is null, with a note where it is an estimate.

    `megabytes` bounds the memory of the gradients (see `objective_gradients`): fewer blocks, and so wider intervals, where they
    do not fit. Where not even two do, all figures of gradients are null and "note" says what they would need.
    """
    gradients = objective_gradients(
        policy, base, batch, objectives, algorithm, sampling,
        microbatch_rows=microbatch_rows, seed=seed, megabytes=megabytes, allow_missing=True,
    )  # fmt: skip
    gradients = _with_advice(gradients, "--gradient-megabytes of `bsharp diagnose`")
    figures = Alignment(gradients)
    names = gradients.names
    count = range(len(names))
    norms = np.maximum(np.diagonal(_inner(gradients.total)), 0.0)
    groups = {}
    for group, products in gradients.groups.items():
        own = np.diagonal(_inner(products))
        groups[group] = {
            "matrix": _numbers(_cosine(_inner(products))),
            "noise_floor": _numbers(_noise_floor(products)),
            "share_of_norm": _numbers(np.divide(own, norms, out=np.full(len(names), np.nan), where=norms > 0)),
        }
    variance = [
        {"objective": name} | {key: item.as_json() for key, item in figures.noise(index).items()}
        for index, name in enumerate(names)
    ]
    return {
        "checkpoint": checkpoint,
        "step": step,
        "problems": len(gradients.problem_shares),
        "samples": gradients.scores.shape[1],
        "objectives": list(names),
        "advantage": gradients.advantage,
        "euclidean": {
            "matrix": [[figures.cosine(a, b).as_json() for b in count] for a in count],
            "noise_floor": [figures.noise_floor(a).as_json() for a in count],
            "debiased": [[figures.debiased_cosine(a, b).as_json() for b in count] for a in count],
        },
        "groups": groups,
        "fisher": {"matrix": [[item.as_json() for item in row] for row in figures.fisher_estimates(seed)]},
        "variance": variance,
    } | _note(gradients)


def gradient_probe(
    policy: LanguageModel,
    base: LanguageModel,
    batch: RolloutBatch,
    objectives: Mapping[str, Objective],
    algorithm: AlgorithmConfig,
    sampling: SamplingConfig,
    *,
    step: int,
    microbatch_rows: int,
    seed: int,
    megabytes: float = MEGABYTES,
) -> dict[str, Any]:
    """The cheap part of `alignment_point`, for one row of a trace: matrices without intervals, and no module groups.

    "task" is the name of the first objective that is the task reward alone, to whose gradient "cosine_to_task" compares
    every objective; without one it is null and so are the cosines. "norm" is ‖ĝ‖. Else as in `alignment_point`.
    """
    gradients = objective_gradients(
        policy, base, batch, objectives, algorithm, sampling,
        microbatch_rows=microbatch_rows, seed=seed, megabytes=megabytes, allow_missing=True,
    )  # fmt: skip
    gradients = _with_advice(gradients, "watch.gradient_megabytes")
    figures = Alignment(gradients)
    names = gradients.names
    count = range(len(names))
    alone = [name for name, objective in objectives.items() if objective.task > 0 and _only_task(objective)]
    task = names.index(alone[0]) if alone else None
    noise = [figures.noise(index) for index in count]
    unknown = Estimate(math.nan, math.nan, math.nan, 0, "cosine", "no objective is the task reward alone")
    return {
        "schema": 1,
        "step": step,
        "objectives": list(names),
        "advantage": gradients.advantage,
        "problems": len(gradients.problem_shares),
        "group_size": sampling.group_size,
        "task": alone[0] if alone else None,
        "cosine": _numbers(_cosine(_inner(gradients.total))),
        "cosine_to_task": [(unknown if task is None else figures.cosine(a, task)).as_json() for a in count],
        "noise_floor": [figures.noise_floor(a).as_json() for a in count],
        "fisher": _numbers(figures.fisher_matrix()),
        "norm": _numbers(np.sqrt(np.maximum(np.diagonal(_inner(gradients.total)), 0.0))),
        "variance_trace": _numbers(np.array([item["variance_trace"].estimate for item in noise])),
        "signal_squared": _numbers(np.array([item["signal_squared"].estimate for item in noise])),
        "signal_to_noise": [item["signal_to_noise"].as_json() for item in noise],
    } | _note(gradients)


class Alignment:
    """Figures of the batch gradients ĝ_o = Σ_k g_{o,k}, with intervals from the jackknife over blocks of problems.

    Each block is left out in turn; with K blocks the standard error is √((K−1)/K Σ_j (θ_(j) − mean)²) and the interval θ ±
    t_{K−1} times it (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 11), for a cosine on the scale of artanh.
    """

    def __init__(self, gradients: ObjectiveGradients) -> None:
        self._gradients = gradients
        self._total = gradients.total
        self._blocks = self._total.shape[1]
        everything = np.arange(self._blocks)
        self._subsets = [everything, *(np.delete(everything, block) for block in everything)]
        self._inner = [_inner(self._total, kept) for kept in self._subsets]
        self._noise = [self._noise_of(kept, inner) for kept, inner in zip(self._subsets, self._inner, strict=True)]
        self._signal = [
            self._signal_products(kept, inner) for kept, inner in zip(self._subsets, self._inner, strict=True)
        ]
        self._floors: list[Array] | None = None

    def cosine(self, a: int, b: int) -> Estimate:
        """cos(ĝ_a, ĝ_b) of the two batch gradients as they are, their noise included.

        Both come from the same rollouts: the noise that they share may add to the cosine or take from it, so it may be
        above either's noise floor, and above or below the cosine of the expected gradients.
        """
        if reason := self._without_gradient(a, b):
            return self._undefined("cosine", reason)
        if a == b:
            return self._estimate([1.0] * len(self._inner), "cosine")
        return self._estimate([float(_cosine(inner)[a, b]) for inner in self._inner], "cosine", artanh=True)

    def noise_floor(self, a: int) -> Estimate:
        """Mean of cos(ĝ', ĝ'') of the objective with itself, over all ways to deal the blocks to two halves ' and ''.

        The halves share no rollout: it is what noise leaves of a cosine of 1 between independent estimates from half a
        batch each. 1 is no noise; near 0 the batch says nothing about this objective's direction. Full batches would agree
        better; no correction (Spearman-Brown) is applied. It bounds no cosine of two objectives: those share their noise.
        """
        if reason := self._without_gradient(a):
            return self._undefined("cosine", reason)
        if self._floors is None:
            self._floors = [_noise_floor(self._total, kept) for kept in self._subsets]
        return self._estimate([float(floor[a]) for floor in self._floors], "cosine", artanh=True)

    def debiased_cosine(self, a: int, b: int) -> Estimate:
        """⟨E ĝ_a, E ĝ_b⟩ / √(‖E ĝ_a‖² ‖E ĝ_b‖²), each of the three products from pairs of different problems only.

        Σ_{p≠q} ⟨g_{a,p}, g_{b,q}⟩ / (1 − Σ_p s_p²), s_p the shares of rows, holds no product of a rollout with itself or with
        one of the same problem, and so none of the noise that both objectives take from the same rollouts. Unbiased are the
        products; their ratio is so for many problems only. The ratio may come out beyond ±1 and is cut to [-1, 1], as are the
        ends of its interval, which leaves out blocks of problems. Undefined where a squared norm is estimated at 0 or below.
        """
        if reason := self._without_gradient(a, b):
            return self._undefined("cosine", reason)
        if self._signal[0][a, a] <= 0 or self._signal[0][b, b] <= 0:
            return self._undefined("cosine", NO_SIGNAL)
        if a == b:
            return self._estimate([1.0] * len(self._inner), "cosine")
        values = []
        for signal in self._signal:
            scale = signal[a, a] * signal[b, b]
            values.append(signal[a, b] / math.sqrt(scale) if min(signal[a, a], signal[b, b]) > 0 else math.nan)
        return self._estimate(values, "cosine", bounds=(-1.0, 1.0))

    def noise(self, a: int) -> dict[str, Estimate]:
        """variance_trace tr Cov(ĝ), signal_squared ‖E ĝ‖² and their ratio signal_to_noise; see `gradient_noise`.

        From every problem's own contribution, unbiased; the ratio of the two is not, and signal_squared may be negative.
        """
        unit = "(score per parameter)²"
        found = [noise[a] for noise in self._noise]
        if reason := self._without_gradient(a):
            return {
                "variance_trace": self._undefined(unit, reason),
                "signal_squared": self._undefined(unit, reason),
                "signal_to_noise": self._undefined("ratio", reason),
            }
        return {
            "variance_trace": self._estimate([item.variance for item in found], unit, bounds=(0.0, math.inf)),
            "signal_squared": self._estimate([item.signal_squared for item in found], unit),
            "signal_to_noise": self._estimate([item.signal_to_noise for item in found], "ratio"),
        }

    def fisher_matrix(self) -> Array:
        """Pooled correlation of the scores within problems, (O, O); NaN for objectives whose scores differ within none."""
        centred = np.where(self._gradients.no_spread[:, None], 0.0, self._gradients.scores)
        products = np.zeros((len(centred), len(centred)))
        for problem in np.unique(self._gradients.score_problems):
            rows = centred[:, self._gradients.score_problems == problem]
            if rows.shape[1] > 1:
                products += np.cov(rows)
        return _cosine(products)

    def fisher_estimates(self, seed: int) -> list[list[Estimate]]:
        """The same with intervals from a bootstrap over problems (`within_problem_correlation`)."""
        gradients, count = self._gradients, len(self._gradients.names)
        undefined = self._undefined("correlation", NO_SPREAD)
        own = Estimate(1.0, 1.0, 1.0, len(gradients.problem_shares), "correlation")
        spread = ~gradients.no_spread
        table = [[own if a == b and spread[a] else undefined for b in range(count)] for a in range(count)]
        for a, b in itertools.combinations(np.flatnonzero(spread).tolist(), 2):
            rng = generator(seed, "fisher", gradients.names[a], gradients.names[b])
            problems = gradients.score_problems.tolist()
            pair = within_problem_correlation(gradients.scores[a], gradients.scores[b], problems, rng=rng)
            table[a][b] = table[b][a] = pair
        return table

    def _estimate(
        self, values: Sequence[float], unit: str, *, artanh: bool = False, bounds: tuple[float, float] | None = None
    ) -> Estimate:
        """The first value, with the jackknife interval from the others."""
        problems = len(self._gradients.problem_shares)
        estimate, left_out = values[0], np.array(values[1:])
        if not math.isfinite(estimate):
            return self._undefined(unit, "needs two problems whose scores differ")
        if not np.isfinite(left_out).all() or len(left_out) < 3:
            note = "too few blocks for an interval" if len(left_out) < 3 else "undefined with one block left out"
            return Estimate(
                float(np.clip(estimate, *(bounds or (-math.inf, math.inf)))), math.nan, math.nan, problems, unit, note
            )
        forward, back = (_artanh, math.tanh) if artanh else (float, float)
        spread = np.array([forward(value) for value in left_out])
        error = math.sqrt((len(spread) - 1) * spread.var())
        reach = float(special.stdtrit(len(spread) - 1, (1 + LEVEL) / 2)) * error
        low, high = back(forward(estimate) - reach), back(forward(estimate) + reach)
        if bounds is not None:
            estimate, low, high = (float(np.clip(value, *bounds)) for value in (estimate, low, high))
        return Estimate(estimate, min(low, estimate), max(high, estimate), problems, unit)

    def _without_gradient(self, *objectives: int) -> str:
        """Why one of them has no gradient, or ""."""
        return self._gradients.missing or (NO_GRADIENT if self._gradients.flat[list(objectives)].any() else "")

    def _undefined(self, unit: str, note: str) -> Estimate:
        return Estimate(math.nan, math.nan, math.nan, len(self._gradients.problem_shares), unit, note)

    def _noise_of(self, kept: NDArray[np.intp], inner: Array) -> list[GradientNoise]:
        """Noise of every objective from the problems of the kept blocks, for a batch of the full size."""
        problems = np.isin(self._gradients.problem_block, kept)
        shares = self._gradients.problem_shares[problems]
        if len(shares) < 2:
            return [GradientNoise(float(norm), math.nan, math.nan) for norm in np.diagonal(inner)]
        kept_share = float(shares.sum())
        own = np.diagonal(self._gradients.problem_products[problems], axis1=1, axis2=2)
        found = []
        for a in range(len(inner)):
            part = gradient_noise(own[:, a].tolist(), shares.tolist(), float(inner[a, a]))
            # A part of the batch scaled up to a mean of its own has 1/share the variance of the whole batch's mean.
            found.append(
                GradientNoise(
                    part.norm_squared / kept_share**2, part.variance / kept_share, part.signal_squared / kept_share**2
                )
            )
        return found

    def _signal_products(self, kept: NDArray[np.intp], inner: Array) -> Array:
        """Unbiased ⟨E ĝ_a, E ĝ_b⟩ from pairs of different problems of the kept blocks, (O, O)."""
        problems = np.isin(self._gradients.problem_block, kept)
        shares = self._gradients.problem_shares[problems]
        if len(shares) < 2:
            return np.full(inner.shape, np.nan)
        across = inner - self._gradients.problem_products[problems].sum(axis=0)
        return np.asarray(across / (float(shares.sum()) ** 2 - float((shares**2).sum())))


def _with_advice(gradients: ObjectiveGradients, setting: str) -> ObjectiveGradients:
    return replace(gradients, missing=f"{gradients.missing}; raise {setting}") if gradients.missing else gradients


def _note(gradients: ObjectiveGradients) -> dict[str, str]:
    return {"note": gradients.missing} if gradients.missing else {}


def _only_task(objective: Objective) -> bool:
    return objective.as_dict() | {"task": 1.0} == task_reward().as_dict()


def _inner(products: Array, kept: NDArray[np.intp] | None = None) -> Array:
    """⟨Σ_k g_{o,k}, Σ_l g_{p,l}⟩ over the kept blocks, (O, O)."""
    if kept is not None:
        products = products[:, kept][:, :, :, kept]
    inner = products.sum(axis=(1, 3))
    return np.asarray((inner + inner.T) / 2)


def _cosine(inner: Array) -> Array:
    """Cosines from inner products, (O, O); 1 on the diagonal, NaN beside a vector of length 0."""
    norms = np.sqrt(np.maximum(np.diagonal(inner), 0.0))
    scale = np.outer(norms, norms)
    cosine: Array = np.divide(inner, scale, out=np.full(inner.shape, np.nan), where=scale > 0).clip(-1.0, 1.0)
    cosine[np.diag_indices_from(cosine)] = np.where(norms > 0, 1.0, np.nan)
    return cosine


def _noise_floor(products: Array, kept: NDArray[np.intp] | None = None) -> Array:
    """Mean over the splits of the blocks into halves of the cosine between them, per objective; (O,)."""
    blocks = np.arange(products.shape[1]) if kept is None else kept
    own = np.einsum("okol->okl", products[:, blocks][:, :, :, blocks])
    size, count = len(blocks) // 2, len(blocks)
    if count < 2:
        return np.full(len(own), np.nan)
    halves = [h for h in itertools.combinations(range(count), size) if count % 2 or 0 in h]
    first = np.zeros((len(halves), count))
    for row, half in enumerate(halves):
        first[row, list(half)] = 1.0
    second = 1.0 - first
    across = np.einsum("hk,okl,hl->oh", first, own, second)
    scale = np.einsum("hk,okl,hl->oh", first, own, first) * np.einsum("hk,okl,hl->oh", second, own, second)
    defined = scale > 0
    cosines = np.divide(across, np.sqrt(np.maximum(scale, 0.0)), out=np.zeros(across.shape), where=defined)
    counts = defined.sum(axis=1)
    return np.asarray(np.divide(cosines.sum(axis=1), counts, out=np.full(len(own), np.nan), where=counts > 0))


def _artanh(value: float) -> float:
    # A cosine of 1 has no error to speak of: 1e-12 below it every figure is rounding.
    return math.atanh(min(max(value, -1.0 + 1e-12), 1.0 - 1e-12))


def _numbers(values: Array) -> Any:
    """Nested lists with null for what is undefined."""
    return (
        [_numbers(row) for row in values]
        if values.ndim > 1
        else [x if math.isfinite(x) else None for x in values.tolist()]
    )
