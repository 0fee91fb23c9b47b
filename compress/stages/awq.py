"""AWQ: enlarge the columns of weights whose inputs are large, before they are rounded.

Factors are found for each group of linears when its turn comes, and folded when the whole block is
solved. Until then nothing else of it is touched: linears read undivided inputs, so what their codes
stand for is divided instead. Factors are powers of two: that is the same, bit for bit, and codes of
v and up that are there already stay what they are, for only their scales are divided.

Source: Lin et al. 2023, arXiv:2306.00978.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.anatomy import Block, Linear
from compress.errors import SolveError
from compress.kernels.grid import Rounded, storable
from compress.kernels.hessian import invert
from compress.kernels.smooth import grown, rounding_error, some_rows
from compress.recipe.scheme import Scheme
from compress.results import LinearResult
from compress.stages.gate import Gated
from compress.stages.smooth import Fold, folds
from compress.student import Student


@dataclass(frozen=True)
class _Enlarged(Rounded):
    """Codes of enlarged columns, in front of inputs that are not divided yet."""

    by: Tensor | None = None  # [I]

    def dequantize(self) -> Tensor:
        """The weights that such inputs are multiplied by: [O, I] float32."""
        dense = super().dequantize()
        return dense if self.by is None else dense.div_(self.by)


class Enlarging:
    """Solves linears as `Gated` does, their columns enlarged; see `blockwise.Solve`."""

    def __init__(self, solve: Gated, student: Student) -> None:
        """Begin with a student of which no block is at work."""
        self._solve, self._student = solve, student
        self._found: list[tuple[Fold, Tensor]] = []  # of the block at work
        self._codes: dict[str, Rounded] = {}

    def __call__(
        self,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor,
        peaks: Tensor,
        lacks: Mapping[str, Tensor],
    ) -> tuple[dict[str, Rounded], list[LinearResult]]:
        """Find factors for linears that share an input, and solve these behind them.

        The Hessian is divided for a while, and given back as it was.
        """
        fold = self._fold(linears[0])
        by = None if fold is None else self._factors(fold, linears, weights, hessian)
        if fold is None or by is None:
            rounded, records = self._solve(linears, weights, hessian, peaks, lacks)
            self._codes |= rounded
            return rounded, records
        columns = fold.spread(by)
        larger = {name: weight * columns.to(weight.dtype) for name, weight in weights.items()}
        smaller = {name: lack / columns for name, lack in lacks.items()}
        hessian.div_(columns).div_(columns[:, None])
        rounded, records = self._solve(linears, larger, hessian, peaks / columns, smaller)
        hessian.mul_(columns).mul_(columns[:, None])
        self._found.append((fold, by))
        self._codes |= rounded
        return {name: _enlarged(codes, columns) for name, codes in rounded.items()}, records

    def folded(
        self, stored: Mapping[str, Tensor], rounded: Iterable[str]
    ) -> tuple[dict[str, Rounded], dict[str, Tensor]]:
        """Fold the factors of a block that is solved.

        Args:
            stored: its tensors by full name, as they were.
            rounded: names of the linears that have become codes.

        Returns:
            The codes of these for divided inputs, and what changed of all other tensors.
        """
        codes = {name: self._codes[name] for name in rounded}
        plain = {n: t for n, t in stored.items() if n.removesuffix(".weight") not in codes}
        for fold, by in self._found:
            fold.apply(plain, by)
            if (made := codes.get(fold.maker)) is not None:
                codes[fold.maker] = dataclasses.replace(made, scale=made.scale / by[:, None])
        self._found, self._codes = [], {}
        return codes, {name: t for name, t in plain.items() if t is not stored[name]}

    def _fold(self, linear: Linear) -> Fold | None:
        """Where factors of the inputs of a linear go; None where they cannot."""
        block: Block = self._student.anatomy.blocks[linear.block or 0]
        coded = self._student.coded(block.index)
        found = folds(block, self._student.config, self._solve.asked, coded)
        return next((fold for fold in found if linear in fold.readers), None)

    def _factors(
        self,
        fold: Fold,
        linears: Sequence[Linear],
        weights: Mapping[str, Tensor],
        hessian: Tensor,
    ) -> Tensor | None:
        """By what to divide the inputs, as channels of their maker [C]; None: nobody can tell."""
        schemes = self._solve.rounder.schemes
        rows = [(some_rows(weights[x.name]), schemes[x.name]) for x in linears]
        try:
            importance = _importance(hessian, schemes[linears[0].name])
        except SolveError:  # which the solver will meet again, and knows what to do about
            return None

        def error(by: Tensor) -> float:
            s = fold.spread(by)
            parts = (_error(weight * s, importance / s.square(), scheme) for weight, scheme in rows)
            return sum(parts)

        by = grown(fold.gathered(hessian.diagonal().sqrt()), error)
        return by if fold.maker not in self._codes else _dividing(by, self._codes[fold.maker])


def _importance(hessian: Tensor, scheme: Scheme) -> Tensor:
    """What errors of a column cost, [I]: less where GPTQ lets other columns make up for them.

    Raises:
        SolveError: the Hessian has no inverse.
    """
    undamped = hessian.diagonal().clone()
    if not scheme.by_gptq:
        return undamped
    try:
        return invert(hessian, scheme.damp_percent).curvature
    finally:
        hessian.diagonal().copy_(undamped)


def _error(weight: Tensor, importance: Tensor, scheme: Scheme) -> float:
    return rounding_error(
        weight, importance, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
        search=scheme.scale_search,
    )  # fmt: skip


def _enlarged(codes: Rounded, by: Tensor) -> _Enlarged:
    fields = {field.name: getattr(codes, field.name) for field in dataclasses.fields(Rounded)}
    return _Enlarged(**fields, by=by)


def _dividing(by: Tensor, made: Rounded) -> Tensor:
    """Factors [O] by which scales [O, G] can be divided and still be stored; 1 for other rows."""
    divided = made.scale / by[:, None]
    fits = (storable(divided) == divided).all(1)
    return torch.where(fits, by, torch.ones_like(by))
