"""plotly.js from the PyPI package plotly, without the kinds of traces that a page does not draw.

Most of the time until a chart stands goes into reading plotly's code. Its modules are functions that run when they are
first required, and one list at its end requires every kind of trace; a kind that is left out of the list is never run.
"""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["plotly_source", "without_unused_traces"]

_REGISTERED = re.compile(r"\.register\(\[((?:[\w$]+\(\),?){20,})\]\)")
_PASSED = re.compile(r'var [\w$]+=[\w$]+\(\([^()]*\)=>\{"use strict";[\w$]+\.exports=([\w$]+)\(\)\}\);')
_CORE = {"scatter"}  # part of plotly's core, not of the list
_REACH = 8000  # characters of a module in which its name stands


def plotly_source(kinds: Collection[str]) -> str:
    """plotly.js that can draw traces of these types; all of it where that cannot be told from its text."""
    from plotly.offline import get_plotlyjs  # 0.3 s to import, needed for nothing else

    return without_unused_traces(get_plotlyjs(), kinds)


def without_unused_traces(source: str, kinds: Collection[str]) -> str:
    """`source` with the list of traces cut to `kinds`; unchanged where it has no such list or some kind is not found in it."""
    wanted = set(kinds) - _CORE
    found = list(_REGISTERED.finditer(source))
    if len(found) != 1:
        return source
    kept = {}
    for module in re.findall(r"([\w$]+)\(\)", found[0][1]):
        name = _trace_type(source, module)
        if name in wanted:
            kept[name] = f"{module}()"
    if set(kept) != wanted:
        return source
    return f"{source[: found[0].start(1)]}{','.join(kept.values())}{source[found[0].end(1) :]}"


def _trace_type(source: str, module: str) -> str | None:
    """The type of the trace that a listed module passes on from the module that defines it."""
    passed = _PASSED.match(source, source.find(f"var {module}="))
    if passed is None:
        return None
    start = source.find(f"var {passed[1]}=")
    defined = re.search(r'moduleType:"trace",name:"(\w+)"', source[start : start + _REACH]) if start >= 0 else None
    return None if defined is None else defined[1]
