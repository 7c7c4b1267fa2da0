"""The page of the exact small world: sliders, bars, curves and flows in one self-contained HTML file."""

from bsharp.reporting.theory_page.render import render, write_theory_page

__all__ = ["render", "write_theory_page"]
