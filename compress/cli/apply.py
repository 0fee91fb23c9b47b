"""The commands that run something long: `apply` and `evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compress.cli import completion, console, launch, progress
from compress.cli.tracked import Track, tell_run
from compress.errors import CompressError, GateMissed, RequestError, RunError, TrainingError

if TYPE_CHECKING:
    from compress.pipeline import Outcome
    from compress.recipe.schema import Recipe
    from compress.stages.team import Team

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="The name of a shipped recipe, or a path to a .yaml file.",
        autocompletion=completion.recipes,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one field, e.g. calibration.samples=64. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where to compute; auto takes CUDA if there is one."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Processor threads; part of a run's identity."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--nproc", min=1, help="Processes that share the work, and --threads; part of the same."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to stdout instead of a table.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show neither progress nor table.")]


def apply(
    context: typer.Context,
    recipe: RecipeName,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to make.  [default: ./<recipe>-<teacher>]")
    ] = None,
    sets: Sets = None,
    device: Device = "auto",
    threads: Threads = None,
    nproc: Processes = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Processes share the weights that distill trains, too (FSDP2)."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an unfinished run has left at --out.")
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Anonymous memory to keep within, such as 4GiB; refused at once if it cannot be.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            "--sign", metavar="KEY", help="Sign the artifact with this private key (PEM)."
        ),
    ] = None,
    track: Track = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a smaller model by a recipe, and measure what it cost.

    What is done stands in the recipe: from its teacher to a folder with weights that engines open,
    results, a report, the locked recipe that makes it again, and hashes of all of it. Cut short,
    the same command goes on where it stopped.
    """
    from compress import tracking
    from compress.artifact.output import beside, default_folder, refuse_finished
    from compress.plan.memory import parse_bytes
    from compress.recipe.load import locate

    located = locate(recipe, sets or ())
    folder = out or default_folder(located.recipe)
    budget = parse_bytes(max_memory) if max_memory else None
    member, locked = launch.member(), located.recipe.resolved
    launch.told_alone(member)
    count = launch.wanted(member, nproc, locked.processes, bounded=budget is not None)
    shard = shard or bool(locked.sharded)
    if shard and count == 1:
        raise RequestError("--shard: one process shares its weights with none. Say --nproc, too.")
    if member.rank == 0:
        refuse_finished(folder)
        if track:
            tracking.check(track)
    threads = threads or locked.threads
    if member.size < count:
        launch.check_devices(count, found(_locked_device(located.recipe, device)))
        raise typer.Exit(_launched(count, context.find_root().obj, threads, folder))
    from compress import pipeline  # imports torch, so only once the request is known to be right
    from compress.stages import team

    where = found(_locked_device(located.recipe, device))
    among = team.found(where, threads, sharded=shard) if member.size > 1 else team.ALONE
    if among.rank:
        _follow(located.recipe, where, among)
        return
    try:
        with progress.watching(quiet=quiet) as watch:
            outcome = pipeline.apply(
                located.recipe,
                out=folder,
                device=where,
                threads=threads if among.size == 1 else among.threads,
                watch=watch,
                places=located.places,
                fresh=fresh,
                max_memory_bytes=budget,
                sign=sign,
                team=among,
            )
    except TrainingError:  # says itself what is kept, and the same command would end alike
        raise
    except (KeyboardInterrupt, RunError):
        console.say(left_behind(folder))
        raise
    except GateMissed:
        if json:
            console.emit_json(rejected(folder))
        tell_run(track, beside(folder, "rejected"), quiet=quiet)
        raise
    _tell(outcome, json=json, quiet=quiet)
    tell_run(track, folder, quiet=quiet)


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|TEACHER", help="A folder, or a teacher as a recipe names it."
        ),
    ],
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="quick, smoke, full, or a path to a .yaml file.",
            autocompletion=completion.suites,
        ),
    ] = "quick",
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a finished artifact or a teacher.

    An artifact whose lock names its teacher is judged beside it; any other model alone.
    """
    from compress import pipeline

    with progress.watching(quiet=quiet) as watch:
        side, divergence = pipeline.evaluate(
            model, suite=suite, device=found(device), threads=threads, watch=watch
        )
    if json:
        after = dataclasses.asdict(divergence) if divergence else None
        console.emit_json({"model": model, **dataclasses.asdict(side), "divergence": after})
    elif not quiet:
        console.show(console.side_table(side, divergence))


def _launched(count: int, arguments: Sequence[str], threads: int | None, folder: Path) -> int:
    """The exit code of a run in several processes, of which the first tells what it has left."""
    try:
        return launch.processes(count, arguments, threads)
    except RunError:
        console.say(left_behind(folder))
        raise


def _follow(recipe: Recipe, device: str, team: Team) -> None:
    """Share the work of another process, and say nothing but why this one has failed."""
    from compress import pipeline

    try:
        pipeline.follow(recipe, device=device, team=team)
    except CompressError as error:
        told = f"process {team.rank} of {team.size}: {error}"
        raise RunError(told, section=error.section) from error


def left_behind(folder: Path) -> str:
    """Say in one line what a run that was cut short left on disk."""
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        return f"Cut short. {partial} holds what is finished; the same command goes on from there."
    return "Cut short. Nothing was left on disk."


def _locked_device(recipe: Recipe, device: str) -> str:
    """A lock's own device, unless another is asked for by name."""
    return recipe.resolved.device or device if device == "auto" else device


def found(device: str) -> str:
    """The device that one of `--device` means here.

    Raises:
        RequestError: CUDA is asked for, and torch finds none.
    """
    from compress import machine

    return machine.find_device(device)


def rejected(out: Path) -> dict[str, Any]:
    """What is known of a student that missed a gate, as `--json` tells of one that did not."""
    from compress import storage
    from compress.artifact.output import beside

    folder = beside(out, "rejected")
    told = {name: storage.read_json(folder / f"{name}.json") for name in ("results", "measured")}
    return {"folder": str(folder), **told, "verification": None}


def _tell(outcome: Outcome, *, json: bool, quiet: bool) -> None:
    from compress.cli.verify import sentence
    from compress.report.rows import fallback_text
    from compress.report.summary import summary

    if json:
        results, measured = (
            dataclasses.asdict(outcome.results),
            dataclasses.asdict(outcome.measured),
        )
        folder = str(outcome.folder)
        verified = {**dataclasses.asdict(outcome.verification), "passed": True}
        console.emit_json(
            {"folder": folder, "results": results, "measured": measured, "verification": verified}
        )
    elif not quiet:
        if outcome.results.verdict:
            console.show(console.gate_table(outcome.results.verdict))
        console.show(console.summary_table(summary(outcome.results, outcome.measured)))
        if outcome.results.fallbacks:
            console.tell(f"Fallbacks: {fallback_text(outcome.results)} The report names them.")
        console.tell(sentence(outcome.verification))
        console.tell(f"Made {outcome.folder}, with its report: {outcome.folder / 'report.html'}")
