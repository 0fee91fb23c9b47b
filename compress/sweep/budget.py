"""Trials held against the budget: who keeps it, who is the best, what a sampler is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from compress.recipe.sweep import Budget
from compress.results.swept import Trial

WORST = 1e30  # what a sampler is told of a trial without a number
_FAR = 1e3  # times over a budget; farther is as bad


def judged(trial: Trial, budget: Budget) -> Trial:
    """A trial that says what of the budget it does not keep."""
    return replace(
        trial, over=tuple(name for name, excess in _excesses(trial, budget) if excess > 0)
    )


def best(trials: Sequence[Trial], objective: str) -> Trial | None:
    """The best of those within the budget; of equals the nearer, then the smaller."""
    found = [one for one in trials if one.within and one.measure(objective) is not None]
    return min(found, key=lambda one: _order(one, objective), default=None)


def score(trial: Trial, objective: str, budget: Budget) -> float:
    """What a sampler makes small: the objective within the budget, and else how far off it is."""
    if trial.within and (found := trial.measure(objective)) is not None:
        return found
    if trial.state not in ("made", "stopped", "too large"):
        return WORST * _FAR * 4
    excess = sum(min(_FAR, max(0.0, one)) for _, one in _excesses(trial, budget))
    return WORST * (1 + excess)


def _excesses(trial: Trial, budget: Budget) -> Iterator[tuple[str, float]]:
    """How far a trial is over each part of the budget, as a share of it; unknown is infinite."""
    kl = trial.glance_kl_mean if trial.kl_mean is None else trial.kl_mean
    speed = trial.decode_tokens_per_second
    if budget.size_bytes is not None:
        size = trial.size_bytes
        yield "size", float("inf") if size is None else size / budget.size_bytes - 1
    if budget.kl_mean is not None:
        yield "kl_mean", float("inf") if kl is None else kl / budget.kl_mean - 1
    if budget.decode is not None:
        yield "decode", float("inf") if not speed else budget.decode / speed - 1


def _order(trial: Trial, objective: str) -> tuple[float, ...]:
    names = (objective, "kl_mean", "size")
    found = (trial.measure(name) for name in names)
    return tuple(WORST if one is None else one for one in found)
