"""What a report says of a model that was given another shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compress.report import numbers
from compress.report.numbers import NONE
from compress.report.rows import Row, Table
from compress.results import ModelShape, Restructured, Results

_PARTS = (
    ("blocks", "blocks"),
    ("query heads", "heads"),
    ("heads of keys and values", "kv_heads"),
    ("MLP channels", "channels"),
    ("width", "hidden"),
)


def stages(results: Results) -> tuple[Restructured, ...]:
    """Every stage that changed the shape, in order; blocks by their numbers before the first."""
    told, first = list[Restructured](), dict[int, int]()
    for found in (stage.shape for stage in results.stages if stage.shape is not None):
        blocks = [(cut, first.get(cut.block, cut.block)) for cut in found.blocks]
        told.append(replace(found, blocks=tuple(replace(cut, block=was) for cut, was in blocks)))
        first = {cut.now: was for cut, was in blocks if cut.now is not None}
    return tuple(told)


def heading(results: Results, place: int) -> str:
    """What a stage that cut is called, by its place among such stages from 1 on."""
    count = len(stages(results))
    return "What was taken away" + (f", {place} of {count}" if count > 1 else "")


def summary(results: Results) -> Iterator[Row]:
    """Parameters and whatever else became fewer, before and after all stages."""
    if not (found := stages(results)):
        return
    before, after = found[0].before, found[-1].after
    was, now = before.parameters, after.parameters
    change = numbers.change(was, now)
    yield Row("parameters", numbers.amount(was), numbers.amount(now), change)
    for label, field in _PARTS:
        was, now = getattr(before, field), getattr(after, field)
        if field == "channels" and len(each := _channels(found[-1])) > 1:
            yield Row(label, f"{was:,}", f"{min(each):,} to {max(each):,}", NONE)
        elif was != now:
            yield Row(label, f"{was:,}", f"{now:,}", numbers.change(was, now))


def _channels(found: Restructured) -> set[int]:
    """The numbers of channels that blocks have."""
    return {cut.channels for cut in found.blocks if cut.now is not None}


def text(found: Restructured) -> str:
    """One sentence on a stage."""
    gone = [cut.block for cut in found.blocks if cut.now is None]
    removed = f" Removed: {', '.join(map(str, gone))}." if gone else ""
    how = "what is left was repaired" if found.repaired else "nothing was repaired"
    share = found.stream_share
    stream = "" if share is None else f" Of the stream's squares {100 * share:.1f} % stay."
    all_stayed = " It leaves all there was." if found.before == found.after else ""
    return f"Asked for {found.asked}; {how}.{removed}{stream}{all_stayed}{_missed(found)}"


def _missed(found: Restructured) -> str:
    """That what was made is slower than it was asked to be, where it is."""
    shares = (one.decode_share for one in found.candidates if one.chosen)
    share, most = next(shares, None), found.decode_share_asked
    if share is None or most is None or share <= most:
        return ""
    return f" A token takes {share:.3f} of the teacher's time, more than the {most:.3f} asked for."


def block_table(found: Restructured) -> Table:
    """What is left of each block, and what was found of it."""
    shared = any(cut.channels_kl is not None for cut in found.blocks)
    rows = tuple(
        (
            str(cut.block),
            NONE if cut.now is None else str(cut.now),
            *(f"{n:,}" if cut.now is not None else NONE for n in (
                cut.heads, cut.kv_heads, cut.channels
            )),
            NONE if cut.error is None else numbers.error(cut.error),
            NONE if cut.influence is None else numbers.digits(cut.influence),
            NONE if cut.kl is None else numbers.digits(cut.kl),
            *([] if not shared else [
                NONE if cut.channels_kl is None else numbers.digits(cut.channels_kl)
            ]),
        )
        for cut in found.blocks
    )  # fmt: skip
    header = (
        "block", "now", "heads", "KV heads", "channels", "MLP error", "influence", "KL without it",
    )  # fmt: skip
    return Table((*header, "KL of its channels") if shared else header, rows, words=0)


def candidate_table(found: Restructured) -> Table:
    """The shapes that were tried, the best first."""
    rows = []
    for one in sorted(found.candidates, key=lambda one: one.kl):
        time = NONE if one.decode_share is None else f"{one.decode_share:.2f} ×"
        chosen = "chosen" if one.chosen else ""
        weights = numbers.amount(one.shape.parameters)
        rows.append((_named(one.shape), chosen, weights, time, numbers.digits(one.kl)))
    header = ("shape", "", "parameters", "time a token", "KL, nats")
    return Table(header, tuple(rows), words=2)


def _named(shape: ModelShape) -> str:
    return (
        f"{shape.blocks} blocks, {shape.heads}/{shape.kv_heads} heads, "
        f"{shape.channels:,} channels, width {shape.hidden:,}"
    )
