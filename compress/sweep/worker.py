"""One trial, in a worker's process: an ordinary `apply`, and a record of what became of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import library, machine, storage
from compress.artifact import output, records
from compress.errors import CompressError, GateMissed, GivenUp, ModelError, RecipeError, RunError
from compress.evaluate.glance import Hopes
from compress.prefixes import Shared
from compress.recipe.inputs import inputs
from compress.recipe.sweep import LocatedSweep
from compress.results import Measured, Progress, Results, from_json, to_json
from compress.results.swept import FINISHED, Trial
from compress.sweep import candidates
from compress.sweep.budget import judged
from compress.sweep.candidates import Candidate, Planned, Planner, Point

TRIALS, SHARED = "trials", "shared"
Tell = Callable[[Trial | Progress], None]


@dataclass(frozen=True)
class Order:
    """What is the same for all trials of a sweep, as its workers are told."""

    located: LocatedSweep
    out: Path  # absolute
    device: str
    here: Path  # where relative paths of recipes begin
    made_with: dict[str, Any]  # versions, code and processor of whoever gave it

    @property
    def hopes(self) -> Hopes:
        """What a glance at a student must show."""
        budget = self.located.sweep.budget
        return Hopes(budget.kl_mean, budget.size_bytes)

    def decided(self, planned: Planned) -> dict[str, Any]:
        """What decides the bytes of a trial beside its recipe."""
        return {
            "threads": self.located.sweep.threads,
            "device": self.device,
            "models": planned.fingerprints,
            "inputs": inputs(planned.recipe),
            **self.made_with,
        }

    def record(self, name: str) -> Path:
        """Where it is noted what became of a trial."""
        return self.out / TRIALS / f"{name}.json"


def noted(order: Order, name: str) -> Trial | None:
    """What an earlier run has noted of a trial; None where there is nothing to rely on."""
    try:
        return from_json(Trial, storage.read_text(order.record(name)))
    except (OSError, ValueError):
        return None


def finished(order: Order, candidate: Candidate) -> Trial | None:
    """A trial that has been finished, as it is judged by this budget; None: it has yet to run."""
    folder = order.out / TRIALS / candidate.name
    for state, there in zip(FINISHED, (folder, output.beside(folder, "rejected")), strict=True):
        if there.is_dir() and (found := _read(candidate.trial, there)):
            said = noted(order, candidate.name) or candidate.trial
            reason = said.reason if state == said.state else ""
            made = replace(found, state=state, reason=reason, restarts=said.restarts)
            return judged(made, order.located.sweep.budget)
    before = noted(order, candidate.name)
    if before and before.state == "stopped" and _is_hopeless(before, order.hopes):
        return before
    return None


def carry_out(order: Order, what: Candidate | Point, tell: Tell) -> Trial:
    """Carry out one trial, or take what is finished of it, and note what became of it.

    Args:
        order: of the sweep.
        what: a trial, or what a search has chosen.
        tell: told of the trial when it begins, and of its progress.

    Raises:
        RunError: this process is not like the one that gave the order.
    """
    os.chdir(order.here)
    if unlike := _unlike(machine.made_with(), order.made_with):
        raise RunError(
            f"a worker differs from who began the sweep in {', '.join(unlike)}. All machines of a "
            "sweep need the same code and libraries, and processors of one kind.",
            section="sweep",
        )
    candidate = what if isinstance(what, Candidate) else _chosen(order, what)
    if isinstance(candidate, Trial):
        storage.write_text(order.record(candidate.name), to_json(candidate))
        return candidate
    with storage.locked(order.out / TRIALS / f".{candidate.name}.lock"):
        ended = finished(order, candidate) or _run(order, candidate, tell)
        storage.write_text(order.record(candidate.name), to_json(ended))
    return ended


def too_large(order: Order, candidate: Candidate) -> Trial | None:
    """A trial that would be larger than the budget, which is not run; None where it may fit."""
    planned, most = candidate.planned, order.located.sweep.budget.size_bytes
    if most is None or planned.at_most or planned.size_bytes <= most:
        return None
    reason = f"planned: {planned.size_bytes:,} bytes, and {most:,} are the most allowed"
    return replace(candidate.trial, state="too large", reason=reason, over=("size",))


def _unlike(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """In what two processes differ that make trials."""
    versions = here["versions"] | there["versions"]
    found = [
        f"{name} ({here['versions'].get(name)}, not {there['versions'].get(name)})"
        for name in versions
        if here["versions"].get(name) != there["versions"].get(name)
    ]
    found += ["the code of compress"] if here["code"] != there["code"] else []
    kinds = here["processor"], there["processor"]
    return [*found, *([f"its processor ({kinds[0]}, not {kinds[1]})"] if len({*kinds}) > 1 else [])]


def _chosen(order: Order, point: Point) -> Candidate | Trial:
    """What a search has chosen, as a trial; one that cannot be carried out has ended."""
    planner = Planner(order.located, library.cache_folder())
    try:
        planned = planner.plan(point)
    except (RecipeError, ModelError) as error:
        return replace(unplanned(point), state="invalid", reason=_short(error))
    name = candidates.name_of(planned, order.decided(planned))
    candidate = Candidate(planned, name, candidates.stages_fixed(order.located, planned.recipe))
    return too_large(order, candidate) or candidate


def _is_hopeless(stopped: Trial, hopes: Hopes) -> bool:
    """Whether what stopped a trial at a glance would stop it again."""
    seen, size, most = stopped.glance_kl_mean, stopped.size_bytes, hopes.size_bytes_max
    if seen is not None:
        return hopes.is_far(seen)
    return most is not None and size is not None and size > most


def unplanned(point: Point) -> Trial:
    """A trial that cannot be planned, and so has no name of its own."""
    found = candidates.trial_of(point, "")
    digest = hashlib.sha256(json.dumps([found.recipe, found.fields]).encode()).hexdigest()
    return replace(found, name=f"{Path(found.recipe).stem}-{digest[:10]}")


def _run(order: Order, candidate: Candidate, tell: Tell) -> Trial:
    from compress import pipeline

    before = noted(order, candidate.name)
    restarts = before.restarts + 1 if before and before.state == "running" else 0
    trial = replace(candidate.trial, state="running", restarts=restarts)
    folder = order.out / TRIALS / candidate.name
    storage.write_text(order.record(candidate.name), to_json(trial))
    tell(trial)
    try:
        pipeline.apply(
            candidate.planned.recipe, out=folder, device=order.device,
            threads=order.located.sweep.threads, watch=tell, places=candidate.planned.places,
            shared=Shared(order.out / SHARED, candidate.shared_stages), hopes=order.hopes,
        )  # fmt: skip
    except GateMissed as gate:
        rejected = _read(trial, output.beside(folder, "rejected")) or trial
        return replace(rejected, state="rejected", reason=_missed(gate))
    except GivenUp as given:
        size = given.size_bytes or trial.size_bytes
        return replace(
            trial, state="stopped", reason=_short(given), glance_kl_mean=given.kl_mean,
            size_bytes=size,
        )  # fmt: skip
    except CompressError as error:
        return replace(trial, state="failed", reason=_short(error))
    made = _read(trial, folder) or trial
    return judged(replace(made, state="made"), order.located.sweep.budget)


def _read(trial: Trial, folder: Path) -> Trial | None:
    """A trial with the numbers that its run left."""
    results = records.record(folder / "results.json", Results)
    measured = records.record(folder / "measured.json", Measured)
    if results is None or measured is None:
        return None
    found, after = results.divergence, results.after
    return replace(
        trial,
        size_bytes=after.size_bytes if after else trial.size_bytes,
        kl_mean=found.kl_mean if found else None,
        top1_agreement=found.top1_agreement if found else None,
        perplexity=after.perplexity.perplexity if after and after.perplexity else None,
        decode_tokens_per_second=measured.decode_tokens_per_second,
        seconds=measured.seconds.get("total"),
        shared_units=measured.shared_units,
    )


def _missed(gate: GateMissed) -> str:
    """Which gates were missed, in one line: a message's last tells what to do of a single run."""
    lines = str(gate).splitlines()
    return " ".join(" ".join(lines[:-1] or lines).split())


def _short(error: CompressError) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split())
