"""Section 4: problems gained and lost."""

from __future__ import annotations

from bsharp.reporting.page.gained_lost import gained_lost_parts
from bsharp.reporting.page.load import RunData
from bsharp.reporting.page.parts import Section
from bsharp.reporting.page.sections.common import not_computed, section_of

__all__ = ["section"]


def section(run: RunData) -> Section:
    """The 2×2 tables and the charts by group, from diagnostics/problems.json."""
    found = run.diagnostics.get("problems")
    parts = gained_lost_parts(found) if found else []
    return section_of(
        "changed", "Problems gained and lost", parts, not_computed(run, "Gained and lost problems", "problems")
    )
