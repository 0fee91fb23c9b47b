"""Who gets the zeros that `prune.sparsity` asks for in all, before anything is pruned.

By outliers: a block with a larger share of scores |w|·‖x‖ far above their mean gets fewer. By what
they cost: every fused group is pruned alone by a few sparsities, and what costs the least KL
together is chosen exactly. Either way there are as many zeros as one sparsity would make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from compress.anatomy import Block, Linear
from compress.kernels.allocation import best, whole
from compress.kernels.wanda import outliers
from compress.recipe.prune import Prune
from compress.recipe.pruning import MEASURED, Pruning, pruning_for
from compress.results import ZeroAllocation, ZeroCost, ZeroShare
from compress.stages.blockwise import sharing
from compress.stages.context import Context
from compress.stages.gate import fused
from compress.stages.pruning import Pruner
from compress.stages.sensitivity import Group, Trial, measure
from compress.stages.stream import Stream
from compress.student import Student
from compress.surgery import inputs

_OUTLIER = 5.0  # times the mean score, M of OWL
_STEP = "share zeros"
_Free = Mapping[Linear, Pruning]  # linears whose zeros are shared out, and how they are pruned


def shared_out(
    student: Student, spec: Prune, context: Context
) -> tuple[dict[str, Pruning], ZeroAllocation | None]:
    """How every linear is pruned, and how zeros were shared out; None where they were not.

    What was measured of a block is in the journal.

    Args:
        student: read block by block; nothing of it is changed.
        spec: of the stage; linears whose override gives a sparsity keep that.
        context: windows, device, journal.

    Returns:
        Schemes by linear. Their zeros add up to exactly those of one sparsity; where rows are
        pruned alike (`wanda`), to less than one column of the last linear more.

    Raises:
        SolveError: a linear cannot be solved, or what is measured is no number.
    """
    found = {linear: pruning_for(spec, linear.name) for linear in student.anatomy.linears}
    schemes = {linear: scheme for linear, scheme in found.items() if scheme is not None}
    free = {x: scheme for x, scheme in schemes.items() if scheme.allocation != "uniform"}
    named = {linear.name: scheme for linear, scheme in schemes.items()}
    if not free:
        return named, None
    windows, tokens = MEASURED
    share = _by_outliers if spec.allocation == "owl" else _by_cost
    shares = share(student, free, spec, replace(context, ids=context.ids[:windows, :tokens]))
    zeros = counted(free, {name: one.sparsity for one in shares for name in one.linears})
    named |= {name: replace(named[name], zeros=count) for name, count in zeros.items()}
    return named, _told(spec, free, shares, zeros)


def counted(free: _Free, wanted: Mapping[str, float]) -> dict[str, int]:
    """Zeros of each linear, by name: near a sparsity that is wanted, and exact in all.

    Where what is wanted is more in all than what was asked for, all come nearer to the least
    sparsity there is, none below it.

    Args:
        free: linears, and how they are pruned; all of them were asked for the same sparsity.
        wanted: sparsity by name; together at least what was asked for.
    """
    asked = sum(x.weights - scheme.kept(*_shape(x)) for x, scheme in free.items())
    least = min(scheme.choices[0] for scheme in free.values())
    above = {x: (wanted[x.name] - least) * x.weights for x in free}
    bottom = least * sum(x.weights for x in free)
    nearer = (asked - bottom) / (math.fsum(above.values()) or 1.0)
    found = whole(
        [least * x.weights + nearer * more for x, more in above.items()],
        [x.out_features if scheme.by_rows else 1 for x, scheme in free.items()],
        asked,
    )
    return {x.name: count for x, count in zip(free, found, strict=True)}


def _by_outliers(
    student: Student, free: _Free, _: Prune, context: Context
) -> tuple[ZeroShare, ...]:
    """A block's sparsity is the lower, the more outliers it has than others, in proportion.

    The authors' code makes the range of all sparsities twice the most that one may be off; here
    none is further off than that.

    Source: Yin et al. 2024 (OWL), arXiv:2310.05175, section 3.2.
    """
    members = {
        block.index: linears
        for block in student.anatomy.blocks
        if (linears := [linear for linear in block.linears if linear in free])
    }
    found = _outlier_shares(student, members, context)
    sizes = {index: sum(x.weights for x in linears) for index, linears in members.items()}
    least, asked, _most = next(iter(free.values())).choices
    wanted = by_outliers(found, sizes, asked, asked - least)
    return tuple(
        ZeroShare(tuple(x.name for x in linears), index, "all", wanted[index], found[index])
        for index, linears in members.items()
    )


def by_outliers(
    found: Mapping[int, float], sizes: Mapping[int, int], asked: float, most: float
) -> dict[int, float]:
    """The sparsity of each block: what is asked for in the mean over weights, `most` off at most.

    Args:
        found: share of outliers of each block.
        sizes: weights of each.
        asked: the sparsity of all.
        most: how far from it the block lies whose outliers are furthest from the mean.
    """
    mean = math.fsum(found[index] * n for index, n in sizes.items()) / sum(sizes.values())
    furthest = max(abs(share - mean) for share in found.values()) or 1.0
    return {index: asked - most * (share - mean) / furthest for index, share in found.items()}


def _outlier_shares(
    student: Student, members: Mapping[int, Sequence[Linear]], context: Context
) -> dict[int, float]:
    """The share of outliers of each block, by its index."""
    stream, found = Stream(student, context), dict[int, float]()
    for number, (index, linears) in enumerate(members.items()):
        context.tell(_STEP, number, len(members))
        unit = student.unit(f"zeros/block-{index:05d}")
        if (note := context.noted(unit)) is None:
            energies = _energies(stream, student.anatomy.blocks[index], linears)
            stored = student.block(index)
            weights = {x.name: _weight(stored, x, context.device) for x in linears}
            note = {"outliers": outliers(weights, energies, _OUTLIER)}
            context.note(unit, note)
        found[index] = note["outliers"]
    context.tell(_STEP, len(members), len(members))
    return found


def _energies(stream: Stream, block: Block, linears: Sequence[Linear]) -> dict[str, Tensor]:
    """The mean square of each input of linears, [I] by name, on the way through their block."""
    parts = stream.before(block.index)
    groups = sharing(block, lambda linear: linear in linears)
    sums = [torch.zeros(group[0].in_features, device=parts[0].device) for group in groups]

    def add(energy: Tensor, x: Tensor) -> None:
        energy += x.float().square().sum(0)

    with stream.walk.filled(block.index) as module:
        for part in parts:
            forward = inputs.Forwards(stream.walk, block, module, [part])
            for group, energy in zip(groups, sums, strict=True):
                forward.to(group[0], partial(add, energy))
            forward.finish()
    stream.passed(block.index)
    tokens = sum(part.shape[0] * part.shape[1] for part in parts)
    pairs = zip(groups, sums, strict=True)
    return {linear.name: energy / tokens for group, energy in pairs for linear in group}


def _weight(stored: Mapping[str, Tensor], linear: Linear, device: str) -> Tensor:
    return linear.turned(stored[linear.name + ".weight"].to(device))


def _by_cost(student: Student, free: _Free, spec: Prune, context: Context) -> tuple[ZeroShare, ...]:
    """Each fused group gets one of a few sparsities: of all choices the one of least summed KL.

    It leaves no more weights than one sparsity would, which is a choice too. More zeros are taken
    to cost no less.
    """
    groups = _groups(student, free)
    pruner = partial(Pruner, on_unsolvable=spec.on_unsolvable, rows=context.limits.solve_rows)
    trial = Trial(context.ids, pruner, student.unit("zeros"), _STEP)
    costs = [tuple(accumulate(row, max)) for row in measure(student, groups, trial, context)]
    tried = next(iter(free.values())).choices
    kept = [
        [sum(one[x.name].kept(*_shape(x)) for x in group.linears) for one in group.schemes]
        for group in groups
    ]
    uniform = (tried.index(spec.sparsity or 0.0),) * len(groups)
    choice = best(costs, kept, sum(row[uniform[0]] for row in kept)) or uniform
    return tuple(
        ZeroShare(
            tuple(x.name for x in group.linears), group.block or 0, group.kind, tried[place],
            costs=tuple(ZeroCost(*pair) for pair in zip(tried, row, strict=True)),
        )
        for group, row, place in zip(groups, costs, choice, strict=True)
    )  # fmt: skip


def _groups(student: Student, free: _Free) -> list[Group[Pruning]]:
    """Linears that engines fuse, with every sparsity that they may get."""
    return [
        Group(tuple(members), tuple(
            {x.name: _trial(free[x], sparsity) for x in members}
            for sparsity in free[members[0]].choices
        ))
        for block in student.anatomy.blocks
        for members in fused(linear for linear in block.linears if linear in free)
    ]  # fmt: skip


def _trial(scheme: Pruning, sparsity: float) -> Pruning:
    """How a linear is pruned to see what it costs: by one pass, not refined, not rounded.

    ADMM takes many times as long as SparseGPT, for an error that is a fifth smaller.
    """
    method = "sparsegpt" if scheme.method == "admm" else scheme.method
    return replace(scheme, method=method, sparsity=sparsity, refine=0, grid=None)


def _told(
    spec: Prune, free: _Free, shares: Sequence[ZeroShare], zeros: Mapping[str, int]
) -> ZeroAllocation:
    """The record: what was got, and what it is predicted to cost."""
    sizes = {linear.name: linear.weights for linear in free}
    asked = spec.sparsity or 0.0

    def got(one: ZeroShare) -> float:
        return sum(zeros[n] for n in one.linears) / sum(sizes[n] for n in one.linears)

    by_cost = spec.allocation == "sensitivity"
    return ZeroAllocation(
        "sensitivity" if by_cost else "owl",
        asked,
        sum(zeros.values()),
        tuple(replace(one, sparsity=got(one)) for one in shares),
        math.fsum(_cost(one, one.sparsity) for one in shares) if by_cost else None,
        math.fsum(_cost(one, asked) for one in shares) if by_cost else None,
    )


def _cost(share: ZeroShare, sparsity: float) -> float:
    return next(cost.kl for cost in share.costs if cost.sparsity == sparsity)


def _shape(linear: Linear) -> tuple[int, int]:
    return linear.out_features, linear.in_features
