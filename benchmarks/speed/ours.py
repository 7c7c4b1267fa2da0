"""One training step of this package, as `bsharp.training.loop.train_policy` does it, with the seconds of its parts.

The base scores the rollouts where the regime reads it, as a reference model does; without one no step of these does
(`watch.base_every` beyond the number of steps; the default is every step). The variance of the gradient is always measured
from every problem's own contribution.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from bsharp.algorithm import parse_objective
from bsharp.config import AlgorithmConfig, OptimizerConfig, SamplingConfig, TrainConfig, WeightsConfig
from bsharp.generation import SamplingParams, generator_for
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import load_language_model
from bsharp.rollouts import build_batch, collect_rollouts, summarize_rollouts
from bsharp.seeding import generator as random_stream
from bsharp.training import Update, build_optimizer, training_step
from bsharp.training import step as step_module
from bsharp.types import Completion, Grade, GradeStatus, Problem
from speed.timing import Clock
from speed.workloads import Workload, prompts

__all__ = ["LEARNING_RATE", "OurStep", "even_share"]

LEARNING_RATE = 1e-5
"""So small that the weights, and with them what is sampled, stay what they were."""
PROMPT_STEPS = 64


class DigitStrings:
    """A task whose question is the prompt."""

    name = "digits"

    def prompt(self, problem: Problem) -> str:
        return problem.question


def even_share(token_ids: Sequence[int]) -> float:
    """The reward of both sides: the share of even token ids."""
    return sum(token % 2 == 0 for token in token_ids) / max(1, len(token_ids))


def grade(problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Grade]:
    return [Grade(GradeStatus.WRONG, even_share(completion.token_ids)) for completion in completions]


class OurStep:
    """Base, policy, generator and optimizer of a run; `run` does its next step."""

    def __init__(
        self,
        folder: str,
        workload: Workload,
        dtype: str = "float32",
        regime: str = "task_reward",
        microbatch_rows: int | None = None,
        device: str = "cpu",
        lora_rank: int | None = None,
    ) -> None:
        defaults = TrainConfig()
        self._workload = workload
        settings = WeightsConfig(dtype, lora_rank=lora_rank)  # type: ignore[arg-type]
        self._base = prepare_base(load_language_model(folder, settings.dtype, device), settings)
        self._policy = make_policy(self._base, settings, seed=0)
        self._generator = generator_for(self._policy, max(defaults.sampling.max_rows, workload.rows))
        self._trained = [parameter for parameter in self._policy.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(self._trained, OptimizerConfig(learning_rate=LEARNING_RATE))
        sampling = SamplingConfig(
            prompts_per_step=workload.prompts,
            group_size=workload.group,
            max_new_tokens=workload.tokens,
            fixed_length=True,
        )
        self._params = SamplingParams(workload.tokens, sampling.temperature, fixed_length=True)
        self._update = Update(
            AlgorithmConfig(), sampling, defaults.optimizer.max_grad_norm, microbatch_rows or defaults.microbatch_rows
        )
        _, self._objective = parse_objective(regime)
        self._problems = [
            [Problem(f"{step}/{place}", "digits", "digits", text, "") for place, text in enumerate(texts)]
            for step, texts in enumerate(prompts(workload, PROMPT_STEPS))
        ]
        self._clock = Clock()
        self._grade = self._clock.timed("grading", grade)
        # The step's own way to score; where it has none of this name, its seconds are part of the update.
        for name in ("_score", "response_logprobs"):
            if hasattr(step_module, name):
                setattr(step_module, name, self._clock.timed("logprobs", getattr(step_module, name)))
                break
        self._step = 0
        self.metrics: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """One step: seconds in all and by part, and the tokens of its responses."""
        self._step += 1
        step, clock = self._step, self._clock
        clock.reset()
        started = time.perf_counter()
        self._generator.sync_weights(self._policy.model, step - 1)
        groups = collect_rollouts(
            self._generator,
            self._policy,
            {"digits": DigitStrings()},  # type: ignore[dict-item]
            {"digits": self._grade},
            self._problems[step % PROMPT_STEPS],
            self._workload.group,
            self._params,
            0,
            step,
        )
        sampled = time.perf_counter()
        batch = build_batch(groups, self._policy.pad_token_id)
        order = [random_stream(0, "minibatches", step, 0).permutation(batch.problems).tolist()]
        scored = time.perf_counter()
        self.metrics = training_step(
            self._policy,
            self._base,
            self._objective,
            batch,
            self._optimizer,
            self._update,
            None,
            order,
            score_base=False,
        )
        finite = all(bool(parameter.isfinite().all()) for parameter in self._trained)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.perf_counter()
        self.metrics |= summarize_rollouts(groups)
        if not finite:
            raise RuntimeError("a weight is not finite")
        grading, logprobs = clock.seconds.get("grading", 0.0), clock.seconds.get("logprobs", 0.0)
        return {
            "seconds": time.perf_counter() - started,
            "rollout": sampled - started - grading,
            "grading": grading,
            "logprobs": logprobs,
            "update": ended - scored - logprobs,
            "tokens": int(batch.mask.sum()),
        }
