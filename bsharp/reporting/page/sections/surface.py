"""Section 6: reward, base log-probability, KL and entropy over planes and lines of the weights, with the runs' paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsharp.reporting.cells import number, plain_text
from bsharp.reporting.page.charts import Curve, axis, lines, shortened, significant
from bsharp.reporting.page.glossary import GLOSSARY, axis_title
from bsharp.reporting.page.load import RunData, finite
from bsharp.reporting.page.parts import Callout, Chart, Choice, DataTable, Legend, Paragraph, Part, Section
from bsharp.reporting.page.sections.common import not_computed, numbers, section_of
from bsharp.reporting.page.snapshots import why_no_path

__all__ = ["METRIC_OF", "section"]

Plane = Mapping[str, Any]
METRIC_OF = {"reward": "reward", "base_logprob": "base_logprob", "kl": "kl", "entropy": "entropy"}
"""The glossary's metric of each quantity of the surface."""


def section(run: RunData) -> Section:
    """A map per plane and quantity, the shares of the paths that the planes explain, and the lines between checkpoints."""
    surface = run.diagnostics.get("surface")
    absent = not_computed(run, "Loss surface", "surface")
    if surface is None:
        return section_of("surface", "Loss surface", [], absent)
    planes, found = (list(filter(None, surface.get(key) or [])) for key in ("planes", "lines"))
    noted = plain_text(surface.get("note") or "")
    parts: list[Part] = (
        [Callout("note", f"{'Left out' if planes or found else 'No surface'}: {noted}.")] if noted else []
    )
    if not planes and not found:
        return section_of("surface", "Loss surface", parts, absent)
    parts += [
        Paragraph(
            f"Every point of a map is a network: the base's weights plus steps along two directions. Each was sampled anew, "
            f"{surface.get('problems')} problems × {surface.get('samples')} samples with the same random streams at every point, "
            "so that neighbours differ by their weights and not by luck. Standard errors show on hover and are in the CSV."
        )
    ]
    trained = dict.fromkeys(str(path["regime"]) for plane in planes for path in plane.get("paths") or [])
    if trained:
        parts.append(Legend(list(trained)))
    quantities = dict.fromkeys(key for drawn in (*planes, *found) for key in drawn.get("values") or {})
    options = []
    for key in quantities:
        shown: list[Part] = [
            _map(plane, index, key) for index, plane in enumerate(planes) if key in (plane.get("values") or {})
        ]
        if any(key in (line.get("values") or {}) for line in found):
            shown.append(_lines(found, key))
        options.append((_name(key), shown))
    if options:
        parts.append(Choice("surface_quantity", "Quantity", options))
    parts += [*_explained(planes), *_without_path(run, planes)]
    return section_of("surface", "Loss surface", parts, absent)


def _without_path(run: RunData, planes: Sequence[Plane]) -> Iterator[Callout]:
    """The runs that have no path on the planes because they kept no snapshots, by reason."""
    drawn = {
        (str(path.get("regime")), path.get("seed")) for plane in planes for path in plane.get("paths") or [] if path
    }
    absent: dict[str, list[str]] = {}
    for job in run.runs if planes else ():
        why = None if (job.regime, job.seed) in drawn else why_no_path(job)
        if why is not None:
            absent.setdefault(why, []).append(plain_text(job.name))
    for why, names in absent.items():
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield Callout("note", f"No path of {shown}: {why}.")


def _title(key: str) -> str:
    return axis_title(METRIC_OF[key]) if key in METRIC_OF else plain_text(key)


def _name(key: str) -> str:
    return GLOSSARY[METRIC_OF[key]].term if key in METRIC_OF else plain_text(key)


def _map(plane: Plane, index: int, key: str) -> Chart:
    across, down = plane["axes"]
    titles = [
        f"towards {shortened(plain_text(across['label']), 24)} (distance)",
        f"{shortened(plain_text(down['label']), 20)}, orthogonal (distance)",
    ]
    values, shape = plane["values"][key], (len(plane["y"]), len(plane["x"]))
    mean, error = (_grid(values.get(name), shape) for name in ("mean", "standard_error"))
    names = ("kind", "name", "x", "y", "step", "value", "standard_error")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    hover: list[list[str]] = []
    for row, y in enumerate(plane["y"]):
        hover.append([])
        for column, x in enumerate(plane["x"]):
            value, spread = significant(mean[row][column]), significant(error[row][column])
            told = (
                "undefined"
                if value is None
                else f"{value:g}" + (f" ± {spread:g} (standard error)" if spread is not None else "")
            )
            hover[-1].append(f"({x:.3g}, {y:.3g}): {told}")
            _append(columns, "grid", key, significant(x), significant(y), None, value, spread)
    surface: dict[str, Any] = {
        "type": "contour",
        "x": [significant(x) for x in plane["x"]],
        "y": [significant(y) for y in plane["y"]],
        "z": [[significant(value) for value in row] for row in mean],
        "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>",
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.5},
        "colorbar": {"title": {"text": _title(key), "side": "right"}, "len": 0.9},
        "meta": {"scale": "sequential"},
    }
    traces = [surface, *_paths(plane, columns), _anchors(plane, columns)]
    angle = finite(plane.get("angle_degrees"))
    caption = "Colour and lines of equal height: the mean over fresh samples; distances in weights, on one scale."
    if plane.get("paths"):
        caption += " Paths are training runs as the plane sees them: read them with the share explained below."
    if angle is not None:
        caption += f" The two directions stood at {angle:.0f}° before they were made orthogonal."
    layout = {
        "xaxis": axis(titles[0], zeroline=False, range=_reach(plane, "x"), constrain="domain"),
        "yaxis": axis(titles[1], zeroline=False, range=_reach(plane, "y"), scaleanchor="x", constrain="domain"),
    }
    heading = f"{_name(key)}, plane of {plain_text(plane.get('name', index))}"
    return Chart(
        f"surface_{index}_{key}",
        heading[0].upper() + heading[1:],
        caption,
        traces,
        layout,
        columns,
        400,
        wide=False,
        legend=False,
    )


def _reach(plane: Plane, coordinate: str) -> list[float]:
    """The range of an axis that holds the grid, the anchors and the paths."""
    values = [*plane[coordinate], *(anchor.get(coordinate) for anchor in plane.get("anchors") or [])]
    values += [value for path in plane.get("paths") or [] for value in path.get(coordinate) or []]
    known = [number for value in values if (number := finite(value)) is not None]
    return [min(known, default=-1.0), max(known, default=1.0)]


def _grid(rows: object, shape: tuple[int, int]) -> list[list[float | None]]:
    """Rows of numbers, None where one is missing or undefined."""
    found = list(rows) if isinstance(rows, list) else []
    return [numbers(row, shape[1]) for row in (found + [None] * shape[0])[: shape[0]]]


def _append(columns: Mapping[str, list[Any]], *cells: Any) -> None:
    for column, cell in zip(columns.values(), cells, strict=True):
        column.append(cell)


def _paths(plane: Plane, columns: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    told: set[str] = set()
    for path in plane.get("paths") or []:
        regime, seed = str(path["regime"]), path.get("seed")
        shares = numbers(path.get("explained"), len(path["steps"]))
        text = [
            f"{regime}, seed {seed}, step {step}: {number(share, 100, 0)} % explained"
            for step, share in zip(path["steps"], shares, strict=True)
        ]
        for step, x, y in zip(path["steps"], path["x"], path["y"], strict=True):
            _append(columns, "path", f"{regime}, seed {seed}", significant(x), significant(y), step, None, None)
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": regime,
            "legendgroup": regime,
            "showlegend": regime not in told,
            "x": [significant(x) for x in path["x"]],
            "y": [significant(y) for y in path["y"]],
            "text": text,
            "hoverinfo": "text",
            "marker": {"size": 5},
            "meta": {"regime": regime, "role": "line"},
        }
        told.add(regime)


def _anchors(plane: Plane, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    anchors = [
        anchor
        for anchor in plane.get("anchors") or []
        if None not in (finite(anchor.get("x")), finite(anchor.get("y")))
    ]
    for anchor in anchors:
        _append(
            columns, "anchor", str(anchor["name"]), significant(anchor["x"]), significant(anchor["y"]), None, None, None
        )
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "anchors",
        "x": [significant(anchor["x"]) for anchor in anchors],
        "y": [significant(anchor["y"]) for anchor in anchors],
        "text": [plain_text(anchor["name"]) for anchor in anchors],
        "textposition": [_beside(at, anchor["x"], plane) for at, anchor in enumerate(anchors)],
        "marker": {"symbol": "diamond", "size": 10},
        "cliponaxis": False,
        "meta": {"role": "marker"},
    }


def _beside(at: int, x: float, plane: Plane) -> str:
    """Where the name of a point stands: inside of the map, and in turn above and below, lest neighbours meet."""
    low, high = _reach(plane, "x")
    share = (x - low) / ((high - low) or 1.0)
    return f"{'bottom' if at % 2 else 'top'} {'left' if share > 0.7 else 'center'}"


def _explained(planes: Sequence[Plane]) -> Iterator[DataTable]:
    rows = [
        [
            str(path["regime"]),
            str(path.get("seed")),
            plain_text(plane.get("name")),
            number(finite(path.get("explained_overall")), 100),
            number(finite((path.get("explained") or [None])[-1]), 100),
        ]
        for plane in planes
        for path in plane.get("paths") or []
    ]
    if rows:
        yield DataTable(
            "surface_explained",
            "How much of each path the planes explain",
            "Share of the squared distance from the base that lies in the plane, over all snapshots and at the last. A path with "
            "a small share runs mostly outside the map. Seeds whose checkpoint spans the plane explain themselves.",
            ("regime", "seed", "plane", axis_title("explained", "overall"), axis_title("explained", "last")),
            rows,
            numeric=(1, 3, 4),
            folded=len(rows) > 8,
        )


def _lines(found: Sequence[Mapping[str, Any]], key: str) -> Chart:
    drawn = []
    for line in found:
        values = (line.get("values") or {}).get(key)
        if not values:
            continue
        mean, error = (numbers(values.get(name), len(line["t"])) for name in ("mean", "standard_error"))
        low, high = (
            [None if m is None or e is None else m + sign * 1.96 * e for m, e in zip(mean, error, strict=True)]
            for sign in (-1, 1)
        )
        name = plain_text(line.get("name", ""))
        drawn.append(Curve(name, _line_regime(line), line["t"], mean, low, high))
    return lines(
        f"line_{key}",
        f"{_name(key)[0].upper()}{_name(key)[1:]} along straight lines between checkpoints",
        "0 is the first, 1 the second checkpoint of each line; bars are 95 % intervals (1.96 standard errors over problems). "
        "A dip between two good checkpoints is a barrier.",
        axis("position on the line t (0 = first, 1 = second checkpoint)"),
        axis(_title(key)),
        drawn,
        band=False,
        height=330,
        wide=True,
    )


def _line_regime(line: Mapping[str, Any]) -> str | None:
    """The regime at the far end gives the colour; a line that does not start at the base has neutral ink."""
    return str(line.get("label_to")) if line.get("label_from") == "base" else None
