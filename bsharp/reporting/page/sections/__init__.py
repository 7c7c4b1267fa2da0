"""The sections of a run's page, in their order. Each module builds one, from what the run directory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsharp.reporting.cells import plain_text
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Callout, Section
from bsharp.reporting.page.sections import (
    alignment,
    at_k,
    calibration,
    changed,
    completions,
    curves,
    limits,
    manifest,
    sensitivity,
    surface,
    verdict,
)

__all__ = ["build_sections"]


def build_sections(run: RunData, folder: Path, running: bool = False) -> list[Section]:
    """All sections of a run, for a page that lies in `folder`; `running`: it will be written again soon.

    A section whose files lack what it needs says so in its place; the others are not affected.
    """
    builders: list[tuple[str, str, Callable[[], Section]]] = [
        ("verdict", "Verdict", lambda: verdict.section(run, running)),
        ("curves", "Learning curves", lambda: curves.section(run)),
        ("at_k", "pass@k and maj@k", lambda: at_k.section(run)),
        ("changed", "Problems gained and lost", lambda: changed.section(run)),
        ("gradients", "Gradient alignment", lambda: alignment.section(run)),
        ("surface", "Loss surface", lambda: surface.section(run)),
        ("sensitivity", "Input sensitivity", lambda: sensitivity.section(run)),
        ("calibration", "Calibration and drift", lambda: calibration.section(run)),
        ("completions", "Completions", lambda: completions.section(run, folder, running)),
    ]
    sections = [_guarded(*builder) for builder in builders]
    sections.append(_guarded("limits", "What this run does not show", lambda: limits.section(run, sections, running)))
    sections.append(_guarded("manifest", "Manifest and glossary", lambda: manifest.section(run, folder)))
    return sections


def _guarded(section_id: str, title: str, build: Callable[[], Section]) -> Section:
    # Files of a run that was cut off, or of another version, may lack anything: one broken file must not cost the page.
    try:
        return build()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = plain_text(f"{type(error).__name__}: {error}")
        text = f"{limits.UNBUILT} from the files of this run ({reason}); see the raw files, or rerun what wrote them."
        return Section(section_id, title, [Callout("warning", text)])
