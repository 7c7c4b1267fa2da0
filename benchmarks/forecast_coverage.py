"""Bias and coverage of forecasts by simulation on exact worlds, as a Markdown table.

    python benchmarks/forecast_coverage.py [--simulations 40]

A population is a set of small worlds in which every response is listed, so that the accuracy of every optimum is known.
Forecasts are made from n samples of each of 64 problems drawn from the population; the 95 % interval of the predicted change
should hold the population's true change. Likely answers are right more often in three populations and less often in one; a
sixth of all problems has no right response. `short` worlds repeat their responses among n samples, `long` ones never do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bsharp.algorithm import Objective, optimum_log_weights, parse_objective
from bsharp.diagnostics.forecast.figures import PredictionTable, change_estimate, prediction_table
from bsharp.diagnostics.forecast.samples import BaseSamples, ProblemSamples
from bsharp.seeding import generator
from bsharp.theory.world import random_world

Array = NDArray[np.float64]

PROBLEMS = 64  # of one simulated forecast
SAMPLES = (8, 16, 64)
SIZES = {"short": 120, "middle": 60, "misled": 60, "long": 36}  # worlds of each population
HOPELESS = 6  # every sixth problem has no right response
OBJECTIVES = (
    "tempered(alpha=1.25)",
    "tempered(alpha=2)",
    "tempered(alpha=4)",
    "tempered(alpha=4,normalisation=mean)",
    "tilted(beta_inv=1)",
    "tilted(beta_inv=100)",
    "sharpening",
    "sharpening(normalisation=mean)",
    "task_reward",
)


@dataclass(frozen=True)
class World:
    """All responses to one problem."""

    logprobs: Array
    lengths: NDArray[np.int64]
    rewards: Array

    @property
    def probabilities(self) -> Array:
        weights = np.exp(self.logprobs)
        return np.asarray(weights / weights.sum())

    def accuracy(self, objective: Objective) -> float:
        """E[r] under the optimum; for the reward alone, the base's own distribution among the best."""
        log_weights = optimum_log_weights(
            objective, torch.as_tensor(self.logprobs), torch.as_tensor(self.lengths), torch.as_tensor(self.rewards)
        ).numpy()
        if objective.entropy_weight <= 0 and not objective.base_loglikelihood:
            log_weights = log_weights + self.logprobs
        weights = np.exp(log_weights - log_weights.max())
        return float(weights @ self.rewards / weights.sum())


def population(name: str, size: int) -> list[World]:
    """`size` worlds of a kind; the chance to be right follows the standardised log-likelihood with slope ± 0.7."""
    vocab, length, eos, scale, slope = {
        "short": (4, 6, 0, 2.0, 0.7),
        "middle": (5, 6, 0, 1.0, 0.7),
        "misled": (5, 6, 0, 1.0, -0.7),
        "long": (6, 6, None, 1.0, 0.7),
    }[name]
    worlds = []
    for index in range(size):
        world = random_world(index, vocab, length, eos=eos, scale=scale)
        logprobs, rng = world.base_logprob.numpy(), generator(0, "forecast coverage", name, index)
        p = np.exp(logprobs)
        standard = (logprobs - p @ logprobs) / np.sqrt(p @ logprobs**2 - (p @ logprobs) ** 2)
        chance = 1.0 / (1.0 + np.exp(-(rng.normal(0.0, 2.0) + slope * standard)))
        right = (rng.random(len(p)) < chance) & (index % HOPELESS != 0)
        worlds.append(World(logprobs, world.lengths.numpy(), right.astype(np.float64)))
    return worlds


def draw(worlds: Sequence[World], samples: int, rng: np.random.Generator) -> BaseSamples:
    """Samples of PROBLEMS problems drawn from the population."""
    problems = []
    for index, place in enumerate(rng.integers(0, len(worlds), PROBLEMS).tolist()):
        world = worlds[place]
        rows = rng.choice(len(world.logprobs), size=samples, p=world.probabilities)
        rewards = world.rewards[rows]
        responses = np.unique(rows, return_inverse=True)[1]
        problems.append(
            ProblemSamples(
                f"{index:04d}", "", rewards, rewards, world.logprobs[rows], world.lengths[rows], None, responses
            )
        )
    return BaseSamples(tuple(problems), (), None, False, 0, 0)


def simulate(worlds: Sequence[World], name: str, samples: int, simulations: int) -> dict[str, tuple[float, str]]:
    """Objective → the true change, and `bias / coverage / flagged` of its forecasts."""
    objectives = {spec: parse_objective(spec)[1] for spec in OBJECTIVES}
    base = float(np.mean([world.probabilities @ world.rewards for world in worlds]))
    tables: dict[str, list[PredictionTable]] = {spec: [] for spec in OBJECTIVES}
    for index in range(simulations):
        drawn = draw(worlds, samples, generator(0, "forecast coverage", name, samples, index))
        for spec, objective in objectives.items():
            tables[spec].append(prediction_table(drawn, objective))
    found = {}
    for spec, objective in objectives.items():
        truth = float(np.mean([world.accuracy(objective) for world in worlds])) - base
        intervals = [change_estimate(table.delta, [""] * PROBLEMS) for table in tables[spec]]
        bias = float(np.mean([interval.estimate for interval in intervals])) - truth
        covered = np.mean([interval.low - 1e-12 <= truth <= interval.high + 1e-12 for interval in intervals])
        flagged = np.mean([not table.reliable for table in tables[spec]])
        found[spec] = truth, f"{100 * bias:+.1f} / {100 * covered:.0f} / {100 * flagged:.0f}"
    return found


def main(simulations: int) -> None:
    started = time.perf_counter()
    header = ["worlds", "objective", "true change", *(f"n = {samples}" for samples in SAMPLES)]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for name, size in SIZES.items():
        worlds = population(name, size)
        found = [simulate(worlds, name, samples, simulations) for samples in SAMPLES]
        for spec in OBJECTIVES:
            change, cells = found[0][spec][0], [of_samples[spec][1] for of_samples in found]
            print("| " + " | ".join([name, f"`{spec}`", f"{100 * change:+.1f}", *cells]) + " |", flush=True)
    print(
        "\nCells: bias of the predicted change in points / coverage of its 95 % interval / share flagged, in %, over"
        f"\n{simulations} simulated forecasts of {PROBLEMS} problems with n samples each."
    )
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=40, help="simulated forecasts per cell")
    main(parser.parse_args().simulations)
