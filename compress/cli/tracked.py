"""The option `--track`: what a command has finished, told to a tracker."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compress import storage
from compress.cli import console
from compress.report import numbers
from compress.results.swept import FINISHED, Swept, Trial

if TYPE_CHECKING:
    from compress.tracking import Tracker

Track = Annotated[
    Literal["mlflow", "wandb"] | None,
    typer.Option("--track", help="Tell a tracker of each run; nothing is sent without it."),
]


def tell_run(tracker: Tracker | None, folder: Path, *, quiet: bool) -> None:
    """Tell a tracker of a finished run; where it fails, the command ends as it would have."""
    if tracker is None or not (folder / "results.json").is_file():
        return
    if reason := _sent(tracker, folder):
        console.say(f"--track {tracker}: could not be told ({reason}). The run is in {folder}.")
    elif not quiet:
        console.say(f"Told {tracker} of the run.")


def tell_sweep(tracker: Tracker | None, swept: Swept, *, quiet: bool) -> None:
    """Tell a tracker of every trial that was finished, also by an earlier run, each once."""
    if tracker is None:
        return
    trials = Path(swept.folder) / "trials"
    with storage.locked(trials / f".{tracker}.lock"):  # the same command may end elsewhere, too
        told = _tell_trials(tracker, swept, trials)
    if told is not None and not quiet:
        console.say(f"Told {tracker} of {numbers.counted(told, 'trial')}.")


def _tell_trials(tracker: Tracker, swept: Swept, trials: Path) -> int | None:
    """Tell of what has no mark yet: how many; None where it could not be told to the end."""
    from compress import tracking

    told = 0
    for one in (one for one in swept.trials if one.state in FINISHED):
        folder, mark = _folder(trials, one), trials / f".{one.name}.{tracker}"
        if mark.exists() or not (folder / "results.json").is_file():
            continue
        if reason := tracking.unreadable(folder):
            console.say(f"--track {tracker}: {folder} is left out ({reason}).")
            continue
        if reason := _sent(tracker, folder, swept.sweep):
            console.say(
                f"--track {tracker}: could not be told of {one.name} ({reason}). Trials are in "
                f"{trials}; the same command tells what is left."
            )
            return None
        mark.touch()
        told += 1
    return told


def _folder(trials: Path, trial: Trial) -> Path:
    from compress.artifact.output import beside

    folder = trials / trial.name
    return beside(folder, "rejected") if trial.state == "rejected" else folder


def _sent(tracker: Tracker, folder: Path, group: str = "") -> str:
    from compress import tracking

    with contextlib.redirect_stdout(sys.stderr):  # what trackers say is no result
        return tracking.send(tracker, folder, group=group)
