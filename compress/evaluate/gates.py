"""Hold what was measured against the limits of a recipe: plain numbers in, a verdict out.

A limit that is met exactly is kept. What nothing measured is not passed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compress.evaluate.sanity import insane
from compress.recipe.gates import Gates, in_bytes
from compress.results import GateResult, LinearResult, Results, TaskScore, Verdict

STANDARD_ERRORS = 1.645  # one-sided, 95 %: a drop by chance alone exceeds it one time in twenty
_ACCURACIES = ("acc", "acc_norm", "exact_match")


def check(gates: Gates, results: Results) -> Verdict:
    """Judge a student by the gates of its recipe.

    Args:
        gates: the limits; each gives at least one row, in the order of the schema.
        results: of the student as read back from disk, or, where a gate ended the walk, what the
            stages had found by then, with `after` None.
    """
    rows = tuple(
        row for name, limit in gates.limits.items() for row in _JUDGES[name](limit, results)
    )
    if all(row.passed for row in rows):
        return Verdict("ACCEPT", rows)
    # A walk that escalates ends at a linear only when there is no wider grid for it.
    stuck = gates.on_violation == "escalate" and results.after is None
    reason = "a linear misses linear_error_max at the widest grid there is" if stuck else ""
    return Verdict("INFEASIBLE" if stuck else "REGRESSION", rows, reason=reason)


def _at_most(name: str, limit: float, found: float | None, note: str = "") -> GateResult:
    return GateResult(name, limit, found, found is not None and found <= limit, note)


def _perplexity(limit: float, results: Results) -> Iterator[GateResult]:
    name = "perplexity_increase_max"
    before = results.before.perplexity
    after = results.after.perplexity if results.after else None
    if before is None or after is None:
        yield _at_most(name, limit, None)
        return
    note = f"{before.perplexity:.2f} → {after.perplexity:.2f} on {after.set}"
    yield _at_most(name, limit, after.perplexity / before.perplexity - 1, note)


def _kl_mean(limit: float, results: Results) -> Iterator[GateResult]:
    found = results.divergence
    yield _at_most("kl_mean_max", limit, found.kl_mean if found else None, _text(results))


def _kl_p99(limit: float, results: Results) -> Iterator[GateResult]:
    found = results.divergence
    yield _at_most("kl_p99_max", limit, found.kl_p99 if found else None, _text(results))


def _agreement(limit: float, results: Results) -> Iterator[GateResult]:
    found = results.divergence.top1_agreement if results.divergence else None
    passed = found is not None and found >= limit
    yield GateResult("top1_agreement_min", limit, found, passed, _text(results))


def _text(results: Results) -> str:
    divergence = results.divergence
    return f"{divergence.tokens:,} tokens of {divergence.set}" if divergence else ""


def _accuracy(limit: float, results: Results) -> Iterator[GateResult]:
    """One row a task: noise is forgiven in each, and none makes up for another."""
    before = {task.name: task for task in results.before.tasks}
    after = results.after.tasks if results.after else ()
    pairs = [(before[t.name], t) for t in after if t.name in before and t.metric in _ACCURACIES]
    if not pairs:
        yield _at_most("accuracy_drop_max", limit, None)
    for was, now in pairs:
        drop, error = was.accuracy - now.accuracy, drop_stderr(was, now)
        note = f"{now.name}, {now.items:,} items, standard error of the drop {error:.3f}"
        passed = drop <= limit + STANDARD_ERRORS * error
        yield GateResult("accuracy_drop_max", limit, drop, passed, note)


def drop_stderr(before: TaskScore, after: TaskScore) -> float:
    """The standard error of a drop, as a fraction.

    Both models answer the same items, so only items answered otherwise can move the accuracy: the
    mean of `items` differences of which at most `flips` are ±1 has an error of at most
    √flips / items. Where flips were not counted, the two errors add up as if items were different.
    """
    apart = math.hypot(before.stderr, after.stderr)
    moved = abs(before.accuracy - after.accuracy) * after.items
    counted = after.flips >= moved - 0.5 and after.flips > 0
    return min(apart, math.sqrt(after.flips) / after.items) if counted else apart


def _generation(_: Any, results: Results) -> Iterator[GateResult]:
    if not results.samples:
        yield _at_most("generation", 0, None)
        return
    faults = insane(results.samples)
    note = "; ".join(f"“{prompt}”: {fault}" for prompt, fault in faults)
    told = note or f"{len(results.samples)} greedy samples beside the teacher's"
    yield _at_most("generation", 0, len(faults), told)


def _linear(limit: float, results: Results) -> Iterator[GateResult]:
    solved = [linear for linear in results.linears if linear.outcome == "solved"]
    worst = max(solved, key=lambda linear: _sortable(linear.relative_error), default=None)
    if worst is None:
        # All that a stage touched stayed dense, which has no error.
        yield _at_most("linear_error_max", limit, 0.0 if results.linears else None)
        return
    note = ", ".join([f"worst: {worst.name}", *_kinds(results.fallbacks)])
    yield _at_most("linear_error_max", limit, worst.relative_error, note)


def _sortable(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _kinds(fallbacks: Sequence[LinearResult]) -> list[str]:
    kinds = Counter(
        "kept dense" if linear.bits is None else "given more bits" for linear in fallbacks
    )
    return [f"{count} {kind}" for kind, count in sorted(kinds.items())]


def _size(limit: str, results: Results) -> Iterator[GateResult]:
    yield _at_most("size_max", in_bytes(limit), results.after.size_bytes if results.after else None)


_JUDGES: dict[str, Callable[[Any, Results], Iterator[GateResult]]] = {
    "perplexity_increase_max": _perplexity,
    "kl_mean_max": _kl_mean,
    "kl_p99_max": _kl_p99,
    "top1_agreement_min": _agreement,
    "accuracy_drop_max": _accuracy,
    "generation": _generation,
    "linear_error_max": _linear,
    "size_max": _size,
}
