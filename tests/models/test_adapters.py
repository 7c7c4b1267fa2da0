"""Base and policy: with adapters one set of weights, else two; the base never moves, wherever it rests."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from model_families import FAMILIES, make_folder
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from small_models import small_model
from torch import nn
from transformers import OPTConfig, OPTForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from bsharp.config import ConfigError, WeightsConfig
from bsharp.models.adapters import linear_layer_names, make_policy, prepare_base
from bsharp.models.loading import LanguageModel, clone_model, load_language_model, save_language_model, weights_hash
from bsharp.models.placement import adapters_switched, peft_without_warnings, release_cached_memory
from bsharp.models.weights import load_difference, save_difference

LORA = WeightsConfig(lora_rank=3)
IDS = torch.tensor([[7, 30, 211, 4, 99, 250, 18, 64, 33, 180, 2, 75, 401, 8, 120, 61, 300, 45, 5, 77]])


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(request.param, tmp_path_factory.mktemp(request.param))


def logits(language_model: LanguageModel) -> torch.Tensor:
    with torch.no_grad(), language_model.ready():
        return language_model.model(input_ids=IDS, use_cache=False).logits


def loss(language_model: LanguageModel) -> torch.Tensor:
    with language_model.ready():
        return language_model.model(input_ids=IDS, use_cache=False).logits.float().log_softmax(-1)[0, :, 3].mean()


def train(policy: LanguageModel, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(policy).backward()
        optimizer.step()


def adapter_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_the_adapter_off_the_base_is_the_untouched_model_bit_for_bit_also_after_training(
    folder: Path, dtype: str
) -> None:
    untouched = logits(load_language_model(str(folder), dtype))
    base = prepare_base(load_language_model(str(folder), dtype), LORA)
    policy = make_policy(base, LORA, seed=5)
    assert torch.equal(logits(base), untouched)
    assert torch.equal(logits(policy), untouched)  # B is 0
    train(policy)
    assert not torch.allclose(logits(policy), untouched, atol=1e-2)
    assert torch.equal(logits(base), untouched)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert not any(p.requires_grad for name, p in policy.model.named_parameters() if "lora_" not in name)


def test_base_and_policy_share_every_weight_and_the_adapter_is_all_there_is_beside(folder: Path) -> None:
    plain = load_language_model(str(folder))
    pointers = {p.data_ptr() for p in plain.model.parameters()}
    layers = [m for m in plain.model.modules() if isinstance(m, nn.Linear) and m.weight.data_ptr() in pointers]
    head = plain.model.get_output_embeddings()
    expected = sum(3 * (m.in_features + m.out_features) for m in layers if m is not head)
    base = prepare_base(plain, LORA)
    policy = make_policy(base, LORA, seed=0)
    assert policy.model is base.model
    own = {name: p for name, p in policy.model.named_parameters() if "lora_" not in name}
    assert {p.data_ptr() for p in own.values()} == pointers
    assert sum(p.numel() for p in policy.model.parameters() if p.requires_grad) == expected


def test_the_adapter_starts_the_same_for_the_same_seed_and_leaves_the_random_state_alone(folder: Path) -> None:
    state = torch.random.get_rng_state()
    base = prepare_base(load_language_model(str(folder)), LORA)
    policy = make_policy(base, LORA, seed=1)
    first = adapter_of(policy.model)
    train(policy)
    again = adapter_of(make_policy(base, LORA, seed=1).model)
    other = adapter_of(make_policy(prepare_base(load_language_model(str(folder)), LORA), LORA, seed=2).model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name, tensor in first.items():
        if "lora_A" in name:
            assert not torch.equal(tensor, other[name])
            bound = tensor.shape[1] ** -0.5
            assert 0.7 * bound < float(tensor.abs().max()) <= bound
            assert len(torch.unique(tensor)) > 0.9 * tensor.numel()
        else:
            assert not tensor.any()
    # Two layers of one shape do not start alike.
    a = [tensor for name, tensor in first.items() if "lora_A" in name]
    assert all(not torch.equal(x, y) for x, y in itertools.combinations(a, 2) if x.shape == y.shape)


def test_ready_can_be_entered_within_itself_and_across_base_and_policy_in_any_order(folder: Path) -> None:
    base = prepare_base(load_language_model(str(folder)), LORA)
    policy = make_policy(base, LORA, seed=0)
    train(policy)
    of = {base: logits(base), policy: logits(policy)}
    flags = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    for order in itertools.product((base, policy), repeat=3):
        one, two, three = order
        with one.ready():
            assert torch.equal(logits(two), of[two])
            with two.ready(), three.ready():
                assert torch.equal(logits(one), of[one])
            assert torch.equal(logits(one), of[one])
            assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == flags
    with pytest.raises(KeyError), base.ready():
        raise KeyError
    assert not any(m.disable_adapters for m in policy.model.modules() if isinstance(m, BaseTunerLayer))
    with torch.inference_mode(), adapters_switched(policy.model, on=False):
        pass
    assert {name: p.requires_grad for name, p in policy.model.named_parameters()} == flags


def test_a_saved_adapter_is_read_back_by_peft_and_by_the_loader(folder: Path, tmp_path: Path) -> None:
    base = prepare_base(load_language_model(str(folder)), LORA)
    policy = make_policy(base, LORA, seed=0)
    train(policy)
    save_language_model(policy, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    again = load_language_model(str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(policy))
    assert again.encode("2 + 2") == policy.encode("2 + 2")
    with peft_without_warnings():
        by_peft = peft.PeftModel.from_pretrained(load_language_model(str(folder)).model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(by_peft(input_ids=IDS, use_cache=False).logits, logits(policy))
    # As the base of a next run it is merged into its weights.
    merged = prepare_base(again, WeightsConfig())
    assert not hasattr(merged.model, "peft_config")
    torch.testing.assert_close(logits(merged), logits(policy), atol=1e-2, rtol=1e-2)


def test_an_adapter_under_new_adapters_is_refused_and_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    """What is saved would name an adapter as its base, which the loader refuses."""
    policy = make_policy(prepare_base(load_language_model(str(folder)), LORA), LORA, seed=0)
    train(policy)
    save_language_model(policy, tmp_path / "adapter")
    again = load_language_model(str(tmp_path / "adapter"))
    message = "is an adapter; merge it into its base and pass that folder, or leave weights.lora_rank out$"
    with pytest.raises(ConfigError, match=message) as raised:
        prepare_base(again, LORA)
    assert str(raised.value).startswith(f"model = {str(tmp_path / 'adapter')!r}")
    assert "\n" not in str(raised.value)
    assert torch.equal(logits(again), logits(policy))


def test_named_targets_get_adapters_and_no_others() -> None:
    language_model = small_model("qwen3")
    assert linear_layer_names(language_model.model) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    weights = WeightsConfig(lora_rank=2, lora_alpha=1.0, lora_targets=("q_proj", "v_proj"))
    policy = make_policy(prepare_base(language_model, weights), weights, 0)
    adapted = [m for m in policy.model.modules() if isinstance(m, BaseTunerLayer)]
    names = Counter(
        name.rpartition(".")[2] for name, m in policy.model.named_modules() if isinstance(m, BaseTunerLayer)
    )
    assert names == {"q_proj": 2, "v_proj": 2}
    assert {m.scaling["default"] for m in adapted} == {0.5}


def test_the_linear_layers_of_gpt_2_get_adapters_too() -> None:
    language_model = small_model("gpt2", vocab_size=512, dtype=torch.float32)
    before = logits(language_model)
    base = prepare_base(language_model, LORA)
    policy = make_policy(base, LORA, 0)
    train(policy)
    assert torch.equal(logits(base), before)
    assert not torch.equal(logits(policy), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora_rank": 2, "offload_base": True},
            r"^weights.offload_base with weights.lora_rank = 2: .* leave offload_base out$",
        ),
        (
            {"lora_rank": 2, "base_device": "cpu"},
            r"^weights.base_device with weights.lora_rank = 2: .* leave base_device out$",
        ),
        ({"lora_alpha": 4.0}, r"^weights.lora_alpha = 4.0 without weights.lora_rank"),
        ({"lora_targets": ("q_proj",)}, r"^weights.lora_targets = \('q_proj',\) without weights.lora_rank"),
        (
            {"lora_rank": 2, "lora_targets": ("q_proj", "query")},
            r"^weights.lora_targets names 'query', .*; there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj$",
        ),
        ({"lora_rank": 2, "lora_targets": ("lm_head",)}, r"^weights.lora_targets names 'lm_head'"),
        ({"lora_rank": 2, "lora_targets": ("proj",)}, r"^weights.lora_targets names 'proj'"),
        ({"base_device": "abacus"}, r"^weights.base_device = 'abacus' cannot be used"),
    ],
)
def test_contradictory_settings_cost_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        prepare_base(small_model("llama"), WeightsConfig(**settings))
    assert "\n" not in str(raised.value)


def test_a_base_that_was_prepared_under_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="has no adapter but lora_rank = 3; prepare it with prepare_base first"):
        make_policy(small_model("llama"), LORA, 0)
    with pytest.raises(ValueError, match="has an adapter but lora_rank = None"):
        make_policy(prepare_base(small_model("llama"), LORA), WeightsConfig(), 0)


def test_without_an_adapter_the_policy_is_a_copy_that_trains_and_the_base_is_frozen() -> None:
    base = prepare_base(small_model("qwen2", vocab_size=512, dtype=torch.float32), WeightsConfig())
    bound = weights_hash(base.model)
    policy = make_policy(base, WeightsConfig(), seed=0)
    assert all(p.requires_grad for p in policy.model.parameters())
    assert not any(p.requires_grad for p in base.model.parameters())
    assert weights_hash(policy.model) == bound
    assert not {p.data_ptr() for p in policy.model.parameters()} & {p.data_ptr() for p in base.model.parameters()}
    train(policy)
    assert weights_hash(base.model) == bound != weights_hash(policy.model)


class Transfers:
    """Counts the tensors that are copied to another device. cpu:0 is one: torch copies, though both are the same memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        to = torch.Tensor.to

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            moved = to(tensor, *args, **kwargs)
            self.count += moved.data_ptr() != tensor.data_ptr()
            return moved

        monkeypatch.setattr(torch.Tensor, "to", counted)


def test_an_offloaded_base_is_brought_once_and_taken_back_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = small_model("qwen3", vocab_size=512, dtype=torch.float32)
    before = logits(language_model)
    bound = weights_hash(language_model.model)
    base = prepare_base(language_model, WeightsConfig(offload_base=True))
    assert base.compute_device == base.policy_device == "cpu"
    base = LanguageModel(**{name: getattr(base, name) for name in FIELDS} | {"compute_device": "cpu:0"})
    tensors = [*base.model.parameters(), *base.model.buffers()]
    home = [t.data_ptr() for t in tensors]

    def away() -> list[bool]:
        return [t.data_ptr() != pointer for t, pointer in zip(tensors, home, strict=True)]

    transfers = Transfers(monkeypatch)
    with base.ready():
        assert all(away())
        assert transfers.count == len(tensors)
        with base.ready(), torch.inference_mode(), base.ready():
            assert all(away())
        assert all(away())  # only the outermost exit takes them back
        assert transfers.count == len(tensors)
        assert torch.equal(logits(base), before)
    assert not any(away())
    assert transfers.count == len(tensors)
    with pytest.raises(KeyError), torch.inference_mode(), base.ready():
        raise KeyError
    assert not any(away())
    with base.ready():  # and again
        assert all(away())
    assert not any(away())
    assert weights_hash(base.model) == bound
    assert base.device == torch.device("cpu:0")
    policy = make_policy(base, WeightsConfig(offload_base=True), seed=0)
    assert (policy.compute_device, policy.policy_device) == (None, None)
    train(policy)
    assert weights_hash(base.model) == bound


FIELDS = ("model", "tokenizer", "eos_token_ids", "pad_token_id", "name", "chat", "adapter_disabled", "policy_device")


def test_an_offloaded_base_computes_with_the_weights_that_were_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """The move doubles the norms' weights, so that home and away give different logits."""
    plain, doubled = (small_model("qwen3", vocab_size=512, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for tensor in doubled.model.parameters():
            tensor.mul_(2.0 if tensor.ndim == 1 else 1.0)
    at_home, away = logits(plain), logits(doubled)
    assert not torch.allclose(at_home, away, atol=1e-2)
    norm = doubled.model.model.norm.weight
    expected = torch.autograd.grad(loss(doubled), norm)[0]
    base = prepare_base(plain, WeightsConfig(offload_base=True))
    home = base.model.model.norm.weight
    to = torch.Tensor.to

    def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args != (torch.device("cpu"),) or not tensor.is_floating_point():
            return to(tensor, *args, **kwargs)
        return tensor.clone() * (2.0 if tensor.ndim == 1 and len(tensor) in sizes else 1.0)

    sizes = {len(tensor) for tensor in base.model.parameters() if tensor.ndim == 1}
    sizes -= {len(tensor) for tensor in base.model.buffers() if tensor.ndim == 1}
    monkeypatch.setattr(torch.Tensor, "to", moved)
    assert torch.equal(logits(base), away)
    home.requires_grad_(True)
    value = loss(base)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=IDS, use_cache=False).logits, at_home)  # outside ready(): at home again
    # The step of the norm was x̂·w: its gradient needs x̂ and the head, which were those of the weights brought.
    torch.testing.assert_close(torch.autograd.grad(value, home)[0], expected)


def test_a_base_on_another_device_leaves_the_policy_on_the_first() -> None:
    language_model = small_model("qwen3")
    base = prepare_base(clone_model(language_model), WeightsConfig(base_device="meta"))
    assert base.device == torch.device("meta")
    assert base.policy_device == "cpu"
    base = prepare_base(language_model, WeightsConfig(base_device="cpu"))
    policy = make_policy(base, WeightsConfig(base_device="cpu"), seed=0)
    assert policy.device == torch.device("cpu")
    assert weights_hash(policy.model) == weights_hash(base.model)


def forwards_per_block(language_model: LanguageModel) -> Counter[str]:
    """How often the feed-forward layer of each block is run from now on."""
    counts: Counter[str] = Counter()
    for name, module in language_model.model.named_modules():
        if name.endswith("gate_proj"):
            module.register_forward_pre_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize("lora_rank", [None, 3])
def test_recomputed_blocks_give_the_same_gradients_and_really_run_twice(folder: Path, lora_rank: int | None) -> None:
    found = {}
    for recompute in (False, True):
        weights = WeightsConfig(lora_rank=lora_rank, gradient_checkpointing=recompute)
        base = prepare_base(load_language_model(str(folder)), weights)
        policy = make_policy(base, weights, seed=3)
        if lora_rank:
            train(policy)  # with B = 0 the gradient of A would be 0
            policy.model.zero_grad()
        counts = forwards_per_block(policy)
        value = loss(policy)
        assert set(counts.values()) == {1}
        value.backward()
        assert set(counts.values()) == {1 + recompute}
        found[recompute] = (value.item(), [p.grad for p in policy.model.parameters() if p.requires_grad])
        # Nothing is kept or run again where no gradient is wanted, nor for the base, whose switch is back by then.
        counts.clear()
        logits(policy)
        assert set(counts.values()) == {1}
        training = [m for m in policy.model.modules() if m.training]
        blocks = [m for m in policy.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        assert training == (blocks if recompute else [])
    assert found[True][0] == found[False][0]
    for plain, recomputed in zip(found[False][1], found[True][1], strict=True):
        assert torch.equal(plain, recomputed)


def test_a_gradient_through_the_base_behind_an_adapter_is_the_base_s_although_its_blocks_could_be_recomputed() -> None:
    weights = WeightsConfig(lora_rank=2, gradient_checkpointing=True)
    language_model = small_model("qwen3", vocab_size=512, dtype=torch.float32)
    expected = torch.autograd.grad(loss(language_model), language_model.model.model.norm.weight)[0]
    base = prepare_base(language_model, weights)
    policy = make_policy(base, weights, seed=0)
    train(policy)
    first = base.model.get_base_model().model.layers[0].input_layernorm.weight.requires_grad_(True)
    norm = base.model.get_base_model().model.norm.weight.requires_grad_(True)
    through_base, through_first = torch.autograd.grad(loss(base), (norm, first))
    assert torch.equal(through_base, expected)
    untouched = small_model("qwen3", vocab_size=512, dtype=torch.float32)
    assert torch.equal(
        through_first, torch.autograd.grad(loss(untouched), untouched.model.model.layers[0].input_layernorm.weight)[0]
    )


def test_no_dropout_comes_alive_where_blocks_are_recomputed() -> None:
    # OPT's blocks draw their dropout themselves, by their own training flag.
    sizes = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    config = OPTConfig(vocab_size=512, max_position_embeddings=64, dropout=0.5, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OPTForCausalLM(config).eval()
    small = small_model("llama")
    base = LanguageModel(model, small.tokenizer, (2,), 1, "opt")
    before = loss(base)
    policy = make_policy(base, WeightsConfig(gradient_checkpointing=True), seed=0)
    values = [loss(policy) for _ in range(3)]
    assert all(torch.equal(value, before) for value in values)
    values[0].backward()
    before.backward()
    for one, other in zip(model.parameters(), policy.model.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_a_copy_of_a_policy_that_recomputes_its_blocks_recomputes_its_own() -> None:
    weights = WeightsConfig(gradient_checkpointing=True)
    policy = make_policy(small_model("qwen3", vocab_size=512, dtype=torch.float32), weights, seed=0)
    copy = clone_model(policy)
    loss(copy).backward()
    assert all(p.grad is not None for p in copy.model.parameters())
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_policy_that_recomputes_its_blocks_is_freed_when_nobody_holds_it() -> None:
    weights = WeightsConfig(gradient_checkpointing=True)
    policy = make_policy(small_model("qwen3", vocab_size=512, dtype=torch.float32), weights, seed=0)
    copy = clone_model(policy)
    blocks = [
        weakref.ref(module)
        for model in (policy.model, copy.model)
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    gc.disable()
    try:
        del policy
        loss(copy).backward()  # which needs nothing of what it is a copy of
        del copy
        assert len(blocks) == 4
        assert all(block() is None for block in blocks)
    finally:
        gc.enable()


@pytest.mark.parametrize("used", [False, True])
def test_cached_memory_is_given_back_where_a_gpu_was_used_and_cycles_are_freed_before(
    used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = nn.Linear(1, 1)
    holder.itself = [holder]
    held, freed_before = weakref.ref(holder), []
    del holder
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed_before.append(held() is None))
    release_cached_memory()
    assert held() is None
    assert freed_before == [True] * used


def test_an_architecture_without_recomputable_blocks_is_refused() -> None:
    class Blockless(nn.Module):
        pass

    small = small_model("llama")
    base = LanguageModel(Blockless(), small.tokenizer, (0,), 0, "blockless")
    with pytest.raises(ConfigError, match="cannot recompute its blocks"):
        make_policy(base, WeightsConfig(gradient_checkpointing=True), seed=0)


def test_the_difference_of_a_policy_with_an_adapter_is_refused(tmp_path: Path) -> None:
    base = prepare_base(small_model("qwen3"), LORA)
    policy = make_policy(base, LORA, seed=0)
    with pytest.raises(ValueError, match="save and load that with save_language_model"):
        save_difference(policy.model, base.model, tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()
    plain = small_model("qwen3")
    save_difference(plain.model.requires_grad_(True), small_model("qwen3", seed=1).model, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="has no difference to its base but the adapter"):
        load_difference(tmp_path / "d.safetensors", base.model)
