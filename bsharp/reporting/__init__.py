"""Results for people: the page, and the table on the screen, as Markdown and as a picture. Never imports torch.

Everything is imported when first used: a table on the screen needs nothing of the page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsharp.reporting.cells import require_results
    from bsharp.reporting.checks import print_checks
    from bsharp.reporting.families import families_tables, roles_tables
    from bsharp.reporting.forecast import forecast_markdown, print_forecast, write_forecast_page
    from bsharp.reporting.markdown import results_markdown
    from bsharp.reporting.page import write_report
    from bsharp.reporting.summary import print_summary, summary_table
    from bsharp.reporting.table import print_results, results_table, results_view, table_svg

_HOMES = {
    "families_tables": "families",
    "forecast_markdown": "forecast",
    "print_checks": "checks",
    "print_forecast": "forecast",
    "print_results": "table",
    "print_summary": "summary",
    "require_results": "cells",
    "results_markdown": "markdown",
    "results_table": "table",
    "results_view": "table",
    "roles_tables": "families",
    "summary_table": "summary",
    "table_svg": "table",
    "write_forecast_page": "forecast",
    "write_report": "page",
}

__all__ = [
    "families_tables",
    "forecast_markdown",
    "print_checks",
    "print_forecast",
    "print_results",
    "print_summary",
    "require_results",
    "results_markdown",
    "results_table",
    "results_view",
    "roles_tables",
    "summary_table",
    "table_svg",
    "write_forecast_page",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bsharp.reporting' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"bsharp.reporting.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
