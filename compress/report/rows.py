"""What a report says: the tables and the verdict, as text for page and terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from compress.report import numbers
from compress.report.numbers import NONE
from compress.results import (
    LinearResult,
    Measured,
    Results,
    Side,
    SizePart,
)


@dataclass(frozen=True)
class Row:
    """One line of the summary: the teacher (before), the student (after) and what changed."""

    label: str
    before: str
    after: str
    difference: str
    note: str = ""  # the protocol behind the numbers


@dataclass(frozen=True)
class Table:
    """A table of text; the first `words` columns hold words, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


_FLOATING = ("fp8", "nvfp4", "mxfp4")  # methods that say more than bits and groups


def verdict(results: Results) -> str:
    """Say in a few plain sentences what the run made of the teacher."""
    return " ".join(_verdict_sentences(results))


def linears(results: Results) -> tuple[LinearResult, ...]:
    """Every linear that a stage touched, as the last stage to touch it left it."""
    return results.linears


def roles(results: Results) -> tuple[str, ...]:
    """Roles of the block linears, in the order in which data flows through them."""
    inside = (linear.role for linear in linears(results) if linear.block is not None)
    return tuple(dict.fromkeys(inside))


def worst(results: Results, count: int = 5) -> tuple[LinearResult, ...]:
    """The solved linears with the largest relative error, largest first."""
    solved = (linear for linear in linears(results) if linear.outcome == "solved")
    return tuple(sorted(solved, key=lambda linear: (-linear.relative_error, linear.name))[:count])


def worst_table(results: Results) -> Table:
    """The worst five linears, each against the median of all solved ones."""
    errors = [r.relative_error for r in linears(results) if r.outcome == "solved"]
    median = statistics.median(errors) if errors else 0.0
    rows = []
    for linear in worst(results):
        times = f"{linear.relative_error / median:.1f} ×" if median else NONE
        rows.append((linear.name, _stored_as(linear), numbers.error(linear.relative_error), times))
    return Table(("linear", "stored as", "relative error", "of median"), tuple(rows), words=2)


def error_text(results: Results) -> str:
    """One sentence on what a relative error is: without calibration, no output was ever seen.

    `magnitude` sees none either, though what is pruned by it may be measured.
    """
    seen = {linear.method for linear in linears(results)} != {"magnitude"}
    if results.provenance.calibration_tokens and seen:
        return (
            "The squared error that compression adds to the output of each linear, as a share of "
            "its squared output."
        )
    return (
        "The squared error of the rounded weights of each linear, as a share of their squares: "
        "they were found without a look at inputs, so what outputs lose is not known."
    )


def error_table(results: Results) -> Table:
    """Relative error by block (rows) and role (columns): the numbers of the heat map."""
    cells = {(r.block, r.role): _error_cell(r) for r in linears(results) if r.block is not None}
    blocks = sorted({block for block, _ in cells})
    names = roles(results)
    rows = ((str(block), *(cells.get((block, role), NONE) for role in names)) for block in blocks)
    return Table(("block", *names), tuple(rows))


def size_table(results: Results) -> Table:
    """Stored bytes by part, the head apart, with bits per weight after, and their sum."""
    before = sum(part.before_bytes for part in results.sizes)
    after = sum(part.after_bytes for part in results.sizes)
    # A tied embedding is stored as the head and has no bytes of its own.
    rows = [_size_cells(part) for part in results.sizes if part.before_bytes or part.after_bytes]
    rows.append(("together", "", numbers.size(before), numbers.size(after), ""))
    return Table(("part", "weights", "before", "after", "bits/weight"), tuple(rows))


def cache_text(results: Results) -> str:
    """Say how keys and values are cached, and what rounding them loses; "" where nothing does."""
    cached = [block for stage in results.stages for block in stage.kv]
    if not cached:
        return ""
    worst = max(cached, key=lambda block: block.key_error)
    return (
        f"Keys and values are cached as {cached[0].numbers}, with a scale for each "
        f"{cached[0].granularity}. Rounding loses {numbers.error(worst.key_error)} of the squares "
        f"of the keys of block {worst.block}, the most of all."
    )


def cache_table(results: Results) -> Table:
    """Keys and values of each block: their largest scales and what rounding them loses."""
    cached = [block for stage in results.stages for block in stage.kv]
    rows = tuple(
        (
            str(block.block),
            numbers.digits(block.key_scale_max),
            numbers.error(block.key_error),
            numbers.digits(block.value_scale_max),
            numbers.error(block.value_error),
        )
        for block in cached
    )
    header = ("block", "key scale", "relative error", "value scale", "relative error")
    return Table(header, rows, words=0)


def fallback_table(results: Results) -> Table:
    """Linears that did not become what the recipe asked for, and why."""
    rows = ((r.name, _asked(r), _outcome(r), r.note or NONE) for r in results.fallbacks)
    return Table(("linear", "asked for", "outcome", "why"), tuple(rows), words=4)


def fallback_text(results: Results) -> str:
    """One sentence on the fallbacks; it is said also when there are none."""
    total, other = len(linears(results)), len(results.fallbacks)
    if other:
        return f"{other} of {total} linears did not become what the recipe asked for."
    return f"None: all {total} linears were solved as the recipe asked." if total else "None."


def time_table(measured: Measured) -> Table:
    """Time by step of the pipeline, the total last; that of processors where it is known."""
    steps = sorted(measured.seconds.items(), key=lambda step: step[0] == "total")
    rows = [(name, numbers.duration(took)) for name, took in steps]
    if not (spent := measured.cpu_seconds):
        return Table(("step", "time"), tuple(rows))
    told = {name: numbers.duration(seconds) for name, seconds in spent.items()}
    wider = ((*row, told.get(row[0], NONE)) for row in rows)
    return Table(("step", "time", "processor time"), tuple(wider))


def provenance_table(results: Results, measured: Measured | None) -> Table:
    """Everything that decided the run; hardware and date where they are known."""
    source = results.provenance
    versions = ", ".join(f"{name} {version}" for name, version in source.versions.items())
    rows = [
        ("recipe", source.recipe),
        ("teacher", source.teacher),
        ("teacher fingerprint", source.teacher_fingerprint),
        ("its license", source.teacher_license or "not stated"),
        *([("student began as", source.student)] if source.student else []),
        *([("its fingerprint", source.student_fingerprint)] if source.student else []),
        ("calibration", f"{source.calibration}, {source.calibration_tokens:,} tokens"),
        ("calibration fingerprint", source.calibration_fingerprint),
        *(("rotated", stage.method) for stage in results.stages if stage.stage == "rotate"),
        ("seed", str(source.seed)),
        ("device, threads", f"{source.device}, {source.threads}"),
        ("versions", versions or NONE),
    ]
    if measured:
        rows += [("hardware", measured.hardware), ("date", measured.date)]
    return Table(("what", "value"), tuple(rows), words=2)


def command(results: Results) -> str:
    """The command that makes the same artifact again from the locked recipe beside it."""
    source = results.provenance
    return f"compress apply recipe.lock.yaml --device {source.device} --threads {source.threads}"


def differing_tail(teacher: str, student: str) -> tuple[str, str, str]:
    """Split two continuations into the words both begin with and the tails that differ.

    Returns:
        the common beginning, the teacher's tail, the student's tail; equal texts have no tails.
    """
    if teacher == student:
        return teacher, "", ""
    pairs = enumerate(zip(teacher, student, strict=False))
    shared = next((at for at, (a, b) in pairs if a != b), min(len(teacher), len(student)))
    whole_words = all(text[shared : shared + 1].strip() == "" for text in (teacher, student))
    while not whole_words and shared and not teacher[shared - 1].isspace():
        shared -= 1
    return teacher[:shared], teacher[shared:], student[shared:]


def _verdict_sentences(results: Results) -> Iterator[str]:
    if results.after is None:
        yield "A gate ended the run before a student was made."
    else:
        yield from _student_sentences(results, results.after)
    fallbacks = results.fallbacks
    if kept := sum(linear.bits is None for linear in fallbacks):
        yield f"{kept} {'linear' if kept == 1 else 'linears'} stayed dense."
    if raised := len(fallbacks) - kept:
        yield f"{raised} {'linear' if raised == 1 else 'linears'} got more bits than asked for."


def _student_sentences(results: Results, after: Side) -> Iterator[str]:
    was, now = results.before.size_bytes, after.size_bytes
    sizes = f"({numbers.size(was)} → {numbers.size(now)})"
    yield f"The student is {numbers.ratio(was, now)} on disk {sizes}."
    if results.before.perplexity and after.perplexity:
        p, q = results.before.perplexity.perplexity, after.perplexity.perplexity
        change = f"{'rises' if q >= p else 'falls'} by {numbers.percent(abs(q / p - 1))}"
        yield f"Its perplexity {change} ({p:.2f} → {q:.2f})."
    if results.divergence:
        agreement = 100 * results.divergence.top1_agreement
        yield f"It picks the teacher’s next token {agreement:.0f} times out of 100."


def _stored_as(linear: LinearResult) -> str:
    zeros = f"{numbers.percent(linear.sparsity)} zeros" if linear.sparsity else ""
    if linear.bits is None:
        return zeros or "dense"
    return f"{_grid(linear)}, {zeros}" if zeros else _grid(linear)


def _grid(linear: LinearResult) -> str:
    whole_rows = linear.group_size in (None, -1)
    if linear.method in _FLOATING:
        return linear.method
    return f"{linear.bits} bits, " + (
        "one scale per row" if whole_rows else f"groups of {linear.group_size}"
    )


def _error_cell(linear: LinearResult) -> str:
    return numbers.error(linear.relative_error) if linear.outcome == "solved" else _outcome(linear)


def _asked(linear: LinearResult) -> str:
    asked = linear.escalated_from
    return linear.method if asked is None else f"{linear.method}, {asked} bits"


def _outcome(linear: LinearResult) -> str:
    return f"{linear.bits} bits" if linear.escalated_from else linear.outcome.replace("_", " ")


def _size_cells(part: SizePart) -> tuple[str, ...]:
    sizes = numbers.size(part.before_bytes), numbers.size(part.after_bytes)
    if not part.weights:
        return (part.part, NONE, *sizes, NONE)
    bits = 8 * part.after_bytes / part.weights
    return (part.part, numbers.amount(part.weights), *sizes, f"{bits:.2f}")
