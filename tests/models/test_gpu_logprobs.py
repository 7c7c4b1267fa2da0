"""What a GPU does with the output layer in chunks. Run by `pytest -m gpu`; skipped where there is none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from model_families import FAMILIES, make_folder

from bsharp.masking import pad_right
from bsharp.models import logprobs as logprobs_module
from bsharp.models.loading import load_language_model
from bsharp.models.logprobs import forward_responses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # a driver or a GPU may warn of what nothing here can change
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none"),
]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "logprob_memory.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("logprob_memory", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_chunks_and_whole_logits_agree_on_the_gpu(
    family: str,
    dtype: str,
    tolerance: float,
    share_prompts: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_language_model(str(make_folder(family, tmp_path, dtype=dtype)), dtype, "cuda")
    draw = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(6, 200, (length,), generator=draw).tolist()) for length in (21, 5)] * 2
    responses = [torch.randint(6, 200, (length,), generator=draw).tolist() for length in (30, 1, 12, 25)]
    token_ids, mask = pad_right(responses, model.pad_token_id)
    found = []
    for limit in (2**62, -1):
        monkeypatch.setattr(logprobs_module, "WHOLE_LOGITS_BYTES", limit)
        monkeypatch.setattr(logprobs_module, "CHUNK_BYTES", 4 * model.vocab_size * 7)
        model.model.zero_grad()
        result = forward_responses(
            model, prompts, token_ids, mask, 0.8, True, with_entropy=True, share_prompts=share_prompts
        )
        assert result.entropy is not None
        inside = result.token_logprobs[mask.cuda()]
        (inside * torch.linspace(-1.0, 2.0, len(inside), device="cuda")).sum().backward()
        gradient = torch.cat([p.grad.reshape(-1).float() for p in model.model.parameters() if p.grad is not None])
        found.append((inside.detach(), result.entropy[mask.cuda()], gradient))
    for whole, chunked in zip(*found, strict=True):
        assert float((chunked - whole).norm() / whole.norm()) < tolerance


@pytest.mark.parametrize("variant", ["chunks", "entropy"])
def test_a_step_of_16_by_1024_tokens_takes_at_most_a_third_of_the_memory(
    variant: str, benchmark: ModuleType, tmp_path: Path
) -> None:
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("the straightforward step needs about 45 GiB of GPU memory")
    taken = {}
    for name in ("straightforward", variant):
        found = benchmark.measure(name, "cuda", 16, 256, 2, tmp_path)
        taken[name] = (found["peak"] - found["before"], found["loss"])
        torch.cuda.empty_cache()
    assert taken[variant][0] <= taken["straightforward"][0] / 3
    # 1e-5 in float32. A logit in bfloat16 may round to the other side where a product is summed in another order.
    assert taken[variant][1] == pytest.approx(taken["straightforward"][1], rel=1e-4)
