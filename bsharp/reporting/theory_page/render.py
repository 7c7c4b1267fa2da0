"""The data of the exact small world → one self-contained HTML page.

The file needs no network and no other file; its content security policy forbids every request. Formulas are MathML,
which browsers set themselves. All drawing and all mathematics is done by the page's own scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

from bsharp.reporting.page.embed import data_script, escape
from bsharp.reporting.page.palette import palette
from bsharp.reporting.page.render import replace_file
from bsharp.reporting.theory_page.content import FIRST_LINES, FORMULAS, INTRODUCTION, LEASHED, SECTIONS, Section, Step

__all__ = ["mathml", "render", "write_theory_page"]

TITLE = "What sharpening does, and what a reward does"
SCRIPTS = ("optima.js", "draw.js", "pictures.js", "simplex.js", "state.js")
REGIMES = {
    "base": "Base",
    "sharpened": "Sharpened",
    "tempered": "Tempered",
    "tilted": "Tilted",
    "task": "Task reward",
}
LINE_COLOURS = {
    "base": "base",
    "sharpened": "sharpening",
    "tempered": "tempered",
    "tilted": "tilted",
    "task": "task_reward",
}
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
_INLINE = re.compile(r"\$([^$]+)\$")


def write_theory_page(data: Mapping[str, Any], path: Path) -> Path:
    """Write the page of `data` (see `render`) to the file `path`, replaced whole; returns `path`."""
    replace_file(path, render(data))
    return path


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML: `data` holds "worlds", "simplex", "reference", "nudges" and "flows" as JSON values.

    A world has an "id", a "name" and columns "text", "logprob" (nats), "length" (tokens) and "reward" over its responses.
    Raises ValueError where there is no world.
    """
    if not data.get("worlds") or not data.get("simplex"):
        raise ValueError("the page needs at least one world and one three-response world; give page_data()")
    sections = "".join(_section(section, number, data) for number, section in enumerate(SECTIONS, start=1))
    contents = "".join(f'<li><a href="#{section.section_id}">{escape(section.title)}</a></li>' for section in SECTIONS)
    first = "".join(_step(step) for step in FIRST_LINES)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(TITLE)}</title>",
            f"<style>{_asset('page', 'page.css')}{_asset('theory_page', 'theory.css')}{_line_styles()}</style>",
            "</head><body>",
            f"<script>{_asset('page', 'theme.js')}</script>",
            '<a class="skip" href="#bars">Skip to the pictures</a>',
            f'<header class="theory-head"><h1>{escape(TITLE)}</h1><button type="button" id="theme">Dark</button></header>',
            _controls(data),
            '<main class="theory">',
            f'<div class="intro"><div><p class="lead">{_sentence(INTRODUCTION)}</p>{first}</div>',
            f'<nav class="theory-toc" aria-label="Contents"><ol>{contents}</ol></nav></div>',
            sections,
            '<p id="checked" class="callout" role="status"></p></main>',
            "<noscript><p class='callout warning'>The pictures need JavaScript.</p></noscript>",
            _HATCH,
            data_script("theory-data", data, compress=False),
            f"<script>(() => {{\n'use strict';\n{''.join(_asset('theory_page', script) for script in SCRIPTS)}}})();</script>",
            "</body></html>",
        ]
    )


@cache
def mathml(latex: str, display: bool = False) -> str:
    """The formula as MathML, on a line of its own where `display`."""
    found: str = convert(latex, display="block" if display else "inline")
    return found


def _sentence(text: str) -> str:
    """Prose in which `$...$` is an inline formula; everything else is escaped."""
    pieces = _INLINE.split(text)
    return "".join(mathml(piece) if at % 2 else escape(piece) for at, piece in enumerate(pieces))


def _step(step: Step) -> str:
    formula = f'<div class="formula">{mathml(step.latex, display=True)}</div>' if step.latex else ""
    return f"<p>{_sentence(step.text)}</p>{formula}"


def _section(section: Section, number: int, data: Mapping[str, Any]) -> str:
    element = section.section_id
    tries = "".join(
        f"<button type=\"button\" data-try='{escape(json.dumps(dict(attempt.settings)))}'>{escape(attempt.label)}</button>"
        for attempt in section.tries
    )
    picture = {"plot": _plot, "bars": _bars, "nudge": _nudge, "flows": _flows}[section.picture](element, data)
    return (
        f'<section id="{element}" aria-labelledby="{element}-h" tabindex="-1">'
        f'<h2 id="{element}-h"><span class="number">{number}</span> {escape(section.title)}</h2>'
        f'<p class="lead">{escape(section.story)}</p>'
        f'<div class="tries" role="group" aria-label="Try this"><span aria-hidden="true">Try this</span>{tries}</div>'
        f'<div class="beside"><div class="picture">{picture}</div>'
        f'<aside class="derivation" aria-label="Derivation"><h3>Why</h3>{"".join(map(_step, section.steps))}</aside>'
        "</div></section>"
    )


def _plot(element: str, data: Mapping[str, Any]) -> str:
    return f'<div class="drawing" id="{element}-plot"></div><p class="said" id="{element}-said"></p>'


def _bars(element: str, data: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<div class="row"><h3>{escape(name)} {_optimum(regime)}</h3>'
        f'<div class="drawing" id="bars-{regime}"></div><dl class="figures" id="figures-{regime}"></dl></div>'
        for regime, name in REGIMES.items()
    )
    mark = (
        '<p class="key"><span><i class="swatch right"></i>✓ right</span><span><i class="swatch wrong"></i>✗ wrong</span>'
        '<span><i class="swatch outline"></i>base</span><span>■ ends a response</span>'
        "<span>scales differ from row to row</span></p>"
    )
    table = '<div class="scroll" id="bars-numbers" tabindex="0"></div>'
    return f'{mark}{rows}<details class="numbers"><summary>The numbers</summary>{table}</details>'


def _optimum(regime: str) -> str:
    """The formula of a regime's optimum; where c changes it, both, of which the page shows one."""
    if regime not in LEASHED:
        return mathml(FORMULAS[regime])
    free, leashed = mathml(FORMULAS[regime]), mathml(LEASHED[regime])
    return f'<span data-leash="0">{free}</span><span data-leash="1" hidden>{leashed}</span>'


def _nudge(element: str, data: Mapping[str, Any]) -> str:
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("optimum", "log-ratio of the two moves by (× ε)", "mass that moves", "accuracy")
    )
    return (
        f'{_slider("epsilon", "nudge ε", "nats", play=True)}<div class="drawing" id="nudge-plot"></div>'
        '<p class="said" id="nudge-said"></p>'
        f'<div class="scroll"><table class="nudges"><thead><tr>{head}</tr></thead><tbody id="nudge-rows"></tbody></table></div>'
    )


def _flows(element: str, data: Mapping[str, Any]) -> str:
    names = {"task": "Task reward", "sharpened": "Sharpening", "tempered": "Tempered", "tilted": "Tilted"}
    names["entropy"] = "Entropy minimisation"
    buttons = "".join(
        f'<button type="button" data-key="flow" value="{flow}" aria-pressed="false">{name}</button>'
        for flow, name in names.items()
    )
    return (
        f'<div class="flow-choice"><div class="choice" role="group" aria-label="Objective">{buttons}</div>'
        f"{_select('simplex', 'three responses', data['simplex'])}"
        '<button type="button" id="nudge-rest">Start at the base</button></div>'
        '<div class="drawing simplex" id="simplex-plot" tabindex="0" role="application">'
        '<svg id="simplex-drawing" width="100%" aria-hidden="true"></svg></div>'
        '<p class="key"><span><i class="stroke natural"></i>natural flow</span><span><i class="stroke euclidean"></i>ordinary '
        "gradient</span><span>dots: t = 1, 4, 16, 64</span><span>◆ end</span><span>small ring: the base</span></p>"
        '<p class="said" id="simplex-said"></p>'
    )


def _slider(key: str, name: str, unit: str = "", play: bool = False) -> str:
    after = f" {unit}" if unit else ""
    button = (
        f'<button type="button" class="play" data-play="{key}" data-name="{escape(name)}"></button>' if play else ""
    )
    return (
        f'<div class="slider" id="{key}-row"><div class="name"><label for="{key}">{escape(name)} = '
        f'<output for="{key}" data-key="{key}"></output>{after}</label>{button}</div>'
        f'<input type="range" id="{key}" data-key="{key}" min="0" max="100" step="1"></div>'
    )


def _select(key: str, name: str, options: Any) -> str:
    items = "".join(f'<option value="{escape(one["id"])}">{escape(_short(one["name"]))}</option>' for one in options)
    return (
        f'<div class="select" id="{key}-field"><label for="{key}">{escape(name)}</label>'
        f'<select id="{key}" data-key="{key}">{items}</select></div>'
    )


def _short(name: str) -> str:
    """The name of a world without its explanation."""
    return name.split(":")[0]


def _controls(data: Mapping[str, Any]) -> str:
    normalisations = [("sum", "ℓ (sum)"), ("weighted_mean", "ℓ/T^ρ"), ("mean", "ℓ/T (mean)")]
    divisions = _select("normalisation", "likelihood N(ℓ)", [{"id": key, "name": name} for key, name in normalisations])
    return (
        '<details id="controls" open><summary><span id="world-said"></span><span id="summary"></span></summary>'
        f'<div class="controls"><div class="world">{_select("world", "world", data["worlds"])}</div>'
        f"{_slider('alpha', 'α', play=True)}{_slider('beta_inv', 'β⁻¹', play=True)}{_slider('c', 'KL weight c')}"
        f"{divisions}{_slider('rho', 'ρ')}{_slider('k', 'draws k')}"
        '<button type="button" id="reset">Reset</button></div></details>'
    )


_HATCH = (
    '<svg width="0" height="0" class="defs" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="hatch-ground" width="6" height="6"/><rect class="hatch-line" width="2.4" height="6"/></pattern>'
    '<pattern id="hatch-light" width="10" height="10" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="basin-ground" width="10" height="10"/><rect class="basin-line" width="1.6" height="10"/></pattern></defs></svg>'
)


def _line_styles() -> str:
    """The colours that the report gives its regimes, for the lines of this page."""
    styles = palette(LINE_COLOURS.values())
    light = "".join(f"--{regime}:{styles[name].light};" for regime, name in LINE_COLOURS.items())
    dark = "".join(f"--{regime}:{styles[name].dark};" for regime, name in LINE_COLOURS.items())
    return f":root{{{light}}}:root[data-theme=dark]{{{dark}}}@media print{{:root:root{{{light}}}}}"


@cache
def _asset(package: str, name: str) -> str:
    return package_files(f"bsharp.reporting.{package}").joinpath("assets", name).read_text(encoding="utf-8")
