"""Rollouts alone: this package's generator and transformers' `generate` on the same rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bsharp.generation import GenerationRequest, SamplingParams, generator_for
from bsharp.models.loading import load_language_model
from speed.workloads import Workload, prompts

__all__ = ["STEPPERS"]

PROMPT_STEPS = 64

Stepper = Callable[[], dict[str, Any]]


def decode(folder: str, workload: Workload, dtype: str, fixed_length: bool, device: str = "cpu") -> Stepper:
    """Each step draws the responses to its own prompts with the generator that a run would use."""
    language_model = load_language_model(folder, dtype, device)
    generator = generator_for(language_model, workload.rows)
    params = SamplingParams(workload.tokens, fixed_length=fixed_length)
    texts = iter(prompts(workload, PROMPT_STEPS) * 1000)

    def step() -> dict[str, Any]:
        requests = [
            GenerationRequest(tuple(language_model.encode(text)), workload.group, place)
            for place, text in enumerate(next(texts))
        ]
        started = time.perf_counter()
        groups = generator.generate(requests, params)
        seconds = time.perf_counter() - started
        lengths = [len(completion.token_ids) for group in groups for completion in group]
        return {"seconds": seconds, "tokens": sum(lengths), "longest": max(lengths)}

    return step


def transformers_generate(
    folder: str, workload: Workload, dtype: str, fixed_length: bool, cache: str = "dynamic", device: str = "cpu"
) -> Stepper:
    """The same with `generate`: temperature 1, no top-k, no top-p, every row with its own prompt, padded on the left.

    Fixed lengths suppress EOS. `cache` is dynamic or static; nothing is compiled, which takes longer than these batches.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    eos = model.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=workload.tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=([eos] if isinstance(eos, int) else list(eos)) if fixed_length else None,
        cache_implementation=None if cache == "dynamic" else cache,
        disable_compile=True,
    )
    model.generation_config = GenerationConfig()
    eos_ids = torch.tensor([eos] if isinstance(eos, int) else list(eos), device=device)
    texts = iter(prompts(workload, PROMPT_STEPS) * 1000)
    torch.manual_seed(0)

    def step() -> dict[str, Any]:
        rows = [text for text in next(texts) for _ in range(workload.group)]
        encoded = tokenizer(rows, padding=True, return_tensors="pt").to(device)
        started = time.perf_counter()
        with torch.inference_mode():
            sequences = model.generate(
                encoded["input_ids"], attention_mask=encoded["attention_mask"], generation_config=settings
            )
        drawn = sequences[:, encoded["input_ids"].shape[1] :]
        ended = torch.isin(drawn, eos_ids).int()
        # A row's length is that of its tokens up to the first EOS.
        lengths = torch.where(ended.any(1), ended.argmax(1) + 1, drawn.shape[1]).tolist()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": sum(lengths), "longest": max(lengths)}

    return step


STEPPERS = {"decode": decode, "transformers": transformers_generate}
