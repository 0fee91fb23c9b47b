"""Round the linears that share an input: those of one scheme are stacked and share one inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit, round_to_nearest
from compress.kernels.hessian import Inverse, invert, output_errors
from compress.recipe.scheme import Scheme
from compress.results import LinearResult

# Rows solved at once: bounds the memory of a head, which is far taller than any other linear.
_ROWS = 16384


@dataclass(frozen=True)
class Rounder:
    """Rounds linears by their schemes; what cannot be solved fails, or is kept dense and named."""

    schemes: Mapping[str, Scheme]
    on_unsolvable: str

    def __call__(
        self, linears: Sequence[Linear], weights: Mapping[str, Tensor], hessian: Tensor
    ) -> tuple[dict[str, Rounded], list[LinearResult]]:
        """Round linears that share an input; see `blockwise.Solve`.

        Raises:
            SolveError: one cannot be solved and the recipe does not say to keep it dense.
        """
        rounded: dict[str, Rounded] = {}
        results: list[LinearResult] = []
        broken = [x for x in linears if not torch.isfinite(weights[x.name]).all()]
        for linear in broken:
            error = SolveError("its weights hold NaN or infinite values")
            results.append(self._unsolved(linear, self.schemes[linear.name], error))
        sound = [linear for linear in linears if linear not in broken]
        for scheme, same in groupby(sound, key=lambda linear: self.schemes[linear.name]):
            members = list(same)
            stacked = torch.cat([weights[linear.name] for linear in members])
            try:
                solution = _round(stacked, hessian, scheme)
            except SolveError as error:
                results += [self._unsolved(linear, scheme, error) for linear in members]
                continue
            for linear, piece in zip(members, solution.split(members), strict=True):
                rounded[linear.name] = piece.rounded
                results.append(piece.result(linear, scheme))
        return rounded, results

    def _unsolved(self, linear: Linear, scheme: Scheme, error: SolveError) -> LinearResult:
        if self.on_unsolvable == "fail":
            raise SolveError(
                f"{linear.name}: {error}. Use more or other calibration text, or set "
                "on_unsolvable: keep_dense to leave such linears as they are."
            ) from error
        return LinearResult(
            linear.name, linear.block, linear.role, scheme.method, "kept_dense", None, None, 0.0,
            note=str(error),
        )  # fmt: skip


@dataclass(frozen=True)
class _Solution:
    """Rounded rows with, for each output, its error and its energy: mean squares per token, [O]."""

    rounded: Rounded
    error: Tensor
    energy: Tensor
    inverse: Inverse | None

    def split(self, linears: Sequence[Linear]) -> list[_Solution]:
        """The rows of each linear of the stack."""
        r, sizes = self.rounded, [linear.out_features for linear in linears]
        columns = (r.codes, r.scale, r.zero, self.error, self.energy)
        return [
            _Solution(
                Rounded(codes, scale, zero, r.bits, r.group_size, r.sym),
                error,
                energy,
                self.inverse,
            )
            for codes, scale, zero, error, energy in zip(
                *(t.split(sizes) for t in columns), strict=True
            )
        ]

    def result(self, linear: Linear, scheme: Scheme) -> LinearResult:
        """The record of one linear."""
        energy = float(self.energy.sum())
        return LinearResult(
            linear.name, linear.block, linear.role, scheme.method, "solved",
            scheme.bits, scheme.group_size,
            relative_error=float(self.error.sum()) / energy if energy else 0.0,
            damp_percent=self.inverse.damp_percent if self.inverse else None,
            dead_columns=int(self.inverse.dead.sum()) if self.inverse else 0,
        )  # fmt: skip


def _round(weight: Tensor, hessian: Tensor, scheme: Scheme) -> _Solution:
    """Round a weight [O, I] by slices of rows: given the Hessian [I, I], rows are independent."""
    inverse = invert(hessian, scheme.damp_percent) if scheme.needs_hessian else None
    parts = [_round_rows(rows, hessian, inverse, scheme) for rows in weight.split(_ROWS)]
    if len(parts) == 1:
        return parts[0]
    first = parts[0].rounded
    codes, scale, zero = (
        torch.cat([getattr(part.rounded, name) for part in parts])
        for name in ("codes", "scale", "zero")
    )
    whole = Rounded(codes, scale, zero, first.bits, first.group_size, first.sym)
    error, energy = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("error", "energy")
    )
    return _Solution(whole, error, energy, inverse)


def _round_rows(
    weight: Tensor, hessian: Tensor, inverse: Inverse | None, scheme: Scheme
) -> _Solution:
    importance = inverse.curvature if inverse else None
    scale, zero = fit(
        weight, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
        search=scheme.scale_search, importance=importance,
    )  # fmt: skip
    if scheme.method == "gptq" and inverse is not None:
        codes = gptq(
            weight,
            inverse,
            scale,
            zero,
            bits=scheme.bits,
            desc_act=scheme.desc_act,
            sweeps=scheme.sweeps,
        )
        rounded = Rounded(
            codes, scale, zero.byte(), scheme.bits, weight.shape[1] // scale.shape[1], scheme.sym
        )
    else:
        rounded = round_to_nearest(weight, scale, zero, bits=scheme.bits, sym=scheme.sym)
    error, energy = output_errors(weight, rounded.dequantize(), hessian)
    return _Solution(rounded, error, energy, inverse)
