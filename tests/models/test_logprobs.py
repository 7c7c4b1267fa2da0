from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from model_families import FAMILIES as HUB_FAMILIES
from model_families import make_folder
from peft import LoraConfig, get_peft_model
from small_models import NumberTokenizer, every_response, plain_logprob, small_model
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, MambaConfig, Qwen3NextConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from bsharp.masking import pad_right
from bsharp.models import logprobs as logprobs_module
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import ForwardResult, forward_responses, response_logprobs, scoring_microbatches
from bsharp.models.placement import peft_without_warnings

pytestmark = pytest.mark.usefixtures("small_bundles")

FAMILIES = ("qwen3", "qwen2", "llama", "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forced_logprobs_are_those_of_each_row_alone(family: str) -> None:
    model = small_model(family, vocab_size=7)
    prompts = [(1, 2, 3), (4,), (5, 6), (1, 1, 1, 1, 2)]
    responses = [(2, 0), (3, 3, 3, 0), (0,), (6, 5, 4)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    found = response_logprobs(model, prompts, token_ids, mask, microbatch_rows=3)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert float(found[row].sum()) == pytest.approx(
            float(plain_logprob(model, prompt, response).detach()), abs=1e-9
        )
    assert not bool(found[~mask].any())


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_of_all_responses_sum_to_one_with_every_eos_counted(family: str) -> None:
    model = small_model(family, vocab_size=4, eos_token_ids=(0, 3), pad_token_id=3)
    responses = every_response(4, 3, (0, 3))
    token_ids, mask = pad_right(responses, model.pad_token_id)
    logprobs = response_logprobs(model, [(1, 2)] * len(responses), token_ids, mask).sum(-1)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_with_eos_masked_the_full_length_responses_alone_sum_to_one() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0, 3))
    responses = [r for r in every_response(4, 3, (0, 3)) if r[-1] not in (0, 3)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    logprobs = response_logprobs(model, [(1, 2)] * len(responses), token_ids, mask, fixed_length=True).sum(-1)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_entropy_is_that_of_the_next_token_distribution_and_finite_with_eos_masked() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0,))
    token_ids, mask = pad_right([(1, 2, 3), (2,)], model.pad_token_id)
    for fixed_length in (False, True):
        result = forward_responses(model, [(1,), (3, 2)], token_ids, mask, fixed_length=fixed_length, with_entropy=True)
        logits = model.model(input_ids=torch.tensor([[1, 1, 2, 3]])).logits[0, :3]
        logits = logits[:, 1:] if fixed_length else logits
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert result.entropy is not None
        torch.testing.assert_close(result.entropy[0].detach(), expected.detach())


def test_masked_eos_sends_no_nan_into_the_gradient() -> None:
    model = small_model(vocab_size=4, eos_token_ids=(0,))
    token_ids, mask = pad_right([(1, 2, 3), (2,)], 0)
    result = forward_responses(model, [(1,), (3, 2)], token_ids, mask, fixed_length=True)
    torch.where(mask, result.token_logprobs, 0.0).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.model.parameters() if p.grad is not None)


def test_an_empty_prompt_is_one_clear_line() -> None:
    token_ids, mask = pad_right([(1,)], 0)
    with pytest.raises(ValueError, match="at least one token, got an empty one"):
        forward_responses(small_model(), [()], token_ids, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_prompts_changes_neither_log_probabilities_nor_gradients(family: str) -> None:
    model = small_model(family, vocab_size=7)
    prompts = [(1, 2, 3), (4,), (1, 2, 3), (5, 6), (4,), (1, 2, 3)]
    responses = [(2, 0), (3, 3, 3, 0), (0,), (6, 5, 4, 2, 1), (2, 2), (5, 0)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    found = []
    for share in (True, False):
        model.model.zero_grad()
        result = forward_responses(
            model, prompts, token_ids, mask, with_entropy=True, with_hidden=True, share_prompts=share
        )
        weights = torch.arange(1.0, 7.0)[:, None] * mask
        (torch.where(mask, result.token_logprobs, 0.0) * weights).sum().backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.model.parameters() if p.grad is not None])
        found.append(
            (result.token_logprobs[mask].detach(), result.entropy[mask], result.hidden[mask].detach(), gradient)
        )
    # transformers' norms and rotations run in fp32 whatever the model's type, hence 1e-6 and not 1e-12.
    for shared, plain in zip(*found, strict=True):
        assert float((shared - plain).norm() / plain.norm()) < 1e-6


def test_micro_batches_deal_every_row_once_and_keep_to_their_size() -> None:
    prompts = [(i % 11,) * (1 + i % 5) for i in range(100)]
    batches = list(scoring_microbatches(prompts, [i % 7 for i in range(100)], 16))
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    assert max(len(batch) for batch in batches) <= 16


# The families of the hub, with their own configurations and special tokens. Gemma's window is 16 tokens: some prompts and
# some responses are longer.
PROMPT_LENGTHS = (21, 3, 21, 40, 3, 21)
RESPONSE_LENGTHS = (5, 30, 1, 8, 2, 19)


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LanguageModel]:
    """A fresh copy of a family's reduced model, in the type asked for."""
    loaded: dict[str, LanguageModel] = {}

    def of(family: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
        if family not in loaded:
            loaded[family] = load_language_model(str(make_folder(family, tmp_path_factory.mktemp(family))))
        return dataclasses.replace(loaded[family], model=copy.deepcopy(loaded[family].model).to(dtype))

    return of


@pytest.fixture
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every pass go through the output layer in chunks of so many bytes; 0 puts back the whole logits."""

    def put(chunk_bytes: int) -> None:
        monkeypatch.setattr(logprobs_module, "WHOLE_LOGITS_BYTES", -1 if chunk_bytes else 2**62)
        monkeypatch.setattr(logprobs_module, "CHUNK_BYTES", chunk_bytes)

    return put


def hub_rows(language_model: LanguageModel) -> tuple[list[tuple[int, ...]], Tensor, Tensor]:
    """Rows of three prompts; the responses end with an EOS, filled up with the pad token, which may be one too."""
    draw = torch.Generator().manual_seed(3)

    def text(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(6, 200, (length,), generator=draw).tolist())

    prompts = {length: text(length) for length in PROMPT_LENGTHS}
    responses = [(*text(length - 1), language_model.eos_token_ids[length % 2]) for length in RESPONSE_LENGTHS]
    return [prompts[length] for length in PROMPT_LENGTHS], *pad_right(responses, language_model.pad_token_id)


def figures(language_model: LanguageModel, result: ForwardResult, mask: Tensor) -> list[Tensor]:
    """Log-probabilities, entropies and hidden states of the response tokens, and a gradient that weighs each differently."""
    assert result.entropy is not None
    assert result.hidden is not None
    language_model.model.zero_grad()
    inside = result.token_logprobs[mask]
    (inside * torch.linspace(-1.0, 2.0, len(inside)).to(inside.dtype)).sum().backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in language_model.model.parameters() if p.grad is not None])
    return [inside.detach(), result.entropy[mask], result.hidden[mask].detach(), gradient]


def row_by_row(
    language_model: LanguageModel, prompts: list[tuple[int, ...]], token_ids: Tensor, mask: Tensor
) -> list[Tensor]:
    """The reference: every row alone, without padding, without a cache, with all logits."""
    rows = []
    for row, prompt in enumerate(prompts):
        response = token_ids[row][mask[row]]
        output = language_model.model(
            input_ids=torch.tensor([[*prompt, *response.tolist()]]), use_cache=False, output_hidden_states=True
        )
        distribution = torch.distributions.Categorical(logits=output.logits[0, len(prompt) - 1 : -1])
        hidden = output.hidden_states[-1][0, len(prompt) - 1 : -1]
        rows.append((distribution.log_prob(response), distribution.entropy().detach(), hidden))
    values = (torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*rows, strict=True))
    return figures(language_model, ForwardResult(*values), mask)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", HUB_FAMILIES)
def test_shared_prompts_whole_rows_and_each_row_alone_agree(
    family: str, hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    model = hub_model(family)
    prompts, token_ids, mask = hub_rows(model)
    expected = row_by_row(model, prompts, token_ids, mask)
    for share in (True, False):
        found = []
        for chunk_bytes in (0, 8 * model.vocab_size * 7):
            in_chunks(chunk_bytes)
            result = forward_responses(
                model, prompts, token_ids, mask, with_entropy=True, with_hidden=True, share_prompts=share
            )
            found.append(figures(model, result, mask))
        for whole, chunked, reference in zip(*found, expected, strict=True):
            # Norms and rotations run in float32 whatever the model's type, and padding changes their rounding.
            assert relative(whole, reference) < 1e-6
            assert relative(chunked, whole) < 1e-12


@pytest.mark.parametrize("family", HUB_FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_chunks_change_neither_values_nor_gradients_in_the_types_models_are_trained_in(
    family: str,
    dtype: torch.dtype,
    tolerance: float,
    hub_model: Callable[..., LanguageModel],
    in_chunks: Callable[[int], None],
) -> None:
    model = hub_model(family, dtype)
    prompts, token_ids, mask = hub_rows(model)
    # Responses that EOS cannot end: it is masked out, and the rest renormalised.
    token_ids = torch.where(torch.isin(token_ids, torch.tensor(model.eos_token_ids)), 7, token_ids)
    found = []
    for chunk_bytes in (0, 4 * model.vocab_size * 7):
        in_chunks(chunk_bytes)
        result = forward_responses(model, prompts, token_ids, mask, 0.8, True, with_entropy=True, with_hidden=True)
        assert result.token_logprobs.dtype == torch.float32
        found.append(figures(model, result, mask))
    for whole, chunked in zip(*found, strict=True):
        assert bool(chunked.isfinite().all())
        assert relative(chunked.double(), whole.double()) < tolerance


def test_outside_the_responses_nothing_goes_through_the_output_layer(
    hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hub_model("qwen2_5")
    prompts, token_ids, mask = hub_rows(model)
    in_chunks(2**20)
    tokens = []
    real = logprobs_module.chunked_logprobs
    monkeypatch.setattr(
        logprobs_module, "chunked_logprobs", lambda hidden, *rest: tokens.append(len(hidden)) or real(hidden, *rest)
    )
    result = forward_responses(model, prompts, token_ids, mask)
    assert tokens == [sum(RESPONSE_LENGTHS)]
    assert not bool(result.token_logprobs[~mask].any())


def test_whole_logits_are_kept_where_they_are_asked_for_or_small(
    hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hub_model("qwen2_5")
    rows = hub_rows(model)

    def refuse(*_: Any) -> Any:
        raise AssertionError("in chunks")

    monkeypatch.setattr(logprobs_module, "chunked_logprobs", refuse)
    assert forward_responses(model, *rows).logits is None
    in_chunks(2**20)
    assert forward_responses(model, *rows, whole_logits=True).logits is None
    logits = forward_responses(model, *rows, with_logits=True).logits
    assert logits is not None
    assert logits.shape == (*rows[1].shape, model.vocab_size)
    with pytest.raises(AssertionError, match="in chunks"):
        forward_responses(model, *rows)


def test_a_batch_without_a_response_token_has_a_gradient_of_zero(
    hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    model = hub_model("qwen3")
    in_chunks(2**20)
    token_ids = torch.zeros((2, 1), dtype=torch.long)
    result = forward_responses(model, [(7, 8), (7, 8)], token_ids, torch.zeros_like(token_ids, dtype=torch.bool))
    result.token_logprobs.sum().backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.model.parameters())


@pytest.mark.parametrize("chunk_bytes", [0, 2**15])
def test_adapters_are_on_for_the_policy_and_off_for_the_base(
    chunk_bytes: int, hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    model = hub_model("llama3_2", torch.float32)
    prompts, token_ids, mask = hub_rows(model)
    untouched = response_logprobs(model, prompts, token_ids, mask)
    with peft_without_warnings():
        adapted = get_peft_model(model.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    policy = dataclasses.replace(model, model=adapted.eval())
    expected = row_by_row(policy, prompts, token_ids, mask)
    in_chunks(chunk_bytes)
    result = forward_responses(policy, prompts, token_ids, mask, with_entropy=True, with_hidden=True)
    for found, reference in zip(figures(policy, result, mask), expected, strict=True):
        assert relative(found, reference) < 1e-4
    assert all(p.grad is None for name, p in adapted.named_parameters() if "lora" not in name)
    assert float((result.token_logprobs.detach()[mask] - untouched[mask]).abs().max()) > 0.1
    off = response_logprobs(dataclasses.replace(policy, adapter_disabled=True), prompts, token_ids, mask)
    torch.testing.assert_close(off, untouched, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [0, 2**10])
def test_positions_reach_a_model_that_peft_has_wrapped(chunk_bytes: int, in_chunks: Callable[[int], None]) -> None:
    # GPT-2 learns a vector for every position: one that is counted from the padding on would show.
    model = small_model("gpt2", vocab_size=300)
    with peft_without_warnings():
        adapted = get_peft_model(model.model, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))
    model = dataclasses.replace(model, model=adapted.eval())
    prompts, token_ids, mask = [(1, 2, 3), (4,), (1, 2, 3), (4,)], *pad_right([(5, 6), (7, 8, 9), (5,), (1, 0)], 0)
    in_chunks(chunk_bytes)
    shared, whole = (
        forward_responses(model, prompts, token_ids, mask, share_prompts=share).token_logprobs[mask]
        for share in (True, False)
    )
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_5", "gemma3"])
def test_recomputed_blocks_give_the_same_figures_though_they_refuse_a_cache(
    family: str, hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    model = hub_model(family)
    prompts, token_ids, mask = hub_rows(model)
    expected = row_by_row(model, prompts, token_ids, mask)
    model.model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
    for chunk_bytes in (0, 2**16):
        in_chunks(chunk_bytes)
        result = forward_responses(model, prompts, token_ids, mask, with_entropy=True, with_hidden=True)
        for found, reference in zip(figures(model, result, mask), expected, strict=True):
            assert relative(found, reference) < 1e-6
        scored = response_logprobs(model, prompts, token_ids, mask)
        torch.testing.assert_close(scored[mask], expected[0], rtol=1e-6, atol=1e-6)


RECURRENT = {
    "mamba": lambda special: MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, state_size=4, **special),
    "hybrid": lambda special: Qwen3NextConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
        linear_num_key_heads=1,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        **special,
    ),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_state_is_not_dealt_to_rows(kind: str, in_chunks: Callable[[int], None]) -> None:
    config = RECURRENT[kind]({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.4)
    model = LanguageModel(network, NumberTokenizer(), (0, 1), 0, kind)
    prompts, token_ids, mask = hub_rows(model)
    expected = row_by_row(model, prompts, token_ids, mask)[0]
    for chunk_bytes in (0, 2**15):
        in_chunks(chunk_bytes)
        found = response_logprobs(model, prompts, token_ids, mask)[mask]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings(r"ignore:.*torch\.jit\.script:DeprecationWarning")  # torch's own, on the first derivative
def test_forward_derivatives_are_taken_through_whole_logits(
    hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    model = hub_model("llama3_2")
    prompts, token_ids, mask = hub_rows(model)
    parameters = {name: parameter.detach() for name, parameter in model.model.named_parameters()}
    direction = {name: torch.ones_like(value) for name, value in parameters.items()}

    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.model

        def forward(self) -> Tensor:
            return torch.where(mask, forward_responses(model, prompts, token_ids, mask).token_logprobs, 0.0).sum()

    def at(values: dict[str, Tensor]) -> Tensor:
        return functional_call(Sum(), {f"inner.{name}": value for name, value in values.items()}, ())

    in_chunks(2**16)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward derivative
        _, change = jvp(at, (parameters,), (direction,))
    Sum()().backward()
    expected = sum(float(p.grad.sum()) for p in model.model.parameters() if p.grad is not None)
    assert float(change) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk_bytes", [0, 2**16])
def test_the_model_runs_only_while_it_is_made_ready(
    chunk_bytes: int, hub_model: Callable[..., LanguageModel], in_chunks: Callable[[int], None]
) -> None:
    ready: list[bool] = []

    class Watched(LanguageModel):
        @contextmanager
        def ready(self) -> Iterator[None]:
            ready.append(True)
            yield
            ready.pop()

    plain = hub_model("qwen2_5")
    model = Watched(plain.model, plain.tokenizer, plain.eos_token_ids, plain.pad_token_id, plain.name)
    seen = []
    plain.model.model.register_forward_hook(lambda *_: seen.append(bool(ready)))
    in_chunks(chunk_bytes)
    response_logprobs(model, *hub_rows(model))
    assert len(seen) >= 2
    assert all(seen)
    assert not ready
