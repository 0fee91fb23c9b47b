"""Round the linears that share an input: those of one scheme are stacked and share one inverse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, zip_longest

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.kernels.activations import Inputs
from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit, round_to_nearest
from compress.kernels.hessian import Factor, invert, output_errors
from compress.kernels.int8 import round_rows
from compress.kernels.two_sided import two_sided
from compress.recipe.scheme import Scheme
from compress.results import Limits, LinearResult
from compress.stages.floats import inputs_of, round_stack
from compress.stages.int8 import int8_inputs, product_error


@dataclass(frozen=True)
class Rounder:
    """Rounds linears by their schemes; what cannot be solved fails, or is kept dense and named."""

    schemes: Mapping[str, Scheme]
    on_unsolvable: str
    rows: int = Limits().solve_rows  # of a stack, solved at once
    probe: Tensor | None = None  # [n, I], inputs on which errors count that round inputs, too
    kept: Mapping[str, int] = field(default_factory=dict)  # weights of what was pruned before
    outputs: Mapping[str, Tensor] = field(default_factory=dict)  # [O, O], see `curvature`

    def __call__(
        self,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor | None,
        peaks: Tensor | None = None,
        lacks: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Rounded], list[LinearResult]]:
        """Round linears that share an input; see `blockwise.Solve`.

        Args:
            linears: in any order; neighbours of one scheme are solved together.
            weights: [O, I] by name, any float, mapped maybe: a few rows at a time become float32.
            hessian: [I, I] float32, damped for a while and given back; None where no scheme needs
                one, and errors are those of the weights themselves.
            peaks: [I], the largest magnitude of each input column; None where none was observed.
            lacks: [O, I] by name, what linears lack of the teacher's (see `drift`): they are solved
                for weights that make up for it, and errors are those against these.

        Raises:
            SolveError: one cannot be solved and the recipe does not say to keep it dense.
        """
        rounded: dict[str, Rounded] = {}
        sound, results = finite(linears, weights, self.rows, self._kept)
        for (scheme, pruned), same in groupby(sound, key=self._treated):
            members = list(same)
            stack = [weights[linear.name] for linear in members]
            seen = _Seen(
                hessian,
                [lacks[linear.name] for linear in members] if lacks else [],
                [self.outputs[linear.name] for linear in members if linear.name in self.outputs],
            )
            try:
                solution = _round(stack, seen, scheme, self.rows, pruned=pruned)
            except SolveError as error:
                results += [self._kept(linear, error) for linear in members]
                continue
            for linear, piece in zip(members, solution.split(members), strict=True):
                found = replace(piece.rounded, inputs=_inputs(scheme, peaks))
                rounded[linear.name] = found
                result = piece.result(linear, scheme)
                if pruned:
                    result = replace(
                        result, sparsity=found.sparsity, kept_weights=self.kept[linear.name]
                    )
                if self.probe is not None and found.inputs is not None:
                    shown = product_error(self.probe, weights[linear.name], found)
                    result = replace(result, relative_error=shown)
                results.append(result)
        return rounded, results

    def _kept(self, linear: Linear, error: SolveError) -> LinearResult:
        method = self.schemes[linear.name].method
        return unsolved(linear, method, error, on_unsolvable=self.on_unsolvable)

    def _treated(self, linear: Linear) -> tuple[Scheme, bool]:
        """What linears must have in common to be solved together."""
        return self.schemes[linear.name], linear.name in self.kept


def unsolved(linear: Linear, method: str, error: SolveError, *, on_unsolvable: str) -> LinearResult:
    """The record of a linear that could not be solved and stays dense.

    Raises:
        SolveError: the recipe says to fail.
    """
    if on_unsolvable == "fail":
        raise SolveError(
            f"{linear.name}: {error}. Use more or other calibration text, or set "
            "on_unsolvable: keep_dense to leave such linears as they are."
        ) from error
    return LinearResult(
        linear.name, linear.block, linear.role, method, "kept_dense", None, None, 0.0,
        note=str(error),
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """What calibration says of the linears of a stack."""

    hessian: Tensor | None  # [I, I]
    lacks: Sequence[Tensor] = ()  # [O, I] each, or none
    outputs: Sequence[Tensor] = ()  # [O, O] each, or none


@dataclass(frozen=True)
class _Solution:
    """Rounded rows with, for each output, its error and its energy: mean squares per token, [O]."""

    rounded: Rounded
    error: Tensor
    energy: Tensor
    damp_percent: float | None = None
    dead_columns: int = 0

    def split(self, linears: Sequence[Linear]) -> list[_Solution]:
        """The rows of each linear of the stack."""
        sizes = [linear.out_features for linear in linears]
        rows = _cut(self.rounded, sizes), self.error.split(sizes), self.energy.split(sizes)
        return [
            replace(self, rounded=rounded, error=error, energy=energy)
            for rounded, error, energy in zip(*rows, strict=True)
        ]

    def result(self, linear: Linear, scheme: Scheme) -> LinearResult:
        """The record of one linear."""
        energy = float(self.energy.sum())
        return LinearResult(
            linear.name, linear.block, linear.role, scheme.method, "solved",
            scheme.bits, scheme.group_size,
            relative_error=float(self.error.sum()) / energy if energy else 0.0,
            damp_percent=self.damp_percent,
            dead_columns=self.dead_columns,
        )  # fmt: skip


def _round(
    stack: Sequence[Tensor], seen: _Seen, scheme: Scheme, rows: int, *, pruned: bool = False
) -> _Solution:
    """Round matrices [O, I] by slices of rows: given the Hessian [I, I], rows are independent.

    Where what is known of outputs makes rows hang together, each matrix is a slice. Where they are
    `pruned`, zeros stay zeros.
    """
    damp_percent, dead, hessian = None, 0, seen.hessian
    if hessian is None or not scheme.needs_hessian:
        parts = _rounded_parts(stack, None, None, scheme, rows)
    else:
        stack, parts, damp_percent, dead = _solved(stack, hessian, scheme, rows, seen, pruned)
    errors = [
        _errors(_whole(cut), part, hessian)
        for cut, part in zip(_slices(stack, rows), parts, strict=True)
    ]
    error, energy = (torch.cat(column) for column in zip(*errors, strict=True))
    return _Solution(joined(parts), error, energy, damp_percent, dead)


def _solved(
    stack: Sequence[Tensor],
    hessian: Tensor,
    scheme: Scheme,
    rows: int,
    seen: _Seen,
    pruned: bool,
) -> tuple[Sequence[Tensor], list[Rounded], float, int]:
    """What was solved for, its slices solved, what damping it took, how many columns were dead."""
    undamped = hessian.diagonal().clone()
    kept = [_whole(cut) != 0 for cut in _cuts(stack, rows, seen.outputs)] if pruned else []
    try:
        inverse = invert(hessian, scheme.damp_percent)
        importance, damp_percent = inverse.curvature, inverse.damp_percent
        dead = int(inverse.dead.sum())
        if seen.lacks:
            stack = [w + lack @ inverse.inverse for w, lack in zip(stack, seen.lacks, strict=True)]
        factor = inverse.factor(desc_act=scheme.desc_act) if scheme.by_gptq else None
        del inverse  # [I, I]: beside the Hessian only its factor stays
        solved = _rounded_parts(stack, importance, factor, scheme, rows, kept, seen.outputs)
    finally:
        hessian.diagonal().copy_(undamped)
    return stack, solved, damp_percent, dead


def _rounded_parts(
    stack: Sequence[Tensor],
    importance: Tensor | None,
    factor: Factor | None,
    scheme: Scheme,
    rows: int,
    masks: Sequence[Tensor] = (),
    outputs: Sequence[Tensor] = (),
) -> list[Rounded]:
    """The slices of a stack, rounded."""
    if scheme.floating:
        return _recut(round_stack(stack, importance, scheme), stack, rows)
    found = [
        _rounded(_whole(cut), importance, factor, scheme, mask, output)
        for cut, mask, output in zip_longest(_cuts(stack, rows, outputs), masks, outputs)
    ]
    return _recut(joined(found), stack, rows) if outputs else found


def _rounded(
    weight: Tensor,
    importance: Tensor | None,
    factor: Factor | None,
    scheme: Scheme,
    mask: Tensor | None = None,
    outputs: Tensor | None = None,
) -> Rounded:
    if scheme.method == "llm_int8":
        nearest = round_rows(weight)
        scale, zero = nearest.scale, nearest.zero.float()
    else:
        scale, zero = fit(
            weight, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
            search=scheme.scale_search, importance=importance,
        )  # fmt: skip
    if factor is None:
        return round_to_nearest(weight, scale, zero, bits=scheme.bits, sym=scheme.sym)
    solve = gptq if outputs is None else partial(two_sided, outputs=outputs)
    codes = solve(weight, factor, scale, zero, bits=scheme.bits, sweeps=scheme.sweeps, mask=mask)
    size = weight.shape[1] // scale.shape[1]
    return Rounded(codes, scale, zero.byte(), scheme.bits, size, scheme.sym)


def _inputs(scheme: Scheme, peaks: Tensor | None) -> Inputs | None:
    """How linears of a scheme round their inputs."""
    return int8_inputs(scheme, peaks) if scheme.int8_inputs else inputs_of(scheme, peaks)


def _errors(weight: Tensor, rounded: Rounded, hessian: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `output_errors` says, or the squares of the weights where no inputs were seen."""
    if hessian is not None:
        return output_errors(weight, rounded.dequantize(), hessian)
    return rounded.dequantize().sub_(weight).square_().sum(1), weight.square().sum(1)


def _slices(stack: Sequence[Tensor], rows: int) -> Iterator[Sequence[Tensor]]:
    """The rows of several matrices one after another, at most `rows` at a time, as they lie."""
    cut: list[Tensor] = []
    for matrix in stack:
        start = 0
        while start < len(matrix):
            room = rows - sum(map(len, cut))
            cut.append(matrix[start : start + room])
            start += room
            if sum(map(len, cut)) == rows:
                yield cut
                cut = []
    if cut:
        yield cut


def _cuts(
    stack: Sequence[Tensor], rows: int, outputs: Sequence[Tensor]
) -> Iterator[Sequence[Tensor]]:
    """What is solved at once: some rows, or a whole matrix whose outputs are known."""
    return ([matrix] for matrix in stack) if outputs else _slices(stack, rows)


def _whole(cut: Sequence[Tensor]) -> Tensor:
    """The rows of a slice: [at most `rows`, I] float32, to be held no longer than it is used."""
    whole = cut[0] if len(cut) == 1 else torch.cat(list(cut))
    return whole.float().contiguous()


def _recut(whole: Rounded, stack: Sequence[Tensor], rows: int) -> list[Rounded]:
    """The slices of a rounded stack."""
    return _cut(whole, [sum(map(len, cut)) for cut in _slices(stack, rows)])


def _cut(rounded: Rounded, sizes: list[int]) -> list[Rounded]:
    """So many rows each."""
    columns = (t.split(sizes) for t in (rounded.codes, rounded.scale, rounded.zero))
    return [
        replace(rounded, codes=codes, scale=scale, zero=zero)
        for codes, scale, zero in zip(*columns, strict=True)
    ]


def joined(parts: Sequence[Rounded]) -> Rounded:
    """Slices of rows, one after another."""
    if len(parts) == 1:
        return parts[0]
    codes, scale, zero = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero")
    )
    return replace(parts[0], codes=codes, scale=scale, zero=zero)


def finite(
    linears: Sequence[Linear],
    weights: Mapping[str, Tensor],
    rows: int,
    kept: Callable[[Linear, SolveError], LinearResult],
) -> tuple[list[Linear], list[LinearResult]]:
    """The linears whose weights are finite, looked at by so many rows; what is `kept` of others."""
    broken = [
        linear
        for linear in linears
        if not all(torch.isfinite(part).all() for part in weights[linear.name].split(rows))
    ]
    error = SolveError("its weights hold NaN or infinite values")
    return [x for x in linears if x not in broken], [kept(x, error) for x in broken]
