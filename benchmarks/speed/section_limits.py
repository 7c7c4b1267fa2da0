"""What share of the machine's own limit each part of a step reaches: needed operations over measured matrix products.

A part's limit is the time of its counted operations (`speed.flops`) at the rate of the best matrix products that torch has
here at the model's own shapes (`speed.peak`), measured in the same run; for decoding also that of its bytes at the measured
memory bandwidth, and the slower of the two counts. A share of 1 would leave nothing for attention's softmax, norms, sampling,
the optimizer and everything between the products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from speed.flops import Layout, decode_bytes, linear_flops, phases
from speed.processes import measure
from speed.report import interval, median, number, table
from speed.setting import Setting
from speed.workloads import WORKLOADS, Workload, make_folder, prompts

__all__ = ["peak_stepper", "run"]

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
PART_OF = {"rollout": "rollout", "scoring": "logprobs", "update": "update"}
REFERENCE = "tilted(alpha=1,beta_inv=100)"
WIDTH = {"float32": 4, "bfloat16": 2}


def run(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in setting.models or ("tiny", "6M", "50M"):
        workload = WORKLOADS[name]
        folder = str(make_folder(name, setting.folder))
        common = {"folder": folder, "workload": asdict(workload)}
        variants: dict[str, dict[str, Any]] = {}
        for dtype, label in DTYPES.items():
            # With a reference, so that there is scoring to measure.
            variants[f"step {label}"] = common | {"kind": "ours", "dtype": dtype, "regime": REFERENCE}
            variants[f"peak {label}"] = common | {"kind": "peak", "dtype": dtype}
        rounds = setting.rounds({"tiny": 9}.get(name, 3))
        measured = measure(variants, rounds, 1, setting.lock)
        print(f"\n### {workload}: share of the limit\n")
        rows, shares = [], {}
        for label in DTYPES.values():
            step, peak = measured[f"step {label}"], measured[f"peak {label}"]
            if not (step.steps and peak.steps):
                rows.append([label, "failed", *["–"] * 6])
                continue
            for phase, limit in peak.steps[-1]["limits"].items():
                seconds = step.values(PART_OF[phase])
                reached = limit["seconds"] / median(seconds)
                shares[f"{phase} {label}"] = reached
                rows.append(
                    [
                        f"{phase} {label}",
                        number(limit["flops"] / 1e9),
                        number(limit["flops"] / limit["product_seconds"] / 1e9),
                        interval(seconds),
                        number(limit["flops"] / median(seconds) / 1e9),
                        number(limit["product_seconds"]),
                        number(limit["byte_seconds"]) if limit["byte_seconds"] else "",
                        f"{100 * reached:.0f} %",
                    ]
                )
        columns = [
            "part",
            "needed GFLOP",
            "peak GFLOP/s",
            "measured s",
            "reached GFLOP/s",
            "limit of products s",
            "limit of bytes s",
            "share of the limit",
        ]
        print(table(columns, rows))
        last = measured["peak fp32"].steps[-1] if measured["peak fp32"].steps else {}
        if last:
            print(f"\nfloat32 products: {last['ways']}; bandwidth {last['bandwidth'] / 1e9:.1f} GB/s", flush=True)
        found[name] = {"shares": shares, "variants": {key: one.as_dict() for key, one in measured.items()}}
    return found


def peak_stepper(folder: str, workload: Workload, dtype: str) -> Callable[[], dict[str, Any]]:
    """Each step times all products again; its figures are the best of all steps so far."""
    import torch

    from speed.peak import PeakTimer, bandwidth

    layout = Layout.of(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer(text)["input_ids"]) for text in prompts(workload, 1)[0]]
    timer = PeakTimer(layout, getattr(torch, dtype))
    parts = phases(layout, lengths, workload.group, workload.tokens)
    together = {"rollout": workload.rows}
    fastest = 0.0
    bytes_read = decode_bytes(layout, lengths, workload.group, workload.tokens, WIDTH[dtype])

    def step() -> dict[str, Any]:
        nonlocal fastest
        started = time.perf_counter()
        fastest = max(fastest, bandwidth())
        timer.begin_round()
        limits: dict[str, dict[str, float]] = {}
        for name, phase in parts.items():
            timer.measure(phase, together.get(name))
            linear = phase.passes * linear_flops(layout, phase.tokens, phase.predictions)
            total = phase.flops(layout)
            # Attention at the rate of the other products.
            products = timer.phase_seconds(phase, together.get(name)) * total / linear
            read = bytes_read / fastest if name == "rollout" else 0.0
            limits[name] = {
                "flops": total,
                "product_seconds": products,
                "byte_seconds": read,
                "seconds": max(products, read),
            }
        return {
            "seconds": time.perf_counter() - started,
            "limits": limits,
            "bandwidth": fastest,
            "ways": ", ".join(timer.ways),
            "products": [
                {"tokens": m, "k": k, "n": n, "kind": kind, "seconds": best[0], "way": best[1]}
                for (m, k, n, kind), best in timer.best.items()
            ],
        }

    return step
