"""Why a run has no path on the loss surface: its snapshots, and how large they would be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bsharp.reporting.page.load import TrainingRun, finite

__all__ = ["parameters", "why_no_path"]

HEADER = 100_000_000  # bytes; a longer header is no header


def why_no_path(run: TrainingRun) -> str | None:
    """Why the run kept no snapshots of its weights, in a few words; None where it kept some."""
    if any((run.path / "snapshots").glob("step_*.safetensors")):
        return None
    if finite((run.config.get("weights") or {}).get("lora_rank")):
        return "the runs trained adapters, and a path through weights is not drawn for them"
    watch = run.config.get("watch") or {}
    allowed, every = finite(watch.get("snapshot_megabytes")), finite(watch.get("snapshot_every"))
    steps, count = finite(run.config.get("steps")), parameters(run.path / "last")
    if allowed is None:
        return "the run kept no snapshots of its weights"
    setting = f"watch.snapshot_megabytes = {allowed:g}"
    if allowed == 0:
        return f"{setting} keeps no snapshots"
    if not every or steps is None or not count:
        return f"no snapshots are there; those of a run that would exceed {setting} are not kept"
    needed = 2e-6 * count * math.ceil(steps / every)  # 2 bytes a weight
    told = f"{needed:,.{1 if needed < 100 else 0}f}"
    return f"snapshots of {told} MB exceed {setting}" if needed > allowed else "no snapshots are there"


def parameters(model: Path) -> int:
    """Weights in the safetensors files of a model's folder, tied ones counted once, from their headers; 0 where it has none."""
    return sum(_weights(path) for path in model.glob("*.safetensors"))


def _weights(path: Path) -> int:
    # The file starts with the length of its header (8 bytes, little endian) and the header, a JSON object of tensors.
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(size)) if size <= HEADER else {}
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0
