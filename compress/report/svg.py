"""A figure for a page: drawn in stand-in colours, finished as SVG whose colours the page decides.

One drawing serves light, dark and print, as every colour becomes a CSS variable; text stays text.
The same drawing gives the same bytes: no date, no random ids, no settings of the user.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VARIABLES: tuple[str, ...] = ("ink", "soft", "line", "paper", "bars", "dense")
_VARIABLES += tuple(f"part-{index}" for index in range(5))
_VARIABLES += tuple(f"heat-{index}" for index in range(9))
PAINT = {name: f"#{index:06x}" for index, name in enumerate(_VARIABLES, start=1)}  # stand-ins

_MEANT = {paint: f"var(--{name})" for name, paint in PAINT.items()}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def settings(name: str) -> Iterator[None]:
    """The library's own defaults, not the user's; ids salted by name, as figures share a page."""
    from matplotlib import style

    ours = {"svg.fonttype": "none", "svg.hashsalt": name}
    with style.context(["default", ours], after_reset=True):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, one unit of its picture being one CSS pixel."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def bare_axes(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Bare axes inside margins given in CSS pixels."""
    width, height = figure.bbox.width, figure.bbox.height
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(bottom=False, left=False, colors=PAINT["soft"], labelsize=12)
    axes.xaxis.label.set_fontsize(12)
    return axes


def finish(figure: Figure, label: str, titles: Mapping[str, str] | None = None) -> str:
    """Print a figure as one svg element for a page, labelled for those who cannot see it.

    Args:
        figure: drawn in colours of `PAINT`.
        label: what the figure shows, in words.
        titles: by gid of an artist, what to say when the pointer rests on it.

    Returns:
        the element without namespaces, as HTML takes it, its colours being CSS variables.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="none")
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):  # the page has its own
                parent.remove(child)
    box = root.attrib["viewBox"]
    root.attrib = {"class": "figure", "role": "img", "aria-label": label, "viewBox": box}
    _settle(root, titles or {})
    return ElementTree.tostring(root, encoding="unicode").strip()


def _settle(root: ElementTree.Element, titles: Mapping[str, str]) -> None:
    """Fit the tree into a page: its colours and font, titles for cells, no unused ids."""
    everything = list(root.iter())
    written = " ".join(
        value for element in everything for key, value in element.items() if key != "id"
    )
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
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _MEANT.get(found[0], found[0]), text)
    return re.sub(r"font-family: [^;]+(; |$)", "", text)
