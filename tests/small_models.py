"""Randomly initialised models small enough to enumerate every response of, and a tokenizer that needs no files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bsharp.models.loading import LanguageModel


class NumberTokenizer:
    """Token i is the text "i"."""

    pad_token_id = None
    eos_token_id = None

    def encode(self, text: str) -> list[int]:
        return [int(piece) for piece in text.split()]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(str(token) for token in token_ids)


def small_model(
    family: str = "qwen3",
    vocab_size: int = 6,
    seed: int = 0,
    eos_token_ids: tuple[int, ...] = (0,),
    pad_token_id: int = 0,
    dtype: torch.dtype = torch.float64,
    spread: float = 0.6,
) -> LanguageModel:
    """A two-layer model whose logits differ enough between tokens for its distribution to be far from uniform."""
    shape = {"vocab_size": vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    gated = shape | {"intermediate_size": 24, "num_key_value_heads": 1, "tie_word_embeddings": True}
    gpt2 = {"vocab_size": vocab_size, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    special = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    builders = {
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**gated, head_dim=8, **special)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**gated, **special)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**gated, **special)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt2, **special)),
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = builders[family]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, spread)
    torch.random.set_rng_state(state)
    return LanguageModel(model, NumberTokenizer(), eos_token_ids, pad_token_id, f"small-{family}")


def every_response(vocab_size: int, max_length: int, eos_token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """All responses: ended by an EOS id, or cut at max_length."""
    ordinary = [token for token in range(vocab_size) if token not in eos_token_ids]
    responses: list[tuple[int, ...]] = []
    for length in range(max_length):
        for body in itertools.product(ordinary, repeat=length):
            responses += [(*body, eos) for eos in eos_token_ids]
    responses += list(itertools.product(ordinary, repeat=max_length))
    return responses


def plain_logprob(
    language_model: LanguageModel, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """log π(response | prompt), one row, no padding, with gradient: what everything else is compared with."""
    row = torch.tensor([[*prompt, *response]])
    logprobs = (language_model.model(input_ids=row).logits[0] / temperature).log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(response))
