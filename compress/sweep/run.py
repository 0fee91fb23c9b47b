"""A sweep carried out: planned, run, compared, and one recipe chosen."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compress import library, machine, storage
from compress.compare import compare
from compress.errors import ArtifactError, RecipeError, shown
from compress.recipe.sweep import LocatedSweep, Sweep
from compress.report.compared import page
from compress.results import to_json
from compress.results.swept import Swept, Trial
from compress.surgery.walk import Watch as Progressing
from compress.sweep import candidates, cluster, tuned, worker
from compress.sweep.board import Board, Watch
from compress.sweep.budget import best, score
from compress.sweep.candidates import Planned, Planner, Point
from compress.sweep.work import Work
from compress.sweep.worker import TRIALS, Order

PAGE, BEST, RECORD = "compare.html", "best.yaml", "sweep.json"
_LEFT = re.compile(rf"({'|'.join(map(re.escape, (PAGE, BEST, RECORD)))})\.\d+\.tmp")


@dataclass(frozen=True)
class Ready:
    """A sweep of which everything has been looked at that can be wrong."""

    located: LocatedSweep
    planner: Planner
    planned: tuple[Planned, ...]  # its trials; of a search, those at its corners


def plan(located: LocatedSweep, *, device: str = "cpu", watch: Progressing = None) -> Ready:
    """Look at everything of a sweep that can be known before it runs.

    Teachers are brought, as workers will need them.

    Raises:
        RequestError: all that cannot work, with its place in the sweep's file.
    """
    bring = partial(candidates.bring, watch=watch)
    planner = Planner(located, library.cache_folder(), bring, device)
    points = candidates.corners if located.sweep.search else candidates.grid
    return Ready(located, planner, tuple(candidates.check(planner, points(located))))


def check_folder(out: Path) -> None:
    """Look at the folder of a sweep, which is new or a sweep's already.

    Raises:
        ArtifactError: it is something else's.
    """
    known = {TRIALS, worker.SHARED, PAGE, BEST, RECORD, ".tune"}
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out}: is no folder. Choose another --out, or move it away.")
    there = {path.name for path in out.iterdir()} if out.exists() else set[str]()
    if others := sorted(name for name in there - known if not _LEFT.fullmatch(name)):
        raise ArtifactError(
            f"{out}: exists, and is no sweep's: it holds {shown(others[0])}. A sweep writes over "
            "nothing that it did not make. Choose another --out, or move it away."
        )


def sweep(
    ready: Ready,
    *,
    out: Path,
    device: str = "cpu",
    workers: int | None = None,
    address: str | None = None,
    watch: Watch = None,
) -> Swept:
    """Run the trials of a sweep, compare them, and choose the best within the budget.

    What is finished there already is taken as it is; what was cut short goes on.

    Args:
        ready: see `plan`.
        out: its folder.
        device: cpu or cuda.
        workers: trials at once; the sweep's own number, or as cores allow, by default.
        address: of a Ray cluster whose machines all see `out`; by default this machine by itself.
        watch: told of every change.

    Raises:
        RequestError: it cannot be run here.
        RunError: it could, and something failed that is no single trial's.
    """
    began, spec = time.monotonic(), ready.located.sweep
    order = Order(ready.located, out.absolute(), device, Path.cwd(), machine.made_with())
    board = Board()
    with _mine(out):
        work = _begun(order, ready, board)
        if watch:
            watch(board, "")
        if work.left:
            tuned.check_installed()
            count = workers or spec.workers or _workers(spec.threads)
            crew = cluster.Crew(count, address, spec.budget.seconds)
            tell = (lambda name: watch(board, name)) if watch else (lambda name: None)
            tuned.run(order, work, board, crew, tell)
        seconds = time.monotonic() - began
        return _concluded(order, out, board, seconds, _ended(order, board, seconds))


def _begun(order: Order, ready: Ready, board: Board) -> Work:
    """What is left to do; the board shows every trial that is known."""
    storage.make_folder(order.out / TRIALS)
    if ready.located.sweep.search:
        return _begun_search(order, ready.planner, board)
    work = Work()
    for one in candidates.named(ready.planned, order.decided):
        known = worker.too_large(order, one) or worker.finished(order, one)
        board.show([known or one.trial])
        work.todo += [] if known else [one]
    return work


def _begun_search(order: Order, planner: Planner, board: Board) -> Work:
    spec, work, unfinished = order.located.sweep, Work(), list[Trial]()
    for trial in _noted(order):
        chosen = (trial.recipe, {key: json.loads(value) for key, value in trial.fields.items()})
        known, name = _known(order, planner, chosen, trial)
        if known:
            board.show([known])
            work.known.append((chosen, score(known, spec.objective, spec.budget)))
        else:
            work.begun.append(chosen)
            unfinished.append(replace(trial, name=name, state="waiting"))
    most = max(0, (spec.trials or 0) - len(work.known))
    del work.begun[most:]
    board.show(unfinished[:most])
    tried = len(work.known) + len(work.begun)
    work.free = most - len(work.begun) if tried < spec.most else 0
    return work


def _known(
    order: Order, planner: Planner, chosen: Point, before: Trial
) -> tuple[Trial | None, str]:
    """What is known of something that a search has chosen; and its name, if it has yet to run."""
    try:
        one = candidates.named([planner.plan(chosen)], order.decided)[0]
    except RecipeError:
        return replace(before, state="invalid"), before.name
    return worker.too_large(order, one) or worker.finished(order, one), one.name


def _noted(order: Order) -> Iterator[Trial]:
    """What a search has chosen before, each once, as far as this sweep could choose it too."""
    spec, met = order.located.sweep, set[str]()
    for path in sorted((order.out / TRIALS).glob("*.json")):
        found = worker.noted(order, path.stem)
        if not found or found.recipe not in spec.recipes:
            continue
        chosen = json.dumps([found.recipe, found.fields])
        if _may_choose(spec, found) and chosen not in met:
            met.add(chosen)
            yield found


def _may_choose(spec: Sweep, trial: Trial) -> bool:
    """Whether a search varies the fields of a trial, and may choose its values."""
    return trial.fields.keys() == spec.search.keys() and all(
        spec.search[key].holds(json.loads(value)) for key, value in trial.fields.items()
    )


def _ended(order: Order, board: Board, seconds: float) -> str:
    """What ended the trials before the last of them; "" where nothing did."""
    board.end("the time was over; the same command goes on with it")
    spec, there = order.located.sweep, len(board.trials)
    limit, most, asked = spec.budget.wall_clock, spec.budget.seconds, spec.trials or 0
    cut = any(one.state in ("waiting", "cut") for one in board.trials)
    if there < asked and there >= spec.most and not cut:
        return f"trials: {asked} are asked for, and the search can choose no more than {there}"
    if most is not None and (cut or (there < asked and seconds >= most)):
        return f"wall_clock {limit} is over; the same command goes on with what is left"
    if there < asked and not cut:
        return f"the sampler chose some of {there} trials again; the same command tries more"
    return ""


def _concluded(order: Order, out: Path, board: Board, seconds: float, ended_by: str) -> Swept:
    """Compare what was made, choose, and write all of it down."""
    spec, trials = order.located.sweep, board.trials
    made = [one for one in trials if one.state == "made"]
    chosen, front = best(trials, spec.objective), tuple[str, ...]()
    for name, earned in ((PAGE, made), (BEST, chosen)):
        if not earned:
            (out / name).unlink(missing_ok=True)  # an earlier sweep's, with another budget
    if made:
        called = _called(made)
        folders = [out / TRIALS / name for name in called.values()]
        found = compare(folders, names=[*called])
        front = tuple(called[label] for label in found.front.names) if found.front else ()
        storage.write_text(out / PAGE, page.render(found))
    swept = Swept(
        order.located.name, str(out), spec.objective, trials, front,
        chosen.name if chosen else None, _command(out) if chosen else "",
        str(out / PAGE) if made else "", round(seconds, 3), ended_by,
    )  # fmt: skip
    if chosen:
        lock = storage.read_text(out / TRIALS / chosen.name / "recipe.lock.yaml")
        storage.write_text(out / BEST, _head(chosen, swept) + lock)
    storage.write_text(out / RECORD, to_json(swept))
    return swept


def _called(made: Sequence[Trial]) -> dict[str, str]:
    """The folder of each trial by the name that people read: its label, if no other has it."""
    often = Counter(one.label for one in made)
    return {one.label if often[one.label] == 1 else one.name: one.name for one in made}


def _head(chosen: Trial, swept: Swept) -> str:
    varied = ", ".join(f"{key}: {value}" for key, value in chosen.fields.items())
    return (
        f"# best of sweep {swept.sweep} by {swept.objective}: {chosen.recipe}"
        f"{', ' + varied if varied else ''}\n# run:     {swept.command}\n"
    )


def _command(out: Path) -> str:
    return f"compress apply {shlex.quote(str(out / BEST))} --out best"


def _workers(threads: int) -> int:
    """Trials at once on this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // threads)


@contextlib.contextmanager
def _mine(out: Path) -> Iterator[None]:
    """Hold the folder of a sweep against others; the system lets go of it however this one ends.

    Raises:
        ArtifactError: another sweep is at work there, or it is something else's.
    """
    check_folder(out)
    storage.make_folder(out)
    there = [path.name for path in out.iterdir()]
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(
                f"{out}: another sweep is at work there. Wait for it, or choose another --out."
            ) from error
        for name in filter(_LEFT.fullmatch, there):  # a driver was killed while it wrote it
            (out / name).unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
