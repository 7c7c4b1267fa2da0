"""One colour, dash and marker per regime, the same in every chart and table of a page.

Colours are those of Okabe and Ito (2008), told apart with the common colour-vision deficiencies; on dark ground the
darker ones are lightened. Dash and marker repeat the distinction without colour. Names without a slot of their own
take the free slots in order of appearance, and a grey of their own once all are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Style", "palette"]


class Style(NamedTuple):
    """How a regime is drawn: colour on light and on dark ground, plotly's dash and marker symbol."""

    light: str
    dark: str
    dash: str
    symbol: str


_KNOWN = {
    "base": Style("#6b7280", "#9ca3af", "solid", "x"),
    "task_reward": Style("#0072b2", "#4aa8e0", "solid", "circle"),
    "sharpening": Style("#d55e00", "#f07f2f", "dash", "square"),
    "sharpening_mean": Style("#e69f00", "#f2b632", "dot", "diamond"),
    "tempered": Style("#cc79a7", "#dc93bb", "dashdot", "cross"),
    "tilted": Style("#009e73", "#2cc499", "longdash", "triangle-up"),
    "tilted_alpha_2": Style("#56b4e9", "#7cc8f2", "longdashdot", "triangle-down"),
}
_FREE = (
    Style("#8c6d1f", "#f0e442", "dash", "star"),
    Style("#5b4fa3", "#a79df0", "dot", "pentagon"),
    Style("#7a3b1d", "#c98b6b", "dashdot", "hexagon"),
    Style("#1f6f6f", "#6fc7c7", "longdash", "hourglass"),
)
_GREYS = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def palette(names: Iterable[str]) -> dict[str, Style]:
    """The style of every name in `names`; known regimes keep theirs whatever else is there."""
    styles: dict[str, Style] = {}
    free = list(_FREE)
    for name in names:
        if name in styles:
            continue
        if name in _KNOWN:
            styles[name] = _KNOWN[name]
        elif free:
            styles[name] = free.pop(0)
        else:
            styles[name] = Style("#444b55", "#c3c9d1", _GREYS[len(styles) % len(_GREYS)], "circle-open")
    return styles
