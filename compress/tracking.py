"""A finished run told to MLflow or to Weights & Biases, through their own libraries, when asked to.

Nothing is sent but by `--track`, and nothing but what lies in the run's folder: the locked recipe
as parameters, numbers as metrics, pages and records as files.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from compress import storage
from compress.errors import RecipeError, RequestError
from compress.recipe.source import read
from compress.results import Divergence, Measured, Results, Side, from_json

Tracker: TypeAlias = Literal["mlflow", "wandb"]
PROJECT = "compress"
FILES = ("report.html", "results.json", "recipe.lock.yaml")
_BATCH = 100  # parameters that MLflow takes at once
_PLAIN = re.compile(r"[\w-]+")  # keys that every tracker takes as part of a name
log = logging.getLogger("compress")


@dataclass(frozen=True)
class Tracked:
    """One run as trackers take it."""

    name: str
    group: str  # of the sweep that it is a trial of; "" where it is none
    parameters: dict[str, Any]  # of the locked recipe, by dotted name
    metrics: dict[str, float]
    files: tuple[Path, ...]


def check(tracker: Tracker) -> None:
    """Look at all that a tracker needs, before any work.

    Raises:
        RequestError: its library is missing, or it knows nobody to send to.
    """
    library = _library(tracker)
    if tracker == "wandb" and library.setup().settings.mode == "online" and not library.api.api_key:
        raise RequestError(
            "--track wandb: nobody is logged in. Run `wandb login`, or say WANDB_MODE=offline to "
            "keep runs here.",
            section="tracking",
        )


def send(tracker: Tracker, folder: Path, *, group: str = "") -> str:
    """Tell a tracker of a finished run.

    Args:
        tracker: as `check` has looked at.
        folder: of the run, accepted or rejected.
        group: the sweep that it is a trial of.

    Returns:
        why it could not be told, which is logged; "" where it was. The run is whole either way.
    """
    try:
        _TRACKERS[tracker](_library(tracker), tracked(folder, group))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
        log.warning("--track %s: %s", tracker, reason, exc_info=True)
        return reason
    return ""


def unreadable(folder: Path) -> str:
    """Why nobody can be told of a finished run; "" where its records are whole."""
    try:
        tracked(folder)
    except (OSError, ValueError, RecipeError) as error:
        return str(error)
    return ""


def tracked(folder: Path, group: str = "") -> Tracked:
    """A finished run as trackers take it, read from its folder.

    Raises:
        OSError, ValueError, RecipeError: a record is missing or broken.
    """
    results = from_json(Results, storage.read_text(folder / "results.json"))
    measured = from_json(Measured, storage.read_text(folder / "measured.json"))
    lock = read(storage.read_text(folder / "recipe.lock.yaml"), "recipe.lock.yaml").data
    files = tuple(path for name in FILES if (path := folder / name).is_file())
    return Tracked(
        folder.name,
        group,
        dict(flat(lock)),
        {**dict(_found(results)), **dict(_spent(measured))},
        files,
    )


def flat(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain data by dotted names; what has keys that are no names is one value, as JSON."""
    inner: list[tuple[str, Any]] = []
    if isinstance(data, Mapping) and data and all(_PLAIN.fullmatch(key) for key in data):
        inner = list(data.items())
    elif isinstance(data, list) and any(isinstance(one, Mapping) for one in data):
        inner = [(str(place), one) for place, one in enumerate(data)]
    if inner:
        for key, value in inner:
            yield from flat(value, f"{name}.{key}" if name else key)
    else:
        plain = isinstance(data, str | int | float | bool)
        yield name, data if plain else json.dumps(data, ensure_ascii=False)


def _found(results: Results) -> Iterator[tuple[str, float]]:
    for prefix, side in (("", results.after), ("teacher.", results.before)):
        if side is not None:
            yield from ((prefix + name, value) for name, value in _side(side))
    if (kl := results.divergence) is not None:
        for field in fields(Divergence):
            value = getattr(kl, field.name)
            if isinstance(value, int | float):
                yield field.name, float(value)
    if results.verdict is not None:
        yield "accepted", float(not results.verdict.missed)


def _side(side: Side) -> Iterator[tuple[str, float]]:
    yield "size_bytes", float(side.size_bytes)
    yield "bits_per_weight", side.bits_per_weight
    if side.perplexity:
        yield "perplexity", side.perplexity.perplexity
    for task in side.tasks:
        yield f"tasks.{task.name}.{task.metric}", task.accuracy


def _spent(measured: Measured) -> Iterator[tuple[str, float]]:
    for kind, seconds in (("seconds", measured.seconds), ("cpu_seconds", measured.cpu_seconds)):
        yield from ((f"{kind}.{step}", value) for step, value in seconds.items())
    for field in fields(Measured):
        value = getattr(measured, field.name)
        if isinstance(value, int | float):
            yield field.name, float(value)


def _library(tracker: Tracker) -> Any:
    """A tracker's own library, told to tell its makers nothing of its own.

    Raises:
        RequestError: it is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        if tracker == "mlflow":
            import mlflow

            return mlflow
        import wandb

        return wandb
    except ImportError as error:
        raise RequestError(
            f"--track {tracker}: its library cannot be imported ({error}). Install it: "
            f"pip install 'compress-llm[{tracker}]', or leave out --track.",
            section="tracking",
        ) from error


def _to_mlflow(mlflow: Any, run: Tracked) -> None:
    if not ("MLFLOW_EXPERIMENT_NAME" in os.environ or "MLFLOW_EXPERIMENT_ID" in os.environ):
        mlflow.set_experiment(PROJECT)
    tags = {"sweep": run.group} if run.group else None
    with mlflow.start_run(run_name=run.name, tags=tags):
        listed = list(run.parameters.items())
        for begin in range(0, len(listed), _BATCH):
            mlflow.log_params(dict(listed[begin : begin + _BATCH]))
        mlflow.log_metrics(run.metrics)
        for path in run.files:
            mlflow.log_artifact(str(path))


def _to_wandb(wandb: Any, run: Tracked) -> None:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    with wandb.init(
        project=project, name=run.name, group=run.group or None, config=run.parameters
    ) as begun:
        begun.summary.update(run.metrics)
        page = wandb.Artifact(re.sub(r"[^\w.-]", "-", run.name), type="run")
        for path in run.files:
            page.add_file(str(path))
        begun.log_artifact(page)


_TRACKERS: dict[Tracker, Callable[[Any, Tracked], None]] = {
    "mlflow": _to_mlflow,
    "wandb": _to_wandb,
}
