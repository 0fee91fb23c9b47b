"""What is said of zeros that are not the same everywhere: who got them, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator

from compress.report import numbers
from compress.report.numbers import NONE
from compress.report.rows import Table
from compress.report.shares import KINDS
from compress.results import Results, ZeroAllocation, ZeroShare


def stages(results: Results) -> tuple[ZeroAllocation, ...]:
    """Every stage that shared zeros out, in order."""
    return tuple(stage.zeros for stage in results.stages if stage.zeros is not None)


def sentence(found: ZeroAllocation) -> str:
    """How many zeros there are, by what they were shared out, and what that is predicted to do."""
    told = f"{numbers.amount(found.zeros)} zeros, {numbers.percent(found.sparsity)} in all"
    if found.kl_predicted is None or found.kl_uniform is None:
        return f"{told}: a block with more outliers than others got fewer."
    now, was = numbers.digits(found.kl_predicted), numbers.digits(found.kl_uniform)
    return (
        f"{told}, where they cost least. Predicted mean KL {now} nats per token before anything "
        f"makes up for it; the same sparsity everywhere: {was}."
    )


def table(found: ZeroAllocation) -> Table:
    """Every group with the sparsity that it got, and what decided."""
    tried = sorted({cost.sparsity for share in found.shares for cost in share.costs})
    costs = (f"KL at {numbers.percent(sparsity)}" for sparsity in tried)
    header = ("block", "linears", "zeros", *(costs if tried else ["outliers"]))
    return Table(header, tuple(tuple(_cells(share, tried)) for share in found.shares), words=2)


def _cells(share: ZeroShare, tried: list[float]) -> Iterator[str]:
    yield str(share.block)
    yield KINDS.get(share.kind, share.kind)
    yield numbers.percent(share.sparsity)
    if share.outliers is not None:
        yield numbers.error(share.outliers)
    costs = {cost.sparsity: numbers.digits(cost.kl) for cost in share.costs}
    yield from (costs.get(sparsity, NONE) for sparsity in tried)
