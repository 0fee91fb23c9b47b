"""What a report draws: each figure as one svg element, wide or narrow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from compress.report import numbers, svg
from compress.report.svg import PAINT
from compress.results import Divergence, LinearResult, SizePart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure

    Scale = tuple[ListedColormap, BoundaryNorm]

WIDE, NARROW = 880, 350  # width in CSS pixels for which a figure is drawn
HEAT_LEVELS = 9
PARTS = {  # part of the model → CSS variable of its colour
    "block linears": "part-0",
    "head": "part-1",
    "embedding": "part-2",
    "norms and biases": "part-3",
    "other files": "part-4",
}
BITS = {  # → colour of a cell and of its number
    2: ("heat-0", "ink"),
    3: ("heat-2", "ink"),
    4: ("heat-5", "paper"),
    8: ("heat-8", "paper"),
}

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def heat_map(linears: Sequence[LinearResult], *, tall: bool = False) -> str:
    """Draw the relative error of each block linear on a logarithmic colour scale.

    Args:
        linears: what became of each linear; those outside the blocks are left out.
        tall: blocks run down instead of across, for a narrow page.

    Returns:
        one svg element; each cell is a group of class ``cell`` titled with its linear and error.
    """
    inside = [linear for linear in linears if linear.block is not None]
    scale = _heat_scale([linear.relative_error for linear in inside if _on_scale(linear)])
    with svg.settings(f"heat-{tall}"):
        figure, axes, places = _frame(inside, tall=tall, key=True)
        for linear in inside:
            _cell(axes, places[linear.name], linear, scale)
        _colour_key(figure, scale)
        titles = {_cell_id(linear): _cell_title(linear) for linear in inside}
        blocks = len({linear.block for linear in inside})
        label = f"Heat map of the relative error of {len(inside)} linears in {blocks} blocks"
        return svg.finish(figure, f"{label}; {_extremes(inside)}", titles)


def bits_map(linears: Sequence[LinearResult], *, tall: bool = False) -> str:
    """Draw the bits of each block linear: a colour, and the number itself in its cell.

    Args:
        linears: what became of each linear; those outside the blocks are left out.
        tall: blocks run down instead of across, for a narrow page.

    Returns:
        one svg element; each cell is a group of class ``cell`` titled with its linear and bits.
    """
    inside = [linear for linear in linears if linear.block is not None]
    with svg.settings(f"bits-{tall}"):
        figure, axes, places = _frame(inside, tall=tall, key=False)
        for linear in inside:
            _bits_cell(axes, places[linear.name], linear)
        titles = {_cell_id(linear): f"{linear.name}: {_bits_text(linear)}" for linear in inside}
        counts = Counter(map(_bits_text, inside))
        said = ", ".join(f"{count} linears at {bits}" for bits, count in sorted(counts.items()))
        return svg.finish(figure, f"Bits by block and linear: {said}", titles)


def divergence(measured: Divergence, *, narrow: bool = False) -> str:
    """Draw how the per-token KL is distributed, in shares of tokens over logarithmic bins."""
    edges, counts = _trimmed(measured)
    total = max(1, sum(measured.histogram_counts))
    shares = [100 * count / total for count in counts]
    marks = {"median": measured.kl_p50, "mean": measured.kl_mean}
    marks["99th percentile"] = measured.kl_p99
    with svg.settings(f"divergence-{narrow}"):
        figure = svg.figure(NARROW if narrow else WIDE, 240 if narrow else 290)
        axes = svg.bare_axes(figure, left=38, right=10, top=58, bottom=44)
        axes.stairs(shares, edges, fill=True, facecolor=PAINT["bars"], edgecolor="none")
        axes.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0, 1.04 * max(shares) or 1))
        _histogram_ticks(axes, decades=4 if narrow else 8)
        _marks(axes, marks)
        said = ", ".join(f"{name} {value:.3g} nats" for name, value in marks.items())
        return svg.finish(figure, f"Histogram of the KL of {measured.tokens:,} tokens: {said}")


def sizes(parts: Sequence[SizePart], *, narrow: bool = False) -> str:
    """Draw the stored bytes before and after as two bars, stacked by part."""
    sides = {"before": [p.before_bytes for p in parts], "after": [p.after_bytes for p in parts]}
    with svg.settings(f"sizes-{narrow}"):
        figure = svg.figure(NARROW if narrow else WIDE, 136)
        axes = svg.bare_axes(figure, left=0, right=0, top=0, bottom=0)
        axes.set(xlim=(0, max(1, *map(sum, sides.values()))), ylim=(136, 0), xticks=[], yticks=[])
        for (side, counts), top in zip(sides.items(), (26, 98), strict=True):
            _bar(axes, parts, counts, top)
            text = f"{side}  {numbers.size(sum(counts))}"
            axes.text(0, top - 8, text, color=PAINT["ink"], fontsize=13)
        said = "; ".join(f"{side} {_parts_text(parts, counts)}" for side, counts in sides.items())
        return svg.finish(figure, f"Stored bytes by part: {said}")


def _on_scale(linear: LinearResult) -> bool:
    """Whether an error has a place on a logarithmic scale."""
    return linear.outcome == "solved" and 0 < linear.relative_error < math.inf


def _heat_scale(errors: Sequence[float]) -> Scale:
    """Levels in equal ratios up to the largest error; the smallest twentieth share the lowest."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    ranked = sorted(errors) or [0.001, 0.1]
    low, high = ranked[len(ranked) // 20] / 1.02, ranked[-1] * 1.02
    bounds = [low * (high / low) ** (level / HEAT_LEVELS) for level in range(HEAT_LEVELS + 1)]
    colours = ListedColormap([PAINT[f"heat-{level}"] for level in range(HEAT_LEVELS)])
    return colours, BoundaryNorm(bounds, HEAT_LEVELS)


def _frame(
    inside: Sequence[LinearResult], *, tall: bool, key: bool
) -> tuple[Figure, Axes, dict[str, tuple[int, int]]]:
    """An empty map of blocks and roles, and the place of each linear's cell; room for a key."""
    blocks = sorted({linear.block for linear in inside if linear.block is not None})
    names = list(dict.fromkeys(linear.role for linear in inside))
    down = len(blocks) if tall else len(names)
    top, bottom = (22, 2) if tall else (2, 42)
    bottom += (72 if tall else 52) if key else 0
    figure = svg.figure(NARROW if tall else WIDE, top + bottom + (17 if tall else 27) * down)
    axes = svg.bare_axes(figure, left=44, right=2, top=top, bottom=bottom)
    axes.set(xlim=(0, len(names) if tall else len(blocks)), ylim=(down, 0))
    _block_ticks(axes, blocks, names, tall=tall)
    places = {}
    for linear in inside:
        row, column = names.index(linear.role), blocks.index(linear.block or 0)
        places[linear.name] = (row, column) if tall else (column, row)
    return figure, axes, places


def _bits_cell(axes: Axes, place: tuple[int, int], linear: LinearResult) -> None:
    """Draw one cell with its number, in whatever shows on its colour in light and in dark."""
    from matplotlib.patches import Rectangle

    fill, ink = BITS.get(linear.bits or 0, ("dense", "ink"))
    cell = Rectangle(place, 1, 1, facecolor=PAINT[fill], edgecolor=PAINT["paper"], linewidth=1.5)
    cell.set(clip_on=False, gid=_cell_id(linear))
    axes.add_artist(cell)  # the frame is set: a patch would ask for it again
    x, y = place
    axes.text(
        x + 0.5, y + 0.5, str(linear.bits or "×"), color=PAINT[ink], ha="center",
        va="center_baseline", fontsize=12,
    )  # fmt: skip


def _bits_text(linear: LinearResult) -> str:
    return f"{linear.bits} bits" if linear.bits else "kept dense"


def _cell(axes: Axes, place: tuple[int, int], linear: LinearResult, scale: Scale) -> None:
    """Draw one cell; a linear kept dense bears a sign too, as colour alone does not tell all."""
    from matplotlib.patches import Rectangle

    colours, norm = scale
    fill = colours(norm(linear.relative_error)) if _on_scale(linear) else PAINT["dense"]
    cell = Rectangle(place, 1, 1, facecolor=fill, edgecolor=PAINT["paper"], linewidth=1.5)
    cell.set(clip_on=False, gid=_cell_id(linear))
    axes.add_artist(cell)  # the frame is set: a patch would ask for it again
    if linear.outcome != "solved":
        x, y = place
        axes.text(x + 0.5, y + 0.5, "×", color=PAINT["ink"], ha="center", va="center", fontsize=13)


def _cell_id(linear: LinearResult) -> str:
    return f"cell-{linear.block}-{linear.role}"


def _cell_title(linear: LinearResult) -> str:
    what = numbers.error(linear.relative_error) if linear.outcome == "solved" else "kept dense"
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
        axes.set_xlabel("block", color=PAINT["soft"])


def _colour_key(figure: Figure, scale: Scale) -> None:
    """The colour scale below the map, with its bounds named."""
    from matplotlib.patches import Rectangle

    box = figure.bbox
    axes = svg.bare_axes(figure, left=44, right=box.width - 314, top=box.height - 32, bottom=20)
    for level in range(HEAT_LEVELS):
        axes.add_patch(Rectangle((level, 0), 1, 1, facecolor=PAINT[f"heat-{level}"]))
    shown = (0, HEAT_LEVELS // 3, 2 * HEAT_LEVELS // 3, HEAT_LEVELS)
    axes.set(xlim=(0, HEAT_LEVELS), ylim=(0, 1), yticks=[])
    bounds = [f"{100 * scale[1].boundaries[level]:.2g} %" for level in shown]
    axes.set_xticks(shown, [f"≤ {bounds[0]}", *bounds[1:]])
    axes.set_title("relative error", loc="left", color=PAINT["soft"], fontsize=12, pad=5)


def _extremes(linears: Sequence[LinearResult]) -> str:
    """The smallest and the largest error, in words."""
    shown = sorted((r.relative_error, r.name) for r in linears if _on_scale(r))
    if not shown:
        return "no error was recorded"
    (low, best), (high, worst) = shown[0], shown[-1]
    return f"from {numbers.error(low)} in {best} to {numbers.error(high)} in {worst}"


def _trimmed(measured: Divergence) -> tuple[list[float], list[int]]:
    """Edges and counts without the empty bins at both ends, no edge at or below zero."""
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power_text(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.grid(axis="y", color=PAINT["line"], linewidth=0.8)
    axes.spines["bottom"].set(visible=True, color=PAINT["soft"])
    axes.set_xlabel("KL of one token, nats", color=PAINT["soft"])


def _power_text(value: float) -> str:
    """A power of ten as people write it: 0.001, but 10⁻⁵."""
    power = round(math.log10(value))
    return f"{value:g}" if power > -4 else "10⁻" + str(-power).translate(_RAISED)


def _marks(axes: Axes, marks: Mapping[str, float]) -> None:
    """A line at each statistic, up to its name; heights are stepped so that nothing crosses."""
    low, high = axes.get_xlim()
    shown = sorted((value, name) for name, value in marks.items() if low <= value <= high)
    last = math.log(shown[-1][0] / low) / math.log(high / low) if shown else 0.0
    rightwards = (1 - last) * axes.bbox.width > 140  # room for the longest name
    for level, (value, name) in enumerate(reversed(shown) if rightwards else shown):
        top = 1 + (8 + 16 * level) / axes.bbox.height
        axes.vlines(
            value, 0, top, transform=axes.get_xaxis_transform(), color=PAINT["ink"],
            linewidth=1, clip_on=False,
        )  # fmt: skip
        axes.annotate(
            f"{name} {value:.3g}", (value, top), xytext=(5 if rightwards else -5, 0), va="center",
            ha="left" if rightwards else "right", xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", color=PAINT["ink"], fontsize=12,
        )  # fmt: skip


def _bar(axes: Axes, parts: Sequence[SizePart], counts: Sequence[int], top: float) -> None:
    """One bar of parts side by side, from its top in pixels."""
    from matplotlib.patches import Rectangle

    starts = list(accumulate(counts, initial=0))
    for part, start, count in zip(parts, starts[:-1], counts, strict=True):
        if count:
            bar = Rectangle((start, top), count, 34, facecolor=PAINT[PARTS[part.part]])
            bar.set_edgecolor(PAINT["paper"])
            axes.add_patch(bar)


def _parts_text(parts: Sequence[SizePart], counts: Sequence[int]) -> str:
    pairs = zip(parts, counts, strict=True)
    return ", ".join(f"{part.part} {numbers.size(count)}" for part, count in pairs if count)
