"""What is drawn without a script: how KL is spread over the tokens, one small figure each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from compress.report import numbers
from compress.results.comparison import Comparison, Entry

WIDTH, HEIGHT, BASE = 320, 120, 96  # CSS pixels; the last is where bars stand
_TICKS = {1e-6: "10⁻⁶", 1e-4: "10⁻⁴", 1e-2: "0.01", 1.0: "1", 100.0: "100"}


def histograms(comparison: Comparison) -> list[tuple[str, str]]:
    """Name and figure of every artifact with a histogram; none where they may not be compared."""
    entries = spread(comparison)
    if not entries:
        return []
    highest = max(max(_shares(one.histogram_counts)) for one in entries)
    return [(one.name, _figure(one, highest)) for one in entries]


def spread(comparison: Comparison) -> list[Entry]:
    """Every artifact with a histogram of KL; none where they may not be compared."""
    kl = comparison.measure("kl_mean")
    entries = [one for one in comparison.artifacts if sum(one.histogram_counts)]
    alike = len({one.histogram_edges for one in entries}) == 1
    return entries if kl and kl.comparable and alike else []


def _figure(entry: Entry, highest: float) -> str:
    shares, edges = _shares(entry.histogram_counts), entry.histogram_edges
    wide = WIDTH / len(shares)
    bars = "".join(
        f'<rect x="{place * wide + 0.5:.1f}" width="{wide - 1:.1f}" '
        f'y="{BASE - (BASE - 4) * share / highest:.1f}" '
        f'height="{(BASE - 4) * share / highest:.1f}"><title>{_told(edges, place, share)}</title>'
        "</rect>"
        for place, share in enumerate(shares)
        if share
    )
    label = f"Share of tokens by their KL, {entry.name}"
    return (
        f'<svg class="figure spread" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{bars}<path d="M0 {BASE}H{WIDTH}"/>{_ticks(edges)}</svg>'
    )


def _ticks(edges: Sequence[float]) -> str:
    """Names of decades, each below its edge."""
    places = {tick: _place(edges, tick) for tick in _TICKS}
    last = len(edges) - 1
    anchors = {0: "start", last: "end"}
    return "".join(
        f'<text x="{WIDTH * place / last:.1f}" y="{HEIGHT - 8}" '
        f'text-anchor="{anchors.get(place, "middle")}">{_TICKS[tick]}</text>'
        for tick, place in places.items()
        if place is not None
    )


def _place(edges: Sequence[float], tick: float) -> int | None:
    return next((i for i, edge in enumerate(edges) if abs(edge / tick - 1) < 1e-6), None)


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def _told(edges: Sequence[float], place: int, share: float) -> str:
    low, high = (numbers.digits(edge) for edge in edges[place : place + 2])
    return f"{numbers.percent(share)} of tokens between {low} and {high} nats"
