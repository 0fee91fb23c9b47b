"""A comparison as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from compress.report.compared import cells, tables
from compress.report.rows import Table
from compress.results.comparison import Comparison, Prompt

COLUMNS = (
    "artifact", "folder", "measure", "value", "low", "high", "unit", "better", "comparable",
    "rank", "protocol", "differs",
)  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """Render a comparison as Markdown."""
    return "\n\n".join(_blocks(comparison)) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Render all numbers as CSV, one a row: a number stands beside the protocol that gave it.

    Bytes of parts come last, unranked. What is no number of one artifact is not in it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    folders = {entry.name: entry.folder for entry in comparison.artifacts}
    for measure in comparison.measures:
        differs = ", ".join(field.name for field in measure.differs)
        for name, number in measure.numbers.items():
            rank = 1 + measure.ranking.index(name) if name in measure.ranking else ""
            protocol = {**number.protocol, **({"text": number.text} if number.text else {})}
            row = (
                name, folders[name], measure.name, number.value, number.low, number.high,
                measure.unit, measure.better, str(measure.comparable).lower(), rank,
                json.dumps(protocol, ensure_ascii=False) if protocol else "", differs,
            )  # fmt: skip
            writer.writerow([_inert(cell) for cell in row])
    for entry in comparison.artifacts:
        for part, count in entry.parts_bytes.items():
            measured = (f"parts_bytes.{part}", count, "", "", "bytes", "low", "true", "", "", "")
            writer.writerow([_inert(cell) for cell in (entry.name, entry.folder, *measured)])
    return stream.getvalue()


def _blocks(comparison: Comparison) -> Iterator[str]:
    yield f"# {cells.listed(comparison.names)}"
    yield " ".join(map(_plain, cells.sentences(comparison)))
    yield _table(tables.number_table(comparison))
    yield (
        f"{tables.BEST} {cells.BEST_IS}. {tables.NOT_RANKED} measured by different protocols, "
        "not compared. Intervals hold in 95 of 100 cases."
    )
    if said := [*cells.refusals(comparison), *tables.notes(comparison)]:
        yield "\n".join(f"- {_plain(one)}" for one in said)
    sections = {
        "Size by part": tables.part_table(comparison),
        "How far from the teacher, by share of tokens": tables.spread_table(comparison),
        "Protocols": tables.protocol_table(comparison),
        "Who is right more often": tables.pair_table(comparison),
        "What differs in the recipes": tables.recipe_table(comparison),
        "What else decided the runs": tables.made_by_table(comparison),
        "Flipped answers": tables.flip_table(comparison),
    }
    for heading, table in sections.items():
        if table.rows:
            yield f"## {heading}\n\n{_table(table)}"
    if comparison.prompts:
        yield "## The same prompts, answered\n\nGreedy continuations."
        yield from map(_answered, comparison.prompts)


def _answered(prompt: Prompt) -> str:
    """One prompt and what everybody answers, a line each."""
    answers = {} if prompt.teacher is None else {"teacher": prompt.teacher}
    said = [*answers.items(), *prompt.answers.items()]
    lines = [f"- {_plain(who)}: {_plain(answer)}" for who, answer in said]
    return "\n".join([f"**{_plain(prompt.prompt)}**", "", *lines])


def _table(table: Table) -> str:
    ends = ["---" if place < table.words else "--:" for place in range(len(table.header))]
    lines = [_row(table.header), "|" + "|".join(ends) + "|", *(_row(row) for row in table.rows)]
    return "\n".join(lines)


def _row(row: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_plain, row)) + " |"


def _plain(text: str) -> str:
    """A stranger's text that stays text: no table cell, no markup and no second line."""
    text = " ".join(text.split())
    return "".join("\\" + one if one in "\\|`*_[]<>" else one for one in text)


def _inert(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell
