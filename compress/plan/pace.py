"""How long a run will take on this machine: told by runs that have finished here, or not at all.

Each step's work is counted in operations; a step's pace is the work of past runs over their
seconds, of those nearest in size to the one ahead. Steps whose work is not counted are taken to
last as long as they did. The newest few of every size are kept: tiny runs push out no real one.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress import storage
from compress.errors import StorageError
from compress.plan import caching, rotation, teaching
from compress.plan.footprint import Job
from compress.plan.pruning import pruned
from compress.plan.reshaping import (
    CANDIDATES,
    DEPTH_TOKENS,
    FITTED_WINDOWS,
    NARROWED_WINDOWS,
    SCORED_DRAWS,
    SCORED_TOKENS,
    SCORED_WINDOWS,
    SHARED_ASKED,
    SHARED_TRIED,
    SHARED_WINDOWS,
    fitted_roles,
)
from compress.plan.sizes import stage_schemes
from compress.recipe.methods import INT8
from compress.recipe.prune import Prune
from compress.recipe.pruning import MEASURED
from compress.recipe.restructure import Restructure

log = logging.getLogger("compress")
FILE = "pace.json"
DRAWS = 4  # of `stages.sensitivity`, which needs torch; a test holds them equal
CURVATURE_WINDOWS = 32  # of `stages.curvature`, the same
LEARNED_WINDOWS = 8  # of `stages.learned`, in a step
_KEPT = 5  # runs of one kind and size; older ones are forgotten
_TOO_SHORT = 1.0  # seconds; such a step found its result in a cache
_SLOW = 4.0  # a float32 product against a bfloat16 one (216 and 873 GFLOP/s on two cores of Zen 5)
_MOVED = 3_500  # operations in whose time a weight is read, rounded, packed and written
_GROWN = 11 * 80  # exponents that AWQ tries, and of how many rows it rounds each
_TRIED = 2 * 48 * 60  # operations of a scale search per weight: grids tried, each many passes


@dataclass(frozen=True)
class Run:
    """One finished run: how much there was to do, and how long each step took."""

    processor: str
    device: str
    threads: int
    date: str
    work: Mapping[str, float]  # operations by step
    seconds: Mapping[str, float]

    @property
    def kind(self) -> tuple[str, str, int, int]:
        """What runs must share to be told apart only by their date."""
        return self.processor, self.device, self.threads, size_class(self.work)


@dataclass(frozen=True)
class Estimate:
    """How long a run will take; None where nothing here tells."""

    seconds: float | None
    steps: Mapping[str, float]
    note: str


def remember(
    folder: Path, job: Job, seconds: Mapping[str, float], *, device: str, threads: int
) -> None:
    """Note how long a finished run took, for the estimates of later ones.

    Args:
        folder: the cache; a file of it is rewritten.
        job: what was done.
        seconds: by step, as in ``measured.json``; its total is left out.
        device: cpu or cuda.
        threads: of the processor.
    """
    taken = {step: value for step, value in seconds.items() if step != "total"}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    run = Run(processor(), device, threads, today, work(job), taken)
    runs = newest([*_read(folder), run])
    try:
        storage.make_folder(folder)
        text = json.dumps({"runs": [asdict(one) for one in runs]}, indent=1)
        storage.write_text(folder / FILE, text + "\n")
    except StorageError as error:  # the run is finished, whatever becomes of this note
        log.warning("%s The next plan will not know how long this run took.", error)


def estimate(
    folder: Path, job: Job, *, device: str = "cpu", threads: int | None = None
) -> Estimate:
    """How long a run will take, from the runs of this processor on this device.

    Args:
        folder: the cache.
        job: what is to be done.
        device: cpu or cuda.
        threads: of the processor; those of the last run by default.
    """
    runs = [r for r in _read(folder) if (r.processor, r.device) == (processor(), device)]
    if runs and threads is None:
        threads = runs[-1].threads
    runs = [run for run in runs if run.threads == threads]
    ahead = work(job)
    steps = dict(_steps(runs, ahead))
    if not runs or any(step not in steps for step, amount in ahead.items() if amount):
        return Estimate(None, steps, "unknown: no run on this machine yet")
    told, computed = (_counted(n, noun) for n, noun in ((len(runs), "run"), (threads, "thread")))
    note = f"from {told} here with {computed}, the last on {runs[-1].date}"
    return Estimate(sum(steps.values()), steps, note)


def _counted(number: int | None, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_class(work: Mapping[str, float]) -> int:
    """The power of ten of a run's operations."""
    return int(math.log10(max(sum(work.values()), 1.0)))


def newest(runs: list[Run]) -> list[Run]:
    """The last few runs of each kind and size, in the order in which they are."""
    seen: Counter[tuple[str, str, int, int]] = Counter()
    kept = []
    for run in reversed(runs):
        seen[run.kind] += 1
        if seen[run.kind] <= _KEPT:
            kept.append(run)
    return kept[::-1]


def work(job: Job) -> dict[str, float]:
    """Operations of each step that has many, in bfloat16 products; slower ones count for more."""
    anatomy, recipe = job.anatomy, job.recipe
    weights = float(anatomy.weights)
    texts = (job.suite.perplexity, job.suite.divergence) if job.suite else ()
    read = sum(text.windows * text.seq_len for text in texts)
    return {
        "calibrate": 2.0
        * sum(text.samples * text.seq_len for text in job.written)
        * (weights + anatomy.head.weights),
        "compress": sum(_stage_work(job, index) for index in range(len(recipe.stages))),
        "evaluate": 2 * 2 * _SLOW * read * (weights + anatomy.head.weights),
    }


def _stage_work(job: Job, index: int) -> float:
    """Forwards, Hessians, searches and solvers of one stage."""
    spec, tokens = job.recipe.stages[index].quantize, float(job.tokens)
    if job.recipe.stages[index].rotate:
        return _SLOW * rotation.work(job)
    if (prune := job.recipe.stages[index].prune) is not None:
        return _prune_work(job, prune)
    if (restructure := job.recipe.stages[index].restructure) is not None:
        return _restructure_work(job, restructure)
    if job.recipe.stages[index].distill:
        return teaching.work(job, index)
    if spec is None:
        return caching.work(job) if job.recipe.stages[index].kv_cache else _allocate_work(job)
    operations = 0.0
    seen: set[tuple[int | None, str]] = set()
    for linear, scheme in stage_schemes(job.recipe, index, job.anatomy).items():
        rows, columns = linear.out_features, linear.in_features
        searched = scheme.scale_search != "none"
        operations += (_MOVED + (_TRIED if searched else 0)) * linear.weights
        if scheme.by_gptq:
            rounds = 2 if spec.output_curvature else 1
            operations += _SLOW * 2 * rows * columns**2 * (1 + 2 * scheme.sweeps) * rounds
        grown = spec.smooth == "awq"
        operations += _GROWN * _TRIED * columns if grown else 0
        if (scheme.needs_hessian or grown) and (linear.block, linear.shares) not in seen:
            seen.add((linear.block, linear.shares))
            operations += tokens * columns**2 + _SLOW * 3 * columns**3
            operations += 2 * tokens * columns**2 if spec.error_correction else 0
    last = max(
        (len(job.anatomy.blocks) if block is None else block + 1 for block, _ in seen), default=0
    )
    int8 = spec.method in INT8 and spec.needs_calibration  # each block watched, then passed
    last = len(job.anatomy.blocks) if int8 else last
    walked = sum(linear.weights for block in job.anatomy.blocks[:last] for linear in block.linears)
    forwards = 2 if int8 or spec.error_correction or not spec.true_sequential else 1
    operations += _curvature_work(job) if spec.output_curvature else 0
    learned = spec.learned_rounding * _measured_tokens(job, LEARNED_WINDOWS) + tokens
    operations += 2 * 3 * learned * walked if spec.learned_rounding else 0
    return operations + 2 * forwards * tokens * walked


def _curvature_work(job: Job) -> float:
    """A walk there and back, and the products of all gradients."""
    tokens = _measured_tokens(job, CURVATURE_WINDOWS)
    products = sum(float(linear.out_features) ** 2 for linear in job.anatomy.linears)
    return tokens * (2 * 4 * float(job.anatomy.weights) + products)


def _restructure_work(job: Job, spec: Restructure) -> float:
    """Forwards of student and teacher, what o and down are solved from, blocks left out in turn."""
    if spec.takes_whole:
        return 0.0
    anatomy, tokens = job.anatomy, float(job.tokens)
    rounds = 2 if spec.repair else 1
    operations = 2 * rounds * tokens * anatomy.weights
    roles = fitted_roles(spec) if spec.hidden is not None else ("o", "down")
    for linear in anatomy.linears:
        if linear.role in roles:
            rows, columns = linear.out_features, linear.in_features
            products = tokens * columns * (columns + rounds * (columns + rows))
            operations += products + _SLOW * (6 * columns + 2 * rows) * columns**2
    if spec.searches:
        operations *= 1 + CANDIDATES * min(1.0, FITTED_WINDOWS / job.recipe.calibration.samples)
    if spec.searches or spec.depth is not None:
        blocks = len(anatomy.blocks)
        read = anatomy.weights / blocks * blocks**2 + blocks * anatomy.head.weights / 4
        operations += 2 * DEPTH_TOKENS * 2 * read
    if spec.hidden is not None:
        read = _measured_tokens(job, NARROWED_WINDOWS) * anatomy.weights
        operations += 2 * read + _SLOW * rotation.work(job)
    if spec.importance == "first_order":
        scored = _measured_tokens(job, SCORED_WINDOWS, SCORED_TOKENS)
        operations += 2 * (2 + 2 * SCORED_DRAWS) * scored * anatomy.weights
    return operations + (0 if spec.uniform else _sharing_work(job))


def _sharing_work(job: Job) -> float:
    """Windows that down is fitted to, and models side by side, each from its block to the end."""
    anatomy, fit = job.anatomy, float(_measured_tokens(job, SHARED_WINDOWS))
    models = SHARED_ASKED * SHARED_TRIED * len(anatomy.blocks)
    operations = 2 * (fit + models / 2) * anatomy.weights + models * float(anatomy.head.weights)
    for linear in anatomy.linears:
        if linear.role == "down":
            rows, columns = linear.out_features, linear.in_features
            operations += (fit + _SLOW * (5 * columns + 2 * rows)) * columns**2
    return operations


def _prune_work(job: Job, prune: Prune) -> float:
    """Forwards, Hessians and solvers; a round of refining is a product of the weight and H."""
    tokens, operations, seen = float(job.tokens), 0.0, set[tuple[int | None, str]]()
    found = pruned(prune, job.anatomy)
    for linear, pruning in found.items():
        rows, columns = linear.out_features, linear.in_features
        operations += _MOVED * linear.weights
        if not prune.by_inputs:
            continue
        solving = {"sparsegpt": 1, "admm": 2 + pruning.rounds}.get(pruning.method, 0)
        products = solving + pruning.refine
        products += 1 + 2 * pruning.grid.sweeps if pruning.grid else 0
        operations += _SLOW * 2 * rows * columns**2 * products
        if pruning.grid and pruning.grid.scale_search != "none":
            operations += _TRIED * linear.weights
        if (linear.block, linear.shares) not in seen:
            seen.add((linear.block, linear.shares))
            inverted = solving or pruning.refine
            operations += tokens * columns**2 + (_SLOW * 3 * columns**3 if inverted else 0)
            operations += 2 * tokens * columns**2 if prune.error_correction else 0
    last = max((block + 1 for block, _ in seen if block is not None), default=0)
    walked = sum(linear.weights for block in job.anatomy.blocks[:last] for linear in block.linears)
    forwards = 2 if prune.error_correction or not prune.true_sequential else 1
    return operations + 2 * forwards * tokens * walked + _zeros_work(job, prune)


def _zeros_work(job: Job, prune: Prune) -> float:
    """A walk there, and by sensitivity back: each sparsity solved once, and multiplied."""
    found, tokens = pruned(prune, job.anatomy), _measured_tokens(job, *MEASURED)
    free = {x: pruning for x, pruning in found.items() if pruning.allocation != "uniform"}
    walked = 2 * tokens * float(job.anatomy.weights) if free else 0.0
    if not free or prune.allocation == "owl":
        return walked
    tried = len(next(iter(free.values())).choices)
    solved = 0.0
    if prune.by_inputs:
        widths = {(x.block, x.fused or x.name): float(x.in_features) for x in free}.values()
        inverted = sum(3 * columns**3 for columns in widths)
        solved = inverted + sum(2.0 * x.weights * x.in_features for x in free)
    return (2 + 2 * DRAWS + tried) * walked + tried * _SLOW * solved


def _measured_tokens(job: Job, windows: int, seq_len: int | None = None) -> int:
    """Of the first windows, and the first of each or all, that something is measured on."""
    calibration = job.recipe.calibration
    tokens = min(seq_len or calibration.seq_len, calibration.seq_len)
    return min(windows, calibration.samples) * tokens


def _allocate_work(job: Job) -> float:
    """A walk there, and back for every draw; each width rounded, and multiplied once."""
    spec, weights = job.recipe.allocate, float(job.anatomy.weights)
    if spec is None:
        return 0.0
    tokens = _measured_tokens(job, spec.samples, spec.seq_len)
    walks = 2 + 2 * DRAWS + len(spec.bits)
    return 2 * walks * tokens * weights + len(spec.bits) * (_MOVED + _TRIED) * weights


def _steps(runs: list[Run], ahead: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Seconds of every step that past runs tell of, those nearest in size first asked."""
    wanted = size_class(ahead)
    for step in dict.fromkeys(step for run in runs for step in run.seconds):
        told = [run for run in runs if run.seconds.get(step, 0) >= _TOO_SHORT]
        if not told:
            continue
        nearest = min(abs(size_class(run.work) - wanted) for run in told)
        told = [run for run in told if abs(size_class(run.work) - wanted) == nearest]
        taken = sum(run.seconds[step] for run in told)
        if step not in ahead:
            yield step, taken / len(told)
        elif amount := sum(run.work.get(step, 0) for run in told):
            yield step, ahead[step] * taken / amount


def _read(folder: Path) -> list[Run]:
    """Past runs, the oldest first; none where the file is missing or not what was written."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [_run(fields) for fields in storage.read_json(path)["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not what was written there (%s); it is begun anew.", path, error)
        return []


def _run(fields: Mapping[str, Any]) -> Run:
    numbers = {
        name: {str(step): float(value) for step, value in fields[name].items()}
        for name in ("work", "seconds")
    }
    texts = {name: str(fields[name]) for name in ("processor", "device", "date")}
    return Run(threads=int(fields["threads"]), **texts, **numbers)  # type: ignore[arg-type]


def processor() -> str:
    """The processor's name and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    path = Path("/proc/cpuinfo")
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"
