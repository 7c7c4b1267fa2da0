"""The training loop: rollouts, step, log, validate, checkpoint. Validation and watchers arrive as callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bsharp import algorithm
from bsharp.algorithm import Objective
from bsharp.config import ConfigError, TrainConfig
from bsharp.generation.interface import Generator, LogitsError, SamplingParams
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses
from bsharp.models.placement import has_adapter
from bsharp.models.value_head import ValueHead
from bsharp.models.weights import save_difference
from bsharp.rewards import RewardFunction
from bsharp.rollouts import RolloutBatch, build_batch, collect_rollouts, summarize_rollouts
from bsharp.runlog import RunDirectory
from bsharp.seeding import generator as random_stream
from bsharp.seeding import stream_seed
from bsharp.tasks import Task
from bsharp.training.checkpoints import Progress, latest_checkpoint, load_checkpoint, save_checkpoint, save_policy
from bsharp.training.optimizer import MasterWeights, build_optimizer, learning_rate_factor
from bsharp.training.problems import ProblemStream
from bsharp.training.step import Critic, Update, training_step

__all__ = ["Alarms", "Probe", "Validate", "Watcher", "check_trainable", "train_policy"]

Validate = Callable[[LanguageModel, int], Mapping[str, float]]
"""(policy, step) → metrics, of which `validation/accuracy` chooses the best checkpoint."""
Watcher = Callable[[int, Mapping[str, float]], None]
"""(step, metrics) after each step; raising stops the run."""
Probe = Callable[[LanguageModel, RolloutBatch, int], Mapping[str, Any] | None]
"""(policy before the update, its rollouts, step) → a row of gradients.jsonl, or None at a step that is not probed."""
Alarms = Callable[[int, Mapping[str, float | None]], Sequence[Mapping[str, Any]]]
"""(step, metrics) → rows of alarms.jsonl: `sentence` says what happened, `stops` that the output has degenerated."""

EXACT_KL_ROWS = 64
EXACT_KL_TOKENS = 2**14
"""Response tokens whose exact KL is computed at a check, at most; always those of one row at least."""
EXACT_KL_BYTES = 2**28
"""Logits held at once for it, of each of the two models, in fp32; what is computed from them takes a few times as much."""


def train_policy(
    config: TrainConfig,
    policy: LanguageModel,
    base: LanguageModel,
    objective: Objective,
    generator: Generator,
    tasks: Mapping[str, Task],
    rewards: Mapping[str, RewardFunction],
    run: RunDirectory,
    validate: Validate | None = None,
    watchers: Sequence[Watcher] = (),
    probe: Probe | None = None,
    alarms: Alarms | None = None,
) -> Progress:
    """Train `policy` in place, from the run's last checkpoint if it has one, to the last step.

    Only the parameters that require a gradient train, and with adapters checkpoints/, last/ and best/ hold these alone.
    Writes metrics.jsonl, gradients.jsonl, alarms.jsonl, snapshots/, checkpoints/, last/ and best/ into the run directory. A
    gradient that is not finite ends the run at the weights before it, weights or logits that are not finite at those of the
    last checkpoint (or the base), a collapse at its own weights where config.stop_on_collapse; `Progress.stopped` says so.
    Raises ConfigError for settings that cannot be trained.
    """
    check_trainable(config)
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(parameters, config.optimizer)
    critic = _build_critic(config, policy)
    update = Update(config.algorithm, config.sampling, config.optimizer.max_grad_norm, config.microbatch_rows)
    stream = ProblemStream(tasks, config)
    params = SamplingParams(
        config.sampling.max_new_tokens, config.sampling.temperature, fixed_length=config.sampling.fixed_length
    )
    untrained = _untrained(policy, base)
    progress = _resume(run, policy, optimizer, critic)
    snapshots = _snapshots_kept(config, policy)
    if validate and progress.step == 0 and not progress.stopped:
        generator.sync_weights(policy.model, 0)
        # The check before training starts the trace; it is the base, so it cannot become the best checkpoint.
        run.append("metrics.jsonl", {"step": 0, **_json_safe(validate(policy, 0))})
    while progress.step < config.steps and not progress.stopped:
        step = progress.step + 1
        _set_learning_rate(optimizer, config, step)
        generator.sync_weights(policy.model, step - 1)
        check = step % config.validation.every == 0 or step == config.steps
        gave_up = False
        try:
            started = time.perf_counter()
            problems = stream.problems(step)
            groups = collect_rollouts(
                generator, policy, tasks, rewards, problems, config.sampling.group_size, params, config.seed, step
            )
            batch = build_batch(groups, policy.pad_token_id)
            sampled = time.perf_counter()
            exact_kl = _exact_kl(policy, base, batch, update) if check else {}
            probed = probe(policy, batch, step) if probe else None
            order = _minibatch_order(config, batch.problems, step)
            scored = time.perf_counter()
            score_base = check or (step - 1) % config.watch.base_every == 0
            metrics = training_step(policy, base, objective, batch, optimizer, update, critic, order, score_base)
            updated = time.perf_counter()
            if not all(bool(parameter.isfinite().all()) for parameter in parameters):
                raise LogitsError("a weight is not finite")
            if validate and check:
                generator.sync_weights(policy.model, step)
                metrics |= validate(policy, step)
        except LogitsError:
            gave_up = True
        if gave_up:  # not in the handler: the traceback would keep the memory of the frames that failed
            progress = _give_up(run, policy, untrained, optimizer, critic, step, alarms)
            break
        metrics |= summarize_rollouts(groups) | exact_kl | _speed(batch, sampled - started, updated - scored)
        metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
        progress.step = step
        if not math.isfinite(metrics["grad_norm"]):
            progress.stopped = f"the gradient was not finite at step {step}; lower optimizer.learning_rate"
        new_best = False
        if metrics.get("validation/accuracy", -1.0) > progress.best_accuracy:
            progress.best_accuracy, progress.best_step = metrics["validation/accuracy"], step
            save_policy(policy, run.path / "best")
            new_best = True
        raised = list(alarms(step, _json_safe(metrics))) if alarms else []
        collapse = next((alarm["sentence"] for alarm in raised if alarm["stops"]), None)
        if collapse and config.stop_on_collapse and not progress.stopped:
            progress.stopped, progress.collapsed = collapse, True
            if validate and not check:  # else the last accuracy on record would be that of healthier weights
                generator.sync_weights(policy.model, step)
                metrics |= validate(policy, step)
        _log(run, step, metrics, probed, raised)
        for watcher in watchers:
            watcher(step, metrics)
        if snapshots and (step % config.watch.snapshot_every == 0 or step == config.steps or progress.stopped):
            save_difference(policy.model, base.model, run.path / "snapshots" / f"step_{step:06d}.safetensors")
        # A new best is checkpointed too: best/ and the progress that names its step must never part.
        if step % config.checkpoint_every == 0 or step == config.steps or new_best or progress.stopped:
            save_checkpoint(run.path / "checkpoints", policy, optimizer, progress, critic)
    save_policy(policy, run.path / "last")
    return progress


def check_trainable(config: TrainConfig) -> None:
    """Refuse settings under which rollouts would be scored under another distribution than they were drawn from."""
    if config.sampling.top_p != 1.0:
        raise ConfigError(
            f"sampling.top_p = {config.sampling.top_p} cannot be trained on: completions would be drawn from a truncated "
            "distribution and scored under the full one; set sampling.top_p = 1"
        )
    needs_group = config.algorithm.advantage in ("leave_one_out", "group_z_score")
    if needs_group and config.sampling.group_size < 2:
        raise ConfigError(
            f"algorithm.advantage = {config.algorithm.advantage} compares completions of one problem, got "
            f"sampling.group_size = {config.sampling.group_size}; raise it to at least 2 or choose batch_normalised, gae or none"
        )
    if config.algorithm.minibatches > config.sampling.prompts_per_step:
        raise ConfigError(
            f"algorithm.minibatches = {config.algorithm.minibatches} exceeds sampling.prompts_per_step = "
            f"{config.sampling.prompts_per_step}; whole problems are dealt to minibatches, so lower it"
        )
    updates = config.algorithm.epochs * config.algorithm.minibatches
    if config.algorithm.loss == "reinforce" and updates > 1:
        raise ConfigError(
            f"algorithm.loss = reinforce with {updates} updates per batch would use stale rollouts without a correction; "
            "choose loss = ppo_clip, or epochs = 1 and minibatches = 1"
        )


def _build_critic(config: TrainConfig, policy: LanguageModel) -> Critic | None:
    if config.algorithm.advantage != "gae":
        return None
    hidden_size = int(policy.model.config.get_text_config().hidden_size)
    head = ValueHead(hidden_size, seed=stream_seed(config.seed, "value_head")).to(policy.device)
    return Critic(head, torch.optim.Adam(head.parameters(), lr=config.algorithm.value_learning_rate))


def _resume(
    run: RunDirectory, policy: LanguageModel, optimizer: torch.optim.Optimizer, critic: Critic | None
) -> Progress:
    checkpoint = latest_checkpoint(run.path / "checkpoints")
    progress = load_checkpoint(checkpoint, policy, optimizer, critic) if checkpoint else Progress()
    for name in ("metrics.jsonl", "gradients.jsonl", "alarms.jsonl"):
        run.truncate_after(name, (progress.stopped_at or progress.step) if checkpoint else -1)
    return progress


def _snapshots_kept(config: TrainConfig, policy: LanguageModel) -> bool:
    """Whether the run keeps snapshots: of whole weights, where all of the run stay within the megabytes allowed.

    A part of a path would be misread, and adapters are not on the surface of the weights: their products are.
    """
    if has_adapter(policy.model):
        return False
    count = math.ceil(config.steps / config.watch.snapshot_every)
    size = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)
    return bool(2e-6 * count * size <= config.watch.snapshot_megabytes)


def _untrained(policy: LanguageModel, base: LanguageModel) -> Mapping[str, Tensor]:
    """The weights before any training: the base's own, or a copy of the adapters, which the base does not have."""
    if not has_adapter(policy.model):
        return dict(base.model.state_dict())
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if p.requires_grad}


def _give_up(
    run: RunDirectory,
    policy: LanguageModel,
    untrained: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    critic: Critic | None,
    step: int,
    alarms: Alarms | None,
) -> Progress:
    """The weights no longer give a distribution: go back to the last checkpoint (or the base) and say so."""
    for failed in (optimizer, *([critic.optimizer] if critic else [])):  # their memory is needed for what is loaded
        failed.zero_grad(set_to_none=True)
        failed.state.clear()
    checkpoint = latest_checkpoint(run.path / "checkpoints")
    if checkpoint:
        progress = load_checkpoint(checkpoint, policy, optimizer, critic)
    else:
        progress = Progress()
        policy.model.load_state_dict(untrained, strict=not has_adapter(policy.model))
        if isinstance(optimizer, MasterWeights):
            optimizer.restart()
    progress.stopped = (
        f"weights or logits were not finite at step {step}, those of step {progress.step} are kept; "
        "lower optimizer.learning_rate"
    )
    progress.stopped_at = step
    # A null gradient norm marks the trace as broken for the stability rule.
    _log(run, step, {"grad_norm": math.nan}, None, list(alarms(step, {"grad_norm": None})) if alarms else [])
    save_checkpoint(run.path / "checkpoints", policy, optimizer, progress, critic)
    return progress


def _log(
    run: RunDirectory,
    step: int,
    metrics: Mapping[str, float],
    probed: Mapping[str, Any] | None,
    raised: Sequence[Mapping[str, Any]],
) -> None:
    """Append what the step gave."""
    run.append("metrics.jsonl", {"step": step, **_json_safe(metrics)})
    if probed:
        run.append("gradients.jsonl", probed)
    for alarm in raised:
        run.append("alarms.jsonl", alarm)


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    factor = learning_rate_factor(step, config.steps, config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.learning_rate * factor


def _minibatch_order(config: TrainConfig, problems: int, step: int) -> list[list[int]]:
    """Problem indices of each update of this step; problems are dealt anew for each pass."""
    order: list[list[int]] = []
    for epoch in range(config.algorithm.epochs):
        count = config.algorithm.minibatches
        # Dealt at random even to a single minibatch: its sub-batches must not be sorted by task and family, or the
        # differences between families would count as gradient noise.
        shuffled = random_stream(config.seed, "minibatches", step, epoch).permutation(problems).tolist()
        order += [shuffled[start::count] for start in range(count)]
    return order


@torch.inference_mode()
def _exact_kl(policy: LanguageModel, base: LanguageModel, batch: RolloutBatch, update: Update) -> dict[str, float]:
    """KL(policy‖base) of the next-token distributions, averaged over the response tokens of the first rows.

    These are as many rows as a micro-batch has, at most 64 and of at most EXACT_KL_TOKENS tokens with their padding. Whole
    rows are run together as EXACT_KL_BYTES of logits allow; a single response beyond that is run in pieces, each
    behind the prompt and the pieces before it.
    """
    lengths = batch.mask.sum(-1).tolist()
    rows = min(EXACT_KL_ROWS, update.microbatch_rows, batch.rows)
    while rows > 1 and rows * max(lengths[:rows]) > EXACT_KL_TOKENS:
        rows -= 1
    at_once = max(1, EXACT_KL_BYTES // (4 * policy.vocab_size))
    together = max(1, at_once // max([1, *lengths[:rows]]))
    sums: list[Tensor] = []
    with base.ready():  # an offloaded base is brought once, not for every piece
        for first in range(0, rows, together):
            part = list(range(first, min(first + together, rows)))
            width = max([1, *(lengths[row] for row in part)])
            for start in range(0, width, at_once):
                sums.append(_sum_of_kl(policy, base, batch, update, part, slice(start, min(start + at_once, width))))
    tokens = batch.mask[:rows].sum().clamp(min=1)
    return {"kl(policy||base)/exact_nats_per_token": float(torch.stack(sums).sum() / tokens)}


def _sum_of_kl(
    policy: LanguageModel, base: LanguageModel, batch: RolloutBatch, update: Update, rows: list[int], piece: slice
) -> Tensor:
    """Sum of the exact KL over the response tokens of these rows at the places of `piece`."""
    before = [[*batch.prompt_token_ids[row], *batch.response_token_ids[row, : piece.start].tolist()] for row in rows]
    token_ids, mask = batch.response_token_ids[rows, piece], batch.mask[rows, piece]
    logits = [
        forward_responses(model, before, token_ids, mask, *update.generates, with_logits=True).logits
        for model in (policy, base)
    ]
    assert logits[0] is not None
    assert logits[1] is not None
    kl = algorithm.exact_kl_policy_base(logits[0], logits[1].to(logits[0].device)).cpu()
    return torch.where(mask, kl, 0.0).sum()


def _speed(batch: RolloutBatch, rollout_seconds: float, update_seconds: float) -> dict[str, float]:
    tokens = int(batch.mask.sum())
    return {
        "time/rollout_seconds": rollout_seconds,
        "time/update_seconds": update_seconds,
        "tokens_per_second/rollout": tokens / max(rollout_seconds, 1e-9),
        "tokens_per_second/update": tokens / max(update_seconds, 1e-9),
    }


def _json_safe(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """NaN and infinity are not JSON: they become null."""
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
