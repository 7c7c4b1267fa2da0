"""A forecast for people: on the screen, as Markdown and as a page. Reads the content of forecast.json; never imports torch."""

from bsharp.reporting.forecast.markdown import forecast_markdown
from bsharp.reporting.forecast.page import write_forecast_page
from bsharp.reporting.forecast.terminal import forecast_view, print_forecast

__all__ = ["forecast_markdown", "forecast_view", "print_forecast", "write_forecast_page"]
