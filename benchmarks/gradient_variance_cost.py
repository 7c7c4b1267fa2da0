"""What it costs to know the noise of every step's gradient from the contribution of every single problem.

    python benchmarks/gradient_variance_cost.py [--repeats 5] [--regimes task_reward sharpening]

Times the update of the embedded model at the default settings of a comparison, on the same rollouts in one process, the
variants in turn: without any measurement (micro-batches across problems, one sum), with every problem's own contribution
(the default) and with four parts. The cost is the median extra of an update over the median whole step, rollouts
included. Seconds are CPU time of this process on one thread, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from bsharp.algorithm import parse_objective
from bsharp.config import CompareConfig, TrainConfig
from bsharp.generation import Decoder
from bsharp.generation.interface import SamplingParams
from bsharp.models.loading import clone_model, load_language_model
from bsharp.rewards import reward_for
from bsharp.rollouts import build_batch, collect_rollouts
from bsharp.tasks import load_task
from bsharp.training import accumulate
from bsharp.training.optimizer import build_optimizer
from bsharp.training.problems import ProblemStream
from bsharp.training.step import Update, training_step

BATCHES = 3


class _Unmeasured(accumulate.PartGradients):
    """Leaves the gradient where the backward passes put it."""

    def record(self, rows: int) -> None:
        pass

    def finish(self, zeros: bool = False) -> None:
        return None


@contextmanager
def unmeasured() -> Iterator[None]:
    """The same step without any variance: all rows are one part."""
    gradients, parts = accumulate.PartGradients, accumulate._parts
    accumulate.PartGradients = _Unmeasured  # type: ignore[misc]
    accumulate._parts = lambda batch, valid, *_: iter([torch.nonzero(valid).flatten().tolist()])  # type: ignore[assignment]
    try:
        yield
    finally:
        accumulate.PartGradients, accumulate._parts = gradients, parts  # type: ignore[misc]


def main(repeats: int, regimes: Sequence[str]) -> None:
    torch.set_num_threads(1)
    config = TrainConfig()
    tasks = {name: load_task(name) for name in config.tasks}
    rewards = {name: reward_for(task) for name, task in tasks.items()}
    base = load_language_model(config.model)
    policy = clone_model(base)
    base.model.requires_grad_(False)
    decoder = Decoder(policy, config.sampling.max_rows)
    decoder.sync_weights(policy.model, 0)
    stream = ProblemStream(tasks, config)
    params = SamplingParams(config.sampling.max_new_tokens, config.sampling.temperature)
    rollout_seconds, batches = [], []
    for step in range(1, BATCHES + 1):
        started = time.process_time()
        groups = collect_rollouts(
            decoder, policy, tasks, rewards, stream.problems(step), config.sampling.group_size, params, 0, step
        )
        batches.append(build_batch(groups, policy.pad_token_id))
        rollout_seconds.append(time.process_time() - started)
    rollout = statistics.median(rollout_seconds)
    print(f"rollouts {rollout:.3f} s")
    # A rate so small that every variant sees the same weights.
    slow = dataclasses.replace(config.optimizer, learning_rate=1e-12)
    optimizer = build_optimizer(list(policy.model.parameters()), slow)
    variants = {"no measurement": None, "every problem": None, "four parts": 4}
    for regime in regimes:
        name, objective = parse_objective(regime)
        seconds: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(repeats):
            for batch in batches:
                for variant, parts in variants.items():
                    algorithm = dataclasses.replace(config.algorithm, variance_subbatches=parts)
                    update = Update(algorithm, config.sampling, 1.0, config.microbatch_rows)
                    with unmeasured() if variant == "no measurement" else nullcontext():
                        started = time.process_time()
                        training_step(policy, base, objective, batch, optimizer, update)
                        seconds[variant].append(time.process_time() - started)
        whole = rollout + statistics.median(seconds["no measurement"])
        print(f"{name}: step {whole:.3f} s")
        for variant, values in seconds.items():
            extra = statistics.median(values) + rollout - whole
            print(
                f"  {variant:15} update {statistics.median(values):.3f} s  cost {100 * extra / whole:+.1f} % of a step"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="passes over the three batches")
    parser.add_argument("--regimes", nargs="*", default=list(CompareConfig().regimes), help="regimes to time")
    main(**vars(parser.parse_args()))
