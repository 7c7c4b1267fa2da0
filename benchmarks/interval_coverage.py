"""Coverage of the 95 % intervals by simulation, as Markdown tables.

    python benchmarks/interval_coverage.py [--simulations 200]

Simulated evaluations look like real ones: every problem has its own success rate, every seed moves all problems by a normal
seed effect and each problem by a small one of its own, and 16 completions per problem are binomial. The truth is the mean
over new problems and new seeds. Compared are a percentile bootstrap over the seeds' means (what is often reported) and
`problem_and_seed_interval`; then the verdict, whose choice of the best rival is part of what must be covered. With 200
simulations a coverage of 95 % is known to about ± 3 points.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bsharp.seeding import generator
from bsharp.statistics import Estimate, gain_beyond_best, paired_difference, problem_and_seed_interval

Array = NDArray[np.float64]
SAMPLES = 16
INTERACTION_SD = 0.03  # of a seed's own effect on one problem, share
PROBLEM_RANGE = 0.3  # success rates are Beta(1/2, 1/2) within a range so narrow that no effect leaves (0, 1)
FAMILIES = 16  # of the stratified case, whose accuracies lie near 1


def base_rates(problems: int, rng: np.random.Generator) -> Array:
    """Success rate of each problem, mean 0.5, within [0.35, 0.65] so that the effects below need no clipping."""
    return 0.5 - PROBLEM_RANGE / 2 + PROBLEM_RANGE * rng.beta(0.5, 0.5, problems)


def accuracies(rates: Array, seed_effects: Array, rng: np.random.Generator) -> Array:
    """(S, P) observed accuracies of SAMPLES completions each."""
    shifted = rates + seed_effects[:, None] + INTERACTION_SD * rng.standard_normal((len(seed_effects), rates.size))
    return rng.binomial(SAMPLES, np.clip(shifted, 0.0, 1.0)) / SAMPLES


def percentile_over_seeds(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    """The interval under suspicion: resample the S seed means, take percentiles."""
    means = values.mean(axis=1)
    draws = means[rng.integers(0, len(means), size=(1000, len(means)))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def covers(interval: Estimate | tuple[float, float], truth: float) -> bool:
    low, high = (interval.low, interval.high) if isinstance(interval, Estimate) else interval
    return low - 1e-12 <= truth <= high + 1e-12


def simulate_mean(seeds: int, problems: int, seed_sd: float, simulations: int) -> tuple[float, float, float]:
    """Coverage of the percentile bootstrap over seeds and of ours, and our mean half-width in points; truth 0.5."""
    hits, width = np.zeros(2), 0.0
    for index in range(simulations):
        rng = generator(0, "mean", seeds, problems, str(seed_sd), index)
        values = accuracies(base_rates(problems, rng), seed_sd * rng.standard_normal(seeds), rng)
        ours = problem_and_seed_interval(values, rng=rng, replicates=400)
        hits += covers(percentile_over_seeds(values, rng), 0.5), covers(ours, 0.5)
        width += 50 * (ours.high - ours.low)
    return hits[0] / simulations, hits[1] / simulations, width / simulations


def near_one_rates(families: Array, seed_effects: Array, rng: np.random.Generator) -> Array:
    """(S, P) success rates near 1: Beta(a, 1/2) by problem, a from 2 to 17 by family, moved by seed on the logit scale."""
    rates = np.clip(rng.beta(2.0 + families, 0.5), 1e-9, 1 - 1e-9)
    logits = np.log(rates / (1 - rates))
    return 1 / (1 + np.exp(-(logits + seed_effects[:, None])))


def simulate_near_one(seeds: int, problems: int, seed_sd: float, simulations: int) -> tuple[float, float, float]:
    """The same for a stratified set of problems with accuracies near 1; the truth by 10⁶ draws of problem and seed."""
    families = np.arange(problems) % FAMILIES
    rng = generator(0, "near one truth", str(seed_sd))
    many = np.arange(10_000) % FAMILIES
    truth = float(np.mean([near_one_rates(many, seed_sd * rng.standard_normal(1), rng).mean() for _ in range(100)]))
    hits, width = np.zeros(2), 0.0
    for index in range(simulations):
        rng = generator(0, "near one", seeds, problems, str(seed_sd), index)
        rates = near_one_rates(families, seed_sd * rng.standard_normal(seeds), rng)
        values = rng.binomial(SAMPLES, rates) / SAMPLES
        ours = problem_and_seed_interval(values, rng=rng, replicates=400, strata=families.tolist(), bounds=(0.0, 1.0))
        hits += covers(percentile_over_seeds(values, rng), truth), covers(ours, truth)
        width += 50 * (ours.high - ours.low)
    return hits[0] / simulations, hits[1] / simulations, width / simulations


def simulate_difference(
    seeds: int, problems: int, seed_sd: float, effect: float, simulations: int
) -> tuple[float, float, float]:
    """The same for regime minus base: the effect differs between problems (sd 0.1), the base is evaluated once."""
    hits, width = np.zeros(2), 0.0
    for index in range(simulations):
        rng = generator(0, "difference", seeds, problems, str(seed_sd), str(effect), index)
        rates = base_rates(problems, rng)
        base = rng.binomial(SAMPLES, rates) / SAMPLES
        tuned = rates + effect + 0.1 * rng.uniform(-1.7, 1.7, problems)
        values = accuracies(tuned, seed_sd * rng.standard_normal(seeds), rng)
        ours = paired_difference(values, base, rng=rng, replicates=400)
        hits += covers(percentile_over_seeds(values - base, rng), effect), covers(ours, effect)
        width += 50 * (ours.high - ours.low)
    return hits[0] / simulations, hits[1] / simulations, width / simulations


def simulate_verdict(
    seeds: int, seed_sd: float, effects: tuple[float, ...], simulations: int, problems: int = 512, checks: int = 128
) -> tuple[float, float, float]:
    """Coverage of μ_task - max μ_rival (in points), how often a direction is claimed wrongly or at truth 0, half-width.

    `effects` are the mean effects of task reward and of the rivals on the same base.
    """
    truth = 100 * (effects[0] - max(effects[1:]))
    hits = wrong = 0
    width = 0.0
    for index in range(simulations):
        rng = generator(0, "verdict", seeds, str(seed_sd), str(effects), index)
        test_rates, check_rates = base_rates(problems, rng), base_rates(checks, rng)
        tests, validations = {}, {}
        for regime, effect in enumerate(effects):
            shifts = seed_sd * rng.standard_normal(seeds)
            for rates, store in ((test_rates, tests), (check_rates, validations)):
                # sd 0.1 of the effect over problems: rivals differ problem by problem even where they tie on average.
                own = rates + effect + 0.1 * rng.uniform(-1.7, 1.7, rates.size)
                store[str(regime)] = accuracies(own, shifts, rng)
        rivals = [str(r) for r in range(1, len(effects))]
        gain = gain_beyond_best(
            tests["0"], {r: tests[r] for r in rivals}, {r: validations[r] for r in rivals}, rng=rng, replicates=400
        ).gain
        hits += covers(gain, truth)
        wrong += gain.excludes_zero() and (truth == 0 or np.sign(gain.estimate) != np.sign(truth))
        width += (gain.high - gain.low) / 2
    return hits / simulations, wrong / simulations, width / simulations


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n**{title}**\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main(simulations: int, clock: Callable[[], float] = time.perf_counter) -> None:
    started = clock()
    print("# Coverage of the intervals, by simulation\n")
    print("This page is the output of `make coverage`. A 95 % interval should hold the truth in 95 % of the simulated")
    print("evaluations; the percentile bootstrap over seeds, often reported, does not come near with 3 seeds.")
    rows = []
    for seeds in (3, 5):
        for problems in (64, 512):
            for seed_sd in (0.0, 0.015, 0.05):
                naive, ours, width = simulate_mean(seeds, problems, seed_sd, simulations)
                rows.append(
                    [str(seeds), str(problems), percent(seed_sd), percent(naive), percent(ours), f"{width:.1f}"]
                )
    header = ["seeds", "problems", "seed sd (points)"]
    columns = ["percentile over seeds: coverage %", "ours: coverage %", "ours: half-width (points)"]
    table("Mean accuracy", header + columns, rows)
    rows = []
    for seeds in (3, 5):
        for problems in (64, 512):
            for seed_sd in (0.0, 0.015, 0.05):
                for effect in (0.0, 0.1):
                    naive, ours, width = simulate_difference(seeds, problems, seed_sd, effect, simulations)
                    rows.append([str(seeds), str(problems), percent(seed_sd), percent(effect)])
                    rows[-1] += [percent(naive), percent(ours), f"{width:.1f}"]
    table("Regime minus base, paired", [*header, "effect (points)", *columns], rows)
    rows = []
    for seeds in (3, 5):
        for problems in (128, 512):
            for seed_sd in (0.0, 0.3):
                naive, ours, width = simulate_near_one(seeds, problems, seed_sd, simulations)
                rows.append([str(seeds), str(problems), f"{seed_sd:g}", percent(naive), percent(ours), f"{width:.1f}"])
    table("Mean accuracy near 1, stratified by family", ["seeds", "problems", "seed sd (logits)", *columns], rows)
    rows = []
    for seeds in (3, 5):
        for seed_sd in (0.0, 0.015, 0.05):
            for effects in (
                (0.0, 0.0, 0.0, 0.0),
                (0.1, 0.05, 0.05, 0.05),
                (0.1, 0.05, 0.03, 0.0),
                (0.0, 0.05, 0.04, 0.0),
            ):
                coverage, wrong, width = simulate_verdict(seeds, seed_sd, effects, simulations // 2)
                names = ", ".join(percent(effect) for effect in effects)
                rows.append([str(seeds), percent(seed_sd), names, percent(coverage), percent(wrong), f"{width:.1f}"])
    columns = ["effects: task reward, rivals (points)", "coverage %", "wrong claims %", "half-width (points)"]
    table("Verdict (512 test, 128 validation problems)", ["seeds", "seed sd (points)", *columns], rows)
    print(
        f"\n{simulations} simulations per row ({simulations // 2} for the verdict): a coverage of 95 % is known to about"
    )
    print(f"± {300 * (0.95 * 0.05 / simulations) ** 0.5:.0f} points at three standard errors.")
    print(f"{clock() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200, help="simulated evaluations per row")
    main(parser.parse_args().simulations)
