"""Prune the linears that share an input: those of one scheme share one inverse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from compress.anatomy import Linear
from compress.errors import SolveError
from compress.kernels.admm import admm
from compress.kernels.gptq import gptq
from compress.kernels.grid import Rounded, fit
from compress.kernels.hessian import Factor, Inverse, invert, output_errors
from compress.kernels.masks import best, pruned, share
from compress.kernels.refit import refit
from compress.kernels.sparsegpt import sparsegpt
from compress.kernels.wanda import magnitude, wanda
from compress.recipe.pruning import Pruning
from compress.results import Limits, LinearResult
from compress.stages.rounding import finite, joined, unsolved

Part = Tensor | Rounded


@dataclass(frozen=True)
class Pruner:
    """Prunes linears by their schemes; what cannot be solved fails, or is kept dense and named."""

    schemes: Mapping[str, Pruning]
    on_unsolvable: str
    rows: int = Limits().solve_rows  # of a matrix, solved at once

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
            linears: in any order.
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
        sound, results = finite(linears, weights, self.rows, self._kept)
        for same, group in groupby(sound, key=lambda linear: self._alike(linear.name)):
            members = list(group)
            try:
                with _damped(hessian, same) as tools:
                    for linear in members:
                        scheme, lack = self.schemes[linear.name], (lacks or {}).get(linear.name)
                        found = _prune(weights[linear.name], lack, scheme, tools, self.rows)
                        parts[linear.name] = found.part
                        results.append(found.record(linear, scheme, tools))
            except SolveError as error:
                for linear in members:
                    parts.pop(linear.name, None)
                names = {linear.name for linear in members}
                results = [r for r in results if r.name not in names]
                results += [self._kept(linear, error) for linear in members]
        return parts, results

    def _kept(self, linear: Linear, error: SolveError) -> LinearResult:
        method = self.schemes[linear.name].method
        return unsolved(linear, method, error, on_unsolvable=self.on_unsolvable)

    def _alike(self, name: str) -> Pruning:
        """How a linear is pruned, however many zeros it gets: such linears share one inverse."""
        return replace(self.schemes[name], zeros=None)


@dataclass(frozen=True)
class _Tools:
    """What solving needs of a Hessian; `magnitude` has none, Wanda without refining no inverse."""

    hessian: Tensor | None = None  # undamped
    inverse: Inverse | None = None
    in_order: Factor | None = None
    by_activation: Factor | None = None  # in the order in which a grid's columns are rounded


@contextlib.contextmanager
def _damped(hessian: Tensor | None, scheme: Pruning) -> Iterator[_Tools]:
    """Damp a Hessian for a while."""
    if hessian is None or (scheme.method == "wanda" and not scheme.refine):
        yield _Tools(hessian)
        return
    undamped = hessian.clone()
    try:
        inverse = invert(hessian, scheme.damp_percent)
        in_order = inverse.factor(desc_act=False) if scheme.method == "sparsegpt" else None
        grid = scheme.grid
        factor = inverse.factor(desc_act=grid.desc_act) if grid else None
        yield _Tools(undamped, inverse, in_order, factor)
    finally:
        hessian.copy_(undamped)


@dataclass(frozen=True)
class _Found:
    """What a linear has become, and what of its outputs is lost."""

    part: Part
    error: float

    def record(self, linear: Linear, scheme: Pruning, tools: _Tools) -> LinearResult:
        """The record of it."""
        dense = self.part if isinstance(self.part, Tensor) else self.part.dequantize()
        grid, inverse = scheme.grid, tools.inverse
        return LinearResult(
            linear.name, linear.block, linear.role, scheme.method, "solved",
            grid.bits if grid else None, grid.group_size if grid else None, self.error,
            damp_percent=inverse.damp_percent if inverse else None,
            dead_columns=int(inverse.dead.sum()) if inverse else 0,
            sparsity=1 - int(dense.count_nonzero()) / dense.numel(),
            kept_weights=scheme.kept(*dense.shape),
        )  # fmt: skip


def _prune(
    stored: Tensor, lack: Tensor | None, scheme: Pruning, tools: _Tools, rows: int
) -> _Found:
    """One matrix [O, I] pruned, so many rows at a time; each keeps its share of what stays."""
    weight = stored.float()
    if lack is not None and tools.inverse is not None:
        weight = weight + lack @ tools.inverse.inverse
    kept, height = scheme.kept(*weight.shape), len(weight)
    parts = []
    for start in range(0, height, rows):
        cut = weight[start : start + rows]
        count = share(kept, height, start, start + len(cut))
        parts.append(_solved(cut, count, scheme, tools, stored.dtype))
    whole = _joined(parts)
    dense = whole.float() if isinstance(whole, Tensor) else whole.dequantize()
    if tools.hessian is None:
        error, energy = (dense - weight).square().sum(), weight.square().sum()
    else:
        error, energy = (t.sum() for t in output_errors(weight, dense.clone(), tools.hessian))
    return _Found(whole, float(error / energy.clamp_min(1e-30)))


def _solved(weight: Tensor, count: int, scheme: Pruning, tools: _Tools, dtype: torch.dtype) -> Part:
    """Rows [O, I] float32, pruned to `count` weights, and rounded where the scheme says so."""
    found, mask = _masked(weight, count, scheme, tools)
    if scheme.refine and tools.inverse is not None:
        found = refit(weight, found, mask, tools.inverse.damped, iterations=scheme.refine)
    if scheme.grid is None or tools.by_activation is None or tools.inverse is None:
        return pruned(found, mask, dtype)
    grid = scheme.grid
    scale, zero = fit(
        torch.where(mask, found, 0.0), bits=grid.bits, group_size=grid.group_size, sym=grid.sym,
        search=grid.scale_search, importance=tools.inverse.curvature,
    )  # fmt: skip
    # from the weights that make up for what is pruned: what the loop carries on meets masks again
    codes = gptq(
        found, tools.by_activation, scale, zero, bits=grid.bits, sweeps=grid.sweeps, mask=mask
    )
    size = weight.shape[1] // scale.shape[1]
    return Rounded(codes, scale, zero.byte(), grid.bits, size, grid.sym)


def _masked(weight: Tensor, count: int, scheme: Pruning, tools: _Tools) -> tuple[Tensor, Tensor]:
    """Weights and mask by the scheme's method."""
    rows, columns = weight.shape
    of = scheme.neighbours
    if of is None and scheme.by_rows:
        of = columns
    count = count if of is None else count * of // (rows * columns)
    if tools.in_order is not None:
        return sparsegpt(weight, tools.in_order, count=count, of=of)
    if scheme.method == "admm" and tools.inverse is not None:
        return admm(weight, tools.inverse.damped, count=count, of=of, rounds=scheme.rounds)
    if scheme.method == "wanda" and tools.hessian is not None:
        return weight, best(wanda(weight, tools.hessian.diagonal()), count, of)
    return weight, best(magnitude(weight), count, of)


def _joined(parts: Sequence[Part]) -> Part:
    """Slices of rows, one after another."""
    rounded = [part for part in parts if isinstance(part, Rounded)]
    if not rounded:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return joined(rounded)
