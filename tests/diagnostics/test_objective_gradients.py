from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import every_response, small_model

from bsharp.algorithm import ScoreInputs, parse_objective, weighted
from bsharp.config import AlgorithmConfig, SamplingConfig
from bsharp.diagnostics.objective_gradients import module_group, objective_gradients
from bsharp.masking import pad_right
from bsharp.models.logprobs import response_logprobs
from bsharp.rollouts import RolloutBatch
from bsharp.training.step import Update, accumulate_gradient, advantages_of

RESPONSES = every_response(4, 3, (0,))
REGIMES = dict(
    parse_objective(spec)
    for spec in (
        "task_reward",
        "tilted(alpha=2,beta_inv=2)",
        "sharpening",
        "sharpening_mean=sharpening(normalisation=mean)",
        "tempered(alpha=3)",
        "hybrid(alpha=1,beta_inv=2)",
        "entropy_minimisation",
    )
)


def make_batch(policy, problems: int = 6, size: int = 4, seed: int = 0, fixed_length: bool = False) -> RolloutBatch:
    rng = np.random.default_rng(seed)
    rows, prompts, groups = [], [], []
    pool = [r for r in RESPONSES if len(r) == 3 and r[-1] != 0] if fixed_length else RESPONSES
    for problem in range(problems):
        prompt = tuple(rng.integers(1, 4, size=int(rng.integers(1, 5))).tolist())
        for _ in range(size):
            rows.append(pool[int(rng.integers(len(pool)))])
            prompts.append(prompt)
            groups.append(problem)
    token_ids, mask = pad_right(rows, policy.pad_token_id)
    return RolloutBatch(
        prompt_token_ids=tuple(prompts),
        response_token_ids=token_ids,
        mask=mask,
        behaviour_logprobs=response_logprobs(policy, prompts, token_ids, mask, fixed_length=fixed_length),
        rewards=torch.as_tensor(rng.integers(0, 2, len(rows)), dtype=torch.float64),
        valid=torch.ones(len(rows), dtype=torch.bool),
        group_index=torch.tensor(groups),
        truncated=torch.tensor([row[-1] != 0 for row in rows]),
    )


def step_gradient(policy, base, objective, batch, config, sampling) -> torch.Tensor:
    update = Update(config, sampling, max_grad_norm=1e12, microbatch_rows=5)
    base_logprobs = response_logprobs(
        base, batch.prompt_token_ids, batch.response_token_ids, batch.mask, *update.generates
    )
    inputs = ScoreInputs(batch.rewards, base_logprobs, batch.behaviour_logprobs, batch.mask)
    advantages, _ = advantages_of(objective, inputs, objective.score(inputs), batch, config)
    accumulate_gradient(policy, batch, advantages, update, range(batch.problems))
    return torch.cat([p.grad.reshape(-1) for p in policy.model.parameters()])


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        (AlgorithmConfig(), SamplingConfig(max_new_tokens=3)),
        (AlgorithmConfig(reduction="token_mean"), SamplingConfig(max_new_tokens=3, temperature=0.7)),
        (AlgorithmConfig(advantage="group_z_score", reduction="sequence_mean"), SamplingConfig(max_new_tokens=3)),
        (AlgorithmConfig(advantage="batch_normalised"), SamplingConfig(max_new_tokens=3, fixed_length=True)),
        (AlgorithmConfig(advantage="none", reduction="constant_length"), SamplingConfig(max_new_tokens=3)),
    ],
)
def test_every_objectives_direction_is_minus_the_gradient_of_the_production_step(config, sampling) -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch = make_batch(policy, fixed_length=sampling.fixed_length)
    batch = dataclasses.replace(batch, valid=torch.tensor([row not in (2, 9, 10, 11) for row in range(24)]))
    found = objective_gradients(policy, base, batch, REGIMES, config, sampling, microbatch_rows=3, seed=0)
    inner = found.total.sum(axis=(1, 3))
    expected = [step_gradient(policy, base, objective, batch, config, sampling) for objective in REGIMES.values()]
    for place, (name, gradient) in enumerate(zip(REGIMES, expected, strict=True)):
        vector = found.vector(name).double()
        # fp32 vectors, and combinations of them that are exact to 1e-5.
        assert float((vector + gradient).norm() / gradient.norm()) < 3e-5, name
        for other, second in enumerate(expected):
            scale = float(gradient.norm() * second.norm())
            assert inner[place, other] == pytest.approx(float(gradient @ second), abs=1e-4 * scale)


CONSTANT = dict(parse_objective(spec) for spec in ("task_reward", "sharpening"))


def all_right_or_all_wrong(policy) -> RolloutBatch:
    batch = make_batch(policy)
    return dataclasses.replace(batch, rewards=(batch.group_index % 2).double())


@pytest.mark.parametrize("advantage", ["leave_one_out", "group_z_score", "batch_normalised", "none"])
def test_problems_all_right_or_all_wrong_have_the_production_gradient_and_no_spread(advantage: str) -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config = all_right_or_all_wrong(policy), AlgorithmConfig(advantage=advantage)
    sampling = SamplingConfig(max_new_tokens=3)
    found = objective_gradients(policy, base, batch, CONSTANT, config, sampling, microbatch_rows=9, seed=0)
    vector = found.vector("task_reward").double()
    expected = step_gradient(policy, base, CONSTANT["task_reward"], batch, config, sampling)
    within = advantage in ("leave_one_out", "group_z_score")
    assert found.flat.tolist() == [within, False]
    assert found.no_spread.tolist() == [True, False]
    if within:
        assert float(vector.norm()) == float(expected.norm()) == 0.0
    else:
        assert float(expected.norm()) > 0.1
        assert float((vector + expected).norm() / expected.norm()) < 3e-5


@pytest.mark.parametrize(("advantage", "reward"), [("batch_normalised", 1.0), ("none", 0.0)])
def test_a_score_that_is_the_same_everywhere_is_flat_and_so_is_production(advantage: str, reward: float) -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config = make_batch(policy), AlgorithmConfig(advantage=advantage)
    batch = dataclasses.replace(batch, rewards=torch.full_like(batch.rewards, reward))
    sampling = SamplingConfig(max_new_tokens=3)
    found = objective_gradients(policy, base, batch, CONSTANT, config, sampling, microbatch_rows=9, seed=0)
    assert found.flat.tolist() == [True, False]
    assert float(found.vector("task_reward").norm()) == 0.0
    assert float(step_gradient(policy, base, CONSTANT["task_reward"], batch, config, sampling).norm()) < 1e-9


def test_a_kl_at_the_base_is_rounding_and_flat_under_every_advantage() -> None:
    policy = small_model(vocab_size=4, seed=1)
    batch, sampling = make_batch(policy), SamplingConfig(max_new_tokens=3)
    batch = dataclasses.replace(batch, behaviour_logprobs=batch.behaviour_logprobs * (1 + 1e-7))
    for advantage in ("leave_one_out", "group_z_score", "batch_normalised", "none"):
        config = AlgorithmConfig(advantage=advantage)
        found = objective_gradients(
            policy, policy, batch, {"kl": weighted(kl_to_base=1.0)}, config, sampling, microbatch_rows=9, seed=0
        )
        assert found.flat.tolist() == [True]


def megabytes_for(policy, independent: int, blocks: int) -> float:
    weights = sum(p.numel() for p in policy.model.parameters())
    return (4 * independent * (blocks + 1) + 8) * weights / 1e6


@pytest.mark.parametrize("blocks", range(2, 9))
def test_as_many_blocks_as_fit_into_the_memory_allowed(blocks: int) -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config, sampling = make_batch(policy, problems=9), AlgorithmConfig(), SamplingConfig(max_new_tokens=3)
    needed = megabytes_for(policy, 4, blocks)
    found, plenty = (
        objective_gradients(
            policy, base, batch, REGIMES, config, sampling, microbatch_rows=32, seed=0, megabytes=megabytes
        )
        for megabytes in (needed, 1e6)
    )
    assert found.total.shape == (7, blocks, 7, blocks)
    assert plenty.total.shape == (7, 8, 7, 8)
    # The blocks are one and the same gradient, dealt differently.
    np.testing.assert_allclose(found.total.sum(axis=(1, 3)), plenty.total.sum(axis=(1, 3)), rtol=1e-4)
    torch.testing.assert_close(found.basis, plenty.basis)
    np.testing.assert_allclose(found.problem_products, plenty.problem_products)


def test_what_does_not_fit_into_two_blocks_is_refused_with_what_it_needs() -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config, sampling = make_batch(policy), AlgorithmConfig(), SamplingConfig(max_new_tokens=3)
    too_little = megabytes_for(policy, 4, 2) * 0.999
    arguments = (policy, base, batch, REGIMES, config, sampling)
    with pytest.raises(ValueError, match=r"need 1 MB even in 2 blocks .* allowed; raise --gradient-megabytes"):
        objective_gradients(*arguments, microbatch_rows=9, seed=0, megabytes=too_little)
    found = objective_gradients(*arguments, microbatch_rows=9, seed=0, megabytes=too_little, allow_missing=True)
    fits = objective_gradients(*arguments, microbatch_rows=9, seed=0)
    assert "need 1 MB even in 2 blocks" in found.missing
    assert fits.missing == ""
    assert np.isnan(found.total).all()
    assert list(found.groups) == list(fits.groups)
    np.testing.assert_array_equal(found.scores, fits.scores)


def test_products_do_not_depend_on_how_many_numbers_are_multiplied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config, sampling = make_batch(policy), AlgorithmConfig(), SamplingConfig(max_new_tokens=3)
    arguments = (policy, base, batch, REGIMES, config, sampling)
    whole = objective_gradients(*arguments, microbatch_rows=9, seed=0)
    monkeypatch.setattr("bsharp.diagnostics.objective_gradients.WORKING_NUMBERS", 173)
    parts = objective_gradients(*arguments, microbatch_rows=9, seed=0)
    for group, products in whole.groups.items():
        np.testing.assert_allclose(parts.groups[group], products, rtol=1e-9, atol=1e-12 * abs(products).max())


def test_combinations_of_scores_are_not_differentiated_again() -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config, sampling = make_batch(policy), AlgorithmConfig(), SamplingConfig(max_new_tokens=3)
    found = objective_gradients(policy, base, batch, REGIMES, config, sampling, microbatch_rows=32, seed=0)
    # r, l_ref, l_ref / T and l span the seven scores.
    assert len(found.basis) == 4
    at_base = objective_gradients(policy, policy, batch, REGIMES, config, sampling, microbatch_rows=32, seed=0)
    assert len(at_base.basis) == 3


def test_blocks_problems_and_groups_are_parts_of_one_whole() -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, config, sampling = make_batch(policy, problems=7), AlgorithmConfig(), SamplingConfig(max_new_tokens=3)
    found = objective_gradients(policy, base, batch, REGIMES, config, sampling, microbatch_rows=32, seed=0, blocks=3)
    assert sorted(np.bincount(found.problem_block)) == [2, 2, 3]
    assert found.problem_shares.sum() == pytest.approx(1.0)
    vectors = np.stack([found.vector(name).numpy() for name in REGIMES]).astype(float)
    np.testing.assert_allclose(found.total.sum(axis=(1, 3)), vectors @ vectors.T, rtol=1e-4)
    # With a block for every problem, the blocks' own products are the problems'.
    single = objective_gradients(policy, base, batch, REGIMES, config, sampling, microbatch_rows=32, seed=0, blocks=99)
    own = np.einsum("okpk->kop", single.total)[single.problem_block]
    np.testing.assert_allclose(own, single.problem_products, rtol=1e-3, atol=1e-6 * own.max())
    assert list(single.groups)[:3] == ["embedding", "layer 0 attention", "layer 0 mlp"]
    assert list(single.groups)[-1] == "final norm"


def test_gae_is_replaced_by_leave_one_out_and_the_policy_is_left_as_it_was() -> None:
    policy, base = small_model(vocab_size=4, seed=1), small_model(vocab_size=4, seed=2)
    batch, sampling = make_batch(policy), SamplingConfig(max_new_tokens=3)
    found, expected = (
        objective_gradients(
            policy, base, batch, REGIMES, AlgorithmConfig(advantage=name), sampling, microbatch_rows=9, seed=0
        )
        for name in ("gae", "leave_one_out")
    )
    torch.testing.assert_close(found.vector("sharpening"), expected.vector("sharpening"))
    assert found.advantage == expected.advantage == "leave_one_out"
    assert all(p.grad is None for p in policy.model.parameters())


def test_what_cannot_be_differentiated_is_refused() -> None:
    policy = small_model(vocab_size=4, seed=1)
    batch, sampling = make_batch(policy), SamplingConfig(max_new_tokens=3)
    frozen = small_model(vocab_size=4, seed=1)
    frozen.model.requires_grad_(False)
    for model, objectives in ((policy, {}), (frozen, REGIMES)):
        with pytest.raises(ValueError, match="need an objective and a trainable parameter"):
            objective_gradients(
                model, policy, batch, objectives, AlgorithmConfig(), sampling, microbatch_rows=9, seed=0
            )


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.11.self_attn.q_norm.weight", "layer 11 attention"),
        ("model.layers.0.post_attention_layernorm.weight", "layer 0 norms"),
        ("model.layers.3.mlp.experts.5.up_proj.weight", "layer 3 mlp"),
        ("base_model.model.model.layers.2.mlp.up_proj.lora_A.default.weight", "layer 2 mlp"),
        ("model.norm.weight", "final norm"),
        ("lm_head.weight", "head"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.h.1.ln_2.bias", "layer 1 norms"),
        ("transformer.h.1.attn.c_attn.weight", "layer 1 attention"),
        ("transformer.ln_f.weight", "final norm"),
        ("gpt_neox.layers.4.attention.dense.bias", "layer 4 attention"),
        ("gpt_neox.layers.4.input_layernorm.bias", "layer 4 norms"),
        ("embed_out.weight", "head"),
        ("model.decoder.layers.0.fc1.weight", "layer 0 rest"),
        ("scale", "rest"),
    ],
)
def test_module_groups_follow_from_the_names_of_common_architectures(name: str, group: str) -> None:
    assert module_group(name) == group
