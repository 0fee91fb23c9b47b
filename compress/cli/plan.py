"""The command that runs nothing: `plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from compress.cli import console
from compress.cli.apply import Json, RecipeName, Sets
from compress.report import numbers

if TYPE_CHECKING:
    from rich.table import Table

    from compress.plan import Plan


def plan(
    recipe: RecipeName,
    sets: Sets = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Anonymous memory to keep within, such as 4GiB; the plan says how, or why not.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Processor threads of the run.")
    ] = None,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="Processes that will share the work.")
    ] = 1,
    json: Json = False,
) -> None:
    """Say what a recipe would make, take and cost; nothing is run.

    From headers alone: sizes to the byte, memory and time as predicted, who will open the artifact,
    and whatever cannot work.
    """
    from compress import library
    from compress import plan as plans
    from compress.plan.memory import parse_bytes
    from compress.recipe.load import locate
    from compress.teacher import headers

    located = locate(recipe, sets or ())
    budget = parse_bytes(max_memory) if max_memory else None
    found = plans.make(
        located.recipe,
        headers.of_recipe(located.recipe, located.places),
        cache=library.cache_folder(),
        budget_bytes=budget,
        threads=threads,
        places=located.places,
        processes=nproc,
    )
    if json:
        console.emit_json(dataclasses.asdict(found))
        return
    console.tell(headline(found))
    for table in (console.fact_table(facts(found)), linears(found), parts(found), readers(found)):
        console.show(table)
    for note in found.notes:
        console.tell(f"Note: {note}.")


def headline(found: Plan) -> str:
    """What is planned, in one line."""
    ties = "head tied to the embedding" if found.tied else "head of its own"
    return (
        f"{found.recipe} on {found.teacher}: {found.model_type}, {found.blocks} blocks, "
        f"{numbers.amount(found.weights)} weights, {ties}"
    )


def facts(found: Plan) -> dict[str, str]:
    """The plan's numbers, one line each."""
    size = found.size
    bits = f"{size.bits_per_weight:.3f}; with the head {size.bits_per_weight_with_head:.3f}"
    disk = {name: taken for name, taken in found.disk_bytes.items() if taken}
    took = "" if found.seconds is None else f"about {numbers.duration(found.seconds)}, "
    most, least = ("at most ", "at least ") if size.at_most else ("", "")
    told = {
        "size": f"{numbers.size(size.before_bytes)} → {most}{numbers.size(size.size_bytes)}, "
        f"{least}{numbers.ratio(size.before_bytes, size.size_bytes)}",
        "bits per weight": most + bits,
        "keys and values": "{:,} → {:,} bytes a token".format(*found.kv_bytes_per_token),
        "peak memory": f"{numbers.size(found.peak_memory_bytes)}: {_each(found.memory_bytes)}",
        "disk": f"{numbers.size(sum(disk.values()))}: {_each(disk)}",
        "time": took + found.seconds_note,
    }
    if found.limits != type(found.limits)():
        told["limits"] = ", ".join(
            f"{name} {value:,}" for name, value in dataclasses.asdict(found.limits).items()
        )
    if found.left_out:
        told["left out"] = f"{', '.join(found.left_out)}: the student whole does not fit the budget"
    return told


def linears(found: Plan) -> Table:
    """What becomes of each kind of linear."""
    table = _table("linears", "count", "O × I", "bits", "group sizes that divide")
    for row in found.linears:
        rows, columns = row.shape
        sizes = ", ".join(map(str, row.group_sizes)) or "-1"
        bits = f"{row.bits_per_weight:.3f}"
        table.add_row(
            row.linears, str(row.count), f"{rows:,} × {columns:,}", bits, sizes, row.scheme
        )
    return table


def parts(found: Plan) -> Table:
    """Stored bytes of each part, before and after."""
    after = "after, at most" if found.size.at_most else "after"
    table = _table("part", "before", after, last="")
    for part in found.size.parts:
        table.add_row(part.part, f"{part.before_bytes:,}", f"{part.after_bytes:,}", "")
    return table


def readers(found: Plan) -> Table:
    """Who will open the artifact."""
    table = _table("opened by", "", last="why")
    for consumer in found.consumers:
        said = "; ".join(consumer.reasons)
        table.add_row(consumer.name, "yes" if consumer.loads else "no", said)
    return table


def _each(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {numbers.size(size)}" for name, size in sizes.items())


def _table(first: str, *right: str, last: str = "scheme") -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column(first)
    for name in right:
        table.add_column(name, justify="right")
    table.add_column(last, overflow="fold")
    return table
