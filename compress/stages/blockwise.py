"""Solve a model one decoder block at a time: collect, solve, commit, carry the activations on.

One block's weights are resident, and the activations that enter it, which have passed through every
block already solved: each block is fitted to the inputs it will really get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear
from compress.kernels.activations import Rounds
from compress.kernels.grid import Rounded
from compress.kernels.hessian import mean, with_energies
from compress.kernels.int8 import product
from compress.machine import give_back_memory
from compress.results import LinearResult
from compress.stages.context import Context
from compress.stages.drift import Drift, Sinks, Teacher, accumulate_windows, energies
from compress.stages.learned import Learner, Learning
from compress.stages.stream import Stream, check
from compress.stages.team import Team
from compress.student import Student
from compress.surgery import inputs
from compress.surgery.walk import Walk

Solution = tuple[dict[str, Rounded], list[LinearResult]]
_Weights = Mapping[str, Tensor]  # of linears, [O, I] by name
Solve = Callable[
    [Sequence[Linear], Mapping[str, Tensor], Tensor, Tensor, Mapping[str, Tensor]], Solution
]
"""Solve linears that share an input, given their weights [O, I] by name, their Hessian [I, I], the
largest magnitude of each input column [I], and what they lack, [O, I] by name (see `drift`).

Returns the codes of those that were solved and a record of each."""
Finish = Callable[[_Weights, dict[str, Rounded]], tuple[dict[str, Rounded], dict[str, Tensor]]]
"""Finish a solved block, given its tensors as they were and its codes by name.

Returns the codes to commit, and the other tensors that have changed."""


def as_solved(
    _: _Weights, rounded: dict[str, Rounded]
) -> tuple[dict[str, Rounded], dict[str, Tensor]]:
    """Finish a block of which nothing but the linears changed; see `Finish`."""
    return rounded, {}


def solve_blocks(  # noqa: PLR0913 - all that a walk can be told
    student: Student,
    context: Context,
    solve: Solve,
    *,
    wanted: Callable[[Linear], bool],
    true_sequential: bool,
    sinks: Sinks,
    correction: float = 0.0,
    correlated: int = 1,
    step: str,
    finish: Finish = as_solved,
    learning: Learning | None = None,
) -> tuple[list[LinearResult], Callable[[], Tensor]]:
    """Walk a student, solving and committing each of its blocks.

    Of several processes each walks its own windows; the first solves, from what all have seen.

    Args:
        student: read block by block; each block is committed when it is solved.
        context: windows, device, scratch.
        solve: called once for all wanted linears of a block that share an input.
        wanted: which linears to solve.
        true_sequential: o_proj sees what the rounded q, k and v make of the input, and so on. It
            takes one forward a block instead of two, and holds what all of them have at hand.
        sinks: which tokens of a window count for more.
        correction: share of the teacher's lead that linears are asked to make up for; see `drift`.
            Needs true_sequential, and a walk of the teacher beside the student's.
        correlated: of every so many windows one tells the Hessian how columns go together; all
            tell how large they are. For who solves by the diagonal, and only judges by the rest.
        step: what to call this in progress records.
        finish: called for every solved block before it is committed.
        learning: how the codes of a solved block learn; None: they stay.

    Returns:
        One record a linear, and what gives the normed final hidden states [B, T, D] of the solved
        model (of this process's windows) to whoever asks.
    """
    team, windows = context.team, len(context.ids)
    context = replace(context, ids=team.windows(context.ids))
    stream = Stream(student, context)
    teacher = Teacher(student, context, correction, sinks) if correction else None
    blocks = student.anatomy.blocks
    solve_block = _in_order if true_sequential else _at_once
    results: list[LinearResult] = []
    for block in blocks:
        groups = sharing(block, wanted)
        if not groups:
            continue
        told = partial(context.tell, step, block.index, len(blocks))
        found = student.finished(block.index)
        if found is None:
            parts = stream.before(block.index)
            stored = student.block(block.index)
            beside = teacher.beside(block, parts) if teacher else contextlib.nullcontext()
            with stream.walk.filled(block.index, stored) as module:
                learner = (
                    Learner(learning, stream.walk, block, module, parts, context, windows)
                    if learning
                    else None
                )
                with beside as drift:
                    here = _Block(
                        stream.walk, block, module, stored, parts, groups, solve, sinks,
                        context.room, told, team, windows, drift, correlated,
                    )  # fmt: skip
                    rounded, found = solve_block(here)
                if learner:
                    told("codes that learn")
                    theirs = teacher.behind(block) if teacher else None
                    rounded, found = learner.learn(stored, rounded, found, parts, theirs)
                    learner = None  # nor what it keeps, beside the next block's
            check(block, parts, team)
            team.first(partial(_commit, student, block, finish, stored, rounded, found))
            student.finished(block.index)
            stream.passed(block.index)
        results += found
        context.tell(step, block.index + 1, len(blocks))
    return results, stream.final


def _commit(
    student: Student,
    block: Block,
    finish: Finish,
    stored: _Weights,
    rounded: dict[str, Rounded],
    found: Sequence[LinearResult],
) -> None:
    """Make what has become of a block final."""
    codes, plain = finish(stored, rounded)
    student.commit(block.index, codes, found, plain)


@dataclass(frozen=True)
class _Seen:
    """What the inputs of linears that share them were."""

    hessian: Tensor  # [I, I], summed and then the mean
    peaks: Tensor  # [I], the largest magnitude of each column
    energies: Tensor  # [I], sums of squares; where only some windows make the Hessian
    given: Sequence[Tensor] = ()  # the inputs [N, I] themselves, where the drift is looked at
    lacks: Mapping[str, Tensor] = field(default_factory=dict)  # by linear, see `drift`


@dataclass(frozen=True)
class _Block:
    """A filled block, the activations that enter it, and what is to be solved in it."""

    walk: Walk
    block: Block
    module: nn.Module
    stored: Mapping[str, Tensor]  # its tensors as they are stored, whatever type it computes in
    parts: Sequence[Tensor]
    groups: Sequence[Sequence[Linear]]  # linears that share an input, in the order data flows
    solve: Solve
    sinks: Sinks
    room: Callable[..., Tensor]
    tell: Callable[[str], None]
    team: Team
    windows: int  # of all processes; `parts` are those of this one
    drift: Drift | None = None
    correlated: int = 1  # see `solve_blocks`

    def solve_groups(self, seen: Callable[[Sequence[Linear], _Weights], _Seen]) -> Solution:
        """Solve group after group, each from the Hessian that is made for it then."""
        rounded: dict[str, Rounded] = {}
        records: list[LinearResult] = []
        for group in self.groups:
            weights = {linear.name: self._weight(linear) for linear in group}
            codes, found = self._solve_group(group, weights, seen(group, weights))
            rounded |= codes
            records += found
        return rounded, records

    def _solve_group(self, group: Sequence[Linear], weights: _Weights, seen: _Seen) -> Solution:
        """Solve linears that share an input, and put what they have become in their place."""
        self.tell(group[0].name)
        give_back_memory()
        solve = partial(self.solve, group, weights, seen.hessian, seen.peaks, seen.lacks)
        rounded, records = self.team.first(solve)
        for linear in group:
            dense = weights[linear.name]
            if linear.name in rounded:
                dense, rounds = _made(rounded[linear.name])
                inputs.replace(self.module, self.block, linear, dense, rounds)
            if self.drift is not None:
                self.drift.passed(linear, seen.given, dense)
        return rounded, records

    def _weight(self, linear: Linear) -> Tensor:
        """What is to be rounded: [O, I], in the dtype in which it is stored."""
        stored = self.stored[linear.name + ".weight"].to(self.parts[0].device)
        return linear.turned(stored)

    def total(self, group: Sequence[Linear]) -> _Seen:
        """A Hessian to be summed."""
        width, device = group[0].in_features, self.parts[0].device
        peaks, squares = torch.zeros(2, width, device=device)
        return _Seen(torch.zeros(width, width, device=device), peaks, squares)

    def add(self, total: _Seen, x: Tensor) -> None:
        """Sum inputs [N, I] into a Hessian, those of attention sinks many times."""
        seq_len = self.parts[0].shape[1]
        some = x.view(-1, seq_len, x.shape[1])[:: self.correlated].flatten(0, 1)
        accumulate_windows(total.hessian, some, seq_len, self.sinks)
        if self.correlated > 1:
            total.energies.add_(energies(x, seq_len, self.sinks))
        total.peaks.copy_(torch.maximum(total.peaks, torch.maximum(x.amax(0), -x.amin(0))))

    def mean(self, total: _Seen) -> _Seen:
        """The finished Hessian: a mean in which sinks count many times, over all processes."""
        self.team.add_up(total.hessian)
        self.team.largest(total.peaks)
        tokens = self.sinks.counted(self.windows, self.parts[0].shape[1])
        hessian = mean(total.hessian, tokens)
        if self.correlated > 1:
            self.team.add_up(total.energies)
            hessian = with_energies(hessian, total.energies / tokens)
        return replace(total, hessian=hessian)

    def with_lacks(self, group: Sequence[Linear], weights: _Weights, seen: _Seen) -> _Seen:
        """What was seen, and what the linears lack of the teacher's."""
        if self.drift is None:
            return seen
        lacks = self.drift.lacks(group, seen.given, weights, seen.hessian)
        return replace(seen, lacks=lacks)


def _made(part: Rounded) -> tuple[Tensor, Rounds | None]:
    """The weight that a linear has become, and how it rounds inputs; see also `stages.pruning`."""
    if isinstance(part, Tensor):  # pruned, and no codes
        return part, None
    return part.dequantize(), product(part)


def _in_order(here: _Block) -> Solution:
    """Solve each group behind those before it; every forward runs once, paused at each group."""
    forwards = inputs.Forwards(here.walk, here.block, here.module, here.parts, here.room)
    if here.drift is not None and all(linear.role != "o" for g in here.groups for linear in g):
        here.drift.skipped()

    def seen(group: Sequence[Linear], weights: _Weights) -> _Seen:
        given: list[Tensor] = []
        total = here.total(group)
        forwards.to(group[0], given.append)
        for x in given:
            here.add(total, x)
        return here.with_lacks(group, weights, replace(here.mean(total), given=given))

    solution = here.solve_groups(seen)
    forwards.finish()
    return solution


def _at_once(here: _Block) -> Solution:
    """Solve all groups from one dense forward, then run the rounded block: twice the work."""
    totals = {group[0].name: here.total(group) for group in here.groups}
    for part in here.parts:
        forward = inputs.Forwards(here.walk, here.block, here.module, [part.clone()])
        for group in here.groups:
            forward.to(group[0], partial(here.add, totals[group[0].name]))
    solution = here.solve_groups(lambda group, _: here.mean(totals.pop(group[0].name)))
    for part in here.parts:
        part.copy_(here.walk.call(here.block.index, here.module, part))
    return solution


def sharing(block: Block, wanted: Callable[[Linear], bool]) -> list[list[Linear]]:
    """The wanted linears of a block, those together that share an input."""
    linears = [linear for linear in block.linears if wanted(linear)]
    return [list(group) for _, group in groupby(linears, key=lambda linear: linear.shares)]
