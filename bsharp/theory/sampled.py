"""Training with finitely many samples and finite steps on a finite world, evaluated exactly at every step.

Scores, advantages, losses and reductions are those of the real engine, under the same `AlgorithmConfig`: RLOO is its
default, GRPO is advantage="group_z_score", PPO is loss="ppo_clip" with epochs, minibatches or advantage="gae". Only the
policy differs: a softmax over whole responses, or over next tokens, one row of logits a prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsharp import algorithm
from bsharp.algorithm import Objective, ScoreInputs
from bsharp.config import AlgorithmConfig
from bsharp.statistics.gradient_noise import GradientNoise
from bsharp.theory.dynamics import Trajectory, trajectory
from bsharp.theory.policy_gradient import tabular_log_policy
from bsharp.theory.score_noise import softmax_gradient_noise
from bsharp.theory.world import FiniteWorld, tabular_token_logprobs

__all__ = [
    "Parametrisation",
    "SampledRun",
    "SampledSettings",
    "autoregressive",
    "draw",
    "sampled_gradient",
    "tabular",
    "train_sampled",
]


@dataclass(frozen=True)
class Parametrisation:
    """A response as a sequence of at most A softmax choices, each made in one of K states."""

    action_logprobs: Callable[[Tensor], Tensor]  # parameters -> (N, A), nats, differentiable; 0 where masked out
    states: Int[Tensor, "N A"]  # the state each choice is made in, for the critic
    mask: Bool[Tensor, "N A"]
    initial: Tensor  # the logits at which the policy is the base
    per_token: bool  # whether choices are tokens, so that ratios, clips, reductions and GAE work token by token

    def log_policy(self, parameters: Tensor) -> Float[Tensor, " N"]:
        """log pi(y) of all responses, nats, differentiable."""
        return self.action_logprobs(parameters).sum(-1)


def tabular(world: FiniteWorld) -> Parametrisation:
    """One choice among the N responses, logits (N,): importance ratios are those of whole responses."""
    return Parametrisation(
        action_logprobs=lambda logits: tabular_log_policy(logits)[:, None],
        states=torch.zeros(world.size, 1, dtype=torch.long),
        mask=torch.ones(world.size, 1, dtype=torch.bool),
        initial=world.base_logprob,
        per_token=False,
    )


def autoregressive(world: FiniteWorld) -> Parametrisation:
    """One choice a token, a table of logits (K, V): importance ratios are those of tokens, as in a language model."""
    return Parametrisation(
        action_logprobs=lambda table: tabular_token_logprobs(world, table),
        states=world.prefix_index,
        mask=world.mask,
        initial=world.base_table(),
        per_token=True,
    )


@dataclass(frozen=True)
class SampledSettings:
    """How to train on samples.

    Raises ValueError for counts below 1, an unknown optimizer, and more minibatches than groups.
    """

    steps: int = 200
    groups: int = 4  # groups a step, all of the world's one prompt
    group_size: int = 8  # responses a group
    learning_rate: float = 1.0  # logits per unit of score
    final_learning_rate: float | None = None  # reached linearly at the last step; None keeps the rate
    optimizer: str = "SGD"  # class name in torch.optim
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)  # all but variance_subbatches
    noise_every: int = 1  # steps between exact gradient variances, the dearest of the figures

    def __post_init__(self) -> None:
        for name in ("steps", "groups", "group_size", "noise_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} cannot be used; give at least 1")
        if not isinstance(getattr(torch.optim, self.optimizer, None), type):
            raise ValueError(f"optimizer {self.optimizer!r} is no class of torch.optim; write SGD or AdamW, say")
        if self.algorithm.minibatches > self.groups:
            raise ValueError(
                f"{self.algorithm.minibatches} minibatches cannot share {self.groups} groups; raise groups or lower them"
            )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the step 0, 1, …, steps - 1."""
        if self.final_learning_rate is None or self.steps == 1:
            return self.learning_rate
        return self.learning_rate + (self.final_learning_rate - self.learning_rate) * step / (self.steps - 1)


@dataclass(frozen=True)
class SampledRun:
    """What training on samples did, exactly: steps + 1 policies, the first of them the start.

    The noise is that of RLOO's gradient at the policy, whatever the algorithm; none where group_size is 1.
    """

    trajectory: Trajectory  # its times are steps
    noise: dict[int, GradientNoise]  # after that many steps: of a step's leave-one-out gradient
    parameters: Tensor  # after the last step
    values: Float[Tensor, " K"]  # the critic's, one a state, after the last step; 0 without advantage="gae"


@dataclass(frozen=True)
class _Batch:
    rows: Int[Tensor, " B"]
    group_index: Int[Tensor, " B"]
    advantages: Float[Tensor, " B"] | Float[Tensor, "B A"]
    old_logprobs: Float[Tensor, "B A"]
    old_values: Float[Tensor, "B A"] | None
    returns: Float[Tensor, "B A"] | None


def draw(
    log_policy: Float[Tensor, " N"], groups: int, group_size: int, rng: np.random.Generator
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """B = groups x group_size independent responses of a policy and the group of each."""
    probability = log_policy.detach().exp().numpy()
    rows = rng.choice(len(probability), size=groups * group_size, p=probability / probability.sum())
    return torch.as_tensor(rows), torch.arange(groups).repeat_interleave(group_size)


def sampled_gradient(
    parametrisation: Parametrisation,
    parameters: Float[Tensor, "*shape"],
    world: FiniteWorld,
    objective: Objective,
    rows: Int[Tensor, " B"],
    group_index: Int[Tensor, " B"],
    config: AlgorithmConfig,
    values: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "*shape"]:
    """The estimate of grad J that a training step makes of the responses `rows`, drawn from the policy at `parameters`.

    Minus the gradient of the loss at the first update, over the whole batch. Unbiased with leave_one_out or no baseline
    and sequence_sum. `values` are the critic's, one a state, for advantage="gae"; none given means 0.
    """
    leaf = parameters.detach().clone().requires_grad_(True)
    batch = _score(parametrisation, leaf, world, objective, rows, group_index, config, values)
    everyone = torch.ones(len(rows), dtype=torch.bool)
    (gradient,) = torch.autograd.grad(_loss(parametrisation, leaf, batch, everyone, config), leaf)
    return -gradient


def train_sampled(
    world: FiniteWorld,
    objective: Objective,
    parametrisation: Parametrisation,
    settings: SampledSettings,
    rng: np.random.Generator,
    initial: Tensor | None = None,
) -> SampledRun:
    """Train from the base, or from the logits `initial`, on fresh samples at every step; exact figures all along.

    Near a smooth optimum (c > o) all scores agree, so the leave-one-out gradient loses its noise with its signal and a
    constant learning rate converges; the optimum of a linear objective is a vertex, reached only as the logits diverge,
    and samples may settle on another one.
    """
    config = settings.algorithm
    parameters = (parametrisation.initial if initial is None else initial).detach().clone().requires_grad_(True)
    values = torch.zeros(int(parametrisation.states.max()) + 1, dtype=torch.float64, requires_grad=True)
    family = getattr(torch.optim, settings.optimizer)
    optimizer = family([parameters], lr=settings.learning_rate)
    critic = family([values], lr=config.value_learning_rate)
    log_policies = [parametrisation.log_policy(parameters).detach()]
    noise = {}
    if settings.group_size > 1:
        noise[0] = _noise(parameters, world, objective, settings)
    for step in range(settings.steps):
        rows, group_index = draw(log_policies[-1], settings.groups, settings.group_size, rng)
        batch = _score(parametrisation, parameters, world, objective, rows, group_index, config, values)
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(step)
        for _ in range(config.epochs):
            for part in np.array_split(rng.permutation(settings.groups), config.minibatches):
                kept = torch.isin(group_index, torch.as_tensor(part))
                optimizer.zero_grad()
                torch.autograd.backward(_loss(parametrisation, parameters, batch, kept, config))
                optimizer.step()
                if batch.returns is not None:
                    critic.zero_grad()
                    torch.autograd.backward(_value_loss(parametrisation, values, batch, kept, config))
                    critic.step()
        log_policies.append(parametrisation.log_policy(parameters).detach())
        if settings.group_size > 1 and (step + 1) % settings.noise_every == 0:
            noise[step + 1] = _noise(parameters, world, objective, settings)
    steps = torch.arange(settings.steps + 1, dtype=torch.float64)
    along = trajectory(steps, torch.stack(log_policies), world, objective)
    return SampledRun(along, noise, parameters.detach(), values.detach())


def _score(
    parametrisation: Parametrisation,
    parameters: Tensor,
    world: FiniteWorld,
    objective: Objective,
    rows: Int[Tensor, " B"],
    group_index: Int[Tensor, " B"],
    config: AlgorithmConfig,
    values: Tensor | None,
) -> _Batch:
    old = parametrisation.action_logprobs(parameters).detach()[rows]
    # Scores take the row sum of the log-probabilities; a whole response's may sit on its first token.
    behaviour = torch.nn.functional.pad(old, (0, world.mask.shape[1] - old.shape[1]))
    inputs = ScoreInputs(world.rewards[rows], world.base_token_logprobs[rows], behaviour, world.mask[rows])
    if config.advantage != "gae":
        valid = torch.ones(len(rows), dtype=torch.bool)
        advantages = algorithm.ADVANTAGES[config.advantage](objective.score(inputs), group_index, valid)
        return _Batch(rows, group_index, advantages, old, None, None)
    scores = objective.token_scores(inputs) if parametrisation.per_token else objective.score(inputs)[:, None]
    mask = parametrisation.mask[rows]
    predicted = torch.zeros_like(old) if values is None else values.detach()[parametrisation.states[rows]]
    advantages, returns = algorithm.gae(scores, predicted, mask, config.gae_gamma, config.gae_lambda)
    return _Batch(rows, group_index, advantages, old, predicted, returns)


def _loss(
    parametrisation: Parametrisation,
    parameters: Tensor,
    batch: _Batch,
    kept: Bool[Tensor, " B"],
    config: AlgorithmConfig,
) -> Float[Tensor, ""]:
    mask = parametrisation.mask[batch.rows]
    logprobs = parametrisation.action_logprobs(parameters)[batch.rows]
    if config.loss == "ppo_clip":
        terms, _ = algorithm.ppo_clip(
            logprobs, batch.old_logprobs, batch.advantages, mask, config.clip_low, config.clip_high
        )
    else:
        terms = algorithm.reinforce(logprobs, batch.advantages, mask)
    weights = algorithm.reduction_weights(mask, config.reduction, kept, mask.shape[1])
    return algorithm.weighted_sum(terms, weights)


def _value_loss(
    parametrisation: Parametrisation, values: Tensor, batch: _Batch, kept: Bool[Tensor, " B"], config: AlgorithmConfig
) -> Float[Tensor, ""]:
    assert batch.old_values is not None
    assert batch.returns is not None
    mask = parametrisation.mask[batch.rows]
    now = values[parametrisation.states[batch.rows]]
    terms = algorithm.value_loss(now, batch.old_values, batch.returns, mask, config.value_clip)
    return algorithm.weighted_sum(terms, algorithm.reduction_weights(mask, "token_mean", kept))


def _noise(parameters: Tensor, world: FiniteWorld, objective: Objective, settings: SampledSettings) -> GradientNoise:
    one = softmax_gradient_noise(world, objective, parameters.detach(), settings.group_size)
    variance = one.variance / settings.groups
    return GradientNoise(one.signal_squared + variance, variance, one.signal_squared)
