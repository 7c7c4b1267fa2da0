"""Settings that are chosen by measuring: settled when a run begins, recorded with it, obeyed ever after."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from bsharp.config import ChatConfig, WeightsConfig
from bsharp.models.loading import load_language_model
from bsharp.models.network import Block, Linear, Network, network_of
from bsharp.models.packed import hidden_states
from bsharp.models.packing import pack
from bsharp.models.parallel import TINY_WEIGHTS
from bsharp.models.products import product_library, set_product_library
from bsharp.models.sources import find_source
from bsharp.runlog import RunDirectory

__all__ = ["faster_precision", "settled"]

GAIN = 0.8
"""Share of float32's time below which bfloat16 is taken: what it costs in precision must buy something."""
PROMPTS, TOKENS = 8, 64
"""What is run to measure: about as many tokens as a pass of a training step has."""


def settled(weights: WeightsConfig, model: str, device: str, out: str | Path) -> WeightsConfig:
    """`weights` without auto: what the run in `out` recorded when it began, else what is faster here.

    The library of products is in use from then on, in processes started later too. Raises ConfigError where it cannot be used.
    """
    recorded: Mapping[str, Any] = {}
    if (Path(out) / "config.json").is_file():
        recorded = (RunDirectory(out).read_json("config.json") or {}).get("weights", {})
    found: dict[str, Any] = {}
    if weights.products == "auto":
        found["products"] = recorded.get("products") or product_library(_stored_bytes(model))
    if weights.dtype == "auto":
        found["dtype"] = recorded.get("dtype") or faster_precision(model, device)
    weights = dataclasses.replace(weights, **found)
    assert weights.products != "auto"
    set_product_library(weights.products)
    return weights


def _stored_bytes(model: str) -> int:
    """Bytes of the weights in a model's folder; of a model of the hub, or one behind an adapter, enough to be no tiny one."""
    source = find_source(model)
    folder = Path(source.path)
    if source.is_adapter or not folder.is_dir():
        return TINY_WEIGHTS
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def faster_precision(model: str, device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 on an accelerator; on the CPU where one block and the output layer are faster in it than in float32.

    Models that transformers' own modules run on the CPU stay in float32.
    """
    if torch.device(device).type != "cpu":
        return "bfloat16"
    network = network_of(load_language_model(model, "float32", device, ChatConfig(template="never")).model)
    if network is None:
        return "float32"
    network = dataclasses.replace(network, blocks=network.blocks[:1])
    lower = _cast(network, torch.bfloat16)
    times: dict[Network, list[float]] = {network: [], lower: []}
    for _ in range(5):
        for one, seconds in times.items():
            seconds.append(_timed(lambda one=one: _run(one)))  # type: ignore[misc]
    return "bfloat16" if min(times[lower]) < GAIN * min(times[network]) else "float32"


def _run(network: Network) -> None:
    prompts = [[(7 * row + 3 * place) % len(network.embedding) for place in range(TOKENS)] for row in range(PROMPTS)]
    one = torch.ones((PROMPTS, 1), dtype=torch.bool)
    hidden = hidden_states(network, pack(network, prompts, torch.zeros((PROMPTS, 1), dtype=torch.long), one))
    with torch.inference_mode():
        torch.nn.functional.linear(hidden, network.head.weight).float().softmax(-1)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cast(network: Network, dtype: torch.dtype) -> Network:
    def tensor(values: Any) -> Any:
        return values.detach().to(dtype) if isinstance(values, torch.Tensor) else values

    def linear(one: Linear) -> Linear:
        return Linear(tensor(one.weight), tensor(one.bias))

    def cast(block: Block) -> Block:
        parts: dict[str, Any] = {field.name: getattr(block, field.name) for field in dataclasses.fields(Block)}
        lower: dict[str, Any] = {
            name: linear(part) if isinstance(part, Linear) else tensor(part) for name, part in parts.items()
        }
        return Block(**lower)

    return dataclasses.replace(
        network,
        embedding=tensor(network.embedding),
        blocks=tuple(map(cast, network.blocks)),
        final_norm=tensor(network.final_norm),
        head=linear(network.head),
    )
