"""The models and batches that are measured: random weights in ordinary folders, prompts of slightly differing lengths."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from bsharp.config import TrainConfig
from bsharp.models.tiny import embedded_folder
from bsharp.tasks import Split, load_task

__all__ = ["MODELS", "WORKLOADS", "Workload", "make_folder", "prompts"]

MODELS: Mapping[str, Mapping[str, int] | None] = MappingProxyType(
    {
        "tiny": None,  # the one inside the package, trained
        "6M": {
            "vocab_size": 112,
            "hidden_size": 256,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "intermediate_size": 768,
        },
        "50M": {
            "vocab_size": 32_000,
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "intermediate_size": 2048,
        },
        "152k": {
            "vocab_size": 151_936,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 256,
        },
    }
)
"""Qwen3 layouts, tied, with the tokenizer of the embedded model; ids behind its 112 tokens decode to nothing."""

MEAN_PROMPT_TOKENS = 24


@dataclass(frozen=True)
class Workload:
    """One step: `prompts` problems, `group` responses each, every one of exactly `tokens` tokens."""

    model: str
    prompts: int
    group: int
    tokens: int
    prompt_tokens: int = MEAN_PROMPT_TOKENS  # on average; from 5/6 to 7/6 of it

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def response_tokens(self) -> int:
        return self.rows * self.tokens

    def __str__(self) -> str:
        return f"{self.model}, {self.prompts} prompts × {self.group} × {self.tokens} tokens"


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "tiny": Workload("tiny", 24, 8, 48),
        "6M": Workload("6M", 32, 8, 48),
        "50M": Workload("50M", 8, 8, 64),
        "152k": Workload("152k", 4, 4, 128),
    }
)


def make_folder(name: str, parent: Path, eos_rate: float | None = None, **changes: int) -> Path:
    """A folder with the model of that name, weights drawn from seed 0; `changes` replace entries of its layout.

    With `eos_rate` EOS has about this probability at every step. The trained model is what it is: it takes neither.
    """
    layout = MODELS[name]
    if layout is None:
        if changes or eos_rate is not None:
            raise ValueError(f"{name} is trained and has one layout and one EOS rate; leave both out")
        return embedded_folder()
    parts = {**changes} | ({"eos": eos_rate} if eos_rate is not None else {})
    folder = parent / "-".join([name, *(f"{key}={value}" for key, value in sorted(parts.items()))])
    if (folder / "config.json").is_file():
        return folder
    config = Qwen3Config(
        **(dict(layout) | changes),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    model = Qwen3ForCausalLM(config).eval()
    if eos_rate is not None:
        _raise_eos(model, eos_rate)
    model.save_pretrained(unfinished)
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(unfinished)
    shutil.move(unfinished, folder)
    return folder


def prompts(workload: Workload, steps: int) -> list[list[str]]:
    """The prompts of each step.

    Of the trained model they are problems of its own tasks; of the others rows of digits, one token a digit, whose lengths go
    evenly from 5/6 to 7/6 of the mean.
    """
    if MODELS.get(workload.model, {}) is None:
        return _problems(workload.prompts, steps)
    draw = random.Random(0)
    low, high = workload.prompt_tokens * 5 // 6, workload.prompt_tokens * 7 // 6
    found = []
    for _ in range(steps):
        lengths = [low + place * (high - low) // max(1, workload.prompts - 1) for place in range(workload.prompts)]
        draw.shuffle(lengths)
        found.append(["".join(draw.choice("0123456789") for _ in range(length)) for length in lengths])
    return found


def _problems(count: int, steps: int) -> list[list[str]]:
    found = []
    for task in (load_task(name) for name in TrainConfig().tasks):
        found.append([task.prompt(problem) for problem in task.problems(Split.TRAIN, -(-count * steps // 2), 0)])
    dealt = [text for pair in zip(*found, strict=True) for text in pair]
    return [dealt[step * count : (step + 1) * count] for step in range(steps)]


@torch.no_grad()
def _raise_eos(model: Qwen3ForCausalLM, rate: float) -> None:
    """Give EOS the probability `rate` on average, by weights alone.

    The first coordinate of all embeddings is made equal, so that it is a constant of the hidden states and shifts all logits
    alike; EOS, which is never an input, gets a larger one, found by bisection.
    """
    weight, eos = model.get_input_embeddings().weight, int(model.config.eos_token_id)
    weight[:, 0] = 5 * weight.std()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, min(100, weight.shape[0]), (4, 64), generator=generator)
    low, high = -100.0, 100.0
    for _ in range(40):
        weight[eos, 0] = (low + high) / 2
        found = model(input_ids=tokens).logits.softmax(-1)[..., eos].mean()
        low, high = (low, float(weight[eos, 0])) if found > rate else (float(weight[eos, 0]), high)
