"""Typical statements about sharpening and the random bases that break them; then the figures on stability. Deterministic.

    python benchmarks/counterexamples.py [--bases 500] [--length 4] [--vocab 3]

The search is over `random_world` bases with half of the responses right at random: the share of bases that break a
statement, among those that it speaks of, is about that family, with its exact binomial 95 % interval, and not about
language models. It is a lower bound: a base counts only beyond a margin. The rows under "a theorem" cannot break. Flips,
ends of training and noise are exact except where a share has an interval. Without --bases each statement is tried on as
many bases as it has time for; about two minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from bsharp.algorithm import sharpening, task_reward
from bsharp.seeding import generator
from bsharp.theory.basins import committed_limit, sampled_ends
from bsharp.theory.counterexamples import Family, Find, search_all
from bsharp.theory.score_noise import fixed_length_world, noise_by_length
from bsharp.theory.stability import amplification_curve, flip_distance, flip_probability, flip_share_under_table_noise
from bsharp.theory.targets import optimum
from bsharp.theory.world import FiniteWorld, random_world
from bsharp.theory.worlds import near_tie


def show(find: Find) -> None:
    share = find.share.scaled(100, "%")
    kind = "a theorem" if find.phenomenon.theorem else "typical"
    print(f"\n{find.name}\n  {kind}: {find.phenomenon.typical}")
    print(
        f"  broken beyond {find.phenomenon.least:g} by {find.found} of the {find.applicable} bases it speaks of,"
        f" {find.searched} searched: at least {share.format(1)} %"
    )
    if find.example:
        seeds = ", ".join(map(str, find.example.seeds))
        print(f"  worst: seed {seeds}; {find.phenomenon.unit} {find.example.margin:.3f}")
        print("  " + "; ".join(f"{name} {value:.3f}" for name, value in find.example.figures.items()))


def show_amplification() -> None:
    for name, world in (("seed 0", random_world(0, 3, 4)), ("two responses 0.1 nats apart", near_tie(0, gap=0.1))):
        delta = 0.1 * torch.as_tensor(generator(0, "benchmark_delta").normal(size=world.size))
        curve = amplification_curve(world, [1.0, 2.0, 4.0, 8.0, 32.0], delta)
        print(f"\nOne perturbation of sd 0.1 nats per response through pi_ref^alpha ({name})")
        print("  alpha  amplification  total variation (first order, bound)  missed by first order, nats")
        for row in range(len(curve.alpha)):
            print(
                f"  {curve.alpha[row]:5g}  {curve.pairwise_amplification[row]:13.9f}  {curve.total_variation[row]:.4f}"
                f" ({curve.total_variation_first_order[row]:.4f}, {curve.total_variation_bound[row]:.4f})"
                f"  {curve.remainder[row]:.2e}"
            )


def show_flips() -> None:
    print(
        "\nFlips of the sharpened optimum by normal noise (independent per response: exact; on every logit: 1,000 draws)"
    )
    print("  gap, nats  flip distance  noise sd  per response  on logits, %  task reward")
    for gap in (0.01, 0.1, 0.5):
        world = near_tie(0, gap=gap)
        for sd in (0.01, 0.1):
            share = flip_share_under_table_noise(world, sharpening(), sd, 1000, generator(0, "benchmark_flips"))
            print(
                f"  {gap:9g}  {flip_distance(world, sharpening()).distance:13.4f}  {sd:8g}"
                f"  {100 * flip_probability(world, sharpening(), sd):10.1f} %  {share.scaled(100, '%').format(1)}"
                f"  {100 * flip_probability(world, task_reward(), sd):.1f} %"
            )


def show_ends() -> None:
    world = near_tie(0, gap=0.1)
    best = int(optimum(world, sharpening()).log_policy.argmax())
    print(
        "\nSharpening trained on samples (2 a step, plain SGD, 400 runs): share that ends in the base's mode, gap 0.1 nats"
    )
    for rate, steps in ((1.0, 2000), (10.0, 1000), (100.0, 1000)):
        ends = sampled_ends(
            world.base_logprob, world, sharpening(), rate, 2, steps, 400, generator(0, "benchmark_ends")
        )
        settled = 100 * float(ends.at_vertex.double().mean())
        print(
            f"  learning rate {rate:5g}: {ends.shares[best].scaled(100, '%').format(1)} % ({settled:.0f} % at a vertex)"
        )
    limit = float(committed_limit(world.base_logprob.exp(), world.base_logprob)[best])
    print(f"  learning rate ->inf: {100 * limit:.1f} %, exactly; exact gradient flow: 100 %")


def graded_by_token(position: int) -> Callable[[int, int], FiniteWorld]:
    """Random bases of fixed length whose responses are right if the token at `position` is 1."""

    def build(seed: int, length: int) -> FiniteWorld:
        world = fixed_length_world(seed, length)
        return world.with_rewards((world.token_ids[:, position] == 1).double())

    return build


def show_noise() -> None:
    rewards = {
        "any 30 % of the responses": fixed_length_world,
        "the first token decides": graded_by_token(0),
        "the last token decides": graded_by_token(-1),
    }
    lengths = [1, 2, 3, 4, 5, 6, 7]
    for reward, build in rewards.items():
        for autoregressive, name in ((True, "logits per prefix"), (False, "one logit per response")):
            table = noise_by_length(lengths, range(40), build, autoregressive=autoregressive)
            quieter = (table.likelihood_snr > table.reward_snr).mean(axis=1)
            print(f"\nScores against a fixed length, 40 random bases each, 8 samples: medians; right: {reward}; {name}")
            print("  length  Var r  Var l_ref  SNR of r  SNR of l_ref  l_ref less noisy")
            for row, length in enumerate(lengths):
                columns = (table.reward_variance, table.likelihood_variance, table.reward_snr, table.likelihood_snr)
                figures = "  ".join(f"{np.median(column[row]):9.3f}" for column in columns)
                print(f"  {length:6d}  {figures}  {100 * quieter[row]:5.0f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=None)
    parser.add_argument("--vocab", type=int, default=3)
    parser.add_argument("--length", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for found in search_all(arguments.bases, Family(arguments.vocab, arguments.length)):
        show(found)
    show_amplification()
    show_flips()
    show_ends()
    show_noise()
