"""Peak memory and time of a training step, with the log-probabilities in chunks and written down straightforwardly.

    python benchmarks/logprob_memory.py [--out docs/memory.md]

One step is forward and backward pass of a policy-gradient loss over given responses; no optimizer. Straightforward is
`logits.float().log_softmax(-1).gather(…)` on the model's own logits of the response tokens. Both run on the same weights
and tokens, each in a process of its own:

- on the CPU, 2 × 1024 response tokens, float32, one thread: highest resident memory less that with the model just loaded;
- on a GPU where there is one, 16 × 1024 tokens, bfloat16: what torch's allocator handed out, less the weights;
- counted, 16 × 1024 tokens, bfloat16, up to the full size of Qwen2.5-3B: bytes of all tensors alive at once beside the
  weights, on torch's meta device, which knows shapes and types but holds no numbers. Blocks are recomputed in the backward
  pass.

The model that is run has the vocabulary of Qwen2.5 (151,936, tied) and few, narrow layers. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.models.qwen2 import modeling_qwen2

from bsharp.models import logprobs
from bsharp.models.head import LinearHead, inner_model
from bsharp.models.loading import LanguageModel
from bsharp.models.logprobs import forward_responses

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from model_families import full_config, reduced_config

VOCABULARY, PROMPT_TOKENS, RESPONSE_TOKENS = 151_936, 16, 1024
VARIANTS = {
    "straightforward": "straightforward",
    "chunks": "in chunks",
    "entropy": "in chunks, with the entropies that training logs",
}
GIB = 2**30


def small_config(hidden: int, layers: int) -> PretrainedConfig:
    return reduced_config(
        "qwen2_5",
        VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        initializer_range=0.05,  # a distribution that is not uniform
    )


def build_model(hidden: int, layers: int, dtype: torch.dtype, device: str) -> LanguageModel:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(small_config(hidden, layers), dtype=dtype).eval()
    return LanguageModel(model, None, (VOCABULARY - 1,), 0, "qwen2_5")  # type: ignore[arg-type]


def loss_of(language_model: LanguageModel, variant: str, rows: int) -> Tensor:
    """−mean of advantage × log-probability over the tokens of the responses, which share one prompt."""
    draw = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCABULARY, (PROMPT_TOKENS,), generator=draw)
    responses = torch.randint(VOCABULARY, (rows, RESPONSE_TOKENS), generator=draw)
    device = language_model.model.device
    advantages = torch.linspace(1.0, -0.5, rows, device=device)[:, None]
    if variant == "straightforward":
        tokens = torch.cat([prompt.expand(rows, -1), responses], dim=1).to(device)
        output = language_model.model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
            logits_to_keep=RESPONSE_TOKENS + 1,
        )
        logits = output.logits[:, :-1]
        token_logprobs = logits.float().log_softmax(-1).gather(-1, tokens[:, PROMPT_TOKENS:, None]).squeeze(-1)
    else:
        token_logprobs = forward_responses(
            language_model,
            [tuple(prompt.tolist())] * rows,
            responses,
            torch.ones_like(responses, dtype=torch.bool),
            with_entropy=variant == "entropy",
        ).token_logprobs
    return -(advantages * token_logprobs).mean()


def resident(what: str) -> int:
    """Bytes of this process in memory now (VmRSS) or at most since they were last reset (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def measure(variant: str, device: str, rows: int, hidden: int, layers: int, folder: Path) -> dict[str, float]:
    """What one process measures: memory in the first step, time in the second, when all memory has been touched."""
    torch.set_num_threads(1)
    on_gpu = device == "cuda"
    language_model = build_model(hidden, layers, torch.bfloat16 if on_gpu else torch.float32, device)
    model = language_model.model
    if on_gpu:
        loss_of(language_model, "chunks", 1).backward()  # what cuBLAS keeps for itself is taken before the count
        model.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    loss = loss_of(language_model, variant, rows)
    loss.backward()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    torch.save([p.grad.float().cpu() for p in model.parameters() if p.grad is not None], folder / f"{variant}.pt")
    seconds = []
    for _ in range(3 if on_gpu else 2):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter() if on_gpu else time.process_time()
        loss_of(language_model, variant, rows).backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() if on_gpu else time.process_time()) - started)
    return {"loss": float(loss.detach()), "before": before, "peak": peak, "seconds": min(seconds)}


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors made while this is active and still alive, now and at most, and of the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else [found]:
            if isinstance(value, Tensor) and value.device.type == "meta":
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most, self.largest = max(self.most, self.now), max(self.largest, storage.nbytes())
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return found

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def without_numbers() -> Iterator[None]:
    """What of a forward pass asks for numbers is answered for it: the mask is causal, the output layer linear."""

    def linear(model: nn.Module) -> LinearHead:
        inner: Any = inner_model(model)
        return LinearHead(inner.model, inner.lm_head)

    mask, head = modeling_qwen2.create_causal_mask, logprobs.linear_head
    modeling_qwen2.create_causal_mask = lambda **_: None
    logprobs.linear_head = linear
    try:
        yield
    finally:
        modeling_qwen2.create_causal_mask, logprobs.linear_head = mask, head


def fused_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """As much memory as a fused kernel takes: nothing of (tokens × tokens)."""
    repeated = (key * value).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query * repeated).transpose(1, 2).contiguous(), None


def count(variant: str, rows: int, config: PretrainedConfig, adapters: bool = False) -> dict[str, int]:
    """Bytes of weights, and of everything else that is alive at the worst moment of a step, blocks recomputed."""
    AttentionInterface.register("fused", fused_attention)
    with without_numbers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers has renamed
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.set_attn_implementation("fused")
            model.activation_checkpointing_enable({"use_reentrant": False})
            if adapters:
                lora = LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")
                model = get_peft_model(model, lora)
        model.train()  # neither has dropout; blocks are recomputed in train mode only
        language_model = LanguageModel(model, None, (0,), 0, "qwen2_5")  # type: ignore[arg-type]
        with LiveBytes() as live:
            loss_of(language_model, variant, rows).backward()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"weights": weights, "peak": live.most, "largest": live.largest}


def run_apart(variant: str, device: str, rows: int, hidden: int, layers: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", variant, "--device", device, "--rows", str(rows)]
    command += ["--hidden", str(hidden), "--layers", str(layers), "--folder", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True)
    if output.returncode:
        return {"failed": 1.0, "memory": float("OutOfMemory" in output.stderr)}
    return json.loads(output.stdout.splitlines()[-1])


def measured_table(device: str, rows: int, hidden: int, layers: int) -> list[str]:
    lines = [
        "| | with the model loaded, GiB | peak, GiB | of the step, GiB | to straightforward | seconds | to straightforward "
        "| loss | gradient off by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        first: dict[str, float] = {}
        gradients: list[Tensor] = []
        for variant, label in VARIANTS.items():
            found = run_apart(variant, device, rows, hidden, layers, Path(name))
            if "failed" in found:
                reason = "not enough memory" if found["memory"] else "failed"
                lines.append(f"| {label} | {reason} | | | | | | | |")
                continue
            first = first or found
            own = torch.load(Path(name) / f"{variant}.pt")
            gradients = gradients or own
            off = sum(float((a - b).norm() ** 2) for a, b in zip(own, gradients, strict=True)) ** 0.5
            off /= sum(float(b.norm() ** 2) for b in gradients) ** 0.5
            step, of_first = found["peak"] - found["before"], first["peak"] - first["before"]
            lines.append(
                f"| {label} | {found['before'] / GIB:.2f} | {found['peak'] / GIB:.2f} | {step / GIB:.2f} "
                f"| {step / of_first:.2f} | {found['seconds']:.1f} | {found['seconds'] / first['seconds']:.2f} "
                f"| {found['loss']:.7f} | {off:.0e} |"
            )
    return lines


def counted_table(rows: int, hidden: int, layers: int) -> list[str]:
    lines = [
        "| | weights, GiB | of the step, straightforward, GiB | in chunks, GiB | in chunks to straightforward |",
        "|---|---|---|---|---|",
    ]
    full = full_config("qwen2_5")
    for config, adapters, label in (
        (small_config(hidden, layers), False, f"hidden {hidden}, {layers} layers, all weights train"),
        (full, True, "Qwen2.5-3B, adapters of rank 32 train"),
        (full, False, "Qwen2.5-3B, all weights train"),
    ):
        straight, chunks = (count(variant, rows, config, adapters) for variant in ("straightforward", "entropy"))
        lines.append(
            f"| {label} | {straight['weights'] / GIB:.2f} | {straight['peak'] / GIB:.2f} "
            f"| {chunks['peak'] / GIB:.2f} | {chunks['peak'] / straight['peak']:.2f} |"
        )
    return lines


def hardware() -> str:
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = f"{int(total.group(1)) / 2**20:.0f} GiB" if total else "unknown memory"
    return f"{cpu.group(1) if cpu else platform.machine()}, one thread, {memory}; {gpu}"


def page(rows: int, hidden: int, layers: int) -> str:
    gpu = (
        measured_table("cuda", 16, hidden, layers)
        if torch.cuda.is_available()
        else ["Not measured: this machine has no GPU. The same command measures it where there is one."]
    )
    return "\n".join(
        [
            *HEADER,
            "",
            f"**CPU, {rows} × {RESPONSE_TOKENS} tokens, float32, hidden {hidden}, {layers} layers**",
            "",
            *measured_table("cpu", rows, hidden, layers),
            "",
            f"**GPU, 16 × {RESPONSE_TOKENS} tokens, bfloat16, hidden {hidden}, {layers} layers**",
            "",
            *gpu,
            "",
            f"**Counted, 16 × {RESPONSE_TOKENS} tokens, bfloat16, blocks recomputed**",
            "",
            *counted_table(16, hidden, layers),
            "",
            f"{hardware()}. torch {torch.__version__}, transformers {transformers.__version__}, Python "
            f"{platform.python_version()}.",
            "",
        ]
    )


HEADER = """# Memory of the log-probabilities

This page is the output of `python benchmarks/logprob_memory.py`.

The logits of 16 × 1024 tokens at a vocabulary of 151,936 are 9.3 GiB in float32, and a step written down straightforwardly,
`logits.float().log_softmax(-1).gather(…)`, holds them several times over: as the model gives them, in float32, as
log-probabilities, and the gradients of all these. Where the logits of a pass would be larger than 256 MiB
(`WHOLE_LOGITS_BYTES`), the tokens of the responses go through the output layer in chunks of 128 MiB (`CHUNK_BYTES`) that
follow each other in the same memory, and again in the backward pass (`bsharp.models.head`). Smaller passes, models whose logits
are not one linear layer of the last hidden state (capped or scaled logits, adapters on the output layer) and callers who ask
for the logits themselves keep the plain path.

How to read the tables: the memory of the step is the peak less what was there with the model loaded (less the weights, where
it is counted). It contains the gradients of the weights and the activations of the blocks, which are the same either way: at
the full size they are nearly all that is left in chunks, 6 GiB of gradients where all weights train and the block that is just
being recomputed, so that a whole 3 B model in one pass of 16 × 1024 tokens is above a third of the straightforward step, and
smaller micro-batches are what saves more. A step in chunks computes the logits twice, forward and
backward: four matrix products with the output layer in place of three (three in place of two where it is frozen). It can be
as fast all the same, where touching fresh memory costs as much as computing. Loss and gradient are compared with the
straightforward ones; the gradient by the norm of the difference over the norm. Seconds on the CPU are CPU time.
""".splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/memory.md"), help="where the page is written")
    parser.add_argument("--rows", type=int, default=2, help=f"responses of {RESPONSE_TOKENS} tokens on the CPU")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)  # what one process of its own does
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.rows, arguments.hidden, arguments.layers)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.device, *shape, arguments.folder)))
        return
    text = page(*shape)
    print(text)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
