"""What the page of the exact small world shows: its worlds as plain numbers, and figures to compare the page's own with.

The page computes every optimum itself, in the reader's browser. The reference figures are computed here, with the
training mathematics, at a few settings of its sliders; the page compares itself with them when it is opened.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bsharp.algorithm import (
    Objective,
    entropy_minimisation,
    optimum_log_weights,
    sharpening,
    task_reward,
    tempered,
    tilted,
    weighted,
)
from bsharp.seeding import stream_seed
from bsharp.theory.at_k import exact_pass_at_k
from bsharp.theory.dynamics import gradient_flow, natural_gradient_flow
from bsharp.theory.policy_gradient import tabular_log_policy
from bsharp.theory.targets import covariance, expectation, moments, optimum, power
from bsharp.theory.world import FiniteWorld, from_arrays, random_world
from bsharp.theory.worlds import CONSTRUCTORS

__all__ = ["page_data", "page_objectives", "page_worlds", "simplex_worlds", "turning"]

EOS_MARK = "■"
ATTEMPTS = 1000
EOS = 0  # the token that ends a response in every world with an end
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = {
    "wrong_mode": "Wrong mode",
    "right_mode": "Right mode",
    "near_tie": "Near tie: a right and a wrong response are almost equally likely",
    "short_mode": "Short mode: stopping early is likeliest",
    "loop": "Loop: a repetition grows ever more certain",
    "turning": "Turning: α first hurts, then helps",
    "fixed_length": "Fixed length: no response can stop early",
    "random": "Random",
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"alpha": 2.0, "beta_inv": 3.0, "c": 0.0, "normalisation": "sum", "rho": 0.5, "k": 8},
    {"alpha": 0.5, "beta_inv": 0.0, "c": 0.25, "normalisation": "mean", "rho": 0.5, "k": 1},
    {"alpha": 4.0, "beta_inv": 100.0, "c": 2.0, "normalisation": "weighted_mean", "rho": 0.3, "k": 16},
    {"alpha": 1.0, "beta_inv": 10000.0, "c": 0.001, "normalisation": "sum", "rho": 0.5, "k": 64},
    {"alpha": 10.0, "beta_inv": 0.1, "c": 0.0, "normalisation": "mean", "rho": 0.5, "k": 4},
)
NUDGES = (0.002, 0.02, 0.5, 3.0)  # nats; one below the gap of the near tie, the others above
FLOW_TIMES = (0.0, 0.5, 1.0, 4.0)
FLOW_WORLDS = ("wrong_first", "two_right")
FLOW_STARTS = ((0.2, 0.3, 0.5), (0.6, 0.3, 0.1))


def page_data() -> dict[str, Any]:
    """Everything the page is given, as JSON values: worlds, three-response worlds, reference figures and flows.

    Responses are columns (text, logprob in nats, length in tokens, reward, answer), the likeliest first; responses of base
    probability 0 are left out, for no regime ever samples them. Deterministic.
    """
    worlds = page_worlds()
    three = simplex_worlds()
    return {
        "schema": 1,
        "worlds": [_world_json(name, NAMES[name], world) for name, world in worlds.items()],
        "simplex": [_world_json(name, title, world) for name, (title, world) in three.items()],
        "reference": [
            {"world": name, "settings": settings, **_figures(world, settings)}
            for name, world in worlds.items()
            for settings in SETTINGS
        ],
        "nudges": [
            {"world": name, "epsilon": epsilon, "settings": settings, **_nudged(world, settings, epsilon)}
            for name, world in worlds.items()
            for epsilon, settings in zip(NUDGES, SETTINGS, strict=False)
        ],
        "flows": [
            _flow(name, three[name][1], settings, regime, start)
            for name, settings, start in zip(FLOW_WORLDS, SETTINGS, FLOW_STARTS, strict=False)
            for regime in ("task", "sharpened", "tempered", "tilted", "entropy")
        ],
    }


def page_worlds() -> dict[str, FiniteWorld]:
    """The worlds of the page by name, those of `worlds.CONSTRUCTORS` at their default size and two more."""
    made = {name: CONSTRUCTORS[name]() for name in NAMES if name in CONSTRUCTORS}
    extra = {"turning": turning(), "fixed_length": _fixed_length()}
    return {name: (made | extra)[name] for name in NAMES}


def turning(seed: int = 0) -> FiniteWorld:
    """A base whose accuracy under p_alpha falls by more than 0.1 from alpha = 1 to 2 and has regained it by alpha = 10.

    Right are the mode and all but the next four responses. Random bases are drawn until one turns so.
    """
    for attempt in range(ATTEMPTS):
        world = random_world(stream_seed(seed, "turning", attempt), vocab_size=3, max_length=4, scale=0.4)
        rank = world.base_logprob.argsort(descending=True).argsort()
        world = dataclasses.replace(world, rewards=((rank == 0) | (rank > 4)).to(torch.float64), answers=None)
        at_base, early, late = (float(expectation(power(world, alpha), world.rewards)) for alpha in (1.0, 2.0, 10.0))
        if early < at_base - 0.1 and late > at_base:
            return world
    raise ValueError(f"no base of {ATTEMPTS} turns for seed {seed}; choose another seed")


def _fixed_length(seed: int = 0) -> FiniteWorld:
    """27 responses of 3 tokens each: l_ref and l_ref / T order them alike."""
    return random_world(seed, vocab_size=3, max_length=3, eos=None)


def simplex_worlds() -> dict[str, tuple[str, FiniteWorld]]:
    """Three worlds of three responses, the end at once, a letter and the end, two letters, with their titles."""

    def three(probabilities: tuple[float, float, float], rewards: Sequence[float]) -> FiniteWorld:
        stop, first, second = probabilities
        letter = math.log1p(-stop)
        logprobs = [
            [math.log(stop), 0.0],
            [letter, math.log(first / (1 - stop))],
            [letter, math.log(second / (1 - stop))],
        ]
        mask = [[True, False], [True, True], [True, True]]
        arrays = ([[0, 0], [1, 0], [1, 1]], mask, logprobs, rewards)
        return from_arrays(*(np.array(values) for values in arrays))

    return {
        "wrong_first": ("The likeliest is wrong", three((0.2, 0.35, 0.45), (0.0, 1.0, 0.0))),
        "right_first": ("The likeliest is right", three((0.2, 0.35, 0.45), (0.0, 0.0, 1.0))),
        "two_right": ("Two right, the likeliest wrong", three((0.5, 0.3, 0.2), (0.0, 1.0, 1.0))),
    }


def page_objectives(settings: dict[str, Any]) -> dict[str, Objective | None]:
    """The objective of every regime of the page at the settings of its sliders; None is the base itself.

    Sharpening and the task reward carry the KL weight `c` (0: none); tempering and tilting have their own, 1 and
    1 / beta_inv. beta_inv = 0 makes tilting tempering, and alpha = 1 makes tempering the base.
    """
    normalisation = settings["normalisation"]
    rho = settings["rho"] if normalisation == "weighted_mean" else None
    alpha, beta_inv, c = settings["alpha"], settings["beta_inv"], settings["c"]
    # tempered and tilted refuse alpha = 0, where N = sum gives the uniform distribution over responses.
    likelihood = {"base_loglikelihood": alpha - 1.0, "normalisation": normalisation, "rho": rho}
    power = tempered(alpha, normalisation, rho) if alpha > 0 else weighted(kl_to_base=1.0, **likelihood)
    tilt = power
    if beta_inv > 0:
        tilt = tilted(alpha, beta_inv, normalisation, rho) if alpha > 0 else _scaled_tilt(beta_inv, likelihood)
    return {
        "base": None,
        "sharpened": dataclasses.replace(sharpening(normalisation, rho), kl_to_base=c),
        "tempered": power,
        "tilted": tilt,
        "task": dataclasses.replace(task_reward(), kl_to_base=c),
    }


def _scaled_tilt(beta_inv: float, likelihood: dict[str, Any]) -> Objective:
    scaled = likelihood | {"base_loglikelihood": likelihood["base_loglikelihood"] / beta_inv}
    return weighted(task=1.0, kl_to_base=1.0 / beta_inv, **scaled)


def _order(world: FiniteWorld) -> list[int]:
    """Rows of positive base probability, the likeliest first, ties in the world's own order."""
    order = torch.sort(world.base_logprob, descending=True, stable=True).indices.tolist()
    return [row for row in order if float(world.base_logprob[row]) > -math.inf]


def _world_json(name: str, title: str, world: FiniteWorld) -> dict[str, Any]:
    order = _order(world)
    answers = world.answers
    return {
        "id": name,
        "name": title,
        "text": [_text(world, row, ends=name != "fixed_length") for row in order],
        "logprob": world.base_logprob[order].tolist(),
        "length": world.lengths[order].tolist(),
        "reward": world.rewards[order].tolist(),
        "answer": None if answers is None else answers[order].tolist(),
    }


def _text(world: FiniteWorld, row: int, ends: bool) -> str:
    tokens = world.token_ids[row, world.mask[row]].tolist()
    return " ".join(EOS_MARK if ends and token == EOS else LETTERS[token - ends] for token in tokens)


def _figures(world: FiniteWorld, settings: dict[str, Any]) -> dict[str, Any]:
    """Figures of every regime, and the slopes that the page draws as tangents; an argmax has no log Z: None."""
    figures, policies = {}, {}
    log_z: float | None
    for regime, objective in page_objectives(settings).items():
        log_policy, log_z = world.base_logprob, 0.0
        if objective is not None:
            target = optimum(world, objective)
            log_policy = target.log_policy
            log_z = target.log_partition if objective.entropy_weight > 0 else None
        policies[regime] = log_policy
        figures[regime] = _row(log_policy, world, log_z, settings["k"])
    exponent = {"sum": 0.0, "mean": 1.0}.get(settings["normalisation"], settings["rho"])
    lengths = world.lengths.to(torch.float64)
    likelihood = world.base_logprob / lengths**exponent
    slopes = {
        "reward_alpha": float(covariance(policies["tempered"], world.rewards, likelihood)),
        "reward_lambda": float(covariance(policies["tilted"], world.rewards, world.rewards)),
        "length_alpha": float(covariance(policies["tempered"], lengths, likelihood)),
    }
    return {"figures": figures, "slopes": slopes}


def _row(log_policy: Float[Tensor, " N"], world: FiniteWorld, log_z: float | None, k: int) -> dict[str, float | None]:
    found = moments(log_policy, world)
    return {
        "reward": found.reward,
        "length": found.length,
        "entropy": found.entropy,
        "kl": found.kl_policy_base,
        "log_z": log_z,
        "pass_at_k": float(exact_pass_at_k(log_policy, world, [k])[0]),
    }


def _nudged(world: FiniteWorld, settings: dict[str, Any], epsilon: float) -> dict[str, Any]:
    """Accuracy of every regime where the base's best response by N(l_ref) loses epsilon/2 nats and the next gains them."""
    exponent = {"sum": 0.0, "mean": 1.0}.get(settings["normalisation"], settings["rho"])
    likelihood = world.base_logprob / world.lengths.to(torch.float64) ** exponent
    order = _order(world)
    best, second = sorted(order, key=lambda row: -float(likelihood[row]))[:2]
    moved = world.base_logprob.clone()
    moved[best] -= epsilon / 2
    moved[second] += epsilon / 2
    moved = moved - torch.logsumexp(moved, -1)
    reward = {}
    for regime, objective in page_objectives(settings).items():
        weights = moved if objective is None else optimum_log_weights(objective, moved, world.lengths, world.rewards)
        reward[regime] = float(expectation(torch.log_softmax(weights, -1), world.rewards))
    return {"best": order.index(best), "second": order.index(second), "reward": reward}


def _flow(
    name: str, world: FiniteWorld, settings: dict[str, Any], regime: str, start: tuple[float, float, float]
) -> dict[str, Any]:
    """Natural and Euclidean flow of one objective from `start`, given in the page's order of responses."""
    objective = entropy_minimisation() if regime == "entropy" else page_objectives(settings)[regime]
    if objective is None:
        raise ValueError("the base is no objective to follow; name another regime")
    order = _order(world)
    initial = torch.empty(3, dtype=torch.float64)
    initial[order] = torch.tensor(start, dtype=torch.float64).log()
    times = np.array(FLOW_TIMES)
    natural = natural_gradient_flow(initial, world, objective, times)
    euclidean = gradient_flow(tabular_log_policy, initial, world, objective, times, rtol=1e-8, atol=1e-10)
    return {
        "world": name,
        "settings": settings,
        "objective": regime,
        "start": list(start),
        "times": list(FLOW_TIMES),
        "natural": natural.policies[:, order].tolist(),
        "euclidean": euclidean.policies[:, order].tolist(),
    }
