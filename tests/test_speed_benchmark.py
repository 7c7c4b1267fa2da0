"""What benchmarks/speed counts and reckons: operations against torch's own counter, and the arithmetic of its tables."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

FOLDER = Path(__file__).parents[1] / "benchmarks"
CONFIG = Qwen3Config(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    intermediate_size=36,
    tie_word_embeddings=True,
    attn_implementation="eager",
)


@pytest.fixture(scope="module", autouse=True)
def speed() -> Iterator[None]:
    """The folder's modules can be imported, and are gone afterwards."""
    path = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name == "speed" or name.startswith("speed.")]:
        del sys.modules[name]


def counted_by_torch(model: Qwen3ForCausalLM, calls: list[dict]) -> int:
    """Operations of the matrix products in these forward passes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for call in calls:
            model(**call)
    return int(counter.get_total_flops())


def test_operations_are_those_that_torch_counts_when_every_token_is_decoded_through_a_cache() -> None:
    from speed.flops import Layout, attention_flops, linear_flops

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG).eval()
    layout, length = Layout.of(CONFIG), 7
    cache = model(input_ids=torch.tensor([[3]]), use_cache=True).past_key_values
    calls = [{"input_ids": torch.tensor([[5]]), "past_key_values": cache, "use_cache": True} for _ in range(length - 1)]
    expected = linear_flops(layout, length - 1, length - 1) + attention_flops(layout, 1, length)
    assert counted_by_torch(model, calls) == expected


def test_linear_layers_of_a_whole_pass_are_those_that_torch_counts() -> None:
    from speed.flops import Layout, linear_flops

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG).eval()
    layout, rows, length = Layout.of(CONFIG), 3, 6
    # Eager attention multiplies every query with every key, masked or not.
    square = 4 * layout.layers * layout.heads * layout.head_dim * rows * length * length
    found = counted_by_torch(model, [{"input_ids": torch.ones((rows, length), dtype=torch.long), "logits_to_keep": 2}])
    assert found == linear_flops(layout, rows * length, rows * 2) + square


def test_a_shared_prompt_counts_once_and_the_last_token_of_a_response_never() -> None:
    from speed.flops import Layout, attention_flops, linear_flops, phases

    layout = Layout.of(CONFIG)
    parts = phases(layout, prompt_lengths=[5], group=3, tokens=4)
    attention = attention_flops(layout, 0, 5) + 3 * attention_flops(layout, 5, 8)
    once = linear_flops(layout, tokens=5 + 3 * 3, predictions=1 + 3 * 3) + attention
    assert parts["rollout"].flops(layout) == parts["scoring"].flops(layout) == once
    assert parts["update"].flops(layout) == 3 * once


def test_decoding_reads_the_weights_every_step_and_all_keys_and_values_so_far() -> None:
    from speed.flops import Layout, decode_bytes

    layout = Layout.of(CONFIG)
    keys_and_values = 2 * 2 * 2 * 10  # layers × (key, value) × heads × width
    # Two steps: the first reads one response token in each of two rows, the second two; the prompt's five once a step.
    tokens_read = 2 * 5 + 2 * (1 + 2)
    expected = 2 * (2 * layout.parameters + keys_and_values * tokens_read)
    assert decode_bytes(layout, [5], group=2, tokens=3, width=2) == expected
    model = Qwen3ForCausalLM(CONFIG)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert layout.parameters == matrices


def test_a_row_is_the_median_with_its_extremes_and_a_ratio_is_that_of_medians() -> None:
    from speed.report import interval, median, number, ratio, table

    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    assert math.isnan(median([]))
    assert interval([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert interval([0.12345]) == "0.123"
    assert interval([]) == "–"
    assert number(12345.6) == "12,346"
    # Slower 6 at the median, faster 2: three times as fast, whatever the extremes.
    assert ratio([6.0, 100.0, 5.0], [2.0, 0.1, 3.0]) == 3.0
    assert math.isnan(ratio([], [1.0]))
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_the_best_of_a_side_is_the_smallest_median_among_those_with_the_same_reference() -> None:
    from speed.processes import Measured
    from speed.section_trl import best_by_precision

    def one(name: str, *seconds: float) -> Measured:
        return Measured(name, steps=[{"seconds": value} for value in seconds])

    measured = {
        found.name: found
        for found in (
            one("TRL RLOO fp32, reference", 5.0),
            one("TRL RLOO bf16, reference", 3.0, 9.0, 4.0),
            one("TRL RLOO bf16, no reference", 1.0),
            one("TRL GRPO bf16, reference", 2.0),
            one("TRL RLOO autocast, reference"),  # it failed
        )
    }
    assert best_by_precision(measured, "TRL RLOO", "best", "reference") is measured["TRL RLOO bf16, reference"]
    assert best_by_precision(measured, "TRL RLOO", "fp32", "reference") is measured["TRL RLOO fp32, reference"]
    assert best_by_precision(measured, "TRL RLOO", "fp32", "no reference") is None


def test_prompts_have_the_lengths_that_are_asked_for() -> None:
    from speed.workloads import Workload, prompts

    first, second = prompts(Workload("6M", 5, 8, 48), steps=2)
    assert sorted(len(text) for text in first) == [20, 22, 24, 26, 28]
    assert sorted(map(len, second)) == sorted(map(len, first))
    assert len({*first, *second}) == 10
