"""Every table of a comparison, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compress.report import numbers
from compress.report.compared import cells, drawn
from compress.report.numbers import NONE
from compress.report.rows import Table
from compress.results.comparison import Comparison, Entry, Field, Measure, Pair

PARTS = {  # as the page shows them: which of the parts of `SizePart` they hold
    "block linears": ("block linears",),
    "head and embedding": ("head", "embedding"),
    "rest": ("norms and biases", "other files"),
}
DECADES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of KL, nats; edges of the histogram's bins
_NEAR = 1e-6  # relative; edges are powers of ten to rounding
NOT_RANKED = "≠"  # behind a number whose column is not compared
BEST = "★"


def parts(comparison: Comparison) -> dict[str, dict[str, int]]:
    """Bytes by artifact and part."""
    return {
        entry.name: {
            part: sum(entry.parts_bytes.get(one, 0) for one in inside)
            for part, inside in PARTS.items()
        }
        for entry in comparison.artifacts
    }


def part_table(comparison: Comparison) -> Table:
    """Size by part, a row each artifact."""
    rows = tuple(
        (
            name,
            *(numbers.size(count) for count in found.values()),
            numbers.size(sum(found.values())),
        )
        for name, found in parts(comparison).items()
    )
    return Table(("artifact", *PARTS, "together"), rows)


def spread_table(comparison: Comparison) -> Table:
    """Share of tokens by their KL; nothing where artifacts may not be compared in it."""
    rows = tuple(
        (entry.name, *map(numbers.percent, _spread(entry))) for entry in drawn.spread(comparison)
    )
    bounds = [f"below {DECADES[0]:g} nats", *(f"to {one:g}" for one in DECADES[1:])]
    return Table(("artifact", *bounds, f"above {DECADES[-1]:g}"), rows)


def number_table(comparison: Comparison) -> Table:
    """Every measure (rows) of every artifact (columns); the best of each row is marked."""
    rows = tuple(
        (_label(measure), *(marked(comparison, measure, name) for name in comparison.names))
        for measure in comparison.measures
    )
    return Table(("", *comparison.names), rows)


def marked(comparison: Comparison, measure: Measure, name: str) -> str:
    """A cell of a column: with a star where it is the best, crossed where nothing is compared."""
    text = cells.number(measure, measure.numbers.get(name))
    if name in measure.numbers and not measure.comparable:
        return f"{text} {NOT_RANKED}"
    return f"{text} {BEST}" if name in cells.bests(comparison, measure) else text


def protocol_table(comparison: Comparison) -> Table:
    """How each measure was taken; where that differs, who measured how."""
    rows = tuple(
        (
            measure.label,
            cells.protocol(measure)
            if measure.comparable
            else "; ".join(f"{field.name}: {cells.shares(field)}" for field in measure.differs),
        )
        for measure in comparison.measures
        if any(number.protocol for number in measure.numbers.values())
    )
    return Table(("measure", "measured on"), rows, words=2)


def recipe_table(comparison: Comparison, *, whole: bool = False) -> Table:
    """What differs in the recipes; without `whole` only what two that have the field do not share.

    A stage that not all have differs in all of its fields: the first row, `stages`, says that.
    """
    fields = [field for field in comparison.recipe if whole or _tells(field)]
    return _field_table(comparison, fields)


def made_by_table(comparison: Comparison) -> Table:
    """What else decided the runs."""
    return _field_table(comparison, comparison.made_by)


def pair_table(comparison: Comparison) -> Table:
    """Two artifacts on one task, item by item."""
    rows = tuple(
        (
            pair.task.replace("_", " "), f"{pair.first} : {pair.second}", _verdict(pair),
            f"{pair.items:,}", f"{pair.first_alone} : {pair.second_alone}", f"{pair.p_value:.3f}",
        )
        for pair in comparison.pairs
    )  # fmt: skip
    header = ("task", "who", "what that says", "items", "right alone", "p")
    return Table(header, rows, words=3)


def flip_table(comparison: Comparison) -> Table:
    """Every item that not all answer alike."""
    flips = comparison.flipped
    names = [name for name in comparison.names if any(name in flip.answers for flip in flips)]
    rows = tuple(
        (
            f"{flip.task.replace('_', ' ')} {flip.item + 1}", flip.question or NONE,
            flip.expected or NONE, *(_answer(flip.answers, flip.right, name) for name in names),
        )
        for flip in flips
    )  # fmt: skip
    return Table(("item", "question", "right answer", *names), rows, words=3 + len(names))


def notes(comparison: Comparison) -> Iterator[str]:
    """What has to be known of single artifacts."""
    for entry in comparison.artifacts:
        for note in entry.notes:
            yield f"{entry.name}: {note}"


def _spread(entry: Entry) -> list[float]:
    """Shares of tokens between the decades, by the lower edges of the bins that hold them."""
    found = [0] * (len(DECADES) + 1)
    for low, count in zip(entry.histogram_edges, entry.histogram_counts, strict=False):
        found[sum(low > one * (1 - _NEAR) for one in DECADES)] += count
    return [count / sum(found) for count in found]


def _label(measure: Measure) -> str:
    unit = cells.unit(measure)
    return f"{measure.label}, {unit}" if unit else measure.label


def _field_table(comparison: Comparison, fields: Sequence[Field]) -> Table:
    names = [name for name in comparison.names if any(name in field.values for field in fields)]
    rows = tuple(
        (field.name, *(cells.value(field.values.get(name, NONE)) for name in names))
        for field in fields
    )
    return Table(("field", *names), rows, words=1 + len(names))


def _tells(field: Field) -> bool:
    there = [str(value) for value in field.values.values() if value != NONE]
    return len(set(there)) > 1


def _verdict(pair: Pair) -> str:
    if pair.p_value >= cells.SURE:
        return "no difference is shown"
    return f"{cells.better(pair)} is right more often"


def _answer(answers: dict[str, str], right: dict[str, bool], name: str) -> str:
    if name not in answers:
        return NONE
    return f"{'✓' if right[name] else '✗'} {answers[name]}"
