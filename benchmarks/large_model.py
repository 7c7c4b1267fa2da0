"""Tokens per second and peak memory of whole training steps at the size of Qwen2.5-3B, with adapters and fully fine-tuned.

    python benchmarks/large_model.py                # on a GPU with 80 GB: random weights of the full size, in bfloat16
    python benchmarks/large_model.py --reduced      # anywhere: the same code on two narrow layers

A step is what a run does: rollouts of a fixed length by the package's own generator, log-probabilities of base and policy
(truncated importance sampling is on), gradients of every problem with the blocks recomputed, AdamW. Weights are random, so
that nothing is downloaded and what is sampled means nothing. The first step is not counted: it compiles and captures. Rates
are medians over the steps; memory is the most that torch's allocator handed out in any of them (on a GPU only).
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from bsharp.algorithm import parse_objective
from bsharp.config import AlgorithmConfig, OptimizerConfig, SamplingConfig, WeightsConfig
from bsharp.generation import GenerationRequest, Generator, SamplingParams, generator_for
from bsharp.models.adapters import make_policy, prepare_base
from bsharp.models.loading import LanguageModel
from bsharp.rollouts import RolloutBatch, build_batch
from bsharp.training import Update, build_optimizer, training_step
from bsharp.types import Completion, Grade, GradeStatus, Problem, RolloutGroup

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from model_families import full_config, reduced_config

SETTINGS = {
    "adapters of rank 16": WeightsConfig("bfloat16", gradient_checkpointing=True, lora_rank=16),
    "all weights": WeightsConfig("bfloat16", gradient_checkpointing=True),
    "all weights, base offloaded": WeightsConfig("bfloat16", gradient_checkpointing=True, offload_base=True),
}
PROBLEMS, PROMPT_TOKENS = 4, 128
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """Medians over the counted steps of one setting."""

    trained: int  # weights
    rollout_rate: float  # tokens of responses per second
    update_rate: float
    rollout_bytes: int  # the most that was allocated, models included; 0 without a GPU
    update_bytes: int
    metrics: dict[str, float]  # of the last step


class NoText:
    """Random weights write no text."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def random_model(device: str, reduced: bool) -> LanguageModel:
    """Qwen2.5-3B, or two narrow layers of it, in bfloat16, made where it will run."""
    config = reduced_config("qwen2_5") if reduced else full_config("qwen2_5")
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    eos = int(config.vocab_size) - 1
    return LanguageModel(model, NoText(), (eos,), eos, "random qwen2_5")  # type: ignore[arg-type]


def roll_out(policy: LanguageModel, generator: Generator, rows: int, tokens: int, step: int) -> RolloutBatch:
    """`rows` responses of exactly `tokens` tokens to four problems, rewarded by the share of even token ids."""
    draw = torch.Generator().manual_seed(step)
    prompts = torch.randint(policy.vocab_size - 100, (PROBLEMS, PROMPT_TOKENS), generator=draw).tolist()
    requests = [
        GenerationRequest(tuple(prompt), rows // PROBLEMS, 100 * step + place) for place, prompt in enumerate(prompts)
    ]
    groups = [
        RolloutGroup(
            Problem(f"{step}/{place}", "random", "random", "", ""),
            requests[place].prompt_token_ids,
            completions,
            tuple(grade(completion) for completion in completions),
        )
        for place, completions in enumerate(generator.generate(requests, SamplingParams(tokens, fixed_length=True)))
    ]
    return build_batch(groups, policy.pad_token_id)


def grade(completion: Completion) -> Grade:
    return Grade(GradeStatus.WRONG, sum(token % 2 == 0 for token in completion.token_ids) / len(completion.token_ids))


def measure(
    weights: WeightsConfig, device: str, reduced: bool, rows: int, tokens: int, steps: int, microbatch_rows: int
) -> Measured:
    """Train for one step that is not counted and `steps` that are."""
    cuda = torch.device(device).type == "cuda"
    base = prepare_base(random_model(device, reduced), weights)
    policy = make_policy(base, weights, seed=0)
    generator = generator_for(policy, max_rows=rows)
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    options = {"weight_decay": 0.01} | ({"fused": True} if cuda else {})
    optimizer = build_optimizer(trained, OptimizerConfig(learning_rate=1e-6, options=options))
    sampling = SamplingConfig(prompts_per_step=PROBLEMS, max_new_tokens=tokens, fixed_length=True)
    algorithm = AlgorithmConfig(reduction="token_mean", importance_cap=20.0)
    update = Update(algorithm, sampling, max_grad_norm=1.0, microbatch_rows=microbatch_rows)
    _, objective = parse_objective("tilted(alpha=1,beta_inv=100)")
    seconds: dict[str, list[float]] = {"rollout": [], "update": []}
    most = dict.fromkeys(seconds, 0)
    metrics: dict[str, float] = {}
    for step in range(steps + 1):
        for part, times in seconds.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            if part == "rollout":
                generator.sync_weights(policy.model, step)
                batch = roll_out(policy, generator, rows, tokens, step)
            else:
                metrics = training_step(policy, base, objective, batch, optimizer, update)
            if cuda:
                torch.cuda.synchronize()
                most[part] = max(most[part], torch.cuda.max_memory_allocated())
            if step:
                times.append(time.perf_counter() - started)
    rates = [rows * tokens / statistics.median(times) for times in seconds.values()]
    return Measured(sum(p.numel() for p in trained), *rates, most["rollout"], most["update"], metrics)


def hardware(device: str) -> str:
    name = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else platform.machine()
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}"


def main(
    reduced: bool = False,
    device: str | None = None,
    rows: int = 16,
    tokens: int | None = None,
    steps: int = 3,
    microbatch_rows: int = 4,
    settings: Sequence[str] = tuple(SETTINGS),
) -> dict[str, Measured]:
    """Measure the settings in turn and print the table; one that does not fit into memory says so."""
    if rows < PROBLEMS or rows % PROBLEMS:
        raise SystemExit(
            f"--rows = {rows}: the responses are dealt to {PROBLEMS} problems; give a multiple of {PROBLEMS}"
        )
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    length = tokens or (16 if reduced else 512)
    print(f"{hardware(where)}\n{rows} responses of {length} tokens, {microbatch_rows} rows at once\n")
    print(
        "| trained | weights | rollout tokens/s | update tokens/s | rollout GiB | update GiB |\n|---|---|---|---|---|---|"
    )
    found: dict[str, Measured] = {}
    for name in settings:
        try:
            one = found[name] = measure(SETTINGS[name], where, reduced, rows, length, steps, microbatch_rows)
        except torch.cuda.OutOfMemoryError:
            print(f"| {name} | | | | | out of memory |", flush=True)
        else:
            memory = [f"{most / GIB:.1f}" if most else "–" for most in (one.rollout_bytes, one.update_bytes)]
            print(
                f"| {name} | {one.trained:,} | {one.rollout_rate:,.0f} | {one.update_rate:,.0f} | {' | '.join(memory)} |",
                flush=True,
            )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="two narrow layers instead of the full size")
    parser.add_argument("--device", help="torch device; a GPU where there is one")
    parser.add_argument("--rows", type=int, default=16, help=f"responses of a step, to {PROBLEMS} problems")
    parser.add_argument("--tokens", type=int, help="tokens of each response; 512, reduced 16")
    parser.add_argument("--steps", type=int, default=3, help="steps that are counted")
    parser.add_argument("--microbatch-rows", type=int, default=4, help="rows of one forward and backward pass")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), help="what is trained")
    main(**vars(parser.parse_args()))
