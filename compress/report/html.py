"""report.html: one page that needs no other file, no script and no network."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from compress.report import (
    numbers,
    outliers,
    plots,
    rows,
    shapes,
    shares,
    summary,
    taught,
    verdict,
    zeros,
)
from compress.results import Measured, Results

if TYPE_CHECKING:
    from jinja2 import Environment


def render(results: Results, measured: Measured | None) -> str:
    """Render the page; the same input gives the same bytes.

    Args:
        results: the run's results.
        measured: its times and memory, or None where they are not known.

    Returns:
        a whole HTML document with its style and its figures inside.
    """
    from markupsafe import Markup

    figures = {name: [Markup(svg) for svg in pair] for name, pair in _figures(results).items()}
    template = environment().get_template("report.html.j2")
    return template.render(
        results=results,
        measured=measured,
        rows=rows,
        outliers=outliers,
        gates=verdict,
        shares=shares,
        zeros=zeros,
        verdict=re.sub(r"(?<=\d) (?=[%kMGT])", "\N{NO-BREAK SPACE}", rows.verdict(results)),
        summary=[*shapes.summary(results), *summary.summary(results, measured)],
        shapes=shapes,
        taught=taught,
        headline=headline(results),
        figures=figures,
        parts=plots.PARTS,
        samples=[
            (sample, rows.differing_tail(sample.teacher, sample.student))
            for sample in results.samples
        ],
    )


def headline(results: Results) -> list[tuple[str, str]]:
    """The few numbers worth large type, each with the words below it."""
    before, after, divergence = results.before, results.after, results.divergence
    if after is None:
        return [(numbers.size(before.size_bytes), "on disk, the teacher")]
    shown = [
        (numbers.size(after.size_bytes), f"on disk, from {numbers.size(before.size_bytes)}"),
        (f"{after.bits_per_weight:.2f}", "bits per weight in the blocks"),
    ]
    if after.perplexity:
        was = f", from {before.perplexity.perplexity:.2f}" if before.perplexity else ""
        shown.append((f"{after.perplexity.perplexity:.2f}", f"perplexity{was}"))
    if divergence:
        agreement = numbers.percent(divergence.top1_agreement)
        shown.append((agreement, "agreement with the teacher’s first choice"))
    return shown


def _figures(results: Results) -> dict[str, tuple[str, str]]:
    """Each figure twice, for wide and for narrow pages; what was not measured is left out."""
    figures = {}
    linears = rows.linears(results)
    if any(linear.block is not None for linear in linears):
        figures["heat"] = (plots.heat_map(linears), plots.heat_map(linears, tall=True))
    if results.allocation:
        figures["bits"] = (plots.bits_map(linears), plots.bits_map(linears, tall=True))
    for place, found in enumerate(taught.stages(results), 1):
        figures[f"curve-{place}"] = (taught.curve(found), taught.curve(found, narrow=True))
    if results.divergence:
        kl = results.divergence
        figures["divergence"] = (plots.divergence(kl), plots.divergence(kl, narrow=True))
    if results.sizes:
        figures["sizes"] = (plots.sizes(results.sizes), plots.sizes(results.sizes, narrow=True))
    return figures


@cache
def environment() -> Environment:
    """Templates of the pages; what they are given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("compress.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
