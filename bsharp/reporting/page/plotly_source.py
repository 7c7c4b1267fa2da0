"""plotly.js from the PyPI package plotly, without the kinds of traces that a page does not draw.

Most of the time until a chart stands goes into reading plotly's code. Its modules are functions that run when they are
first required, and one list at its end registers every kind of trace with its core; a kind that is left out of the list is
never run. Plotly's own smaller bundles are made in the same way. Hovering, zooming, legends, annotations and saving are
parts of the core, which the list does not hold, and all that is no trace (calendars) stays in the list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["plotly_source", "without_unused_traces"]

_REGISTERED = re.compile(r"\.register\(\[((?:[\w$]+\(\),?){20,})\]\)")
_OWN = re.compile(r'moduleType:"(trace|component)",name:"(\w+)"')
_PASSED = re.compile(r'=>\{"use strict";[\w$]+\.exports=([\w$]+)\(\)\}')  # module.exports = require(…)
_EXTENDED = re.compile(
    r'=>\{"use strict";var ([\w$]+)=([\w$]+)\(\)[;,].*[,;][\w$]+\.exports=\1\}'
)  # … with more put into it
_CORE = {"scatter"}  # part of plotly's core, not of the list
_STEPS = 4  # modules through which a definition may be passed on


class _Registered(NamedTuple):
    """What an entry of the list registers; `extended`: put together by several modules, as WebGL traces are."""

    kind: str
    name: str
    extended: bool


def plotly_source(kinds: Collection[str]) -> str:
    """plotly.js that can draw traces of these types; all of it where that cannot be told from its text."""
    from plotly.offline import get_plotlyjs  # 0.3 s to import, needed for nothing else

    return without_unused_traces(get_plotlyjs(), kinds)


def without_unused_traces(source: str, kinds: Collection[str]) -> str:
    """`source` with the traces in its list cut to `kinds`.

    Unchanged unless there is exactly one such list, every entry of it is recognised as one trace or component, no two of
    them are the same, and each of `kinds` is among them as a trace that a single module defines.
    """
    wanted = set(kinds) - _CORE
    found = list(_REGISTERED.finditer(source))
    if len(found) != 1:
        return source
    entries = re.findall(r"([\w$]+)\(\)", found[0][1])
    modules = _modules(source, entries[0])
    registered = [_registered(modules, entry) for entry in entries]
    known = [item for item in registered if item is not None]
    traces = {item.name for item in known if item.kind == "trace"}
    usable = {item.name for item in known if item.kind == "trace" and not item.extended}
    if (
        len(known) < len(entries)
        or len({item[:2] for item in known}) < len(known)
        or not wanted <= usable
        or not traces
    ):
        return source
    kept = [f"{e}()" for e, item in zip(entries, known, strict=True) if item.kind != "trace" or item.name in wanted]
    return f"{source[: found[0].start(1)]}{','.join(kept)}{source[found[0].end(1) :]}"


def _modules(source: str, one: str) -> dict[str, str]:
    """Every module's text by its name, given the name of one; without names that are defined twice."""
    wrapper = re.search(rf"var {re.escape(one)}=([\w$]+)\(\(", source)
    if wrapper is None:
        return {}
    starts = list(re.finditer(rf"\bvar ([\w$]+)={re.escape(wrapper[1])}\(\(", source))
    ends = [start.start() for start in starts[1:]] + [len(source)]
    names = [start[1] for start in starts]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    return {
        start[1]: source[start.start() : end] for start, end in zip(starts, ends, strict=True) if start[1] not in twice
    }


def _registered(modules: Mapping[str, str], name: str) -> _Registered | None:
    """What a listed module exports, itself or by way of others; None where its text says nothing or more than one thing."""
    extended = False
    for _ in range(_STEPS):
        text = modules.get(name, "")
        own = _OWN.findall(text)
        if own:
            return _Registered(own[0][0], own[0][1], extended) if len(own) == 1 else None
        passed, more = _PASSED.search(text), _EXTENDED.search(text)
        if passed is None and more is None:
            return None
        extended = extended or passed is None
        name = passed[1] if passed is not None else more[2] if more is not None else ""
    return None
