"""A recipe carried out: `apply` is the flow, in order, and each step has a room of its own name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress import attempts, library, machine, storage
from compress.artifact import manifest, output, provenance, signature
from compress.errors import GateMissed, RequestError, VerificationFailed
from compress.evaluate import speed
from compress.evaluate.escalate import Attempt, until_accepted
from compress.evaluate.glance import Hopes
from compress.evaluate.model import evaluate
from compress.journal import Journal
from compress.plan import memory, pace
from compress.plan.memory import Bounded
from compress.plan.reshaping import made
from compress.prefixes import Prefixes, Shared
from compress.recipe.schema import Recipe
from compress.recipe.source import Places
from compress.recipe.suite import suite_of
from compress.report import markdown, pages, verdict
from compress.results import (
    Limits,
    Measured,
    Results,
    Verification,
    to_json,
)
from compress.run import (
    Clock,
    Run,
    begun,
    find_judge,
    find_models,
    find_windows,
    identity,
    job,
    joined,
    set_up,
)
from compress.staged import carry_out, student_of
from compress.stages.team import ALONE, Ended, Team
from compress.surgery.walk import Watch
from compress.verify.consumers import CONSUMERS
from compress.verify.run import verify

__all__ = ["Outcome", "apply", "compress_only", "evaluate", "follow"]


@dataclass(frozen=True)
class Outcome:
    """A finished run: the folder it left and what it found."""

    folder: Path
    results: Results
    measured: Measured
    verification: Verification


def apply(  # noqa: PLR0913 - the options of a command
    recipe: Recipe,
    *,
    out: Path,
    device: str = "cpu",
    threads: int | None = None,
    watch: Watch = None,
    places: Places | None = None,
    fresh: bool = False,
    max_memory_bytes: int | None = None,
    sign: Path | None = None,
    team: Team = ALONE,
    shared: Shared | None = None,
    hopes: Hopes | None = None,
) -> Outcome:
    """Carry out a recipe: from its teacher to a finished, judged, verified artifact.

    Work lives in ``OUT.partial``, with a journal of what is finished, and gets its name when it is
    whole. A run that was cut short goes on where it stopped, to the same bytes; one that had
    finished nothing leaves nothing.

    Args:
        recipe: as loaded; a lock's fingerprints are held against what is found.
        out: the folder to make.
        device: cpu or cuda.
        threads: processor threads; a lock's own, or torch's choice, by default.
        watch: told of progress.
        places: where the recipe's parts were written, so that late mistakes can name their lines.
        fresh: forget what an earlier run has begun.
        max_memory_bytes: anonymous memory to keep within; part of the run's identity.
        sign: a private key with which to sign the artifact; needs the extra `signing`.
        team: the processes that share the work, of which this is the first; others `follow`.
        shared: stages that other runs begin with too: taken from those that have finished them, or
            left for them. The result is the same to the byte.
        hopes: what a glance at the student must show for it to be judged.

    Raises:
        RequestError: the recipe cannot be carried out, `out` is there already, or what is
            unfinished there is another run's.
        RunError: it could, and something failed.
        GivenUp: at a glance the student is far from what is hoped for; ``OUT.partial`` stays.
        GateMissed: the student was judged not good enough; it lies in ``OUT.rejected``.
    """
    clock = Clock()
    if shared and team.size > 1:
        raise RequestError("shared: stages are shared by runs of one process. Leave out one.")
    if sign is not None:
        signature.check_key(sign)
    with team.leading(), output.in_the_making(out, fresh=fresh) as folder:
        run = _prepare(
            recipe, folder, device, threads, watch, places, max_memory_bytes, clock, team, shared
        )
        storage.write_text(folder / "recipe.lock.yaml", run.lock)
        results = until_accepted(
            partial(attempts.judged, run, clock, hopes),
            recipe.evaluate.gates,
            anatomy=made(recipe, run.origin.anatomy, run.origin.config).anatomy,
            widths=recipe.widths,
        )
        judged = results.verdict
        rejected = judged is not None and bool(judged.missed)
        _record(run, results)
        if not rejected:
            with clock.step("verify"):
                verified = _verify(run)
        measured = _measured(run, results, clock)
        storage.write_text(folder / "measured.json", to_json(measured))
        pages.write(folder, results, measured)
        if judged is not None and rejected:
            report = output.beside(out, "rejected") / "report.html"
            raise GateMissed(verdict.told(judged, report))
        if sign is not None:
            signature.sign(folder, sign)
        _remember(run, measured)
    return Outcome(out, results, measured, verified)


def follow(recipe: Recipe, *, device: str, team: Team) -> None:
    """Share the work of a run that the first of several processes carries out with `apply`.

    Nothing is written or told here; it ends when the first says so.

    Args:
        recipe: the same.
        device: the same.
        team: of which this is not the first.

    Raises:
        RequestError: the teacher cannot be had here.
        RunError: another process has ended, or this one would compute something else.
    """
    here = set_up(recipe, device, team.share, team)
    with contextlib.suppress(Ended):
        run = joined(recipe, team.heard(), here, team)
        while True:
            attempt = team.heard()
            carry_out(run, student_of(run, attempt), attempt)


def compress_only(
    recipe: Recipe,
    *,
    out: Path,
    device: str = "cpu",
    threads: int | None = None,
    max_memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Carry out a recipe without judging the student, and time what is compared with other tools.

    Returns:
        ``seconds`` from the token windows at hand to the last shard on disk, and the windows'
        ``calibration_fingerprint``, None when no stage looks at any.
    """
    clock = Clock()
    unjudged = recipe.model_copy(
        update={"evaluate": recipe.evaluate.model_copy(update={"suite": "none", "gates": None})}
    )
    with output.in_the_making(out) as folder:
        run = _prepare(unjudged, folder, device, threads, None, None, max_memory_bytes, clock)
        with clock.step("compress"):
            student = student_of(run, Attempt())
            carry_out(run, student, Attempt())
            attempts.write_student(run, student)
    fingerprint = run.windows.fingerprint if run.windows else None
    return {"seconds": clock.seconds["compress"], "calibration_fingerprint": fingerprint}


def _prepare(  # noqa: PLR0913 - the options of a command
    recipe: Recipe, folder: Path, device: str, threads: int | None, watch: Watch,
    places: Places | None, max_memory_bytes: int | None, clock: Clock, team: Team = ALONE,
    shared: Shared | None = None,
) -> Run:  # fmt: skip
    """Look at everything that can be wrong before any long work; take up what is unfinished."""
    suite, here = suite_of(recipe), set_up(recipe, device, threads, team)
    with clock.step("teacher"):
        teacher, origin = models = find_models(recipe, suite, watch, places, team)
    bounded = memory.within(job(recipe, here), max_memory_bytes) if max_memory_bytes else _FREE
    judge = find_judge(teacher, suite, here, watch)
    with clock.step("calibrate"):
        windows, texts = find_windows(recipe, teacher, here, watch)
    decided = identity(recipe, models, windows, texts, here, bounded.limits)
    journal = Journal(folder / output.JOURNAL, decided)
    found, prefixes = journal.finished, None
    if shared:
        prefixes = Prefixes(shared, recipe, decided, journal)
    run = Run(
        recipe, folder, here, bounded, teacher, origin, windows, texts, judge,
        team.ledger(journal), watch, team, len(found), prefixes,
    )  # fmt: skip
    if found:
        run.tell("resume", len(found), len(found), "unit", f"behind {found[-1]}")
    team.told(begun(run, journal))
    return run


_FREE = Bounded(Limits())


def _record(run: Run, results: Results) -> None:
    """Write what decided the student and what it is worth, and the hashes of all of it."""
    storage.write_text(run.folder / "results.json", to_json(results))
    storage.write_text(run.folder / "README.md", markdown.model_card(results, None))
    if results.after is None:
        return  # a gate ended the walk: there are no weights
    facts = provenance.facts(
        results,
        teacher_revision=run.teacher.revision,
        teacher_source_sha256=run.teacher.source_sha256,
        commit=provenance.checkout_commit(),
    )
    rounds = len(results.verdict.rounds) if results.verdict else 0
    reference = run.ledger.get(attempts.unit_of(rounds, "reference"))
    manifest.write_manifest(run.folder, facts, reference)


def _measured(run: Run, results: Results, clock: Clock) -> Measured:
    with clock.step("time"):
        there = results.after is not None and "time" not in run.bounded.left_out
        timings = speed.timings(run.folder) if there else None
    clock.stop()
    clock.cpu_seconds["total"] += run.team.others_cpu_seconds
    return Measured(
        clock.seconds,
        machine.peak_memory_bytes() + run.team.others_bytes,
        machine.hardware(run.team.size),
        machine.today(),
        timings.decode_tokens_per_second if timings else None,
        timings.prefill_tokens_per_second if timings else None,
        timings.ttft_seconds if timings else None,
        run.resumed,
        clock.cpu_seconds,
        run.prefixes.taken if run.prefixes else 0,
    )


def _verify(run: Run) -> Verification:
    """Hold what was written against the student, with a reader of its own and in every consumer."""
    whole = "time" not in run.bounded.left_out  # consumers hold an artifact whole
    found = verify(run.folder, consumers=CONSUMERS if whole else (), watch=run.watch)
    if not found.passed:
        failed = [f"{one.name}: {one.detail}" for one in found.failures]
        raise VerificationFailed(
            "\n".join([*failed, f"{run.folder} holds the artifact and its verification.json."])
        )
    return found


def _remember(run: Run, measured: Measured) -> None:
    """Note how long it took, for the plans of later runs; not one that was cut short or shared."""
    part = measured.resumed_units or measured.shared_units
    if not part and run.team.size == 1:
        pace.remember(
            library.cache_folder(),
            job(run.recipe, run.here),
            measured.seconds,
            device=run.here.device,
            threads=torch.get_num_threads(),
        )
