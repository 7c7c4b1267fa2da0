"""Training a real family's folder in bfloat16, with adapters and off by a sampler: nothing is lost, nothing else moves."""

from __future__ import annotations

import dataclasses
import gc
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from model_families import make_folder
from safetensors.torch import load_file

from bsharp.algorithm import parse_objective
from bsharp.config import (
    AlgorithmConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
    ValidationConfig,
    WeightsConfig,
)
from bsharp.generation import Decoder, LogitsError
from bsharp.masking import pad_right
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import forward_responses, response_logprobs
from bsharp.models.network import without_network
from bsharp.rewards import RewardFunction
from bsharp.rollouts import RolloutBatch
from bsharp.runlog import RunDirectory
from bsharp.statistics.gradient_noise import gradient_noise
from bsharp.tasks import load_task
from bsharp.training import Progress, Update, accumulate, build_optimizer, loop, train_policy, training_step
from bsharp.training import step as step_module
from bsharp.types import Completion, Grade, GradeStatus, Problem

pytestmark = pytest.mark.usefixtures("small_bundles")

CONFIG = TrainConfig(
    tasks=("math_mini",),
    steps=3,
    objective="tilted(alpha=2,beta_inv=1)",
    sampling=SamplingConfig(prompts_per_step=2, group_size=2, max_new_tokens=6),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
    validation=ValidationConfig(problems=4, samples=1, every=2),
    checkpoint_every=2,
)
SETTINGS = {
    "bfloat16": (WeightsConfig(dtype="bfloat16"), AlgorithmConfig(importance_cap=20.0)),
    "bfloat16 adapters": (WeightsConfig(dtype="bfloat16", lora_rank=2), AlgorithmConfig(importance_cap=20.0)),
    "bfloat16, blocks recomputed, two updates": (
        WeightsConfig(dtype="bfloat16", gradient_checkpointing=True),
        AlgorithmConfig(loss="ppo_clip", epochs=2, importance_cap=1.5),
    ),
    "adapters with a critic": (WeightsConfig(lora_rank=2), AlgorithmConfig(advantage="gae")),
}


def even_tokens(problems: list[Problem], completions: list[Completion]) -> list[Grade]:
    """The share of even token ids: random models get some of it, and different completions different shares."""
    shares = [
        sum(token % 2 == 0 for token in completion.token_ids) / len(completion.token_ids) for completion in completions
    ]
    return [Grade(GradeStatus.CORRECT if share > 0.5 else GradeStatus.WRONG, share) for share in shares]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("qwen2_5", tmp_path_factory.mktemp("models") / "qwen2_5")


def models(folder: Path, weights: WeightsConfig) -> tuple[LanguageModel, LanguageModel]:
    """(policy, base) as a run has them."""
    base = prepare_base(load_language_model(str(folder), weights.dtype), weights)
    return make_policy(base, weights, seed=0), base


def run(
    folder: Path,
    out: Path,
    weights: WeightsConfig,
    algorithm: AlgorithmConfig,
    kill_at: int | None = None,
    **changes: object,
) -> tuple[LanguageModel, LanguageModel, Progress]:
    config = dataclasses.replace(CONFIG, weights=weights, algorithm=algorithm, **changes)
    policy, base = models(folder, weights)
    generator = Decoder(policy, 64)
    rewards: dict[str, RewardFunction] = {"math_mini": even_tokens}

    def kill(step: int, metrics: object) -> None:
        if step == kill_at:
            raise KeyboardInterrupt

    progress = train_policy(
        config,
        policy,
        base,
        parse_objective(config.objective)[1],
        generator,
        {"math_mini": load_task("math_mini")},
        rewards,
        RunDirectory(out),
        validate=lambda policy, step: {"validation/accuracy": float(step)},
        watchers=[kill],
    )
    return policy, base, progress


def metrics_of(path: Path) -> list[dict[str, object]]:
    rows = RunDirectory(path).rows("metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "tokens_per_second/"))} for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert found
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name: str, folder: Path, tmp_path: Path) -> None:
    weights, algorithm = SETTINGS[name]
    policy, _, _ = run(folder, tmp_path / "whole", weights, algorithm)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "killed", weights, algorithm, kill_at=3)
    resumed, _, progress = run(folder, tmp_path / "killed", weights, algorithm)
    assert progress.step == 3
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "killed")
    for where in ("last", "best", "checkpoints/step_000003"):
        assert files(tmp_path / "whole" / where) == files(tmp_path / "killed" / where)
    for one, other in zip(policy.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = metrics_of(tmp_path / "whole")[1:]
    assert all(row["grad_norm"] > 0 for row in rows)  # type: ignore[operator]
    ratios = {f"importance_sampling_ratio/{figure}" for figure in ("mean", "min", "max", "capped")}
    assert all(ratios | {"sampling_logp_difference/mean", "sampling_logp_difference/max"} <= set(row) for row in rows)


def test_with_adapters_only_these_train_and_are_kept_and_the_base_stays_where_it_was(
    folder: Path, tmp_path: Path
) -> None:
    weights, algorithm = SETTINGS["bfloat16 adapters"]
    plain = load_language_model(str(folder), weights.dtype)
    prompts, (token_ids, mask) = [(5, 6, 7), (8, 9)], pad_right([(3, 4, 5), (6, 7)], 0)
    with without_network():  # by its own modules, as behind an adapter: packed passes round bfloat16 elsewhere
        before = response_logprobs(plain, prompts, token_ids, mask)
    policy, base, _ = run(folder, tmp_path, weights, algorithm)
    assert torch.equal(response_logprobs(base, prompts, token_ids, mask), before)
    assert not torch.equal(response_logprobs(policy, prompts, token_ids, mask), before)
    for where in ("last", "best", "checkpoints/step_000003"):
        (found,) = (tmp_path / where).glob("adapter_model.safetensors")
        assert {"lora_" in name for name in load_file(found)} == {True}
        assert not list((tmp_path / where).glob("model*.safetensors"))
    assert not (tmp_path / "snapshots").exists()
    rows = metrics_of(tmp_path)
    # The policy starts as the base, whatever the sampler's precision: with the trainer's own figures the KL is exactly 0.
    assert rows[1]["kl(policy||base)/k3_nats_per_token"] == 0.0
    assert rows[2]["kl(policy||base)/k3_nats_per_token"] > 0.0  # type: ignore[operator]
    assert rows[1]["sampling_logp_difference/max"] > 0.0  # type: ignore[operator]
    assert rows[2]["kl(policy||base)/exact_nats_per_token"] > 0.0  # type: ignore[operator]


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16 adapters"])
def test_a_step_that_fails_before_any_checkpoint_puts_back_the_weights_before_training(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, algorithm = SETTINGS[name]
    untrained, _ = models(folder, weights)
    start = [parameter.detach().clone() for parameter in untrained.model.parameters()]
    original = loop.collect_rollouts

    def broken(*arguments):
        if arguments[-1] == 2:
            raise LogitsError("no distribution")
        return original(*arguments)

    monkeypatch.setattr(loop, "collect_rollouts", broken)
    late = {"checkpoint_every": 9, "validation": ValidationConfig(problems=4, samples=1, every=9)}
    policy, _, progress = run(folder, tmp_path, weights, algorithm, **late)
    assert progress.stopped is not None
    assert (progress.step, progress.stopped_at) == (0, 2)
    assert all(torch.equal(*pair) for pair in zip(start, policy.model.parameters(), strict=True))
    again, _, progress = run(folder, tmp_path, weights, algorithm, **late)
    assert progress.stopped_at == 2
    assert all(torch.equal(*pair) for pair in zip(start, again.model.parameters(), strict=True))
    masters = load_file(tmp_path / "checkpoints" / "step_000000" / "optimizer.safetensors")
    if name == "bfloat16":
        for index, weight in enumerate(start):
            assert torch.equal(masters[f"master.{index}"], weight.float())


@pytest.mark.parametrize("name", ["bfloat16", "adapters with a critic"])
def test_when_weights_are_put_back_nothing_of_the_failed_step_is_held_any_more(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the frames that failed had made, nor gradients, nor the state that the loaded one replaces."""
    weights, algorithm = SETTINGS[name]
    accumulated, load = step_module.accumulate_gradient, loop.load_checkpoint
    calls, of_the_step, checked = [], [], []

    def broken(policy, *arguments):
        calls.append(policy)
        metrics = accumulated(policy, *arguments)
        if len(calls) == 3:
            activations = torch.nn.Module()
            of_the_step.append(weakref.ref(activations))
            raise LogitsError("no distribution")
        return metrics

    def loaded(path, policy, optimizer, critic):
        checked.append(path.name)
        assert sys.exc_info() == (None, None, None)
        assert of_the_step[0]() is None
        assert all(parameter.grad is None for parameter in policy.model.parameters())
        for one in (optimizer, *([critic.optimizer] if critic else [])):
            assert not one.state
        progress = load(path, policy, optimizer, critic)
        assert optimizer.state
        return progress

    monkeypatch.setattr(step_module, "accumulate_gradient", broken)
    monkeypatch.setattr(loop, "load_checkpoint", loaded)
    gc.disable()
    try:
        _, _, progress = run(folder, tmp_path, weights, algorithm)
    finally:
        gc.enable()
    assert (progress.step, progress.stopped_at) == (2, 3)
    assert checked == ["step_000002"]


def test_bfloat16_gradients_are_added_up_in_float32(folder: Path) -> None:
    policy, base = models(folder, WeightsConfig(dtype="bfloat16"))
    batch = batch_of(policy)
    update = Update(AlgorithmConfig(advantage="none"), SamplingConfig(), max_grad_norm=1e12, microbatch_rows=1)
    parameters = list(policy.model.parameters())
    _, objective = parse_objective("task_reward")
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    kept = kept_gradients(optimizer, parameters)
    with without_network():  # whose order of additions is the one below
        metrics = training_step(policy, base, objective, batch, optimizer, update)
    # Problem by problem, row by row, as the step goes, on fresh weights.
    fresh, _ = models(folder, WeightsConfig(dtype="bfloat16"))
    weights = list(fresh.model.parameters())
    for weight in weights:
        weight.grad_dtype = torch.float32  # tied weights have two uses, whose gradients are added up too
    sums = [torch.zeros(parameter.shape) for parameter in parameters]
    norms = []
    for problem in range(batch.problems):
        rows = torch.nonzero(batch.group_index == problem).flatten().tolist()
        own = [torch.zeros(parameter.shape) for parameter in parameters]
        for row in sorted(rows, key=lambda row: int(batch.mask[row].sum())):
            width = int(batch.mask[row].sum())
            logprobs = forward_responses(
                fresh,
                [batch.prompt_token_ids[row]],
                batch.response_token_ids[[row], :width],
                batch.mask[[row], :width],
            ).token_logprobs
            loss = -(batch.rewards[row] * logprobs * (1 / batch.rows)).sum()
            for held, gradient in zip(own, torch.autograd.grad(loss, weights), strict=True):
                held += gradient
        norms.append(float(sum(held.double().square().sum() for held in own)))
        for total, held in zip(sums, own, strict=True):
            total += held
    for gradient, total in zip(kept[0], sums, strict=True):
        assert gradient is not None
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, total, rtol=1e-6, atol=1e-9)
        assert not torch.equal(total, total.bfloat16().float())
    norm = float(torch.cat([total.flatten() for total in sums]).double().norm())
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    noise = gradient_noise(norms, [3, 3], norm**2)
    assert metrics["gradient/variance_trace"] == pytest.approx(noise.variance, rel=1e-4)


def test_without_any_difference_in_reward_the_bfloat16_gradient_is_zero_in_float32_and_the_optimizer_steps(
    folder: Path,
) -> None:
    policy, base = models(folder, WeightsConfig(dtype="bfloat16"))
    parameters = list(policy.model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    batch = dataclasses.replace(batch_of(policy), rewards=torch.ones(6))
    optimizer = build_optimizer(parameters, OptimizerConfig(options={"weight_decay": 0.5}, learning_rate=0.1))
    _, objective = parse_objective("task_reward")
    update = Update(AlgorithmConfig(), SamplingConfig(), max_grad_norm=1.0)
    kept = kept_gradients(optimizer, parameters)
    metrics = training_step(policy, base, objective, batch, optimizer, update)
    assert metrics["grad_norm"] == 0.0
    for parameter, gradient, weight in zip(parameters, kept[0], before, strict=True):
        assert gradient is not None
        assert gradient.dtype == torch.float32
        # Nothing is left for rollouts and checks, which need the memory.
        assert parameter.grad is None
        torch.testing.assert_close(parameter.detach(), (weight.float() * 0.95).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_of_adapters_is_that_of_plain_passes_and_kept_apart_by_problem(
    recompute: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, base = models(folder, WeightsConfig(lora_rank=2, gradient_checkpointing=recompute))
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for index, parameter in enumerate(parameters):  # away from B = 0, where A has no gradient
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    batch = batch_of(policy)
    update = Update(AlgorithmConfig(advantage="none"), SamplingConfig(), max_grad_norm=1e12)
    _, objective = parse_objective("task_reward")
    bundles: list[int] = []

    class Counted(accumulate.StackedParameters):
        def gradients(self):
            bundles.append(1)
            return super().gradients()

    monkeypatch.setattr(accumulate, "StackedParameters", Counted)
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    kept = kept_gradients(optimizer, parameters)
    metrics = training_step(policy, base, objective, batch, optimizer, update)
    assert len(bundles) == (0 if recompute else 1)
    own = []
    for problem in range(batch.problems):
        rows = torch.nonzero(batch.group_index == problem).flatten().tolist()
        logprobs = forward_responses(
            policy,
            [batch.prompt_token_ids[row] for row in rows],
            batch.response_token_ids[rows],
            batch.mask[rows],
            share_prompts=False,
        ).token_logprobs
        loss = -(batch.rewards[rows, None] * torch.where(batch.mask[rows], logprobs, 0.0)).sum() / batch.rows
        own.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double())
    found = torch.cat([gradient.flatten() for gradient in kept[0] if gradient is not None]).double()
    total = sum(own)
    assert float((found - total).norm() / total.norm()) < 1e-5
    noise = gradient_noise([float(g @ g) for g in own], [3, 3], float(total @ total))
    assert metrics["gradient/variance_trace"] == pytest.approx(noise.variance, rel=1e-3)
    assert all(p.grad is None for p in policy.model.parameters() if not p.requires_grad)


def kept_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
) -> list[list[torch.Tensor | None]]:
    """What is in `.grad` at each step of the optimizer from now on: the training step leaves nothing there."""
    kept: list[list[torch.Tensor | None]] = []
    optimizer.register_step_pre_hook(lambda *_: kept.append([parameter.grad for parameter in parameters]))
    return kept


def batch_of(policy: LanguageModel) -> RolloutBatch:
    """Two problems of three responses each, of several lengths."""
    rows = [(3, 4, 5, 6), (7, 8), (9, 10, 11), (12,), (13, 14, 15, 16), (17, 18, 19)]
    prompts = ((20, 21, 22),) * 3 + ((30, 31),) * 3
    token_ids, mask = pad_right(rows, policy.pad_token_id)
    return RolloutBatch(
        prompt_token_ids=prompts,
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask),
        rewards=torch.tensor([1.0, 0.5, 0.25, 0.75, 1.0, 0.5]),
        valid=torch.ones(6, dtype=torch.bool),
        group_index=torch.tensor([0, 0, 0, 1, 1, 1]),
        truncated=torch.zeros(6, dtype=torch.bool),
    )


def test_the_base_scores_first_checked_and_every_so_many_steps_and_the_run_learns_the_same(
    folder: Path, tmp_path: Path
) -> None:
    key, weights = "kl(policy||base)/k1_nats_per_sequence", WeightsConfig()
    changes = {"steps": 6, "validation": dataclasses.replace(CONFIG.validation, every=5), "objective": "task_reward"}
    learned, scored = [], {}
    for every in (1, 3):
        out = tmp_path / str(every)
        watch = dataclasses.replace(CONFIG.watch, base_every=every)
        policy, _, _ = run(folder, out, weights, AlgorithmConfig(), watch=watch, **changes)
        learned.append([parameter.detach() for parameter in policy.model.parameters()])
        scored[every] = [row["step"] for row in metrics_of(out) if key in row]
    assert scored == {1: [1, 2, 3, 4, 5, 6], 3: [1, 4, 5, 6]}
    assert all(torch.equal(one, other) for one, other in zip(*learned, strict=True))
