"""The limits that keep a run within a budget of memory, or why none does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from compress.errors import RequestError
from compress.plan import footprint, solving
from compress.plan.footprint import MIB, Job
from compress.results import Limits

_MARGIN = 1.1  # what is predicted is right within 15 %; a budget is kept
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


@dataclass(frozen=True)
class Bounded:
    """How a run keeps to its budget: its limits, and what it leaves out because of its size.

    left_out: of "samples", for which the student is expanded, and "time", which stands for all that
    opens the artifact whole: its timing and the consumers that verify asks.
    """

    limits: Limits
    left_out: tuple[str, ...] = ()


def predict(job: Job, limits: Limits, left_out: Sequence[str] = ()) -> dict[str, int]:
    """Peak anonymous memory of each step of a run, in bytes, in the order in which they come."""
    steps: dict[str, Callable[[], int]] = {
        "teacher": lambda: max(footprint.convert(job), footprint.begin(job)),
        "calibrate": lambda: footprint.write_text(job),
        "compress": lambda: solving.compress(job, limits),
        "write": lambda: footprint.write(job),
        "evaluate": lambda: footprint.evaluate(job),
        "samples": lambda: footprint.samples(job),
        "time": lambda: footprint.time(job),
        "verify": lambda: footprint.verify(job, consumers="time" not in left_out),
    }
    found = {name: step() for name, step in steps.items() if name not in left_out}
    return {name: value for name, value in found.items() if value}


def within(job: Job, budget_bytes: int | None) -> Bounded:
    """Find the limits that keep a run within a budget, the fastest first; a lock keeps its own.

    Args:
        job: the run.
        budget_bytes: of anonymous memory; None for no budget.

    Raises:
        RequestError: no limits do; it says what takes how much, and the least that would do.
    """
    locked = job.recipe.resolved.limits
    choices = [Limits(**locked)] if locked else list(_ladder())
    if budget_bytes is None:
        return Bounded(choices[0])
    room = int(budget_bytes / _MARGIN)
    steps = predict(job, choices[0])  # of which limits change "compress" alone
    sizes = {"samples": steps.get("samples", 0), "time": max(steps["time"], steps["verify"])}
    large = tuple(name for name, size in sizes.items() if size > room)
    others = predict(job, choices[0], large)
    others.pop("compress", None)
    if max(others.values()) <= room:
        for limits in choices:
            if solving.compress(job, limits) <= room:
                return Bounded(limits, large)
    tightest = predict(job, choices[-1], ("samples", "time"))
    raise RequestError(_cannot(job, budget_bytes, tightest, room), section="memory")


def parse_bytes(text: str) -> int:
    """Read a size: 4GiB, 800 MiB, 2GB, or bytes.

    Raises:
        RequestError: it is none, or so small that its unit was forgotten.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise RequestError(f"{text!r} is no size. Write it as 4GiB, 800MiB or 2GB.")
    number, unit, binary = match[1], match[2].upper(), match[3]
    scale = _UNITS[unit] if binary or not unit else 10 ** (3 * "KMGT".index(unit) + 3)
    size = int(float(number) * scale)
    if size < MIB and not unit:
        raise RequestError(f"{text!r} is {size:,} bytes. Name the unit, as in {number}GiB.")
    return size


def computes_in(teacher_dtype: str) -> int:
    """Bytes of an activation on this processor; the rule of `machine.compute_dtype`, on a CPU."""
    path = Path("/proc/cpuinfo")
    fast = path.is_file() and " avx512_bf16" in path.read_text(encoding="utf-8")
    return 2 if fast and teacher_dtype != "float32" else 4


def spilled_bytes(job: Job, limits: Limits) -> int:
    """Bytes of activations, and of what is known of outputs, that live in mapped files."""
    block = job.anatomy.blocks[0].linears
    learned = any(spec.learned_rounding for _, spec in job.recipe.quantizations)
    streams = 4 if learned else 2
    widths = [job.anatomy.hidden_size] * streams + [max(linear.in_features for linear in block)]
    sizes = [job.tokens * width * job.item_bytes for width in widths]
    asked = [linear.out_features**2 for linear in job.anatomy.linears]
    known = any(spec.output_curvature for _, spec in job.recipe.quantizations)
    return sum(size for size in sizes if size > limits.resident_bytes) + known * 2 * sum(asked)


def _ladder() -> Iterator[Limits]:
    """Limits from roomy to tight, what costs least time given up first."""
    batches, resident = (2048, 1024, 512), (2048 * MIB, 512 * MIB, 128 * MIB, 0)
    rows = (16384, 8192, 4096, 2048, 1024)
    for batch, kept, solved in product(batches, resident, rows):
        yield Limits(batch, kept, solved)


def _cannot(job: Job, budget: int, steps: dict[str, int], room: int) -> str:
    told = [f"  {name}: {size / MIB:,.0f} MiB" for name, size in steps.items() if size > room]
    least = int(max(steps.values()) * _MARGIN / MIB) + 1
    remedies = {
        "compress": "calibrate on fewer samples, or set quantize.true_sequential: false",
        "evaluate": "set evaluate.suite: none",
        "teacher": "give the teacher as a Hugging Face folder",
    }
    if job.writes:
        remedies = {"calibrate": "give calibration.set a text in place of self", **remedies}
    advice = [remedies[name] for name in steps if steps[name] > room and name in remedies]
    instead = f", or {'; '.join(advice)}" if advice else ""
    return "\n".join(
        [
            f"--max-memory {budget / MIB:,.0f} MiB cannot be kept: even with the tightest limits "
            f"{'of the lock ' if job.recipe.resolved.limits else ''}these steps take more:",
            *told,
            f"Allow {least:,} MiB{instead}.",
        ]
    )
