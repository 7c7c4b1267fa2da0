"""Results for people: the table on the screen, as Markdown and as a picture. Never imports torch."""

from bsharp.reporting.summary import print_summary, summary_table
from bsharp.reporting.table import (
    families_tables,
    print_results,
    results_markdown,
    results_table,
    results_view,
    table_svg,
)

__all__ = [
    "families_tables",
    "print_results",
    "print_summary",
    "results_markdown",
    "results_table",
    "results_view",
    "summary_table",
    "table_svg",
]
