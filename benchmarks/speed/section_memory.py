"""Peak memory at a vocabulary of 151,936: whole steps against TRL's, and log-probabilities alone against the plain way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from speed.processes import Measured, measure
from speed.report import interval, mebibytes, table
from speed.section_trl import trl_variant
from speed.setting import Setting
from speed.workloads import WORKLOADS, make_folder

__all__ = ["logprobs_stepper", "run"]

ROWS, TOKENS, PROMPT = 4, 512, 24


def run(setting: Setting) -> dict[str, Any]:
    workload = WORKLOADS["152k"]
    folder = str(make_folder("152k", setting.folder))
    variants: dict[str, dict[str, Any]] = {}
    for precision in ("fp32", "bf16"):
        for rows in (workload.rows, 4):
            # The trainers differ in whether old log-probabilities are computed, in chunks, and not in their peak.
            name = f"TRL GRPO {precision}, reference, {rows} rows at once"
            variants[name] = trl_variant(folder, workload, "grpo", precision, True, rows)
    for dtype, label in (("float32", "fp32"), ("bfloat16", "bf16")):
        for rows in (None, 4):
            variants[f"ours {label}, {'default rows' if rows is None else f'{rows} rows'} at once"] = {
                "kind": "ours",
                "folder": folder,
                "workload": asdict(workload),
                "dtype": dtype,
                "regime": "tilted(alpha=1,beta_inv=100)",
                "microbatch_rows": rows,
            }
    steps = measure(variants, 1, 1, setting.lock)
    print(f"\n### {workload}: whole steps\n")
    print(_table(steps), flush=True)
    ways = {
        f"{way} {label}": {"kind": "logprobs", "folder": folder, "way": way, "dtype": dtype}
        for dtype, label in (("float32", "fp32"), ("bfloat16", "bf16"))
        for way in ("plain", "ours")
    }
    alone = measure(ways, setting.rounds(3), 1, setting.lock)
    print(f"\n### Log-probabilities of {ROWS} × {TOKENS} tokens behind one prompt, no gradient\n")
    print(_table(alone), flush=True)
    return {
        "steps": {key: one.as_dict() for key, one in steps.items()},
        "logprobs": {key: one.as_dict() for key, one in alone.items()},
    }


def _table(measured: dict[str, Measured]) -> str:
    rows = [
        [
            name,
            mebibytes(one.values("peak_bytes")),
            mebibytes([one.loaded_bytes]),
            mebibytes(one.values("step_bytes")),
            interval(one.values("seconds")) if one.steps else "failed",
        ]
        for name, one in measured.items()
    ]
    return table(["variant", "peak MiB", "loaded MiB", "peak over loading MiB", "seconds"], rows)


def logprobs_stepper(folder: str, way: str, dtype: str) -> Callable[[], dict[str, Any]]:
    """Log-probabilities of random responses: this package's, or logits.float().log_softmax(-1).gather of all of them."""
    import torch

    from bsharp.models.loading import load_language_model
    from bsharp.models.logprobs import response_logprobs

    language_model = load_language_model(folder, dtype)
    # Weights are mapped until they are read: they belong to what is loaded.
    total = sum(float(parameter.sum()) for parameter in language_model.model.parameters())
    assert total == total
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(2, 100, (PROMPT,), generator=generator).tolist()
    responses = torch.randint(2, language_model.vocab_size, (ROWS, TOKENS), generator=generator)
    mask = torch.ones_like(responses, dtype=torch.bool)

    def plain() -> torch.Tensor:
        rows = torch.cat([torch.tensor([prompt] * ROWS), responses], dim=1)
        with torch.inference_mode():
            logits = language_model.model(input_ids=rows, logits_to_keep=TOKENS + 1).logits[:, :-1]
            return logits.float().log_softmax(-1).gather(-1, responses[..., None]).squeeze(-1)

    def ours() -> torch.Tensor:
        return response_logprobs(language_model, [prompt] * ROWS, responses, mask)

    run = {"plain": plain, "ours": ours}[way]

    def step() -> dict[str, Any]:
        started = time.perf_counter()
        values = run()
        return {"seconds": time.perf_counter() - started, "tokens": values.numel(), "mean": float(values.mean())}

    return step
