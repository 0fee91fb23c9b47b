"""Reach the linears inside a filled block: see their inputs, replace their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from compress.anatomy import Block, Linear, parallel_residual
from compress.kernels.activations import Rounds
from compress.surgery.rounding import attach, detach
from compress.surgery.walk import Walk


def module_of(module: nn.Module, block: Block, linear: Linear) -> nn.Module:
    """The torch module of one linear."""
    return module.get_submodule(linear.name.removeprefix(block.prefix + "."))


def weight_of(module: nn.Module, block: Block, linear: Linear) -> Tensor:
    """The weight of one linear, [O, I]."""
    return linear.turned(module_of(module, block, linear).get_parameter("weight"))


def replace(
    module: nn.Module, block: Block, linear: Linear, dense: Tensor, rounds: Rounds | None = None
) -> None:
    """Give one linear new weights [O, I]; the tensor it had, maybe a mapped file, is left alone.

    From now on it rounds its inputs as `rounds` says, in forwards that wait before it, too.
    """
    target = module_of(module, block, linear)
    detach(target)
    if rounds is not None:
        attach(target, rounds, transposed=linear.transposed)
    old = target.get_parameter("weight")
    stored = linear.turned(dense).to(old.device, old.dtype).contiguous()
    target.weight = nn.Parameter(stored, requires_grad=False)


def assign(module: nn.Module, block: Block, name: str, tensor: Tensor) -> None:
    """Give one parameter of a filled block, by its full stored name, other values."""
    inner, _, kind = name.removeprefix(block.prefix + ".").rpartition(".")
    target = module.get_submodule(inner)
    old = target.get_parameter(kind)
    new = tensor.to(old.device, old.dtype).contiguous()
    setattr(target, kind, nn.Parameter(new, requires_grad=False))


class Forwards:
    """Forwards of one block over many batches, paused together before one linear after another.

    What a paused forward has computed stays on its own stack, so a linear whose weights are
    replaced while all wait is run once, with the new weights: true-sequential order for the work
    of one forward.
    """

    def __init__(
        self,
        walk: Walk,
        block: Block,
        module: nn.Module,
        parts: Sequence[Tensor],
        room: Callable[..., Tensor] = torch.empty,
    ) -> None:
        """Prepare a forward for each batch [B, T, D]; nothing runs yet.

        `room` makes the tensor, given its shape and dtype, that holds what a linear is given while
        the forwards wait.
        """
        self._walk, self._block, self._module = walk, block, module
        self._parts, self._room = parts, room
        self._running = [greenlet(partial(walk.run, block.index, module, part)) for part in parts]

    @torch.inference_mode()
    def to(self, linear: Linear, see: Callable[[Tensor], None]) -> None:
        """Run every forward up to a linear and show `see` its inputs as [N, I].

        They stay what they are until the forwards go on.
        """
        places: list[Tensor] = []

        def pause(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if not places:
                places.extend(reversed(self._places(linear, x)))
            _move(x, places.pop())
            see(x.view(-1, x.shape[-1]))
            del x, args  # a frame that waits would hold them
            getcurrent().parent.switch()

        target = module_of(self._module, self._block, linear)
        handle = target.register_forward_pre_hook(pause)
        try:
            for forward in self._running:
                forward.switch()
        finally:
            handle.remove()

    def _places(self, linear: Linear, x: Tensor) -> Sequence[Tensor]:
        """For each batch, where the input of a linear waits."""
        if linear.shares == "mlp_input" and not parallel_residual(self._walk.weights.config):
            return self._parts  # attention has been added to what entered: nobody reads it again
        rows = [part.shape[0] * part.shape[1] for part in self._parts]
        held = self._room((sum(rows), x.shape[-1]), dtype=x.dtype, device=x.device)
        places: Sequence[Tensor] = held.split(rows)
        return places

    @torch.inference_mode()
    def finish(self) -> None:
        """Run every forward to its end; outputs take the place of the batches they came from."""
        for part, forward in zip(self._parts, self._running, strict=True):
            part.copy_(forward.switch())


def _move(x: Tensor, place: Tensor) -> None:
    """Give a tensor its own values at another place: there is one for all that wait for long.

    Left among the short-lived tensors of a forward they would tear the heap to pieces, a fifth of
    the resident set, and they could not be spilled.
    """
    x.set_(place.view(x.shape).copy_(x))  # type: ignore[call-overload]  # not in torch's stubs
