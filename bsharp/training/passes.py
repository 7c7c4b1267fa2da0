"""Forward and backward passes over rows of one minibatch, by the policy's own modules under autograd or over packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bsharp import algorithm
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.masking import masked_mean
from bsharp.models import packed
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import ForwardResult, forward_responses
from bsharp.models.network import Network, network_of
from bsharp.models.packing import Packing, bundles, pack
from bsharp.models.parallel import run_pieces, threads_for_pieces
from bsharp.models.part_gradients import GradientSums, PartNorms
from bsharp.models.products import fast_products
from bsharp.models.scored_head import Scored, score_and_differentiate, score_tokens
from bsharp.models.stacked import StackedParameters
from bsharp.models.value_head import ValueHead
from bsharp.rollouts import RolloutBatch

__all__ = ["Critic", "PackedPasses", "Passes", "StepSums", "Update", "trained_network"]


@dataclass
class Critic:
    """The value head and its own optimizer; the policy's optimizer never sees it."""

    head: ValueHead
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Update:
    """What the update needs besides the models: how rows become a loss, and in which pieces."""

    algorithm: AlgorithmConfig
    sampling: SamplingConfig
    max_grad_norm: float
    microbatch_rows: int = 64

    @property
    def generates(self) -> tuple[float, bool]:
        """Temperature and fixed length: the distribution the rollouts were drawn from, and are scored under."""
        return self.sampling.temperature, self.sampling.fixed_length


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes over rows of one minibatch, whose weights in the loss are set already."""

    policy: LanguageModel
    batch: RolloutBatch
    advantages: Float[Tensor, "B T"]
    weights: Float[Tensor, "B T"]
    update: Update
    sums: StepSums
    critic: Critic | None
    values: Float[Tensor, "B T"] | None
    returns: Float[Tensor, "B T"] | None

    @property
    def trains_head(self) -> bool:
        """Whether the output layer gets a gradient, which is then kept apart through its plain linear map only."""
        head = self.policy.model.get_output_embeddings()
        return head is None or any(parameter.requires_grad for parameter in head.parameters())

    def look(self, rows: list[int]) -> None:
        """Only look at these rows: they have no gradient."""
        with torch.no_grad():
            self.forward(rows)

    def forward(self, rows: list[int], stacked: StackedParameters | None = None) -> ForwardResult:
        width = max(1, int(self.batch.mask[rows].sum(-1).max()))
        with stacked or nullcontext():
            result = forward_responses(
                self.policy,
                [self.batch.prompt_token_ids[row] for row in rows],
                self.batch.response_token_ids[rows, :width],
                self.batch.mask[rows, :width],
                *self.update.generates,
                with_entropy=True,
                with_hidden=self.critic is not None,
                whole_logits=stacked is not None and self.trains_head,
            )
        self.sums.observe(rows, result)
        return result

    def backward(self, rows: list[int], stacked: StackedParameters | None = None) -> float:
        """Add the gradient of these rows; returns their part of the policy's loss."""
        result, config = self.forward(rows, stacked), self.update.algorithm
        device, width = result.token_logprobs.device, result.token_logprobs.shape[1]
        mask = self.batch.mask[rows, :width].to(device)
        advantages = self.advantages[rows, :width].to(device)
        before = self.batch.policy_logprobs[rows, :width].to(device)
        terms = _loss_terms(result.token_logprobs, before, advantages, mask, config)
        loss = algorithm.weighted_sum(terms, self.weights[rows, :width].to(device))
        policy_loss = float(loss.detach())
        if self.critic and result.hidden is not None and self.values is not None and self.returns is not None:
            loss = loss + self.value_loss(
                self.critic.head(result.hidden),
                self.values[rows, :width].to(device),
                self.returns[rows, :width].to(device),
                mask,
            )
        torch.autograd.backward(loss)
        return policy_loss

    def value_loss(
        self,
        predicted: Float[Tensor, "B T"],
        values: Float[Tensor, "B T"],
        returns: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, ""]:
        """Token mean over the minibatch. The head reads detached states: this adds nothing to the policy's gradient."""
        terms = algorithm.value_loss(predicted, values, returns, mask, self.update.algorithm.value_clip)
        loss = algorithm.weighted_sum(terms, mask / max(1, self.sums.tokens))
        self.sums.add("loss/value", float(loss.detach()))
        return loss


def _loss_terms(
    logprobs: Float[Tensor, "B T"],
    before: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    config: AlgorithmConfig,
) -> Float[Tensor, "B T"]:
    if config.loss == "ppo_clip":
        return algorithm.ppo_clip(logprobs, before, advantages, mask, config.clip_low, config.clip_high)[0]
    return algorithm.reinforce(logprobs, advantages, mask)


class StepSums:
    """What the passes of one update showed: loss sums, and every token's log-probability and entropy, read at the end."""

    def __init__(self, batch: RolloutBatch, valid: Bool[Tensor, " B"]) -> None:
        self._mask = batch.mask & valid[:, None]
        self.tokens = int(self._mask.sum())
        self._batch = batch
        self._logprobs = batch.policy_logprobs.clone()
        self._entropy = torch.zeros(batch.mask.shape)
        # Every key is there from the start: a minibatch without a valid row still logs all of them.
        self._totals: dict[str, float] = {"loss/policy": 0.0}

    def add(self, key: str, value: float) -> None:
        self._totals[key] = self._totals.get(key, 0.0) + value

    def observe(self, rows: list[int], result: ForwardResult) -> None:
        logprobs = result.token_logprobs.detach().cpu()
        self._logprobs[rows, : logprobs.shape[1]] = logprobs.to(self._logprobs.dtype)
        if result.entropy is not None:
            self._entropy[rows, : logprobs.shape[1]] = result.entropy.float().cpu()

    def observe_packed(self, packing: Packing, scored: Scored) -> None:
        self._logprobs.view(-1)[packing.places] = scored.logprobs.to(self._logprobs.dtype)
        if scored.entropy is not None:
            self._entropy.view(-1)[packing.places] = scored.entropy.float()

    def metrics(self, advantages: Float[Tensor, "B T"], config: AlgorithmConfig) -> dict[str, float]:
        """Sums and token means; the ratio to the policy before the update and the mismatch to the sampler, under every loss."""
        mask, batch = self._mask, self._batch
        _, ratio = algorithm.ppo_clip(
            self._logprobs, batch.policy_logprobs, advantages.cpu(), mask, config.clip_low, config.clip_high
        )
        trainer = self._logprobs if batch.trainer_logprobs is None else batch.trainer_logprobs
        mismatch = algorithm.sampler_mismatch(trainer, batch.behaviour_logprobs, mask, config.importance_cap)
        entropy = float(masked_mean(self._entropy.double(), mask)) if self.tokens else float("nan")
        return self._totals | ratio.as_metrics() | mismatch | {"entropy/exact_nats_per_token": entropy}


def trained_network(policy: LanguageModel, parameters: Sequence[nn.Parameter]) -> Network | None:
    """The policy's network where packed passes give the gradient of all that trains, else None.

    A policy whose blocks are to be recomputed in the backward pass asks for memory, not for speed, and is left to its modules.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in policy.model.modules()):
        return None
    network = network_of(policy.model)
    return network if network is not None and set(parameters) <= set(policy.model.parameters()) else None


class PackedPasses:
    """The same passes over packed tokens (`bsharp.models.packed`): no padding, a prompt once, logits and loss in one go.

    Parts are run several at a time, up to `microbatch_rows` rows, and their gradients kept apart where they are made.
    """

    def __init__(self, plain: Passes, network: Network) -> None:
        self._plain, self._network = plain, network
        self.gradients = GradientSums()

    def accumulate(self, parts: Sequence[list[int]]) -> list[float]:
        """Add the gradients of all parts to `gradients`; returns the squared norm of each one's own."""
        # The head of a critic is trained beside it, by one pass after the other.
        threads = 1 if self._plain.critic is not None else threads_for_pieces(self._network.weight_bytes)
        dealt = self._dealt(parts, threads)

        def run(mine: list[list[int]]) -> tuple[GradientSums, list[tuple[list[float], float]]]:
            sums = GradientSums()
            return sums, [self._backward([parts[place] for place in bundle], sums) for bundle in mine]

        with fast_products(self._network.weight_bytes), self._plain.policy.ready():
            results = run_pieces(run, dealt)
        norms = [0.0] * len(parts)
        for mine, (sums, found) in zip(dealt, results, strict=True):
            self.gradients.take(sums)
            for bundle, (norms_squared, loss) in zip(mine, found, strict=True):
                self._plain.sums.add("loss/policy", loss)
                for place, norm_squared in zip(bundle, norms_squared, strict=True):
                    norms[place] = norm_squared
        return norms

    def look(self, parts: Sequence[list[int]]) -> None:
        """Only look at these parts: they have no gradient."""
        temperature, masked = self._drawn_from
        limit = self._plain.update.microbatch_rows
        pieces = [part[first : first + limit] for part in parts for first in range(0, len(part), limit)]

        def run(mine: list[list[int]]) -> None:
            for bundle in mine:
                packing = self._pack([[row for place in bundle for row in pieces[place]]])
                hidden = packed.hidden_states(self._network, packing).index_select(0, packing.predictor)
                scored = score_tokens(
                    hidden, self._network.head, packing.targets, temperature, masked, with_entropy=True
                )
                self._plain.sums.observe_packed(packing, scored)

        with fast_products(self._network.weight_bytes), self._plain.policy.ready():
            run_pieces(run, self._dealt(pieces, threads_for_pieces(self._network.weight_bytes)))

    def _dealt(self, parts: Sequence[list[int]], threads: int) -> list[list[list[int]]]:
        """For each thread the bundles of parts that it runs, as their places.

        Parts of similar length are together, so that attention has little to fill up.
        """
        batch = self._plain.batch
        order = sorted(range(len(parts)), key=lambda place: int(batch.mask[parts[place]].sum()))
        in_order = [parts[place] for place in order]
        together = bundles(
            self._network, batch.prompt_token_ids, batch.mask, in_order, self._plain.update.microbatch_rows, threads
        )
        found = [[order[place] for place in bundle] for bundle in together]
        return [found[first::threads] for first in range(min(threads, len(found)))]

    def _backward(self, bundle: Sequence[list[int]], gradients: GradientSums) -> tuple[list[float], float]:
        """Add the gradient of these parts; the squared norm of each one's own, and their part of the policy's loss."""
        limit = self._plain.update.microbatch_rows
        if len(bundle) > 1 or len(bundle[0]) <= limit:
            return self._run(bundle, gradients)
        own, loss = GradientSums(), 0.0
        for first in range(0, len(bundle[0]), limit):
            loss += self._run([bundle[0][first : first + limit]], own)[1]
        norm_squared = own.norm_squared()
        gradients.take(own)
        return [norm_squared], loss

    def _run(self, parts: Sequence[list[int]], gradients: GradientSums) -> tuple[list[float], float]:
        packing = self._pack(parts)
        sink = PartNorms(self._network, packing, gradients)
        temperature, masked = self._drawn_from
        coefficient = _Coefficient(self._plain, packing)
        hidden, activations = packed.forward(self._network, packing)
        predicting = hidden.index_select(0, packing.predictor)
        scored, of_predicting = score_and_differentiate(
            predicting,
            self._network.head,
            packing.targets,
            coefficient,
            [predicted for _, predicted in packing.parts],
            sink,
            temperature,
            masked,
        )
        sink.finish_head()
        of_hidden = torch.zeros_like(hidden).index_add_(0, packing.predictor, of_predicting)
        packed.backward(self._network, packing, activations, of_hidden, sink)
        self._plain.sums.observe_packed(packing, scored)
        if self._plain.critic is not None:
            self._critic_backward(packing, predicting)
        return sink.norms_squared(), coefficient.loss

    def _pack(self, parts: Sequence[list[int]]) -> Packing:
        batch = self._plain.batch
        return pack(self._network, batch.prompt_token_ids, batch.response_token_ids, batch.mask, parts)

    @property
    def _drawn_from(self) -> tuple[float, tuple[int, ...]]:
        """Temperature, and the tokens that were masked out."""
        temperature, fixed_length = self._plain.update.generates
        return temperature, self._plain.policy.eos_token_ids if fixed_length else ()

    def _critic_backward(self, packing: Packing, hidden: Float[Tensor, "M D"]) -> None:
        plain = self._plain
        assert plain.critic is not None
        assert plain.values is not None
        assert plain.returns is not None
        places = packing.places
        with torch.enable_grad():
            loss = plain.value_loss(
                plain.critic.head(hidden[None]),
                plain.values.reshape(-1)[places][None],
                plain.returns.reshape(-1)[places][None],
                torch.ones((1, len(places)), dtype=torch.bool),
            )
            loss.backward()  # type: ignore[no-untyped-call]


class _Coefficient:
    """∂loss/∂log-probability of the packed predicted tokens, from the loss itself, which is added up."""

    def __init__(self, plain: Passes, packing: Packing) -> None:
        self._config = plain.update.algorithm
        self._before, self._advantages, self._weights = (
            values.reshape(-1).index_select(0, packing.places)[None]
            for values in (plain.batch.policy_logprobs, plain.advantages, plain.weights)
        )
        self._mask = torch.ones(self._before.shape, dtype=torch.bool)
        self.loss = 0.0

    def __call__(self, tokens: slice, logprobs: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        before, advantages, weights, mask = (
            values[:, tokens] for values in (self._before, self._advantages, self._weights, self._mask)
        )
        with torch.enable_grad():
            leaf = logprobs.detach().clone()[None].requires_grad_()
            loss = algorithm.weighted_sum(_loss_terms(leaf, before, advantages, mask, self._config), weights)
            (gradient,) = torch.autograd.grad(loss, leaf)
        self.loss += float(loss.detach())
        return gradient[0]
