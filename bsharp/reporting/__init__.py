"""Results for people: the page, and the table on the screen, as Markdown and as a picture. Never imports torch."""

from bsharp.reporting.cells import require_results
from bsharp.reporting.checks import print_checks
from bsharp.reporting.families import families_tables, roles_tables
from bsharp.reporting.forecast import forecast_markdown, print_forecast, write_forecast_page
from bsharp.reporting.markdown import results_markdown
from bsharp.reporting.page import write_report
from bsharp.reporting.summary import print_summary, summary_table
from bsharp.reporting.table import print_results, results_table, results_view, table_svg

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
