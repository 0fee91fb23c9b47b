"""What is said of a budget of bits: who got them, what that costs, and whether it was foretold."""

from __future__ import annotations

from collections.abc import Iterator

from compress.report import numbers
from compress.report.numbers import NONE
from compress.report.rows import Table
from compress.results import Allocation, Results, Share

KINDS = {"qkv": "q, k, v", "gate_up": "gate, up"}


def sentence(results: Results, allocation: Allocation) -> str:
    """The budget, what was made of it, and its cost as predicted and as measured."""
    size, bits = numbers.size(allocation.size_bytes), f"{allocation.bits_per_weight:.3f}"
    told = f"Budget {allocation.budget}: {bits} bits per weight in the blocks, {size} on disk."
    predicted = f"Predicted mean KL {numbers.digits(allocation.kl_predicted)} nats per token"
    if results.divergence is None:
        return f"{told} {predicted}."
    measured = numbers.digits(results.divergence.kl_mean)
    return f"{told} {predicted}, measured on {results.divergence.set} {measured}."


def kinds(allocation: Allocation) -> Table:
    """For each kind of group: how many got which width, their bytes and what they cost."""
    widths = sorted({share.bits for share in allocation.shares})
    found = dict.fromkeys(share.kind for share in allocation.shares)
    rows = []
    for kind in found:
        shares = [share for share in allocation.shares if share.kind == kind]
        counts = (sum(share.bits == bits for share in shares) for bits in widths)
        rows.append(
            (
                KINDS.get(kind, kind),
                *(str(count) if count else NONE for count in counts),
                numbers.size(sum(chosen(share)[1] for share in shares)),
                numbers.digits(sum(chosen(share)[0] for share in shares)),
            )
        )
    header = ("linears", *(f"{bits} bits" for bits in widths), "stored", "KL predicted")
    return Table(header, tuple(rows))


def groups(allocation: Allocation) -> Table:
    """Every group with what it got, and what each width would have cost."""
    widths = sorted({width.bits for share in allocation.shares for width in share.widths})
    header = ("block", "linears", "bits", *(f"KL at {bits}" for bits in widths))
    rows = (tuple(_cells(share, widths)) for share in allocation.shares)
    return Table(header, tuple(rows), words=2)


def chosen(share: Share) -> tuple[float, int]:
    """KL and bytes of the width that a group got."""
    found = next(width for width in share.widths if width.bits == share.bits)
    return found.kl, found.size_bytes


def _cells(share: Share, widths: list[int]) -> Iterator[str]:
    yield NONE if share.block is None else str(share.block)
    yield KINDS.get(share.kind, share.kind)
    yield str(share.bits)
    costs = {width.bits: numbers.digits(width.kl) for width in share.widths}
    yield from (costs.get(bits, NONE) for bits in widths)
