"""Everything that can be said of a run before it begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.plan import (
    beginning,
    budget,
    caching,
    memory,
    pace,
    pruning,
    reshaping,
    rotation,
    sizes,
    teaching,
)
from compress.plan import processes as sharing
from compress.plan.consumers import Consumer, consumers
from compress.plan.footprint import Job
from compress.plan.mistakes import GROUP_SIZES, check
from compress.plan.sizes import Size
from compress.recipe.schema import Recipe
from compress.recipe.scheme import Scheme
from compress.recipe.source import Places
from compress.recipe.suite import suite_of
from compress.results import Limits
from compress.teacher.headers import Headers


@dataclass(frozen=True)
class Row:
    """Linears of one kind that are treated alike."""

    linears: str  # the last part of their names
    count: int
    shape: tuple[int, int]  # O, I
    scheme: str  # "dense", or method, bits, group size and grid
    bits_per_weight: float  # the most, where `allocate` has a choice
    group_sizes: tuple[int, ...]  # that divide I


@dataclass(frozen=True)
class Plan:
    """What a run would make, take and cost. Names of numbers are those of ``results.json``."""

    recipe: str
    teacher: str
    model_type: str
    blocks: int
    weights: int
    tied: bool
    size: Size
    linears: tuple[Row, ...]
    peak_memory_bytes: int  # anonymous
    memory_bytes: Mapping[str, int]  # by step
    limits: Limits
    left_out: tuple[str, ...]  # steps that a memory budget leaves no room for
    disk_bytes: Mapping[str, int]  # by what takes it
    seconds: float | None
    seconds_by_step: Mapping[str, float]
    seconds_note: str
    consumers: tuple[Consumer, ...]
    notes: tuple[str, ...]
    kv_bytes_per_token: tuple[int, int] = (0, 0)  # keys and values as cached, before and after


def make(
    recipe: Recipe,
    headers: Headers,
    *,
    cache: Path,
    budget_bytes: int | None = None,
    threads: int | None = None,
    places: Places | None = None,
    processes: int = 1,
    device: str = "cpu",
) -> Plan:
    """Say what a run on this machine would make, take and cost.

    Args:
        recipe: as loaded.
        headers: of what its student begins as, see `headers.of_recipe`.
        cache: where past runs are noted.
        budget_bytes: of anonymous memory; see `memory.within`.
        threads: that will compute; those of the last run by default.
        places: where the recipe's parts were written.
        processes: that will share the run.
        device: whose past runs tell the time; memory is that of the processor.

    Raises:
        RecipeError: every mistake found.
        RequestError: the budget cannot be kept.
    """
    suite, anatomy = suite_of(recipe), headers.anatomy
    check(
        recipe, anatomy, places, config=headers.config, suite=suite, teacher=headers.teacher,
        processes=processes,
    )  # fmt: skip
    budget.check(recipe, headers, places)
    job = Job(recipe, headers, suite, memory.computes_in(recipe.teacher.dtype))
    bounded = memory.within(job, budget_bytes)
    steps = memory.predict(job, bounded.limits, bounded.left_out)
    time = pace.estimate(cache, job, device=device, threads=threads)
    left = reshaping.made_headers(recipe, headers)
    made = left.anatomy
    found = sizes.matrices(made, sizes.schemes(recipe, made))
    taught = replace(job, headers=headers.taught_by)
    return Plan(
        recipe.resolved.recipe or "recipe",
        taught.headers.name,
        taught.anatomy.model_type,
        len(taught.anatomy.blocks),
        taught.anatomy.weights + taught.ends,
        taught.anatomy.tied,
        budget.at_most(recipe, headers),
        tuple(_rows(recipe, headers)),
        max(steps.values()),
        steps,
        bounded.limits,
        bounded.left_out,
        _disk(job, bounded.limits),
        time.seconds,
        time.steps,
        time.note,
        consumers(made, left.config, found, recipe.artifact.format, sizes.caches(recipe)),
        (*_notes(recipe, headers), *sharing.notes(recipe, processes, threads)),
        caching.per_token(recipe, headers),
    )


def _disk(job: Job, limits: Limits) -> dict[str, int]:
    """Bytes on disk by what takes them; those of training only where there is any."""
    recipe, headers = job.recipe, job.headers
    found = sizes.disk(recipe, headers, memory.spilled_bytes(job, limits))
    if job.begins_anew:
        written = headers.cast(recipe.teacher.dtype)
        found["the student's beginning"] = sum(map(written.nbytes, written.anatomy.tensors))
    if recipe.distillations:
        found["what the teacher says"] = teaching.said_bytes(recipe, headers, job.item_bytes)
        found["state of training"] = teaching.state_bytes(recipe, headers)
    return found


def _rows(recipe: Recipe, headers: Headers) -> Iterator[Row]:
    """One row for each kind of linear and scheme, in the order of the model."""
    anatomy = reshaping.made_headers(recipe, headers).anatomy
    schemes, free = sizes.schemes(recipe, anatomy), set(budget.free(recipe, anatomy))
    gone = {x: p for _, prune in recipe.prunings for x, p in pruning.pruned(prune, anatomy).items()}
    alike = Counter(
        (linear.name.rpartition(".")[2], (linear.out_features, linear.in_features),
         schemes.get(linear), linear.name in free, gone.get(linear))
        for linear in (*anatomy.linears, anatomy.head)
    )  # fmt: skip
    dense = 16 if recipe.teacher.dtype != "float32" else 32
    for (name, shape, scheme, chosen, thinned), count in alike.items():
        fitting = tuple(size for size in GROUP_SIZES if shape[1] % size == 0)
        bits = _stored_bits(scheme, shape[1]) if scheme else dense
        said = _said(scheme, recipe.allocate.bits if recipe.allocate and chosen else ())
        if thinned:
            said = f"{pruning.said(thinned)}; {said}" if scheme else pruning.said(thinned)
            width = scheme.bits if scheme else dense
            if recipe.artifact.format == "packed":
                bits += pruning.stored_bits(thinned, shape, width) - width
        yield Row(name, count, shape, said, bits, fitting)


def _said(scheme: Scheme | None, choices: Sequence[int] = ()) -> str:
    if scheme is None:
        return "dense"
    groups = "one group a row" if scheme.group_size == -1 else f"groups of {scheme.group_size}"
    grid = "symmetric" if scheme.sym else "asymmetric"
    bits = " or ".join(map(str, choices or [scheme.bits]))
    return f"{scheme.method}, {bits} bits, {groups}, {grid}"


def _stored_bits(scheme: Scheme, columns: int) -> float:
    """Bits a weight with its part of a scale of 16 bits, and of a zero."""
    size = columns if scheme.group_size == -1 else scheme.group_size
    return scheme.bits + (16 + (0 if scheme.sym else scheme.bits)) / size


def _kinds(recipe: Recipe) -> Iterator[str]:
    """How texts of several kinds share the windows."""
    texts = {"calibration": recipe.calibration} if recipe.needs_calibration else {}
    trained = ((i, spec.text) for i, spec in recipe.distillations if spec.text)
    texts |= {f"stages[{index}].distill.text": text for index, text in trained}
    for where, text in texts.items():
        if len(text.sets) > 1:
            shares = ", ".join(f"{part.samples:,} of {part.told}" for part in text.parts)
            yield f"{where}: {shares}; windows take turns"


def _notes(recipe: Recipe, headers: Headers) -> Iterator[str]:
    if headers.note:
        yield headers.note
    yield from beginning.notes(recipe, headers)
    yield from _kinds(recipe)
    yield from rotation.note(recipe, headers)
    yield from reshaping.notes(recipe, headers)
    yield from teaching.notes(recipe, headers)
    if rotation.turned(recipe, headers.anatomy).tied:
        yield "head and embedding are one matrix: a quantized head is a quantized embedding too"
