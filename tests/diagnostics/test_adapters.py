"""Gradients of runs that train adapters, and of weights in bfloat16, against plain differentiation of the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from model_families import make_folder

from bsharp.algorithm import Objective, parse_objective
from bsharp.config import AlgorithmConfig, SamplingConfig, WeightsConfig
from bsharp.diagnostics.alignment import alignment_point
from bsharp.diagnostics.mistakes import has_typed_mistakes, mistake_table
from bsharp.diagnostics.objective_gradients import objective_gradients, trained_parameters
from bsharp.diagnostics.response_gradients import ResponseRows, ResponseScorer, directional_derivatives
from bsharp.diagnostics.surface import no_surface
from bsharp.masking import pad_right
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import forward_responses, response_logprobs
from bsharp.rollouts import RolloutBatch
from bsharp.tasks import load_task

LORA = WeightsConfig(lora_rank=2)
SAMPLING = SamplingConfig(max_new_tokens=6)
OBJECTIVES: Mapping[str, Objective] = dict(parse_objective(spec) for spec in ("task_reward", "sharpening"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("qwen2_5", tmp_path_factory.mktemp("adapters") / "qwen", vocab_size=384)


def pair(folder: Path, weights: WeightsConfig) -> tuple[LanguageModel, LanguageModel]:
    """The frozen base and the policy as training starts it."""
    base = prepare_base(load_language_model(str(folder), weights.dtype), weights)
    return base, make_policy(base, weights, seed=0)


def moved(policy: LanguageModel) -> LanguageModel:
    """As after training: the adapter's B is no longer 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained_parameters(policy.model).items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def batch_of(policy: LanguageModel, problems: int = 5, size: int = 3) -> RolloutBatch:
    rng = np.random.default_rng(0)
    rows = [rng.integers(10, 300, int(rng.integers(2, 7))).tolist() for _ in range(problems * size)]
    prompts = [tuple(rng.integers(10, 300, 3 + problem).tolist()) for problem in range(problems) for _ in range(size)]
    token_ids, mask = pad_right(rows, policy.pad_token_id)
    return RolloutBatch(
        prompt_token_ids=tuple(prompts),
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask),
        rewards=torch.as_tensor(rng.integers(0, 2, len(rows)), dtype=torch.float64),
        valid=torch.ones(len(rows), dtype=torch.bool),
        group_index=torch.arange(problems).repeat_interleave(size),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
    )


def plain_gradient(policy: LanguageModel, base: LanguageModel, batch: RolloutBatch, name: str) -> torch.Tensor:
    """∇ Σ_i A_i log π(y_i), A the leave-one-out advantage over all rows divided as sequence_sum does, by autograd alone."""
    if name == "task_reward":
        score = batch.rewards
    else:
        score = response_logprobs(base, batch.prompt_token_ids, batch.response_token_ids, batch.mask).double().sum(-1)
    table = score.reshape(-1, 3)
    advantage = (table - (table.sum(-1, keepdim=True) - table) / 2).reshape(-1)
    logprobs = forward_responses(policy, batch.prompt_token_ids, batch.response_token_ids, batch.mask).token_logprobs
    value = (advantage * torch.where(batch.mask, logprobs, 0.0).sum(-1)).sum() / len(advantage)
    parameters = list(trained_parameters(policy.model).values())
    return torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(value, parameters)])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_adapters_are_those_of_autograd_with_the_base_scored_without_them(
    folder: Path, name: str, checkpointing: bool
) -> None:
    base, policy = pair(folder, WeightsConfig(lora_rank=2, gradient_checkpointing=checkpointing))
    moved(policy)
    batch = batch_of(policy)
    found = objective_gradients(
        policy, base, batch, OBJECTIVES, AlgorithmConfig(), SAMPLING, microbatch_rows=4, seed=0
    ).vector(name)
    untouched = load_language_model(str(folder))
    expected = plain_gradient(policy, untouched, batch, name)
    assert found.shape == expected.shape
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected.float(), rtol=2e-3, atol=2e-4 * float(expected.abs().max()))


def test_only_the_adapters_parameters_are_compared_even_where_all_weights_ask_for_a_gradient(folder: Path) -> None:
    base, policy = pair(folder, LORA)
    moved(policy)
    expected = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    policy.model.requires_grad_(True)
    assert list(trained_parameters(policy.model)) == expected
    point = alignment_point(
        policy, base, batch_of(policy), OBJECTIVES, AlgorithmConfig(), SAMPLING,
        checkpoint="base", step=0, microbatch_rows=4, seed=0,
    )  # fmt: skip
    assert set(point["groups"]) == {f"layer {layer} {part}" for layer in (0, 1) for part in ("attention", "mlp")}
    assert point["euclidean"]["matrix"][0][1]["estimate"] is not None


def test_a_policy_whose_adapter_is_disabled_is_refused_instead_of_giving_zeros(folder: Path) -> None:
    base, policy = pair(folder, LORA)
    batch = batch_of(policy)
    with pytest.raises(ValueError, match=r"adapter is disabled.*give the policy as training starts it"):
        objective_gradients(base, base, batch, OBJECTIVES, AlgorithmConfig(), SAMPLING, microbatch_rows=4, seed=0)
    with pytest.raises(ValueError, match=r"adapter is disabled.*give the policy as training starts it"):
        mistake_table(base, {}, {}, {}, problems_per_family=1, seed=0)


def test_derivatives_along_an_adapters_gradient_are_finite_differences_of_the_log_probability(folder: Path) -> None:
    _, policy = pair(folder, LORA)
    moved(policy)
    batch = batch_of(policy)
    rows = ResponseRows(batch.prompt_token_ids, batch.response_token_ids, batch.mask)
    gradient = ResponseScorer(policy).gradient(rows, range(len(rows)), 4)
    found = directional_derivatives(policy, rows, {"own": gradient})["own"]
    parameters = list(trained_parameters(policy.model).values())
    step, values = 1e-3, []
    unit = gradient / gradient.norm()
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, piece in zip(parameters, unit.split([p.numel() for p in parameters]), strict=True):
                parameter += (2 if sign < 0 else 1) * sign * step * piece.reshape(parameter.shape)
        values.append(response_logprobs(policy, rows.prompts, rows.token_ids, rows.mask).double().sum(-1).numpy())
    np.testing.assert_allclose(found, (values[0] - values[1]) / (2 * step), rtol=0.02, atol=0.02 * np.abs(found).max())


def test_mistakes_of_a_run_with_adapters_are_scored_at_the_policys_start_which_is_the_base(folder: Path) -> None:
    base, policy = pair(folder, LORA)
    task = load_task("math_mini")
    batch = batch_of(policy)
    gradients = objective_gradients(
        policy, base, batch, OBJECTIVES, AlgorithmConfig(), SAMPLING, microbatch_rows=4, seed=0
    )
    vectors = {name: gradients.vector(name) for name in gradients.names}
    made = mistake_table(policy, {}, {task.name: task}, vectors, problems_per_family=1, seed=0)
    plain = mistake_table(load_language_model(str(folder)), {}, {task.name: task}, {}, problems_per_family=1, seed=0)
    for ours, theirs in zip(made["types"], plain["types"], strict=True):
        assert ours["base"]["right"]["estimate"] == pytest.approx(theirs["base"]["right"]["estimate"], rel=1e-5)
        assert ours["first_step"]["sharpening"]["margin"]["estimate"] != 0
        assert theirs["first_step"] == {}


def test_gradients_of_bfloat16_weights_are_summed_in_float32_and_point_where_those_of_float32_do(folder: Path) -> None:
    half_base, half = pair(folder, WeightsConfig(dtype="bfloat16"))
    base, policy = pair(folder, WeightsConfig())
    with torch.no_grad():  # the same weights, rounded once
        for ours, theirs in zip(policy.model.parameters(), half.model.parameters(), strict=True):
            ours.copy_(theirs.float())
    batch = batch_of(policy)
    vectors = []
    for one, other in ((half, half_base), (policy, base)):
        gradients = objective_gradients(
            one, other, batch, OBJECTIVES, AlgorithmConfig(), SAMPLING, microbatch_rows=4, seed=0
        )
        vectors.append(gradients.vector("task_reward"))
        rows = ResponseRows(batch.prompt_token_ids, batch.response_token_ids, batch.mask)
        assert ResponseScorer(one).gradient(rows, range(len(rows)), 1).dtype == torch.float32
    assert vectors[0].dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(*vectors, dim=0)) > 0.98


def test_there_is_no_surface_for_adapters_and_coarse_weights_and_the_reason_is_one_line() -> None:
    assert no_surface(WeightsConfig()) == ""
    assert no_surface(LORA).startswith("the runs trained adapters")
    assert "bfloat16" in no_surface(WeightsConfig(dtype="bfloat16"))


def test_tasks_without_families_have_no_typed_mistakes() -> None:
    class Plain:
        families: Mapping[str, object] = {}

    assert has_typed_mistakes({"math_mini": load_task("math_mini")})
    assert not has_typed_mistakes({"plain": Plain()})
