"""How far the log-probabilities of a sampler are from the trainer's, by rollout backend, precision and family.

    python benchmarks/decoder_agreement.py [--models FOLDER …] [--device cpu] [--prompts 24] [--samples 4]

Without --models: randomly initialised models of the real architectures at reduced width and depth. Draws completions at
temperature 1 from ragged prompts, scores the same token ids with `forward_responses`, as a training step does, and
prints a Markdown table: mean and maximum of |sampler − trainer| over all tokens, in nats, with a bootstrap interval of
the mean over prompts; the mean ratio trainer / sampler; and, decoded greedily, how many tokens are those of
transformers' plain generate before the first that differs, with the largest gap of the two best logits at such a place.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from model_families import FAMILIES, make_folder

from bsharp.generation import Decoder, GenerationRequest, Generator, SamplingParams, TransformersGenerator
from bsharp.generation.static import plain_step
from bsharp.masking import pad_right
from bsharp.models.loading import LanguageModel, load_language_model
from bsharp.models.logprobs import response_logprobs

NEW_TOKENS = 64
BACKENDS: dict[str, Callable[[LanguageModel], Generator]] = {
    "decoder": Decoder,
    "decoder, fixed shapes": lambda language_model: Decoder(language_model, capture=plain_step),
    "transformers": TransformersGenerator,
}


def main(models: Sequence[str], device: str, prompts: int, samples: int) -> None:
    torch.set_num_threads(1)
    print(
        "| model | precision | backend | tokens | mean (nats) | 95 % | max (nats) | mean ratio | greedy: same | gap |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {Path(model).name: model for model in models}
        folders = folders or {name: str(make_folder(name, Path(scratch) / name)) for name in FAMILIES}
        for (name, folder), dtype in itertools.product(folders.items(), ("float32", "bfloat16")):
            language_model = load_language_model(folder, dtype, device)
            for backend, make in BACKENDS.items():
                if backend.endswith("fixed shapes") and device != "cpu":
                    continue  # where there is a GPU that is what the decoder does
                row = agreement(language_model, make(language_model), prompts, samples)
                print(f"| {name} | {dtype} | {backend} | {' | '.join(row)} |", flush=True)


def agreement(language_model: LanguageModel, generator: Generator, prompts: int, samples: int) -> list[str]:
    rng = np.random.default_rng(0)
    token_ids = [tuple(rng.integers(10, 480, rng.integers(2, 60)).tolist()) for _ in range(prompts)]
    requests = [GenerationRequest(prompt, samples, seed) for seed, prompt in enumerate(token_ids)]
    groups = generator.generate(requests, SamplingParams(NEW_TOKENS))
    differences = [difference_of(language_model, *pair) for pair in zip(requests, groups, strict=True)]
    everything = np.concatenate(differences)
    draws = rng.integers(0, prompts, (2000, prompts))
    sums, counts = np.array([np.abs(d).sum() for d in differences]), np.array([d.size for d in differences])
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), [0.025, 0.975])
    same, total, gap = greedy_agreement(language_model, generator, requests)
    return [
        str(everything.size),
        f"{np.abs(everything).mean():.1e}",
        f"{low:.1e}–{high:.1e}",
        f"{np.abs(everything).max():.1e}",
        f"{np.exp(everything).mean():.5f}",
        f"{same} of {total}",
        "–" if gap is None else f"{gap:.3f}",
    ]


def difference_of(language_model: LanguageModel, request: GenerationRequest, group: Any) -> np.ndarray:
    """Trainer's − sampler's log-probability of every token of a request's completions."""
    responses, mask = pad_right([completion.token_ids for completion in group], language_model.pad_token_id)
    trainer = response_logprobs(language_model, [request.prompt_token_ids] * len(group), responses, mask).double()
    sampler = torch.tensor([logprob for completion in group for logprob in completion.logprobs], dtype=torch.float64)
    return (trainer[mask] - sampler).numpy()


def greedy_agreement(
    language_model: LanguageModel, generator: Generator, requests: Sequence[GenerationRequest]
) -> tuple[int, int, float | None]:
    """Tokens equal to plain generate's up to the first that differs, of how many, and the largest gap at such a place."""
    single = [GenerationRequest(request.prompt_token_ids, 1, request.seed) for request in requests]
    groups = generator.generate(single, SamplingParams(NEW_TOKENS, greedy=True))
    same, total, gaps = 0, 0, []
    for request, (completion,) in zip(single, groups, strict=True):
        prompt = torch.tensor([request.prompt_token_ids], device=language_model.device)
        model: Any = language_model.model
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(language_model.eos_token_ids),
            pad_token_id=language_model.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        expected = output.sequences[0, prompt.shape[1] :].tolist()
        pairs = zip(completion.token_ids, expected, strict=False)
        step = next((place for place, (token, other) in enumerate(pairs) if token != other), None)
        same, total = same + (len(expected) if step is None else step), total + len(expected)
        if step is not None:
            best, second = output.logits[step][0].float().topk(2).values.tolist()
            gaps.append(best - second)
    return same, total, max(gaps, default=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=4)
    main(**vars(parser.parse_args()))
