"""Hold every linear against a limit before its block is committed: fail, widen it or keep it dense.

Linears that engines fuse (q, k, v; gate, up) must share one scheme, so what one of them becomes,
all of them become. Pruned linears are held as rounded ones are, but never widened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from torch import Tensor

from compress.anatomy import Linear
from compress.errors import GateMissed
from compress.kernels.grid import Rounded
from compress.recipe.gates import LinearGate, wider
from compress.recipe.scheme import Scheme
from compress.results import LinearResult
from compress.stages.rounding import Rounder

Solution = tuple[dict[str, Rounded], list[LinearResult]]

_ASKED_FROM_OUTSIDE = "a gate on the whole student asked for more bits"


@dataclass(frozen=True)
class Gated:
    """Rounds linears as a `Rounder` does, and lets none pass that misses the gate.

    asked: what the recipe asks for, by linear name; `rounder` may begin with more bits. A `Pruner`
    in its place is held alike; what it prunes is `floating`, so that nothing is widened.
    """

    rounder: Rounder
    asked: Mapping[str, Scheme]
    gate: LinearGate | None = None

    def __call__(
        self,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor | None,
        peaks: Tensor | None = None,
        lacks: Mapping[str, Tensor] | None = None,
    ) -> Solution:
        """Round linears that share an input; see `blockwise.Solve`.

        Raises:
            SolveError: one cannot be solved and the recipe does not say to keep it dense.
            GateMissed: one shows a larger error than it may, and no wider grid is asked for, or
                there is none.
        """
        rounded, records = self.rounder(linears, weights, hessian, peaks, lacks)
        found = {record.name: record for record in records}
        for group in fused(linears):
            solve = partial(self._widened, group, weights, hessian, peaks, lacks)
            self._settle(group, solve, rounded, found)
        return rounded, [self._told(record) for record in found.values()]

    def _settle(
        self,
        group: Sequence[Linear],
        widened: Callable[[int], Solution],
        rounded: dict[str, Rounded],
        found: dict[str, LinearResult],
    ) -> None:
        """Solve a fused group again, one width further each time, until all of it passes.

        `widened` solves it with at least so many bits. `rounded` and `found` hold what it has
        become, before and after. Where one linear could not be solved and is kept dense, so are
        the others.
        """
        gate, why = self.gate, ""
        names = [linear.name for linear in group]
        _keep_even(names, rounded, found)
        while gate and (worst := _worst([found[name] for name in names], gate.error_max)):
            told = f"{worst.name} showed {_error(worst)}, above linear_error_max {gate.error_max:g}"
            wide = gate.on_violation == "escalate" and not self.asked[worst.name].floating
            bits = wider(worst.bits or 0, gate.widths) if wide else None
            if bits is None and gate.on_violation != "keep_dense":
                raise GateMissed(_missed(worst, gate), [found[name] for name in names])
            for name in names:
                rounded.pop(name, None)  # before the next is made
            if bits is None:
                found |= {name: _dense(found[name], told) for name in names}
                return
            codes, records = widened(bits)
            rounded |= codes
            found |= {record.name: record for record in records}
            _keep_even(names, rounded, found)
            why = why or told
        found |= {n: dataclasses.replace(found[n], note=found[n].note or why) for n in names}

    def _widened(
        self,
        group: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor | None,
        peaks: Tensor | None,
        lacks: Mapping[str, Tensor] | None,
        bits: int,
    ) -> Solution:
        """A group, solved with at least so many bits."""
        schemes = {
            linear.name: with_bits(scheme, max(bits, scheme.bits))
            for linear in group
            for scheme in [self.rounder.schemes[linear.name]]
        }
        wider_rounder = dataclasses.replace(self.rounder, schemes=schemes)
        return wider_rounder(group, weights, hessian, peaks, lacks)

    def _told(self, record: LinearResult) -> LinearResult:
        """The record, which says so where its linear was given more bits than asked for."""
        asked = self.asked[record.name].bits
        if record.bits in (None, asked):
            return record
        note = record.note or _ASKED_FROM_OUTSIDE
        return dataclasses.replace(record, escalated_from=asked, note=note)


def with_bits(scheme: Scheme, bits: int) -> Scheme:
    """The same scheme on a grid of another width, where there is one."""
    if scheme.floating:
        return scheme
    return dataclasses.replace(scheme, bits=bits)  # type: ignore[arg-type]


def fused(linears: Iterable[Linear]) -> list[list[Linear]]:
    """Linears that must be treated alike, together."""
    return [list(g) for _, g in groupby(linears, key=lambda linear: linear.fused or linear.name)]


def _worst(records: Sequence[LinearResult], error_max: float) -> LinearResult | None:
    """The narrowest linear that misses the gate; of several, the one with the largest error."""
    missing = [
        record
        for record in records
        if record.outcome == "solved" and not record.relative_error <= error_max  # NaN misses
    ]
    return min(missing, key=lambda r: (r.bits or 0, -r.relative_error), default=None)


def _keep_even(
    names: Sequence[str], rounded: dict[str, Rounded], found: dict[str, LinearResult]
) -> None:
    """Keep all of a fused group dense where one of it had to be: engines refuse uneven ones."""
    unsolved = next((found[name] for name in names if found[name].outcome != "solved"), None)
    if unsolved is not None:
        why = f"fused with {unsolved.name}, which is kept dense: {unsolved.note}"
        for name in names:
            rounded.pop(name, None)
        found |= {name: _dense(found[name], why) for name in names}


def _dense(record: LinearResult, why: str) -> LinearResult:
    if record.outcome != "solved":
        return record
    return dataclasses.replace(
        record, outcome="kept_dense", bits=None, group_size=None, relative_error=0.0,
        damp_percent=None, sparsity=0.0, kept_weights=None, note=why,
    )  # fmt: skip


def _error(record: LinearResult) -> str:
    told = [f"{record.bits} bits"] if record.bits else []
    told += [f"{100 * record.sparsity:.0f} % zeros"] if record.sparsity else []
    return f"a relative error of {record.relative_error:.3g} at {' and '.join(told)}"


def _missed(worst: LinearResult, gate: LinearGate) -> str:
    remedy = (
        "There is no wider grid. Raise the limit, or choose on_violation: keep_dense"
        if gate.on_violation == "escalate"
        else "Prune less of it, or choose on_violation: keep_dense"
        if worst.sparsity
        else "Give it more bits, or choose on_violation: escalate or keep_dense"
    )
    return (
        f"{worst.name}: shows {_error(worst)}, and evaluate.gates.linear_error_max allows "
        f"{gate.error_max:g}. Its block was not committed. {remedy}.   docs/errors.md#gates"
    )
