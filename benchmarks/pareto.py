r"""Size against quality of every measured recipe and of what peers made of the same teacher.

    python benchmarks/pareto.py --out docs/img/pareto.svg

Recipes are those of recipes/catalogue.json, peers and what was measured beside them those of
recipes/peers.json. Numbers of one protocol (text, windows, calibration) share a panel; no others
do. Prints, for each panel, what lies on the front and which of ours a peer beats in both. A row
of a peer for the panel `quick` comes from reading its folder by that suite's protocol:

    python benchmarks/readers/divergence.py TEACHER FOLDER… --text eval/texts/heldout.txt \
        --windows 12 --seq-len 512
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import measure

from compress import catalogue
from compress.report import svg
from compress.report.svg import PAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPES = measure.ROOT / "recipes"
OURS = "compress"
WIDTH, HEIGHT = 880, 430  # CSS pixels of one panel
MARKS = {  # who → colour and shape: shapes differ, too
    OURS: ("part-0", "o"),
    "llm-compressor": ("part-1", "s"),
    "auto-round": ("part-2", "D"),
    "llama.cpp": ("part-3", "^"),
}
AXES = {
    "kl_mean": "mean KL to the teacher, nats",
    "perplexity": "perplexity above the teacher's, %",
}
COLOURS = {  # of a page in light and in dark
    "light": {
        "paper": "#fdfcf9", "ink": "#1d1a17", "soft": "#6a635a", "line": "#e6e1d8",
        "part-0": "#c2410c", "part-1": "#1d4ed8", "part-2": "#15803d", "part-3": "#7e22ce",
    },
    "dark": {
        "paper": "#171513", "ink": "#ece7df", "soft": "#a8a094", "line": "#35312c",
        "part-0": "#fb923c", "part-1": "#8ab4ff", "part-2": "#5fd38a", "part-3": "#cf9bff",
    },
}  # fmt: skip
PLACES = [  # of a label around its point, in pixels, as they are tried
    (9, -4, "left"), (-9, -4, "right"), (0, 9, "center"), (0, -17, "center"),
    (9, 8, "left"), (-9, 8, "right"), (9, -16, "left"), (-9, -16, "right"),
    (22, 20, "left"), (-22, 20, "right"), (22, -28, "left"), (-22, -28, "right"),
]  # fmt: skip
LEAST = 1e-4  # of what is drawn: the axis is logarithmic
LETTER, LINE = 6.1, 13  # pixels of a label's characters


@dataclass(frozen=True)
class Point:
    """One artifact: its bytes, and how far it is from its teacher; less is better in both."""

    by: str
    name: str
    size_bytes: int
    loss: float


@dataclass(frozen=True)
class Panel:
    """All that was measured by one protocol."""

    protocol: str
    said: str
    measure: str  # a name of `AXES`
    points: tuple[Point, ...]


def panels(recipes: Path) -> list[Panel]:
    """Every protocol of which there are two points or more.

    Raises:
        ValueError: a row names no protocol that is there, or has not what it measures.
    """
    document = json.loads((recipes / "peers.json").read_text("utf-8"))
    found, protocols = catalogue.read(recipes), document["protocols"]
    if unknown := {row["protocol"] for row in document["rows"]} - {*protocols}:
        raise ValueError(f"peers.json: no protocol {', '.join(sorted(unknown))}")
    made = []
    for name, protocol in protocols.items():
        rows = [row for row in document["rows"] if row["protocol"] == name]
        rows += _measured(found, name)
        dense = protocol.get("dense", {}).get("perplexity") or (
            found.dense.perplexity if found.dense else None
        )
        points = tuple(_point(row, protocol["measure"], dense) for row in rows)
        made.append(Panel(name, protocol["said"], protocol["measure"], points))
    return [panel for panel in made if len(panel.points) > 1]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both size and loss, the smallest first."""
    best, kept = math.inf, []
    for point in sorted(points, key=lambda one: (one.size_bytes, one.loss)):
        if point.loss < best:
            best = point.loss
            kept.append(point)
    return kept


def beaten(panel: Panel) -> Iterator[tuple[Point, list[Point]]]:
    """Each of ours that peers beat in both, and those peers."""
    peers = [one for one in panel.points if one.by != OURS]
    for ours in (one for one in panel.points if one.by == OURS):
        by = [one for one in peers if one.size_bytes <= ours.size_bytes and one.loss <= ours.loss]
        if by:
            yield ours, by


def draw(panel: Panel) -> str:
    """One panel as an svg element, its colours being variables."""
    with svg.settings(f"pareto-{panel.protocol}"):
        figure = svg.figure(WIDTH, HEIGHT)
        axes = svg.bare_axes(figure, left=66, right=24, top=44, bottom=50)
        axes.set_yscale("log")
        axes.grid(color=PAINT["line"], linewidth=0.8)
        leading = front(panel.points)
        axes.step([one.size_bytes / 1e6 for one in leading], [one.loss for one in leading],
                  where="post", color=PAINT["soft"], linewidth=1, zorder=1)  # fmt: skip
        for by, (colour, shape) in MARKS.items():
            mine = [(one.size_bytes / 1e6, one.loss) for one in panel.points if one.by == by]
            if mine:
                x, y = zip(*mine, strict=True)
                axes.scatter(x, y, color=PAINT[colour], marker=shape, s=42, label=by, zorder=3)
        _finish_axes(axes, panel)
        _name(axes, panel.points, leading)
        said = "; ".join(f"{one.by} {one.name} {one.size_bytes / 1e6:.0f} MB {_told(one, panel)}"
                         for one in leading)  # fmt: skip
        label = f"Size against {AXES[panel.measure]}, {panel.said}. On the front: {said}"
        return svg.finish(figure, label)


def page(drawn: Sequence[str]) -> str:
    """Panels below each other as one file that is readable on light and on dark pages."""
    height = HEIGHT * len(drawn)
    styles = {mode: _variables(colours) for mode, colours in COLOURS.items()}
    inner = "\n".join(_placed(element, HEIGHT * number) for number, element in enumerate(drawn))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}">\n<style>svg {{ {styles["light"]} '
        "font-family: system-ui, sans-serif }\n@media (prefers-color-scheme: dark) "
        f"{{ svg {{ {styles['dark']} }} }}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" style="fill: var(--paper)"/>\n{inner}\n</svg>\n'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, and say what the picture shows."""
    parser = argparse.ArgumentParser(description="Size against quality, ours and peers'.")
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder of the two files")
    parser.add_argument("--out", type=Path, required=True, help="the .svg file to write")
    given = parser.parse_args(argv)
    found = panels(given.recipes)
    given.out.write_text(page([draw(panel) for panel in found]), "utf-8")
    for panel in found:
        print(f"{panel.protocol}: {panel.said}")
        for one in front(panel.points):
            size = f"{one.size_bytes / 1e6:.1f} MB"
            print(f"  front: {one.by} {one.name}, {size}, {_told(one, panel)}")
        for ours, by in beaten(panel):
            print(f"  beaten: {ours.name} by {', '.join(f'{one.by} {one.name}' for one in by)}")
    return 0


def _measured(found: catalogue.Catalogue, protocol: str) -> list[dict[str, Any]]:
    """Recipes of the catalogue that were judged by the suite of a protocol's name."""
    return [
        {"by": OURS, "name": name, "size_bytes": one.size_bytes, "perplexity": one.perplexity,
         "kl_mean": one.kl_mean}
        for name, one in found.recipes.items()
        if one.suite == protocol
    ]  # fmt: skip


def _point(row: Mapping[str, Any], measured: str, dense: float | None) -> Point:
    value = row.get(measured)
    if value is None or (measured == "perplexity" and dense is None):
        raise ValueError(f"peers.json: {row['by']} {row['name']} has no {measured}")
    loss = 100 * (value / dense - 1) if measured == "perplexity" and dense else value
    return Point(row["by"], row["name"], row["size_bytes"], max(float(loss), LEAST))


def _finish_axes(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel("size of the whole folder, MB", color=PAINT["soft"])
    axes.set_ylabel(AXES[panel.measure], color=PAINT["soft"])
    axes.set_title(panel.said, fontsize=12, color=PAINT["ink"], loc="left", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.985), ncols=len(MARKS), frameon=False,
                fontsize=12, labelcolor=PAINT["ink"], handletextpad=0.2,
                columnspacing=1.2, borderaxespad=0)  # fmt: skip


def _name(axes: Axes, points: Sequence[Point], leading: Sequence[Point]) -> None:
    """Names beside points, the front's first; one that finds no room stays without."""
    axes.figure.draw_without_rendering()  # settles where points will be
    seen = {one: axes.transData.transform((one.size_bytes / 1e6, one.loss)) for one in points}
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in seen.values()]
    edge = axes.get_window_extent()
    order = [*leading, *(one for one in points if one not in leading)]
    for one in order:
        x, y = seen[one]
        # the front's line leaves its points to the right
        for dx, dy, side in sorted(PLACES, key=lambda place: one in leading and place[1] == -4):
            box = _box(x + dx, y + dy, len(one.name) * LETTER, side)
            inside = box[0] > edge.x0 and box[2] < edge.x1 + 20 and edge.y0 < box[1] < edge.y1
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append((box[0] - LETTER, box[1], box[2] + LETTER, box[3]))
                axes.annotate(one.name, (one.size_bytes / 1e6, one.loss), xytext=(dx, dy),
                              textcoords="offset points", ha=side, fontsize=11,
                              color=PAINT[MARKS[one.by][0]])  # fmt: skip
                break


Box = tuple[float, float, float, float]


def _box(x: float, y: float, wide: float, side: str) -> Box:
    left = x - {"left": 0.0, "center": wide / 2, "right": wide}[side]
    return (left, y - 2, left + wide, y + LINE - 2)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _told(one: Point, panel: Panel) -> str:
    return f"+{one.loss:.2g} %" if panel.measure == "perplexity" else f"{one.loss:.3g} nats"


def _placed(element: str, top: int) -> str:
    return element.replace("<svg ", f'<svg y="{top}" width="{WIDTH}" height="{HEIGHT}" ', 1)


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


if __name__ == "__main__":
    sys.exit(main())
