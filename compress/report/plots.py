"""What a report draws: figures as SVG text, whose colours the page decides.

Each figure is drawn in stand-in colours that become CSS variables (`var(--ink)`), so that one drawing serves light,
dark and print; text stays text. The same results give the same bytes: no date, no random ids, no settings of the user.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from compress.report import rows
from compress.results import Divergence, LinearResult, SizePart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

    Scale = tuple[ListedColormap, BoundaryNorm]

HEAT_LEVELS = 9
PARTS: dict[str, str] = {
    "block linears": "part-0", "head": "part-1", "embedding": "part-2", "norms and biases": "part-3",
    "other files": "part-4",
}  # fmt: skip
WIDE, NARROW = 880, 350  # width in CSS pixels for which a figure is drawn

_NAMES = ("ink", "soft", "line", "paper", "accent", "dense", *PARTS.values())
_NAMES += tuple(f"heat-{level}" for level in range(HEAT_LEVELS))
_PAINT = {name: f"#{index:06x}" for index, name in enumerate(_NAMES, start=1)}  # one stand-in per CSS variable
_VARIABLES = {paint: f"var(--{name})" for name, paint in _PAINT.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


def heat_map(linears: Sequence[LinearResult], *, tall: bool = False) -> str:
    """Draw the relative error of each block linear on a logarithmic colour scale.

    Args:
        linears: what became of each linear; those outside the blocks are left out.
        tall: blocks run down instead of across, for a narrow page.

    Returns:
        one svg element; each cell is a group of class ``cell`` with its linear and error as its title.
    """
    inside = [linear for linear in linears if linear.block is not None]
    blocks = sorted({linear.block for linear in inside if linear.block is not None})
    names = list(dict.fromkeys(linear.role for linear in inside))
    scale = _heat_scale([linear.relative_error for linear in inside if _on_scale(linear)])
    down = len(blocks) if tall else len(names)
    with _settings(f"heat-{tall}"):
        figure = _figure(NARROW if tall else WIDE, 96 + (17 if tall else 27) * down)
        axes = _axes(figure, left=44, right=2, top=22 if tall else 2, bottom=74 if tall else 94)
        axes.set(xlim=(0, len(names) if tall else len(blocks)), ylim=(down, 0))
        titles = {}
        for linear in inside:
            row, column = names.index(linear.role), blocks.index(linear.block or 0)
            _cell(axes, (row, column) if tall else (column, row), linear, scale)
            titles[_cell_id(linear)] = _cell_title(linear)
        _block_ticks(axes, blocks, names, tall=tall)
        _colour_key(figure, scale)
        label = f"Heat map of the relative error of {len(inside)} linears in {len(blocks)} blocks"
        return _svg(figure, f"{label}; {_extremes(inside)}", titles)


def divergence(measured: Divergence, *, narrow: bool = False) -> str:
    """Draw how the per-token KL is distributed, in shares of tokens over logarithmic bins."""
    edges, counts = _trimmed(measured)
    total = max(1, sum(measured.histogram_counts))
    shares = [100 * count / total for count in counts]
    with _settings(f"divergence-{narrow}"):
        figure = _figure(NARROW if narrow else WIDE, 240 if narrow else 290)
        axes = _axes(figure, left=38, right=10, top=58, bottom=44)
        axes.stairs(shares, edges, fill=True, facecolor=_PAINT["accent"], edgecolor="none")
        axes.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0, 1.04 * max(shares) or 1))
        _histogram_ticks(axes, decades=4 if narrow else 8)
        marks = {"median": measured.kl_p50, "mean": measured.kl_mean, "99th percentile": measured.kl_p99}
        _marks(axes, marks)
        said = ", ".join(f"{name} {value:.3g}" for name, value in marks.items())
        return _svg(figure, f"Histogram of the KL to the teacher of {measured.tokens:,} tokens, in nats: {said}")


def sizes(parts: Sequence[SizePart], *, narrow: bool = False) -> str:
    """Draw the stored bytes before and after as two bars, stacked by part."""
    sides = {"before": [p.before_bytes for p in parts], "after": [p.after_bytes for p in parts]}
    with _settings(f"sizes-{narrow}"):
        figure = _figure(NARROW if narrow else WIDE, 136)
        axes = _axes(figure, left=0, right=0, top=0, bottom=0)
        axes.set(xlim=(0, max(1, *map(sum, sides.values()))), ylim=(136, 0), xticks=[], yticks=[])
        for (side, counts), top in zip(sides.items(), (26, 98), strict=True):
            _bar(axes, parts, counts, top)
            text = f"{side}  {rows.size_text(sum(counts))}"
            axes.text(0, top - 8, text, color=_PAINT["ink"], fontsize=13)
        said = "; ".join(f"{side} {_parts_text(parts, counts)}" for side, counts in sides.items())
        return _svg(figure, f"Stored bytes by part: {said}")


def _figure(width: float, height: float) -> Figure:
    """An empty figure, one unit of its picture being one CSS pixel."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def _pixels(figure: Figure) -> tuple[float, float]:
    """Width and height of a figure in CSS pixels."""
    width, height = figure.get_size_inches()
    return 72 * float(width), 72 * float(height)


def _axes(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Bare axes inside margins given in CSS pixels."""
    width, height = _pixels(figure)
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(bottom=False, left=False, colors=_PAINT["soft"], labelsize=12)
    axes.xaxis.label.set_size(12)
    return axes


def _on_scale(linear: LinearResult) -> bool:
    """Whether an error has a place on a logarithmic scale."""
    return linear.outcome == "solved" and 0 < linear.relative_error < math.inf


def _heat_scale(errors: Sequence[float]) -> Scale:
    """Levels in equal ratios from the smallest error to the largest."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    low, high = (min(errors) / 1.02, max(errors) * 1.02) if errors else (0.001, 0.1)
    bounds = [low * (high / low) ** (level / HEAT_LEVELS) for level in range(HEAT_LEVELS + 1)]
    colours = ListedColormap([_PAINT[f"heat-{level}"] for level in range(HEAT_LEVELS)])
    return colours, BoundaryNorm(bounds, HEAT_LEVELS)


def _cell(axes: Axes, place: tuple[int, int], linear: LinearResult, scale: Scale) -> None:
    """Draw one cell; a linear that was kept dense bears a sign, so that colour alone says nothing."""
    from matplotlib.patches import Rectangle

    colours, norm = scale
    fill = colours(norm(linear.relative_error)) if _on_scale(linear) else _PAINT["dense"]
    edge = {"edgecolor": _PAINT["paper"], "linewidth": 1.5}
    axes.add_patch(Rectangle(place, 1, 1, facecolor=fill, clip_on=False, gid=_cell_id(linear), **edge))
    if linear.outcome != "solved":
        x, y = place
        axes.text(x + 0.5, y + 0.5, "×", color=_PAINT["ink"], ha="center", va="center", fontsize=13)


def _cell_id(linear: LinearResult) -> str:
    return f"cell-{linear.block}-{linear.role}"


def _cell_title(linear: LinearResult) -> str:
    what = rows.error_text(linear.relative_error) if linear.outcome == "solved" else "kept dense"
    return f"{linear.name}: {what}"


def _block_ticks(axes: Axes, blocks: Sequence[int], names: Sequence[str], *, tall: bool) -> None:
    """Name every role, and as many blocks as can be read."""
    step = 1 if len(blocks) <= 32 else 5
    shown = [place for place, block in enumerate(blocks) if block % step == 0]
    along, against = (axes.yaxis, axes.xaxis) if tall else (axes.xaxis, axes.yaxis)
    along.set_ticks([place + 0.5 for place in shown], [str(blocks[place]) for place in shown])
    against.set_ticks([place + 0.5 for place in range(len(names))], list(names))
    if tall:
        axes.xaxis.tick_top()
        axes.tick_params(top=False)
    else:
        axes.set_xlabel("block", color=_PAINT["soft"])


def _colour_key(figure: Figure, scale: Scale) -> None:
    """The colour scale below the map, with its bounds named."""
    from matplotlib.patches import Rectangle

    width, height = _pixels(figure)
    axes = _axes(figure, left=44, right=width - 44 - 270, top=height - 32, bottom=20)
    for level in range(HEAT_LEVELS):
        axes.add_patch(Rectangle((level, 0), 1, 1, facecolor=_PAINT[f"heat-{level}"], clip_on=False))
    shown = (0, HEAT_LEVELS // 3, 2 * HEAT_LEVELS // 3, HEAT_LEVELS)
    axes.set(xlim=(0, HEAT_LEVELS), ylim=(0, 1), yticks=[])
    axes.set_xticks(shown, [f"{100 * scale[1].boundaries[level]:.2g} %" for level in shown])
    axes.set_title("relative error", loc="left", color=_PAINT["soft"], fontsize=12, pad=5)


def _extremes(linears: Sequence[LinearResult]) -> str:
    """The smallest and the largest error, in words."""
    solved = sorted((linear for linear in linears if _on_scale(linear)), key=lambda linear: linear.relative_error)
    if not solved:
        return "no error was recorded"
    low, high = solved[0], solved[-1]
    return (
        f"from {rows.error_text(low.relative_error)} in {low.name} "
        f"to {rows.error_text(high.relative_error)} in {high.name}"
    )


def _trimmed(measured: Divergence) -> tuple[list[float], list[int]]:
    """Edges and counts without the empty bins at both ends; a first edge of zero becomes the next in ratio."""
    edges, counts = list(measured.histogram_edges), list(measured.histogram_counts)
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return [1e-6, 1e1], [0]
    first, last = filled[0], filled[-1]
    edges, counts = edges[first : last + 2], counts[first : last + 1]
    if edges[0] <= 0:
        edges[0] = edges[1] ** 2 / edges[2] if len(edges) > 2 else edges[1] / 10
    return edges, counts


def _histogram_ticks(axes: Axes, decades: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(numticks=decades))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(axis="y", color=_PAINT["line"], linewidth=0.8)
    axes.spines["bottom"].set(visible=True, color=_PAINT["soft"])
    axes.set_xlabel("KL of one token, nats", color=_PAINT["soft"])


def _marks(axes: Axes, marks: Mapping[str, float]) -> None:
    """A line at each statistic, up to its name above the plot; heights are stepped so that nothing crosses."""
    low, high = axes.get_xlim()
    width, height = _pixels(axes.figure)
    box = axes.get_position()
    shown = sorted((value, name) for name, value in marks.items() if low <= value <= high)
    last = math.log(shown[-1][0] / low) / math.log(high / low) if shown else 0.0
    rightwards = (1 - last) * box.width * width > 140  # room for the longest name
    for level, (value, name) in enumerate(reversed(shown) if rightwards else shown):
        top = 1 + (8 + 16 * level) / (box.height * height)
        line = {"color": _PAINT["ink"], "linewidth": 1, "clip_on": False}
        axes.plot([value, value], [0, top], transform=axes.get_xaxis_transform(), **line)
        axes.annotate(
            f"{name} {value:.3g}", (value, top), xytext=(5 if rightwards else -5, 0), va="center",
            ha="left" if rightwards else "right", xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", color=_PAINT["ink"], fontsize=12,
        )  # fmt: skip


def _bar(axes: Axes, parts: Sequence[SizePart], counts: Sequence[int], top: float) -> None:
    """One bar of parts side by side, from its top in pixels."""
    from matplotlib.patches import Rectangle

    for part, start, count in zip(parts, accumulate(counts, initial=0), counts, strict=False):
        fill = _PAINT[PARTS[part.part]]
        axes.add_patch(Rectangle((start, top), count, 34, facecolor=fill, edgecolor=_PAINT["paper"]))


def _parts_text(parts: Sequence[SizePart], counts: Sequence[int]) -> str:
    return ", ".join(f"{part.part} {rows.size_text(count)}" for part, count in zip(parts, counts, strict=True))


@contextmanager
def _settings(name: str) -> Iterator[None]:
    """The library's own defaults, not the user's; ids salted by name, as several figures share a page."""
    from matplotlib import style

    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": name}], after_reset=True):
        yield


def _svg(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> str:
    """Print a figure as one svg element for a page: labelled, coloured by variables, free of what nobody uses."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="none")
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    root.attrib = {"class": "figure", "role": "img", "aria-label": label, "viewBox": root.attrib["viewBox"]}
    _settle(root, titles or {})
    return ElementTree.tostring(root, encoding="unicode").strip()


def _settle(root: ElementTree.Element, titles: Mapping[str, str]) -> None:
    """Fit the tree into a page: no namespaces, the page's colours and font, titles for cells, no unused ids."""
    everything = list(root.iter())
    written = " ".join(value for element in everything for key, value in element.items() if key != "id")
    for element in everything:
        element.tag = element.tag.removeprefix(_SVG)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        if "style" in element.attrib:
            element.set("style", _restyle(element.attrib["style"]))
        own = element.get("id", "")
        if own in titles:
            element.set("class", "cell")
            ElementTree.SubElement(element, "title").text = titles[own]
        if own and f"#{own}" not in written:
            del element.attrib["id"]


def _restyle(text: str) -> str:
    """Stand-in colours become variables, and the font is left to the page."""
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), text)
    return re.sub(r"font: ([\d.]+px) [^;]+", r"font-size: \1", text)
