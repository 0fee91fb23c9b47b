"""Short trials, the most promising recipe first, until one keeps what is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.auto import trial as short
from compress.auto.candidates import Candidate, candidates, over
from compress.auto.wanted import excess
from compress.errors import ArtifactError, RequestError, RunError, StorageError
from compress.results import Progress
from compress.results.choice import (
    FAILED,
    MEETS,
    NOT_TRIED,
    RULED_OUT,
    UNDECIDED,
    Choice,
    Option,
    Trial,
    Verdict,
    Wanted,
)
from compress.surgery.walk import Watch
from compress.teacher.folder import Teacher


@dataclass(frozen=True)
class Trials:
    """How trials are carried out, and how many at most."""

    work: Path  # a folder of ordinary runs, which later commands read
    count: int = 3
    suite: str = short.SUITE
    device: str = "cpu"
    threads: int | None = None
    watch: Watch = None


def choose(teacher: Teacher, wanted: Wanted, trials: Trials, sets: Sequence[str] = ()) -> Choice:
    """Find a shipped recipe whose student keeps what is wanted.

    The first whose trial surely keeps it is taken; where none does, of those that may, the one
    whose own numbers keep it with most to spare.

    Args:
        teacher: as fetched; a recipe names it by its `name`.
        wanted: the limits.
        trials: how recipes are tried.
        sets: what is laid over each recipe, as `--set`.

    Raises:
        ModelError: the teacher is unsupported.
        RecipeError: `sets` fit no recipe.
        ArtifactError: what lies in a trial's place is no trial's, or damaged.
        StorageError: the disk refused.
    """
    listed = candidates(teacher, wanted, sets=sets, threads=trials.threads)
    able = [one for one in listed if not one.why_not]
    tried: list[Option] = []
    for one in able[: trials.count]:
        tried.append(_tried(one, len(tried), teacher, wanted, trials))
        if tried[-1].verdict == MEETS:
            break
    rest = [_option(one, NOT_TRIED) for one in able[len(tried) :]]
    ruled = [_option(one, RULED_OUT, one.why_not) for one in listed if one.why_not]
    chosen = _best(tried, wanted)
    return Choice(
        teacher.name,
        wanted,
        (*tried, *rest, *ruled),
        chosen,
        chosen or _nearest(tried, listed, wanted),
        short.protocol(trials.suite),
    )


def _tried(one: Candidate, number: int, teacher: Teacher, wanted: Wanted, trials: Trials) -> Option:
    """One candidate after its trial."""
    if trials.watch:
        trials.watch(Progress("trial", number, trials.count, "trial", one.name))
    if one.located is None:
        raise TypeError(f"{one.name}: a candidate that was not ruled out has been read")
    recipe = short.shortened(one.located.recipe, trials.suite)
    device, threads, timed = trials.device, trials.threads, wanted.min_speed is not None
    try:
        name = short.folder_of(recipe, one.name, teacher, device=device, threads=threads)
        found = short.carry_out(
            recipe, trials.work / name, device=device, threads=threads, watch=trials.watch,
            timed=timed,
        )  # fmt: skip
    except (ArtifactError, StorageError):  # what is in the way, or lacks, is no candidate's fault
        raise
    except (RequestError, RunError) as error:
        return _option(one, FAILED, str(error).splitlines()[0])
    return replace(_option(one, short.verdict(found, wanted)), trial=found)


def _option(one: Candidate, verdict: Verdict, reason: str = "") -> Option:
    planned = one.planned
    return Option(
        one.name,
        one.sets,
        verdict,
        reason,
        planned.size_bytes if planned else None,
        planned.at_most if planned else False,
        one.kl,
    )


def _best(tried: Sequence[Option], wanted: Wanted) -> str | None:
    """The recipe that surely keeps the limits, or else the likeliest of those that may."""
    sure = [one for one in tried if one.verdict == MEETS]
    maybe = [one for one in tried if one.verdict == UNDECIDED and _excess(one, wanted) <= 1]
    found = sure or sorted(maybe, key=lambda one: _excess(one, wanted))
    return found[0].recipe if found else None


def _nearest(tried: Sequence[Option], listed: Sequence[Candidate], wanted: Wanted) -> str | None:
    """The recipe that is least beyond the limits: by its trial, or where none ran, by its plan."""
    if ran := [one for one in tried if one.trial]:
        return min(ran, key=lambda one: _excess(one, wanted)).recipe
    planned = [one for one in listed if over(one, wanted) < math.inf]
    return min(planned, key=lambda one: over(one, wanted)).name if planned else None


def _excess(one: Option, wanted: Wanted) -> float:
    found = one.trial
    return excess_of(found, wanted) if found else math.inf


def excess_of(found: Trial, wanted: Wanted) -> float:
    """How many times a trial's worst number is beyond its limit."""
    return excess(
        wanted,
        size_bytes=found.size_bytes,
        kl=found.kl.value if found.kl else None,
        speed=found.speed.value if found.speed else None,
    )
