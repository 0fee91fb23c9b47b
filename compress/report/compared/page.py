"""One page that needs no other file and no network; its script draws, sorts and points."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from compress.report import html, numbers, plots, rows
from compress.report.compared import cells, drawn, tables
from compress.results.comparison import Comparison, Measure


def render(comparison: Comparison) -> str:
    """Render the page; the same comparison gives the same bytes."""
    from markupsafe import Markup

    environment = html.environment()
    script = environment.get_template("compare.js").render()
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        title=cells.listed(comparison.names),
        sentences=cells.sentences(comparison),
        refusals=cells.refusals(comparison),
        cells=cells,
        tables=tables,
        numbers=numbers,
        axes=_axes(comparison),
        chosen=_chosen(comparison),
        bars=_bars(comparison),
        histograms=[(name, Markup(svg)) for name, svg in drawn.histograms(comparison)],
        tail=rows.differing_tail,
        data=Markup(_inert(_data(comparison))),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _data(comparison: Comparison) -> dict[str, Any]:
    """What the script draws: measures that can be ranked, and a point for every artifact."""
    axes = _axes(comparison)
    return {
        "measures": [
            {"name": one.name, "label": one.label, "unit": one.unit, "better": one.better}
            for one in axes
        ],
        "points": [
            {
                "name": entry.name,
                "values": {
                    one.name: one.numbers[entry.name].value
                    for one in axes
                    if entry.name in one.numbers
                },
                "texts": {
                    one.name: f"{cells.number(one, one.numbers[entry.name])} {cells.unit(one)}"
                    for one in axes
                    if entry.name in one.numbers
                },
            }
            for entry in comparison.artifacts
        ],
    }


def _axes(comparison: Comparison) -> list[Measure]:
    return [measure for measure in comparison.measures if measure.comparable]


def _chosen(comparison: Comparison) -> tuple[str, str]:
    """The axes that are shown first."""
    front = comparison.front
    return (front.x, front.y) if front else ("size_bytes", "bits_per_weight")


def _bars(comparison: Comparison) -> list[tuple[str, str, list[tuple[str, str, float]]]]:
    """For every artifact its name, its size in words, and each part: colour, words, width in %."""
    found = tables.parts(comparison)
    largest = max(sum(parts.values()) for parts in found.values()) or 1
    colours = list(plots.PARTS.values())
    return [
        (
            name,
            numbers.size(sum(parts.values())),
            [
                (colours[place], f"{part} {numbers.size(count)}", 100 * count / largest)
                for place, (part, count) in enumerate(parts.items())
            ],
        )
        for name, parts in found.items()
    ]


def _inert(data: dict[str, Any]) -> str:
    """JSON that no parser of HTML takes for markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
