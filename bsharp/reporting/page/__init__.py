"""The report: one self-contained HTML page of a run, and the data of its charts as CSV."""

from bsharp.reporting.page.report import write_report

__all__ = ["write_report"]
