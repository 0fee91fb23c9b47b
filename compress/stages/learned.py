"""Learned rounding: the codes of a solved block move until the block says more of what it should.

A solver sees one linear at a time. Here all codes of a block learn at once, by the signs of their
gradients, what the block's outputs should be. A code starts where the solver left it; only one that
was nearly the next one can become that. Scales stay, so the layout does. What was not learned from
judges: where its error did not fall, the solver's codes stay.

An output counts by how the teacher's distribution moves with it, where that is known (`curvature`);
a token by one over its size, by which the next norm divides it; the first ones, to which all others
attend, many times.

Source: Cheng et al. 2024 (SignRound), arXiv:2309.05516, who begin at the nearest codes and take all
outputs for alike.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compress.anatomy import Block, Linear, adds_plainly
from compress.kernels import straight_through
from compress.kernels.grid import Rounded
from compress.kernels.hessian import outputs
from compress.kernels.two_sided import damped
from compress.results import LinearResult
from compress.stages.context import Context
from compress.stages.drift import Sinks
from compress.stages.lessons import Order
from compress.surgery import inputs
from compress.surgery.inputs import module_of
from compress.surgery.walk import Walk

WINDOWS = 8  # of one step
REACH = 0.1  # of a step of the grid, that a latent weight goes in all: further, and KL rises (log)
JUDGING = 4  # of so many windows the last is not learned from, and judges


@dataclass(frozen=True)
class Learning:
    """How codes learn."""

    steps: int
    sinks: Sinks
    share: float = 0.0  # of the errors of earlier blocks that this one should undo; see `drift`
    outputs: Mapping[str, Tensor] = field(default_factory=dict)  # [O, O], see `curvature`
    pruned: Container[str] = ()  # linears whose zeros stay


@dataclass(frozen=True)
class _Codes:
    """A linear whose codes learn."""

    linear: Linear
    solved: Rounded
    exact: Tensor  # [O, I], as it was stored
    latent: Tensor  # [O, I] float32, learned
    steps: straight_through.Steps

    def weight(self, dtype: torch.dtype) -> Tensor:
        """What it has become, as it is stored; gradients reach what is learned."""
        made = straight_through.weights(self.latent, self.solved.scale, self.steps, dtype=dtype)
        return self.linear.turned(made)

    def move(self, rate: float) -> None:
        """One step down the signs of the gradients."""
        if self.latent.grad is not None:
            self.latent.detach().sub_(self.latent.grad.sign_(), alpha=rate)
            self.latent.grad = None

    def learned(self) -> Rounded:
        """The codes that the latent weights are nearest to."""
        codes = straight_through.codes(self.latent.detach(), self.solved.bits)
        return replace(self.solved, codes=codes.to(self.solved.codes.dtype))


class Learner:
    """A block about to be solved: what enters it, and what it should make of that."""

    def __init__(
        self, learning: Learning, walk: Walk, block: Block, module: nn.Module,
        parts: Sequence[Tensor], context: Context, windows: int,
    ) -> None:  # fmt: skip
        """Run the block as it is, and keep what entered it.

        Args:
            learning: how codes learn.
            walk: of the student.
            block: which block.
            module: the block, filled, nothing in it solved yet.
            parts: activations [B, T, D] that enter it, of this process's windows; not changed.
            context: of the stage.
            windows: of all processes.
        """
        self._how, self._walk, self._block, self._module = learning, walk, block, module
        self._team, self._at_once = context.team, len(parts[0])
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        kind: Any = {"dtype": parts[0].dtype, "device": parts[0].device}
        self._entered, self._wanted = context.room(shape, **kind), context.room(shape, **kind)
        for part, entered, wanted in zip(
            parts, self._split(self._entered), self._split(self._wanted), strict=True
        ):
            entered.copy_(part)
            wanted.copy_(walk.call(block.index, module, part))
        own = context.team.own(windows)
        self._mine = {window: window - own.start for window in own}
        last = range(JUDGING - 1, windows, JUDGING)
        self._taught = [window for window in range(windows) if window not in last]
        self._judging = list(last) or self._taught  # of fewer than four windows all judge
        # the first process alone knows the curvature of outputs
        self._metric = context.team.first(self._known)
        self._counts = torch.ones(shape[1], device=parts[0].device)
        self._counts[: learning.sinks.tokens] += learning.sinks.weight

    def learn(
        self,
        stored: Mapping[str, Tensor],
        rounded: Mapping[str, Rounded],
        found: Sequence[LinearResult],
        parts: Sequence[Tensor],
        theirs: Sequence[Tensor] | None,
    ) -> tuple[dict[str, Rounded], list[LinearResult]]:
        """Move the codes of the block, now that it is solved.

        Args:
            stored: its tensors as they were, by name.
            rounded: what its linears have become, by name; in place in the module.
            found: a record of each.
            parts: what the block gives, [B, T, D]; written where codes move.
            theirs: what the teacher's block gives, [B, T, D]; None where nothing is to be undone.

        Returns:
            The codes, in place in the module, and the records, their errors those of these codes.
        """
        for wanted, other in zip(self._split(self._wanted), theirs or (), strict=False):
            wanted.lerp_(other.to(wanted), self._how.share)
        linears = [linear for linear in self._block.linears if linear.name in rounded]
        learning = [self._codes(linear, rounded[linear.name], stored) for linear in linears]
        before = self._error()
        for step, windows in enumerate(self._lessons()):
            self._look(learning, windows)
            for one in learning:
                one.move(2 * REACH * (1 - step / self._how.steps) / self._how.steps)
        learned = {one.linear.name: one.learned() for one in learning}
        self._put(learned)
        if self._error() < before:
            for part, entered in zip(parts, self._split(self._entered), strict=True):
                part.copy_(self._walk.call(self._block.index, self._module, entered))
        else:
            learned = dict(rounded)
            self._put(learned)
        errors = self._errors(learning)
        records = [
            _told(record, errors[record.name], rounded[record.name], learned[record.name])
            if record.name in learned
            else record
            for record in found
        ]
        return learned, records

    def _known(self) -> Tensor | None:
        """How much outputs of the block count, [D, D]; None: all alike.

        Where what down gives is added to the stream as it is, its outputs are the block's.
        """
        downs = [linear for linear in self._block.linears if linear.role == "down"]
        if len(downs) > 1 or not adds_plainly(self._walk.weights.config):
            return None
        known = [self._how.outputs[x.name] for x in downs if x.name in self._how.outputs]
        if not known:
            return None
        metric = damped(known[0].to(self._entered.device))
        return metric / metric.diagonal().mean()

    def _codes(self, linear: Linear, solved: Rounded, stored: Mapping[str, Tensor]) -> _Codes:
        exact = linear.turned(stored[linear.name + ".weight"].to(solved.codes.device))
        zeros = exact == 0 if linear.name in self._how.pruned else None
        latent = straight_through.start(solved, exact).requires_grad_()
        steps = straight_through.Steps(solved.zero, solved.bits, zeros)
        return _Codes(linear, solved, exact, latent, steps)

    def _lessons(self) -> Iterator[list[int]]:
        """The windows of each step."""
        order = Order(len(self._taught), min(WINDOWS, len(self._taught)), seed=0)
        for step in range(self._how.steps):
            yield [self._taught[place] for place in order.of(step)]

    def _look(self, learning: Sequence[_Codes], windows: Sequence[int]) -> None:
        """Find the gradients of what is learned, over all processes."""
        for places in self._places(windows):
            with torch.enable_grad():
                made = {
                    f"{one.linear.name}.weight": one.weight(self._entered.dtype) for one in learning
                }
                entered = self._entered[places]
                found = self._walk.run(self._block.index, self._module, entered, made)
                self._cost(found, places).backward()
        for one in learning if self._team.size > 1 else ():
            grad = one.latent.grad
            one.latent.grad = self._team.add_up(
                torch.zeros_like(one.latent) if grad is None else grad
            )

    def _cost(self, found: Tensor, places: Sequence[int]) -> Tensor:
        """What the errors of the block's outputs [B, T, D] cost in some windows."""
        wanted = self._wanted[places].float()
        error = found.float() - wanted
        weighed = error if self._metric is None else error @ self._metric
        energy = wanted.square().mean(-1).clamp_min_(torch.finfo(torch.float32).tiny)
        return ((weighed * error).sum(-1) * self._counts / energy).sum()

    @torch.no_grad()
    def _error(self) -> float:
        """What the errors of the block as it is filled cost in windows that judge."""
        total = torch.zeros((), device=self._entered.device)
        for places in self._places(self._judging):
            made = self._walk.run(self._block.index, self._module, self._entered[places])
            total += self._cost(made, places)
        return float(self._team.add_up(total))

    def _errors(self, learning: Sequence[_Codes]) -> dict[str, float]:
        """The squared error of each linear's outputs over their squares, there too."""
        kind: Any = {"device": self._entered.device}
        totals = {one.linear.name: torch.zeros(2, **kind) for one in learning}

        def see(one: _Codes, dense: Tensor, _: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].reshape(-1, one.linear.in_features)
            counts = self._counts.repeat(len(x) // len(self._counts))
            exact = one.exact.to(x.dtype)
            both = torch.stack([outputs(x, w).square().sum(1) for w in (dense - exact, exact)])
            totals[one.linear.name] += both @ counts

        with ExitStack() as hooks:
            for one in learning:
                target = module_of(self._module, self._block, one.linear)
                dense = one.linear.turned(target.get_parameter("weight"))
                hooks.enter_context(target.register_forward_pre_hook(partial(see, one, dense)))
            self._error()
        found = {name: self._team.add_up(total).tolist() for name, total in totals.items()}
        return {name: error / energy if energy else 0.0 for name, (error, energy) in found.items()}

    def _put(self, rounded: Mapping[str, Rounded]) -> None:
        for linear in self._block.linears:
            if linear.name in rounded:
                dense = rounded[linear.name].dequantize()
                inputs.replace(self._module, self._block, linear, dense)

    def _places(self, windows: Sequence[int]) -> Iterator[list[int]]:
        """Where this process has those of the windows that are its own, as many as run at once."""
        mine = [self._mine[window] for window in windows if window in self._mine]
        yield from (mine[i : i + self._at_once] for i in range(0, len(mine), self._at_once))

    def _split(self, whole: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = whole.split(self._at_once)
        return parts


def _told(record: LinearResult, error: float, solved: Rounded, learned: Rounded) -> LinearResult:
    """The record of a linear, of the codes that it has now."""
    moved = float((solved.codes != learned.codes).float().mean())
    zeros = learned.sparsity if record.sparsity else 0.0
    return replace(record, relative_error=error, learned_codes=moved, sparsity=zeros)
