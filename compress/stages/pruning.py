"""Prune the linears that share an input: those of one scheme are stacked and share one inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit
from compress.kernels.hessian import Factor, Inverse, invert, output_errors
from compress.kernels.masks import best, pruned
from compress.kernels.refit import refit
from compress.kernels.sparsegpt import sparsegpt
from compress.kernels.wanda import magnitude, wanda
from compress.recipe.pruning import Pruning
from compress.results import Limits, LinearResult

Part = Tensor | Rounded


@dataclass(frozen=True)
class Pruner:
    """Prunes linears by their schemes; what cannot be solved fails, or is kept dense and named."""

    schemes: Mapping[str, Pruning]
    on_unsolvable: str
    rows: int = Limits().solve_rows  # of a stack, solved at once

    def __call__(
        self,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor | None,
        peaks: Tensor | None = None,
        lacks: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Any], list[LinearResult]]:  # Any: a Part, where others only round
        """Prune linears that share an input; see `blockwise.Solve`.

        Args:
            linears: in any order; neighbours of one scheme are solved together.
            weights: [O, I] by name, any float.
            hessian: [I, I] float32, damped for a while and given back; None for `magnitude`, and
                errors are those of the weights themselves.
            peaks: not looked at.
            lacks: [O, I] by name, what linears lack of the teacher's (see `drift`): what stays
                makes up for it, and errors are those against the weights that would.

        Returns:
            A weight in the dtype of the one that was given, or codes, by name, and the records.

        Raises:
            SolveError: one cannot be solved and the recipe does not say to keep it dense.
        """
        parts: dict[str, Part] = {}
        results: list[LinearResult] = []
        for scheme, same in groupby(linears, key=lambda linear: self.schemes[linear.name]):
            members = list(same)
            lack = [lacks[linear.name] for linear in members] if lacks else []
            stack = [weights[linear.name] for linear in members]
            try:
                whole, error, energy = _prune(stack, hessian, scheme, self.rows, lack)
            except SolveError as error:
                results += [self._unsolved(linear, scheme, error) for linear in members]
                continue
            sizes = [linear.out_features for linear in members]
            cut = zip(members, _cut(whole, sizes), error.split(sizes), energy.split(sizes),
                      strict=True)  # fmt: skip
            for linear, part, missed, whole_energy in cut:
                parts[linear.name] = part
                share = float(missed.sum() / whole_energy.sum().clamp_min(1e-30))
                results.append(_record(linear, scheme, part, share))
        return parts, results

    def _unsolved(self, linear: Linear, scheme: Pruning, error: SolveError) -> LinearResult:
        if self.on_unsolvable == "fail":
            raise SolveError(
                f"{linear.name}: {error}. Use more or other calibration text, or set "
                "on_unsolvable: keep_dense to leave such linears as they are."
            ) from error
        return LinearResult(
            linear.name, linear.block, linear.role, scheme.method, "kept_dense", None, None, 0.0,
            note=str(error),
        )  # fmt: skip


def _record(linear: Linear, scheme: Pruning, part: Part, error: float) -> LinearResult:
    dense = part if isinstance(part, Tensor) else part.dequantize()
    grid = scheme.grid
    return LinearResult(
        linear.name, linear.block, linear.role, scheme.method, "solved",
        grid.bits if grid else None, grid.group_size if grid else None, error,
        sparsity=1 - int(dense.count_nonzero()) / dense.numel(),
        kept_per_row=scheme.kept(linear.in_features),
    )  # fmt: skip


def _prune(
    stack: Sequence[Tensor],
    hessian: Tensor | None,
    scheme: Pruning,
    rows: int,
    lacks: Sequence[Tensor],
) -> tuple[Part, Tensor, Tensor]:
    """Matrices [O, I] pruned, with what `output_errors` says of their rows, one after another."""
    dtype = stack[0].dtype
    weight = torch.cat([matrix.float() for matrix in stack])
    if not torch.isfinite(weight).all():
        raise SolveError("its weights, or those solved with it, hold NaN or infinite values")
    if hessian is None:
        mask = best(magnitude(weight), *scheme.share(weight.shape[1]))
        found = pruned(weight, mask, dtype)
        return found, (found.float() - weight).square().sum(1), weight.square().sum(1)
    undamped = hessian.diagonal().clone()
    try:
        tools = _tools(hessian, scheme)
        if lacks and tools.inverse is not None:
            weight += torch.cat(list(lacks)) @ tools.inverse.inverse
        parts = [_solved(part, undamped, scheme, tools, dtype) for part in weight.split(rows)]
    finally:
        hessian.diagonal().copy_(undamped)
    whole = _joined(parts)
    dense = whole.float() if isinstance(whole, Tensor) else whole.dequantize()
    return whole, *output_errors(weight, dense.clone(), hessian)


@dataclass(frozen=True)
class _Tools:
    """What solving needs of a Hessian; Wanda without refining needs nothing."""

    inverse: Inverse | None = None
    in_order: Factor | None = None
    by_activation: Factor | None = None  # in the order in which a grid's columns are rounded


def _tools(hessian: Tensor, scheme: Pruning) -> _Tools:
    if scheme.method == "wanda" and not scheme.refine:
        return _Tools()
    inverse = invert(hessian, scheme.damp_percent)
    in_order = inverse.factor(desc_act=False) if scheme.method == "sparsegpt" else None
    grid = scheme.grid
    return _Tools(inverse, in_order, inverse.factor(desc_act=grid.desc_act) if grid else None)


def _solved(
    weight: Tensor, energies: Tensor, scheme: Pruning, tools: _Tools, dtype: torch.dtype
) -> Part:
    """Rows [O, I] float32, pruned; `energies` [I] are the mean squares of their inputs."""
    share = scheme.share(weight.shape[1])
    if tools.in_order is not None:
        found, mask = sparsegpt(weight, tools.in_order, count=share[0], of=share[1])
    else:
        found, mask = weight, best(wanda(weight, energies), *share)
    if scheme.refine and tools.inverse is not None:
        found = refit(weight, found, mask, tools.inverse.damped, iterations=scheme.refine)
    if scheme.grid is None or tools.by_activation is None or tools.inverse is None:
        return pruned(found, mask, dtype)
    grid = scheme.grid
    scale, zero = fit(
        torch.where(mask, found, 0.0), bits=grid.bits, group_size=grid.group_size, sym=grid.sym,
        search=grid.scale_search, importance=tools.inverse.curvature,
    )  # fmt: skip
    codes = gptq(
        weight, tools.by_activation, scale, zero, bits=grid.bits, sweeps=grid.sweeps, mask=mask
    )
    size = weight.shape[1] // scale.shape[1]
    return Rounded(codes, scale, zero.byte(), grid.bits, size, grid.sym)


def _joined(parts: Sequence[Part]) -> Part:
    """Slices of rows, one after another."""
    if len(parts) == 1:
        return parts[0]
    rounded = [part for part in parts if isinstance(part, Rounded)]
    if not rounded:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    columns = (torch.cat([getattr(p, n) for p in rounded]) for n in ("codes", "scale", "zero"))
    codes, scale, zero = columns
    return replace(rounded[0], codes=codes, scale=scale, zero=zero)


def _cut(whole: Part, sizes: list[int]) -> list[Part]:
    """So many rows each."""
    if isinstance(whole, Tensor):
        return list(whole.split(sizes))
    columns = (t.split(sizes) for t in (whole.codes, whole.scale, whole.zero))
    return [
        replace(whole, codes=codes, scale=scale, zero=zero)
        for codes, scale, zero in zip(*columns, strict=True)
    ]
