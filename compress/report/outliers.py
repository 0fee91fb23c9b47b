"""What a report says of outlier columns: how many linears multiply in float, and which."""

from __future__ import annotations

import itertools

from compress.report.rows import Table
from compress.results import LinearResult, Results


def outlier_text(results: Results) -> str:
    """Say how much of the inputs is multiplied in float; "" where no linear has outliers."""
    found = [linear for linear in results.linears if linear.outlier_columns]
    if not found:
        return ""
    rounding = [linear for linear in results.linears if linear.method == "llm_int8"]
    share = sum(linear.outlier_share for linear in rounding) / len(rounding)
    worst = max(found, key=lambda linear: linear.outlier_share)
    return (
        f"In the calibration {len(found)} of {len(rounding)} linears were fed outliers. In a batch "
        f"of it {share:.1%} of the input columns were, on average over linears; most in "
        f"{worst.name}: {worst.outlier_share:.1%}."
    )


def outlier_table(results: Results) -> Table:
    """Input columns with outliers, by block and by what shares an input: in all, in a batch."""
    rows = tuple(
        (
            str(block),
            ", ".join(linear.role for linear in group),
            str(group[0].outlier_columns),
            f"{group[0].outlier_share:.2%}",
            ", ".join(map(str, group[0].largest_columns)),
        )
        for (block, _), group in _sharing(results)
    )
    return Table(("block", "linears", "columns", "in a batch", "the largest"), rows, words=2)


def _sharing(results: Results) -> list[tuple[tuple[int | None, object], list[LinearResult]]]:
    """Linears with outliers; neighbours that share an input saw the same."""
    found = [linear for linear in results.linears if linear.outlier_columns]

    def seen(linear: LinearResult) -> tuple[int | None, object]:
        return linear.block, (linear.outlier_columns, linear.outlier_share, linear.largest_columns)

    return [(key, list(group)) for key, group in itertools.groupby(found, key=seen)]
