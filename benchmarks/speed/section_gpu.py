"""Steps with adapters at the size of Qwen2.5-3B on a GPU, against TRL's with transformers' generation.

Random weights in bfloat16, adapters of rank 16 in every linear layer but the head, the reference model being the same without
them. `--reduced` runs the same code on two narrow layers anywhere. The share of the bandwidth is that of the bytes that decoding
must read (`speed.flops.decode_bytes`) over the seconds of the rollout and a measured copy.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bsharp.models.tiny import embedded_folder
from speed.flops import Layout, decode_bytes
from speed.peak import bandwidth
from speed.processes import measure
from speed.report import interval, mebibytes, median, number, table
from speed.setting import Setting
from speed.workloads import Workload, prompts

__all__ = ["run"]

RANK = 16
WORKLOADS = {
    "full": Workload("Qwen2.5-3B", 8, 8, 256, prompt_tokens=128),
    "reduced": Workload("two narrow layers", 4, 4, 16),
}


def run(setting: Setting) -> dict[str, Any]:
    size = "reduced" if setting.reduced else "full"
    if not setting.reduced and not torch.cuda.is_available():
        print("no GPU: nothing measured (--reduced runs the same code anywhere)")
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workload = WORKLOADS[size]
    folder = str(_folder(setting, size, device))
    common = {"folder": folder, "workload": asdict(workload), "device": device}
    variants: dict[str, dict[str, Any]] = {
        f"TRL {trainer.upper()}, {rows} rows at once": common
        | {
            "kind": "trl",
            "trainer": trainer,
            "precision": "bf16",
            "reference": True,
            "microbatch_rows": rows,
            "lora_rank": RANK,
        }
        for trainer in ("rloo", "grpo")
        for rows in (4, workload.rows // 2)
    }
    for rows in (4, workload.rows // 2):
        variants[f"ours, {rows} rows at once"] = common | {
            "kind": "ours",
            "dtype": "bfloat16",
            "regime": "tilted(alpha=1,beta_inv=100)",
            "microbatch_rows": rows,
            "lora_rank": RANK,
        }
    # One at a time: waiting processes would keep their part of the GPU's memory.
    measured = {}
    for name, variant in variants.items():
        measured |= measure({name: variant}, setting.rounds(3), 1, setting.lock)
    layout = Layout.of(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompts(workload, 1)[0]]
    read = decode_bytes(layout, lengths, workload.group, workload.tokens, width=2)
    rate = bandwidth(device=device)
    print(f"{workload}, bandwidth {rate / 1e9:,.0f} GB/s\n")
    rows = []
    for name, one in measured.items():
        if not one.steps:
            rows.append([name, "failed", *["–"] * 5])
            continue
        rollout = median(one.values("rollout"))
        rows.append(
            [
                name,
                interval(one.values("seconds")),
                number(rollout),
                number(median(one.values("update")) + median(one.values("logprobs"))),
                f"{workload.response_tokens / rollout:,.0f}",
                f"{100 * read / rollout / rate:.0f} %",
                mebibytes(one.values("device_peak_bytes")),
            ]
        )
    columns = [
        "variant",
        "step s",
        "rollout s",
        "scoring and update s",
        "rollout tokens/s",
        "share of bandwidth",
        "GPU MiB",
    ]
    print(table(columns, rows), flush=True)
    return {"bandwidth": rate, "variants": {key: one.as_dict() for key, one in measured.items()}}


def _folder(setting: Setting, size: str, device: str) -> Path:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from model_families import full_config, reduced_config

    folder = setting.folder / f"qwen2_5-{size}"
    if (folder / "config.json").is_file():
        return folder
    config = full_config("qwen2_5") if size == "full" else reduced_config("qwen2_5")
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(folder)
    return folder
