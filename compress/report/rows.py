"""What a report says: the tables and the verdict, as text, for the page, the Markdown and the terminal alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from compress.results import Divergence, LinearResult, Measured, Perplexity, Results, Side, SizePart, TaskScore

NONE = "–"


@dataclass(frozen=True)
class Row:
    """One line of the summary: a measure of the teacher (before), of the student (after), and what changed."""

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


def summary(results: Results, measured: Measured | None) -> list[Row]:
    """List every measure before and after; what was not measured has no row.

    Args:
        results: the run's results.
        measured: its times and memory, or None where they are not known.
    """
    rows = [_size_row(results.before, results.after), *_bits_rows(results)]
    rows += _perplexity_rows(results.before.perplexity, results.after.perplexity)
    rows += _divergence_rows(results.divergence) if results.divergence else ()
    rows += _task_rows(results)
    rows += _measured_rows(measured) if measured else ()
    return rows


def verdict(results: Results) -> str:
    """Say in a few plain sentences what the run made of the teacher."""
    return " ".join(_verdict_sentences(results))


def linears(results: Results) -> tuple[LinearResult, ...]:
    """Every linear that a stage touched, as the last stage to touch it left it."""
    last = {linear.name: linear for stage in results.stages for linear in stage.linears}
    return tuple(last.values())


def worst(results: Results, count: int = 5) -> tuple[LinearResult, ...]:
    """The solved linears with the largest relative error, largest first."""
    solved = (linear for linear in linears(results) if linear.outcome == "solved")
    return tuple(sorted(solved, key=lambda linear: (-linear.relative_error, linear.name))[:count])


def worst_table(results: Results) -> Table:
    """The worst five linears, each against the median of all solved ones."""
    solved = [linear.relative_error for linear in linears(results) if linear.outcome == "solved"]
    median = statistics.median(solved) if solved else 0.0
    rows = (
        (linear.name, bits_text(linear), error_text(linear.relative_error), _times(linear.relative_error, median))
        for linear in worst(results)
    )
    return Table(("linear", "stored as", "relative error", "of the median"), tuple(rows), words=2)


def error_table(results: Results) -> Table:
    """Relative error by block (rows) and role (columns): the numbers of the heat map."""
    cells = {(linear.block, linear.role): linear for linear in linears(results) if linear.block is not None}
    blocks = sorted({linear.block for linear in cells.values() if linear.block is not None})
    names = roles(results)
    rows = ((str(block), *(_cell(cells.get((block, role))) for role in names)) for block in blocks)
    return Table(("block", *names), tuple(rows))


def roles(results: Results) -> tuple[str, ...]:
    """Roles of the block linears, in the order in which data flows through them."""
    return tuple(dict.fromkeys(linear.role for linear in linears(results) if linear.block is not None))


def size_table(results: Results) -> Table:
    """Stored bytes by part, the head apart, with bits per weight after, and their sum."""
    before = sum(part.before_bytes for part in results.sizes)
    after = sum(part.after_bytes for part in results.sizes)
    rows = [
        (part.part, _weights(part), size_text(part.before_bytes), size_text(part.after_bytes), _part_bits(part))
        for part in results.sizes
    ]
    rows.append(("together", "", size_text(before), size_text(after), ""))
    return Table(("part", "weights", "before", "after", "bits per weight"), tuple(rows))


def fallback_table(results: Results) -> Table:
    """Linears that did not become what the recipe asked for, and why."""
    rows = ((r.name, r.method, r.outcome.replace("_", " "), r.note or NONE) for r in results.fallbacks)
    return Table(("linear", "asked for", "outcome", "why"), tuple(rows), words=4)


def fallback_text(results: Results) -> str:
    """One sentence on the fallbacks; it is said also when there are none."""
    total, kept = len(linears(results)), len(results.fallbacks)
    if kept:
        return f"{kept} of {total} linears did not become what the recipe asked for."
    return f"None: all {total} linears were solved as the recipe asked." if total else "None."


def time_table(measured: Measured) -> Table:
    """Seconds by step of the pipeline, the total last."""
    steps = [(step, duration_text(spent)) for step, spent in measured.seconds.items() if step != "total"]
    total = [("total", duration_text(measured.seconds["total"]))] if "total" in measured.seconds else []
    return Table(("step", "time"), (*steps, *total))


def provenance_table(results: Results, measured: Measured | None) -> Table:
    """Everything that decided the run; hardware and date where they are known."""
    source = results.provenance
    calibration = f"{source.calibration}, {source.calibration_tokens:,} tokens"
    rows = [
        ("recipe", source.recipe),
        ("teacher", source.teacher),
        ("teacher fingerprint", source.teacher_fingerprint),
        ("calibration", calibration),
        ("calibration fingerprint", source.calibration_fingerprint),
        ("seed", str(source.seed)),
        ("device, threads", f"{source.device}, {source.threads}"),
        *((f"version of {name}", version) for name, version in source.versions.items()),
    ]
    if measured:
        rows += [("hardware", measured.hardware), ("date", measured.date)]
    return Table(("what", "value"), tuple(rows), words=2)


def command(results: Results) -> str:
    """The command that makes the same artifact again from the locked recipe beside it."""
    source = results.provenance
    return f"compress apply recipe.lock.yaml --device {source.device} --threads {source.threads}"


def differing_tail(teacher: str, student: str) -> tuple[str, str, str]:
    """Split two continuations into the words both begin with and the tails in which they differ.

    Returns:
        the common beginning, the teacher's tail and the student's; both tails are empty where the texts are equal.
    """
    if teacher == student:
        return teacher, "", ""
    shared = 0
    for ours, theirs in zip(teacher, student, strict=False):
        if ours != theirs:
            break
        shared += 1
    inside_word = any(shared < len(text) and not text[shared].isspace() for text in (teacher, student))
    while inside_word and shared and not teacher[shared - 1].isspace():
        shared -= 1
    return teacher[:shared], teacher[shared:], student[shared:]


def size_text(count: int) -> str:
    """Bytes in decimal units with three digits: 269 MB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{_digits(value)} {unit}" if unit != "B" else f"{count} B"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 6 min 52 s, 2 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent_text(fraction: float, *, sign: bool = False) -> str:
    """A fraction in percent with one decimal, optionally with its sign."""
    return f"{_signed(100 * fraction, 1) if sign else f'{100 * fraction:.1f}'} %"


def error_text(error: float) -> str:
    """A relative error in percent with three significant digits."""
    return f"{100 * error:.3g} %"


def bits_text(linear: LinearResult) -> str:
    """How a linear is stored: 4 bits, groups of 64."""
    if linear.bits is None or linear.outcome != "solved":
        return "dense"
    groups = "one scale per row" if linear.group_size in (None, -1) else f"groups of {linear.group_size}"
    return f"{linear.bits} bits, {groups}"


def ratio_text(before: int, after: int) -> str:
    """The change in size in words: 3.1 times smaller."""
    if not before or not after:
        return "of unknown relative size"
    larger, smaller = max(before, after), min(before, after)
    times = f"{larger / smaller:.1f}"
    return "as large as before" if times == "1.0" else f"{times} times {'smaller' if after < before else 'larger'}"


def protocol_text(perplexity: Perplexity) -> str:
    """The protocol of a perplexity: set, windows, length, stride."""
    p = perplexity
    return f"{p.set}, {p.windows:,} windows of {p.seq_len:,} tokens, stride {p.stride:,}"


def _size_row(before: Side, after: Side) -> Row:
    share = after.size_bytes / before.size_bytes - 1 if before.size_bytes else math.nan
    change = f"{percent_text(share, sign=True)}, {ratio_text(before.size_bytes, after.size_bytes)}"
    return Row("size on disk", size_text(before.size_bytes), size_text(after.size_bytes), change)


def _bits_rows(results: Results) -> Iterator[Row]:
    before, after = results.before.bits_per_weight, results.after.bits_per_weight
    yield _plain("bits per weight", before, after, 2, "block linears, every stored byte counted")
    for part in results.sizes:
        if part.part == "head" and part.weights:
            was, now = (8 * count / part.weights for count in (part.before_bytes, part.after_bytes))
            yield _plain("bits per weight, head", was, now, 2, "counted apart from the block linears")


def _plain(label: str, before: float, after: float, digits: int, note: str = "") -> Row:
    change = _signed(after - before, digits)
    return Row(label, f"{before:.{digits}f}", f"{after:.{digits}f}", change, note)


def _perplexity_rows(before: Perplexity | None, after: Perplexity | None) -> Iterator[Row]:
    known = after or before
    if known is None:
        return
    texts = [NONE if side is None else f"{side.perplexity:.2f}" for side in (before, after)]
    change = NONE
    if before and after:
        change = percent_text(after.perplexity / before.perplexity - 1, sign=True)
    yield Row("perplexity", texts[0], texts[1], change, protocol_text(known))


def _divergence_rows(divergence: Divergence) -> Iterator[Row]:
    d = divergence
    note = f"per token, over {d.tokens:,} tokens of {d.set}"
    for name, value in {"mean": d.kl_mean, "median": d.kl_p50, "99th percentile": d.kl_p99}.items():
        label = f"KL to the teacher, {name}"
        yield Row(label, "0", f"{_digits(value)} nats", f"+{_digits(value)}", note)
        note = ""  # said once, for the rows that follow too
    points = f"{_signed(100 * (d.top1_agreement - 1), 1)} points"
    yield Row("top-1 agreement", "100.0 %", percent_text(d.top1_agreement), points)
    share = f"{percent_text(d.flips / d.tokens)} of tokens" if d.tokens else NONE
    yield Row("flips", "0", f"{d.flips:,}", share, "tokens whose first choice is another than the teacher's")


def _task_rows(results: Results) -> Iterator[Row]:
    before = {task.name: task for task in results.before.tasks}
    after = {task.name: task for task in results.after.tasks}
    for name, task in {**before, **after}.items():
        was, now = before.get(name), after.get(name)
        change = NONE
        if was and now:
            points = _signed(100 * (now.accuracy - was.accuracy), 1)
            change = f"{points} points, {now.flips} answers flipped"
        yield Row(name, _score(was), _score(now), change, f"{task.metric} of {task.items:,} items ± standard error")


def _score(task: TaskScore | None) -> str:
    return NONE if task is None else f"{100 * task.accuracy:.1f} ± {100 * task.stderr:.1f} %"


def _measured_rows(measured: Measured) -> Iterator[Row]:
    if "total" in measured.seconds:
        yield Row("time", NONE, duration_text(measured.seconds["total"]), NONE, "the whole run")
    yield Row("peak memory", NONE, size_text(measured.peak_memory_bytes), NONE, "resident")
    speeds = {"prefill": measured.prefill_tokens_per_second, "decode": measured.decode_tokens_per_second}
    for name, speed in speeds.items():
        if speed is not None:
            yield Row(name, NONE, f"{_digits(speed)} tokens/s", NONE)


def _verdict_sentences(results: Results) -> Iterator[str]:
    before, after = results.before, results.after
    ratio = ratio_text(before.size_bytes, after.size_bytes)
    yield f"The student is {ratio} on disk ({size_text(before.size_bytes)} → {size_text(after.size_bytes)})."
    if before.perplexity and after.perplexity:
        was, now = before.perplexity.perplexity, after.perplexity.perplexity
        word = "rises" if now >= was else "falls"
        yield f"Its perplexity {word} by {percent_text(abs(now / was - 1))} ({was:.2f} → {now:.2f})."
    if results.divergence:
        agreement = 100 * results.divergence.top1_agreement
        yield f"It picks the teacher’s next token {agreement:.0f} times out of 100."
    kept = len(results.fallbacks)
    if kept:
        yield f"{kept} {'linear' if kept == 1 else 'linears'} could not be solved and stayed dense."


def _cell(linear: LinearResult | None) -> str:
    if linear is None:
        return NONE
    return error_text(linear.relative_error) if linear.outcome == "solved" else "dense"


def _times(value: float, median: float) -> str:
    return f"{value / median:.1f} ×" if median else NONE


def _weights(part: SizePart) -> str:
    return f"{part.weights:,}" if part.weights else NONE


def _part_bits(part: SizePart) -> str:
    if not part.weights:
        return NONE
    was, now = (8 * count / part.weights for count in (part.before_bytes, part.after_bytes))
    return f"{was:.2f} → {now:.2f}"


def _digits(value: float) -> str:
    """Three significant digits without an exponent where that is readable."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"
