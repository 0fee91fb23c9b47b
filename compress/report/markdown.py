"""report.md, and README.md: the model card of an artifact."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from compress.report import (
    numbers,
    outliers,
    rows,
    shapes,
    shares,
    summary,
    taught,
    verdict,
    zeros,
)
from compress.report.rows import Table
from compress.results import Measured, Provenance, Results, Sample

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LICENSE = re.compile(r"([a-z][a-z0-9.+-]*)(?: \(([\w.-]+)\))?")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render(results: Results, measured: Measured | None) -> str:
    """Render the report as Markdown; the same input gives the same bytes.

    Args:
        results: the run's results.
        measured: its times and memory, or None where they are not known.
    """
    source = results.provenance
    parts = [
        f"# {_plain(source.teacher)}, compressed by {_plain(source.recipe)}",
        *_outcome(results),
        _plain(rows.verdict(results)),
        *_gates(results),
        "## Before and after",
        _summary(results, measured),
        *_shapes(results),
        *_taught(results),
        *_shares(results),
        *_zeros(results),
        "## Where the error is",
        *_errors(results),
        *_outliers(results),
        *_cache(results),
        "## How far from the teacher",
        _divergence(results),
        "## Where the bytes are",
        _table(rows.size_table(results))
        if results.sizes
        else "The sizes were not recorded in this run.",
        "## Side by side",
        *_samples(results.samples),
        "## Fallbacks",
        *_fallbacks(results),
        "## Provenance",
        _table(rows.provenance_table(results, measured)),
        *([_table(rows.time_table(measured))] if measured else []),
        "### The locked recipe",
        _fenced(source.recipe_text, "yaml"),
        "### Make it again",
        _fenced(rows.command(results), "sh"),
    ]
    return "\n\n".join(parts) + "\n"


def model_card(results: Results, measured: Measured | None) -> str:
    """Write the README.md of an artifact, with what is known of its teacher's license.

    Args:
        results: the run's results.
        measured: its times and memory, or None where they are not known.

    Returns:
        Markdown below YAML front matter; `base_model` only where the teacher has a name on the hub.
    """
    source = results.provenance
    parts = [
        _front_matter(results),
        f"# {_plain(source.teacher)}, compressed by {_plain(source.recipe)}",
        *_outcome(results),
        _plain(rows.verdict(results)),
        _license(results),
        "## Use",
        _fenced('compress generate PATH_TO_THIS_FOLDER "Once upon a time"', "sh"),
        "## Before and after",
        _summary(results, measured),
        *_gates(results),
        "## Fallbacks",
        *_fallbacks(results),
        "## How it was made",
        "`recipe.lock.yaml` makes it again; `report.html` shows it all.",
        _fenced(rows.command(results), "sh"),
        _table(rows.provenance_table(results, measured)),
    ]
    return "\n\n".join(parts) + "\n"


def _begun(results: Results) -> str:
    """The model whose weights these were: the teacher, or the student where that is another."""
    source = results.provenance
    own = source.student and source.teacher not in source.student  # else cut out of the teacher
    return source.student if own else source.teacher


def _license(results: Results) -> str:
    source = results.provenance
    if (begun := _begun(results)) != source.teacher:
        return (
            f"It began as {_plain(begun)} (license: {_named(source.student_license)}) and learned "
            f"from {_plain(source.teacher)} (license: {_named(source.teacher_license)}): what the "
            "licenses of both ask for holds."
        )
    if not source.teacher_license:
        return (
            "The license is that of the teacher, which its files do not name. Look it up before "
            "you hand this on."
        )
    return f"The license is that of the teacher: {_named(source.teacher_license)}."


def _named(license: str) -> str:
    return _plain(license or "not stated")


def _outcome(results: Results) -> Iterator[str]:
    """The verdict in one line, where the recipe sets gates."""
    if results.verdict:
        told = _plain(verdict.sentence(results.verdict))
        yield f"**{results.verdict.outcome}**: {told}."


def _gates(results: Results) -> Iterator[str]:
    if results.verdict is None:
        return
    yield "## Gates"
    yield _table(verdict.gate_table(results.verdict))
    if results.verdict.rounds:
        yield "A student that misses a gate is given up, and its worst linears get more bits:"
        yield _table(verdict.round_table(results.verdict))


def _shares(results: Results) -> Iterator[str]:
    if results.allocation is None:
        return
    yield "## Where the bits went"
    yield _plain(shares.sentence(results, results.allocation))
    yield _table(shares.kinds(results.allocation))
    yield _table(shares.groups(results.allocation))


def _zeros(results: Results) -> Iterator[str]:
    for found in zeros.stages(results):
        yield "## Where the zeros went"
        yield _plain(zeros.sentence(found))
        yield _table(zeros.table(found))


def _shapes(results: Results) -> Iterator[str]:
    for place, found in enumerate(shapes.stages(results), 1):
        yield f"## {shapes.heading(results, place)}"
        yield _plain(shapes.text(found))
        yield _table(shapes.block_table(found))
        if found.candidates:
            yield "Shapes that were tried on a few windows, each repaired; KL on others:"
            yield _table(shapes.candidate_table(found))


def _taught(results: Results) -> Iterator[str]:
    for place, found in enumerate(taught.stages(results), 1):
        yield f"## {taught.heading(results, place)}"
        yield _plain(taught.text(found))
        yield _table(taught.table(found))


def _summary(results: Results, measured: Measured | None) -> str:
    lines = tuple(
        (
            f"{row.label} ({row.note})" if row.note else row.label,
            row.before,
            row.after,
            row.difference,
        )
        for row in (*shapes.summary(results), *summary.summary(results, measured))
    )
    return _table(Table(("measure", "before", "after", "difference"), lines))


def _errors(results: Results) -> Iterator[str]:
    if not rows.roles(results):
        yield "No stage of this run rounded a block linear."
        return
    yield "Squared error added to the output, over squared output: the worst five, then all."
    yield _table(rows.worst_table(results))
    yield _table(rows.error_table(results))


def _divergence(results: Results) -> str:
    divergence = results.divergence
    if divergence is None:
        return "The divergence was not measured in this run."
    edges = divergence.histogram_edges
    bins = (
        (
            f"{low:.3g} to {high:.3g}",
            f"{count:,}",
            numbers.percent(count / max(1, divergence.tokens)),
        )
        for low, high, count in zip(edges[:-1], edges[1:], divergence.histogram_counts, strict=True)
        if count
    )
    return _table(Table(("KL of one token, nats", "tokens", "share"), tuple(bins)))


def _samples(samples: Sequence[Sample]) -> Iterable[str]:
    if not samples:
        yield "No samples were taken in this run."
    for sample in samples:
        yield f"**{_plain(sample.prompt)}**"
        yield "teacher:"
        yield _fenced(sample.teacher, "text")
        yield (
            "student:"
            if sample.student != sample.teacher
            else "student, the same to the last word:"
        )
        yield _fenced(sample.student, "text")


def _outliers(results: Results) -> Iterator[str]:
    table = outliers.outlier_table(results)
    if table.rows:
        yield "## Outlier columns"
        yield outliers.outlier_text(results)
        yield _table(table)


def _cache(results: Results) -> Iterator[str]:
    table = rows.cache_table(results)
    if table.rows:
        yield "## Keys and values"
        yield rows.cache_text(results)
        yield _table(table)


def _fallbacks(results: Results) -> Iterator[str]:
    yield rows.fallback_text(results)
    if results.fallbacks:
        yield _table(rows.fallback_table(results))


def _front_matter(results: Results) -> str:
    begun = _begun(results)
    rounded = any(linear.bits for linear in rows.linears(results))
    relation = "quantized" if rounded else "finetune"
    base = (
        [f"base_model: {begun}", f"base_model_relation: {relation}"]
        if _HUB_NAME.fullmatch(begun)
        else []
    )
    tags = [f"- {tag}" for tag in _tags(results)]
    terms = [] if begun != results.provenance.teacher else _terms(results.provenance)
    return "\n".join(["---", *base, *terms, "pipeline_tag: text-generation", "tags:", *tags, "---"])


def _terms(source: Provenance) -> list[str]:
    """The teacher's license as the hub spells it, where it is one of its words."""
    if not (found := _LICENSE.fullmatch(source.teacher_license)):
        return []
    word, name = found.groups()
    return [f"license: {word}", *([f"license_name: {name}"] if name else [])]


def _tags(results: Results) -> list[str]:
    """What was done, as the hub's readers look for it."""
    methods = [stage.method for stage in results.stages]
    widths = sorted({linear.bits for linear in rows.linears(results) if linear.bits})
    return list(dict.fromkeys(["compress", *methods, *(f"{bits}-bit" for bits in widths)]))


def _table(table: Table) -> str:
    rule = ["---" if place < table.words else "---:" for place in range(len(table.header))]
    return "\n".join(
        _line(line) for line in (table.header, rule, *(map(_plain, row) for row in table.rows))
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text that Markdown and the HTML in it will not read as anything else, on one line."""
    return " ".join(_SPECIAL.sub(r"\\\1", text).split())


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
