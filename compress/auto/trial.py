"""A recipe carried out in short: few samples, few windows; and what that says of the whole run."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compress import machine
from compress.artifact import output, records
from compress.errors import ArtifactError
from compress.kernels.divergence import half_width
from compress.recipe import resolve
from compress.recipe.inputs import inputs
from compress.recipe.schema import Recipe, Resolved
from compress.recipe.suite import load_suite
from compress.results import Measured, Results
from compress.results.choice import (
    MEETS,
    MISSES,
    UNDECIDED,
    Estimate,
    Trial,
    Verdict,
    Wanted,
)
from compress.surgery.walk import Watch
from compress.teacher import sources
from compress.teacher.folder import Teacher

SAMPLES = 16  # calibration windows at most
TEXT = 64  # windows that `distill` trains on, at most
STEPS = 16  # of its optimizer, at most
SUITE = "short"
TIMINGS = 3


def protocol(suite: str) -> str:
    """What a short trial is, in words."""
    read = load_suite(suite).divergence
    return (
        f"at most {SAMPLES} calibration windows, {TEXT} windows and {STEPS} steps of training; KL "
        f"over {read.windows} windows of {read.seq_len} tokens of {Path(read.set).name}, with a "
        "95 % interval from their spread. The whole run reads more text and mostly ends closer"
    )


def shortened(recipe: Recipe, suite: str) -> Recipe:
    """The same recipe on less text, judged in short, with no gate: gates are for the whole run."""
    data = resolve.explicit(recipe)
    data["calibration"]["samples"] = min(data["calibration"]["samples"], SAMPLES)
    data["evaluate"] = {"suite": suite}
    for stage in data["stages"]:
        for name, fields in stage.items():
            _shorten(name, fields)
    named = Resolved(recipe=f"{recipe.resolved.recipe}, a short trial")
    return Recipe.model_validate({**data, "resolved": named.model_dump()})


def _shorten(name: str, fields: dict[str, Any]) -> None:
    if name == "allocate":
        fields["samples"] = min(fields["samples"], SAMPLES)
    elif name == "distill":
        if fields["text"]:
            fields["text"]["samples"] = min(fields["text"]["samples"], TEXT)
        if fields["steps"]:
            fields["steps"] = min(fields["steps"], STEPS)


def folder_of(
    recipe: Recipe, name: str, teacher: Teacher, *, device: str, threads: int | None
) -> str:
    """The name of a trial's folder: it ends in a hash over all that decides what is found there.

    Raises:
        RequestError: what its student begins as cannot be had.
    """
    origin = sources.origin_of(recipe, teacher)
    decided = {
        "recipe": resolve.canonical_json(recipe),
        "models": [one.fingerprint for one in (teacher, origin) if one],
        "inputs": inputs(recipe),
        "device": device,
        "threads": threads or torch.get_num_threads(),
        **machine.made_with(),
    }
    content = json.dumps(decided, sort_keys=True)
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def carry_out(
    recipe: Recipe, folder: Path, *, device: str, threads: int | None, watch: Watch, timed: bool
) -> Trial:
    """Run a short recipe, or read what it left; time its student where that is asked.

    Raises:
        ArtifactError: what lies in its place is another run's, or damaged.
        RequestError: it cannot be carried out after all.
        RunError: it failed.
    """
    if not folder.is_dir():
        from compress import pipeline

        try:
            pipeline.apply(recipe, out=folder, device=device, threads=threads, watch=watch)
        except ArtifactError as error:
            there = output.beside(folder, "partial")
            raise ArtifactError(
                f"{error}\nIt is a trial's: remove {there}, or give another --work."
            ) from error
    results = records.record(folder / "results.json", Results)
    measured = records.record(folder / "measured.json", Measured)
    if results is None or measured is None:
        raise ArtifactError(
            f"{folder}: a trial without its records. Remove it; the same command makes it anew."
        )
    kl = results.divergence
    after = results.after or results.before
    return Trial(
        str(folder),
        after.size_bytes,
        interval(kl.kl_mean, kl.window_means) if kl else None,
        timed_decoding(folder, threads) if timed else None,
        measured.seconds["total"],
    )


def interval(mean: float, windows: Sequence[float]) -> Estimate:
    """A mean and its 95 % interval, by Student's t over the means of windows.

    Tokens of one window go together, so windows are what is counted; one window tells nothing.
    """
    count = len(windows)
    if count < 2:
        return Estimate(mean, 0.0, math.inf)
    around = half_width(windows)
    return Estimate(mean, max(0.0, mean - around), mean + around)


def timed_decoding(folder: Path, threads: int | None) -> Estimate | None:
    """Tokens a second of several timings; None where our runtime cannot run the model."""
    from compress.evaluate import speed

    found = (speed.timings(folder, threads) for _ in range(TIMINGS))
    rates = sorted(rate for one in found if one and (rate := one.decode_tokens_per_second))
    return Estimate(statistics.median(rates), rates[0], rates[-1]) if rates else None


def verdict(trial: Trial, wanted: Wanted) -> Verdict:
    """Whether a student keeps all limits: surely, maybe, or surely not."""
    held: list[Verdict] = []
    if wanted.max_size_bytes is not None:
        held.append(MEETS if trial.size_bytes <= wanted.max_size_bytes else MISSES)
    if wanted.max_kl is not None:
        held.append(_held(trial.kl, wanted.max_kl, most=True))
    if wanted.min_speed is not None:
        held.append(_held(trial.speed, wanted.min_speed, most=False))
    worst: tuple[Verdict, ...] = (MISSES, UNDECIDED, MEETS)
    return next(one for one in worst if one in held)


def _held(found: Estimate | None, limit: float, *, most: bool) -> Verdict:
    if found is None:
        return MISSES
    surely, maybe = (found.high, found.low) if most else (found.low, found.high)
    if surely <= limit if most else surely >= limit:
        return MEETS
    return UNDECIDED if (maybe <= limit if most else maybe >= limit) else MISSES
