"""Every measure of a run before and after, a row each."""

from __future__ import annotations

from collections.abc import Iterator

from compress.report import numbers
from compress.report.numbers import NONE
from compress.report.rows import Row, linears
from compress.results import Divergence, Measured, Perplexity, Results, Side, SizePart, TaskScore


def summary(results: Results, measured: Measured | None) -> list[Row]:
    """List every measure before and after; what was not measured has no row.

    Args:
        results: the run's results.
        measured: its times and memory, or None where they are not known.
    """
    rows = [*_size_rows(results.before, results.after), *_bits_rows(results)]
    rows += _sparsity_rows(results)
    rows += _taught_rows(results)
    after = results.after.perplexity if results.after else None
    rows += _perplexity_rows(results.before.perplexity, after)
    rows += _divergence_rows(results.divergence) if results.divergence else ()
    rows += _task_rows(results)
    rows += _measured_rows(measured) if measured else ()
    return rows


def _size_rows(before: Side, after: Side | None) -> Iterator[Row]:
    was = before.size_bytes
    if after is None:
        yield Row("size on disk", numbers.size(was), NONE, NONE, "no student was made")
        return
    now = after.size_bytes
    difference = f"{numbers.change(was, now)}, {numbers.ratio(was, now)}"
    yield Row("size on disk", numbers.size(was), numbers.size(now), difference)


def _bits_rows(results: Results) -> Iterator[Row]:
    if results.after is None:
        return
    was, now = results.before.bits_per_weight, results.after.bits_per_weight
    note = "block linears, every stored byte counted"
    yield Row("bits per weight", f"{was:.2f}", f"{now:.2f}", numbers.signed(now - was, 2), note)
    for part in results.sizes:
        if part.part == "head" and part.weights:
            yield _head_row(part)
    yield from _cache_rows(results)


def _head_row(part: SizePart) -> Row:
    label, now = "bits per weight, head", 8 * part.after_bytes / part.weights
    if not part.before_bytes:
        return Row(label, NONE, f"{now:.2f}", NONE, "was the embedding, and is a matrix of its own")
    was, note = 8 * part.before_bytes / part.weights, "counted apart from the block linears"
    return Row(label, f"{was:.2f}", f"{now:.2f}", numbers.signed(now - was, 2), note)


def _sparsity_rows(results: Results) -> Iterator[Row]:
    """How much of the pruned linears is zero; no row where nothing was pruned."""
    found = [linear.sparsity for linear in linears(results) if linear.sparsity]
    if found and results.after:
        least, most = numbers.percent(min(found)), numbers.percent(max(found))
        share = least if least == most else f"{least} to {most}"
        note = f"of {numbers.counted(len(found), 'linear')}; nothing here runs faster for it"
        yield Row("zeros", NONE, share, NONE, note)


def _taught_rows(results: Results) -> Iterator[Row]:
    """What each stage that trained gained where it did not train."""
    found = [stage.distilled for stage in results.stages if stage.distilled]
    for place, taught in enumerate(found, 1):
        label = "held-out KL, distill" + (f" {place} of {len(found)}" if len(found) > 1 else "")
        was, now = (f"{numbers.digits(kl)} nats" for kl in (taught.kl_before, taught.kl_after))
        note = (
            f"kept step {taught.kept_step:,} of {taught.steps:,}; {taught.held_out_tokens:,} "
            f"tokens of {taught.text}, not trained on"
        )
        yield Row(label, was, now, numbers.change(taught.kl_before, taught.kl_after), note)


def _cache_rows(results: Results) -> Iterator[Row]:
    cached = [block for stage in results.stages for block in stage.kv]
    was = results.before.kv_bytes_per_token
    now = results.after.kv_bytes_per_token if results.after else None
    if cached and was and now:
        note = f"bytes a token; {cached[0].numbers}, a scale each {cached[0].granularity}"
        difference = f"{numbers.change(was, now)}, {numbers.ratio(was, now)}"
        yield Row("keys and values", f"{was:,}", f"{now:,}", difference, note)


def _perplexity_rows(before: Perplexity | None, after: Perplexity | None) -> Iterator[Row]:
    known = after or before
    if known is None:
        return
    note = (
        f"{known.set}, {known.windows:,} windows of {known.seq_len:,} tokens, "
        f"stride {known.stride:,}"
    )
    was, now = (f"{side.perplexity:.2f}" if side else NONE for side in (before, after))
    difference = NONE
    if before and after:
        difference = numbers.change(before.perplexity, after.perplexity)
    yield Row("perplexity", was, now, difference, note)


def _divergence_rows(divergence: Divergence) -> Iterator[Row]:
    d = divergence
    note = f"per token, over {d.tokens:,} tokens of {d.set}"
    for name, value in {"mean": d.kl_mean, "median": d.kl_p50, "99th percentile": d.kl_p99}.items():
        text = numbers.digits(value)
        yield Row(f"KL to the teacher, {name}", "0", f"{text} nats", f"+{text}", note)
        note = ""  # said once, for the rows below too
    points = f"{numbers.signed(100 * (d.top1_agreement - 1), 1)} points"
    yield Row("top-1 agreement", "100.0 %", numbers.percent(d.top1_agreement), points)
    share = f"{numbers.percent(d.flips / d.tokens)} of tokens" if d.tokens else NONE
    yield Row("flips", "0", f"{d.flips:,}", share, "tokens with another first choice")


def _task_rows(results: Results) -> Iterator[Row]:
    before = {task.name: task for task in results.before.tasks}
    after = {task.name: task for task in results.after.tasks} if results.after else {}
    for name, task in {**before, **after}.items():
        was, now = before.get(name), after.get(name)
        difference = NONE
        if was and now:
            points = numbers.signed(100 * (now.accuracy - was.accuracy), 1)
            difference = f"{points} points, {numbers.counted(now.flips, 'answer')} flipped"
        note = f"{task.metric} of {task.items:,} items ± standard error"
        yield Row(name, _score(was), _score(now), difference, note)


def _score(task: TaskScore | None) -> str:
    return f"{100 * task.accuracy:.1f} ± {100 * task.stderr:.1f} %" if task else NONE


def _measured_rows(measured: Measured) -> Iterator[Row]:
    if "total" in measured.seconds:
        before = f"without {n} units finished before" if (n := measured.resumed_units) else NONE
        total = numbers.duration(measured.seconds["total"])
        yield Row("time", NONE, total, before, "the whole run, on the clock of the wall")
    if "total" in measured.cpu_seconds:
        spent = numbers.duration(measured.cpu_seconds["total"])
        note = "of processors, all threads and processes added up"
        yield Row("processor time", NONE, spent, NONE, note)
    yield Row("peak memory", NONE, numbers.size(measured.peak_memory_bytes), NONE, "resident")
    if measured.prefill_tokens_per_second is not None:
        speed = numbers.digits(measured.prefill_tokens_per_second)
        yield Row("prefill", NONE, f"{speed} tokens/s", NONE)
    if measured.decode_tokens_per_second is not None:
        speed = numbers.digits(measured.decode_tokens_per_second)
        yield Row("decode", NONE, f"{speed} tokens/s", NONE)
