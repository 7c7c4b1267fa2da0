"""Section 8: completions of the same problem under every model, side by side."""

from __future__ import annotations

import os
from pathlib import Path

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.completions import completions_part
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Paragraph, Section
from bsharp.reporting.page.sections.common import section_of

__all__ = ["section"]


def section(run: RunData, folder: Path, running: bool = False) -> Section:
    """The browser over all test samples that are there; links are relative to `folder`. Not while the run is `running`."""
    if running:
        # Reading every sample again for each refresh of the page would take the time of the runs themselves.
        return Section("completions", "Completions", absent="Completions are shown when the comparison has ended.")
    absent = "No test samples are there yet; they are drawn at the end of each job of `bsharp compare`."
    if run.kind == "training":
        last = f"{plain_text(run.path)}/last"
        absent = f"A training run keeps no samples; draw some with `bsharp evaluate --model {last}`."
    records = run.records()
    sources = [
        (f"{plain_text(model)}, seed {seed}", os.path.relpath(found.path, folder))
        for model, seeds in records.items()
        for seed, found in seeds.items()
    ]
    if not records:
        return section_of("completions", "Completions", [], absent)
    part = completions_part(records, run.diagnostics.get("problems"), sources)
    text = Paragraph(
        "The same problem under every model. ℓ_ref is the log-probability under the base, log π that under the model itself, "
        "both of the whole completion in nats. The raw records are linked below."
    )
    return section_of("completions", "Completions", [text, part], absent)
