"""What a report says of a student that was trained: before and after, and the curve between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.report import numbers, svg
from compress.report.numbers import NONE
from compress.report.plots import NARROW, WIDE
from compress.report.rows import Table
from compress.report.svg import PAINT
from compress.results import Distilled, HeldOut, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEARNED = {
    "all": "all weights",
    "lora": "low-rank corrections, merged",
    "scales_and_norms": "scales of integers and norms",
    "codes": "integers, their scales and norms",
}


def stages(results: Results) -> tuple[Distilled, ...]:
    """Every stage that trained the student, in order."""
    return tuple(stage.distilled for stage in results.stages if stage.distilled is not None)


def heading(results: Results, place: int) -> str:
    """What a stage that trained is called, by its place among such stages from 1 on."""
    count = len(stages(results))
    return "What the teacher taught" + (f", {place} of {count}" if count > 1 else "")


def text(found: Distilled) -> str:
    """What was learned from what, and what it gained, in a few sentences."""
    told = (
        f"Asked for {found.asked} on {found.read_tokens:,} tokens ({_times(found)}) of {found.text}"
        f": {numbers.amount(found.learned_weights)} numbers learned, {_LEARNED[found.train]}"
        f"{', and embeddings that stay floats' if found.embeddings else ''}."
    )
    if found.changed_codes is not None:
        told += f" {numbers.amount(found.changed_codes)} integers became others."
    if not found.kept_step:
        return f"{told} Nothing lowered the held-out KL, so the student stays as it was."
    was, now = numbers.digits(found.kl_before), numbers.digits(found.kl_after)
    ended = "" if found.stopped == "finished" else " It ended early: later looks found no less."
    return (
        f"{told} On {found.held_out_tokens:,} held-out tokens the mean KL went from {was} to {now} "
        f"nats; kept is the state of step {found.kept_step:,} of {found.steps:,}.{ended}"
    )


def _times(found: Distilled) -> str:
    return f"{found.read_tokens / max(1, found.tokens):.1f} times {found.tokens:,}"


def table(found: Distilled) -> Table:
    """Every look at the held-out windows; the kept one is marked."""
    rows = tuple(
        (
            f"{check.step:,}",
            "kept" if check.step == found.kept_step else "",
            numbers.digits(check.kl),
            NONE if check.loss is None else numbers.digits(check.loss),
            f"{check.learning_rate:.2e}",
        )
        for check in found.checks
    )
    return Table(("step", "", "held-out KL", "loss", "learning rate"), rows, words=2)


def curve(found: Distilled, *, narrow: bool = False) -> str:
    """Draw held-out KL (a line with dots) and loss (thin) over the steps, both in nats a token."""
    checks = found.checks
    lost = [check for check in checks if check.loss is not None]
    with svg.settings(f"curve-{found.text_fingerprint[:8]}-{narrow}"):
        figure = svg.figure(NARROW if narrow else WIDE, 240 if narrow else 290)
        axes = svg.bare_axes(figure, left=48, right=70, top=12, bottom=44)
        over = bool(lost) and checks[-1].kl >= (lost[-1].loss or 0.0)
        _line(axes, checks, [check.kl for check in checks], "held-out KL", "ink", over=over)
        losses = [check.loss or 0.0 for check in lost]
        _line(axes, lost, losses, "loss", "soft", over=not over)
        axes.set(xlim=(0, max(1, checks[-1].step)), ylim=(0, None))
        axes.set_xlabel("step", color=PAINT["soft"])
        axes.grid(axis="y", color=PAINT["line"], linewidth=0.8)
        axes.spines["bottom"].set(visible=True, color=PAINT["soft"])
        first, last = checks[0].kl, min(check.kl for check in checks)
        said = f"Held-out KL by step: from {first:.3g} to {last:.3g} nats per token at best"
        return svg.finish(figure, said)


def _line(
    axes: Axes,
    checks: Sequence[HeldOut],
    values: Sequence[float],
    name: str,
    paint: str,
    *,
    over: bool,
) -> None:
    """One curve, its name at its end: over it or under it, clear of the other's."""
    if not checks:
        return
    steps, dots = [check.step for check in checks], "o" if paint == "ink" else ""
    axes.plot(steps, values, color=PAINT[paint], marker=dots, markersize=3.5, linewidth=1.4)
    axes.annotate(
        name, (steps[-1], values[-1]), xytext=(6, 0), textcoords="offset points",
        va="bottom" if over else "top",
        color=PAINT[paint], fontsize=12, annotation_clip=False,
    )  # fmt: skip
