"""Whole steps of benchmarks/large_model.py: reduced anywhere, at the full size of Qwen2.5-3B on a GPU."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "large_model.py"
QWEN_WEIGHTS = 3_085_938_688


@pytest.fixture(scope="module")
def large_model() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("large_model", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    path = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules[spec.name]


def check(measured) -> None:
    metrics = measured.metrics
    assert metrics["grad_norm"] > 0
    assert math.isfinite(metrics["grad_norm"])
    assert metrics["gradient/variance_trace"] > 0
    assert metrics["importance_sampling_ratio/capped"] == 0.0
    assert metrics["importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=0.05)
    assert measured.rollout_rate > 0
    assert measured.update_rate > 0


def test_every_setting_trains_on_two_narrow_layers(large_model, capsys: pytest.CaptureFixture[str]) -> None:
    found = large_model.main(reduced=True, device="cpu", rows=8, tokens=6, steps=1)
    assert list(found) == list(large_model.SETTINGS)
    for measured in found.values():
        check(measured)
    assert found["adapters of rank 16"].trained < found["all weights"].trained
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a")]
    assert len(table) == len(found)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # a driver or a GPU may warn of what nothing here can change
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("setting", ["adapters of rank 16", "all weights, base offloaded"])
def test_a_step_of_qwen2_5_3b_fits_on_one_gpu(setting: str, large_model) -> None:
    # Full fine-tuning holds 24 bytes a weight: bfloat16 weights, float32 ones, two moments, the gradient's sum and a part's.
    needed = (8 if setting.startswith("adapters") else 26) * QWEN_WEIGHTS
    there = torch.cuda.get_device_properties(0).total_memory
    if there < needed:
        pytest.skip(f"needs a GPU with {needed / 1e9:.0f} GB of memory, this one has {there / 1e9:.0f} GB")
    found = large_model.main(device="cuda", rows=16, tokens=512, steps=1, settings=[setting])
    assert list(found) == [setting], "out of memory"
    check(found[setting])
    if not setting.startswith("adapters"):
        assert found[setting].trained == QWEN_WEIGHTS
    assert 0 < found[setting].update_bytes < there
